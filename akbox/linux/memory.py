"""A stopped task's memory, and what process it belongs to. Precondition everywhere: the task is in a stop of ours."""

from __future__ import annotations

import errno
import os

from akbox import _native


def read_memory(tid: int, address: int, length: int) -> bytes:
    """`length` bytes of the task's memory. Raises OSError(EFAULT) when any of them is not there."""
    fd = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(fd, length, address)
    except OverflowError:  # an address that is none
        data = b""
    finally:
        os.close(fd)
    if len(data) != length:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    return data


def write_memory(tid: int, address: int, data: bytes) -> None:
    """Writes where the task itself could (process_vm_writev keeps to its protections). Raises OSError(EFAULT)."""
    if _native.process_write(tid, address, data) != len(data):
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def thread_group(tid: int) -> int:
    """The process that a task belongs to; 0 when it is gone."""
    try:
        with open(f"/proc/{tid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Tgid:"):
                    return int(line.split()[1])
    except OSError:
        return 0
    return 0
