"""WASI preview 1 as a tool sees it: its parameters on standard input, its result on standard output, a clock and
randomness. Nothing else is behind the rest of the interface: no file, no directory, no socket, no variable.

Not wasmtime's own WASI, whose streams are files: here what a tool writes is bounded as it writes. Numbers are those of
https://github.com/WebAssembly/WASI/blob/main/legacy/preview1/docs.md.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from typing import Any

MODULE = "wasi_snapshot_preview1"
BADF, FAULT, INVAL, NOTCAPABLE, SPIPE = 8, 21, 28, 76, 70
_IOV_MAX = 1024
_RANDOM_MAX = 1 << 16
_STDERR_KEPT = 64 << 10
_CHARACTER_DEVICE = 2
_REALTIME, _MONOTONIC = 0, 1
_U64 = (1 << 64) - 1

I32, I64 = "i32", "i64"

# Every function of preview 1 with its parameters; each returns an errno as i32, but proc_exit, which does not return.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "args_get": (I32, I32),
    "args_sizes_get": (I32, I32),
    "clock_res_get": (I32, I32),
    "clock_time_get": (I32, I64, I32),
    "environ_get": (I32, I32),
    "environ_sizes_get": (I32, I32),
    "fd_advise": (I32, I64, I64, I32),
    "fd_allocate": (I32, I64, I64),
    "fd_close": (I32,),
    "fd_datasync": (I32,),
    "fd_fdstat_get": (I32, I32),
    "fd_fdstat_set_flags": (I32, I32),
    "fd_fdstat_set_rights": (I32, I64, I64),
    "fd_filestat_get": (I32, I32),
    "fd_filestat_set_size": (I32, I64),
    "fd_filestat_set_times": (I32, I64, I64, I32),
    "fd_pread": (I32, I32, I32, I64, I32),
    "fd_prestat_dir_name": (I32, I32, I32),
    "fd_prestat_get": (I32, I32),
    "fd_pwrite": (I32, I32, I32, I64, I32),
    "fd_read": (I32, I32, I32, I32),
    "fd_readdir": (I32, I32, I32, I64, I32),
    "fd_renumber": (I32, I32),
    "fd_seek": (I32, I64, I32, I32),
    "fd_sync": (I32,),
    "fd_tell": (I32, I32),
    "fd_write": (I32, I32, I32, I32),
    "path_create_directory": (I32, I32, I32),
    "path_filestat_get": (I32, I32, I32, I32, I32),
    "path_filestat_set_times": (I32, I32, I32, I32, I64, I64, I32),
    "path_link": (I32, I32, I32, I32, I32, I32, I32),
    "path_open": (I32, I32, I32, I32, I32, I64, I64, I32, I32),
    "path_readlink": (I32, I32, I32, I32, I32, I32),
    "path_remove_directory": (I32, I32, I32),
    "path_rename": (I32, I32, I32, I32, I32, I32),
    "path_symlink": (I32, I32, I32, I32, I32),
    "path_unlink_file": (I32, I32, I32),
    "poll_oneoff": (I32, I32, I32, I32),
    "proc_exit": (I32,),
    "proc_raise": (I32,),
    "random_get": (I32, I32),
    "sched_yield": (),
    "sock_accept": (I32, I32, I32),
    "sock_recv": (I32, I32, I32, I32, I32, I32),
    "sock_send": (I32, I32, I32, I32, I32),
    "sock_shutdown": (I32, I32),
}


class Stop(Exception):
    """The call ends here. `reason` is one of failure.REASONS, or "done"."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Fault(Exception):
    """An address outside the tool's memory."""


class Streams:
    """One call's standard streams."""

    def __init__(self, stdin: bytes, output_bytes: int) -> None:
        self.stdin, self._at = stdin, 0
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._output_bytes = output_bytes

    def read(self, size: int) -> bytes:
        data = self.stdin[self._at : self._at + size]
        self._at += len(data)
        return data

    def write(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.stderr += data[: max(_STDERR_KEPT - len(self.stderr), 0)]
            return
        if len(self.stdout) + len(data) > self._output_bytes:
            raise Stop("output_size", f"more than {self._output_bytes} bytes on standard output")
        self.stdout += data


class Memory:
    """A tool's memory during one call out of it: every access is checked against its size at that moment."""

    def __init__(self, read: Callable[[int, int], bytes], write: Callable[[bytes, int], None], size: int) -> None:
        self._read, self._write, self._size = read, write, size

    def read(self, address: int, count: int) -> bytes:
        if address + count > self._size:
            raise Fault
        return self._read(address, address + count) if count else b""

    def write(self, address: int, data: bytes) -> None:
        if address + len(data) > self._size:
            raise Fault
        if data:
            self._write(data, address)

    def u32(self, address: int, value: int) -> None:
        self.write(address, struct.pack("<I", value & 0xFFFF_FFFF))

    def u64(self, address: int, value: int) -> None:
        self.write(address, struct.pack("<Q", value & _U64))


def _vectors(memory: Memory, address: int, count: int) -> list[tuple[int, int]] | None:
    if count > _IOV_MAX:
        return None
    return list(struct.iter_unpack("<II", memory.read(address, 8 * count)))


def _fd_read(memory: Memory, streams: Streams, fd: int, vectors: int, count: int, result: int) -> int:
    if fd != 0:
        return BADF
    wanted = _vectors(memory, vectors, count)
    if wanted is None:
        return INVAL
    total = 0
    for address, size in wanted:
        data = streams.read(size)
        memory.write(address, data)
        total += len(data)
        if len(data) < size:
            break
    memory.u32(result, total)
    return 0


def _fd_write(memory: Memory, streams: Streams, fd: int, vectors: int, count: int, result: int) -> int:
    if fd not in (1, 2):
        return BADF
    wanted = _vectors(memory, vectors, count)
    if wanted is None:
        return INVAL
    total = 0
    for address, size in wanted:
        streams.write(fd, memory.read(address, size))
        total += size
    memory.u32(result, total)
    return 0


def _fdstat(memory: Memory, _streams: Streams, fd: int, result: int) -> int:
    if fd > 2:
        return BADF
    rights = 1 << 1 if fd == 0 else 1 << 6  # FD_READ, FD_WRITE
    memory.write(result, struct.pack("<BxHxxxxQQ", _CHARACTER_DEVICE, 0, rights, 0))
    return 0


def _filestat(memory: Memory, _streams: Streams, fd: int, result: int) -> int:
    if fd > 2:
        return BADF
    memory.write(result, struct.pack("<QQB7xQQQQQ", 0, 0, _CHARACTER_DEVICE, 1, 0, 0, 0, 0))
    return 0


def _none_of(memory: Memory, _streams: Streams, count: int, size: int) -> int:
    """No argument and no variable."""
    memory.u32(count, 0)
    memory.u32(size, 0)
    return 0


def _clock(memory: Memory, _streams: Streams, which: int, _precision: int, result: int) -> int:
    if which not in (_REALTIME, _MONOTONIC):
        return INVAL
    memory.u64(result, time.time_ns() if which == _REALTIME else time.monotonic_ns())
    return 0


def _resolution(memory: Memory, _streams: Streams, which: int, result: int) -> int:
    if which not in (_REALTIME, _MONOTONIC):
        return INVAL
    memory.u64(result, 1000)
    return 0


def _random(memory: Memory, _streams: Streams, address: int, count: int) -> int:
    if count > _RANDOM_MAX:
        return INVAL
    memory.write(address, os.urandom(count))
    return 0


def _exit(_memory: Memory, _streams: Streams, status: int) -> int:
    raise Stop("done" if status == 0 else "exit", f"it ended with {status}")


def _fine(*_args: Any) -> int:
    return 0


def _refused(*_args: Any) -> int:
    return NOTCAPABLE


def _no_seek(*_args: Any) -> int:
    return SPIPE


def _no_descriptor(*_args: Any) -> int:
    return BADF


_SERVED: dict[str, Callable[..., int]] = {
    "args_get": _fine,
    "args_sizes_get": _none_of,
    "clock_res_get": _resolution,
    "clock_time_get": _clock,
    "environ_get": _fine,
    "environ_sizes_get": _none_of,
    "fd_close": _fine,
    "fd_fdstat_get": _fdstat,
    "fd_fdstat_set_flags": _fine,
    "fd_filestat_get": _filestat,
    "fd_prestat_dir_name": _no_descriptor,
    "fd_prestat_get": _no_descriptor,
    "fd_read": _fd_read,
    "fd_seek": _no_seek,
    "fd_tell": _no_seek,
    "fd_write": _fd_write,
    "proc_exit": _exit,
    "random_get": _random,
    "sched_yield": _fine,
}


def serve(name: str, memory: Memory, streams: Streams, numbers: tuple[int, ...]) -> int:
    """One call of a tool to WASI; `numbers` are unsigned. Returns the errno. Raises Stop."""
    work: Callable[..., int] = _SERVED.get(name, _refused)
    try:
        return work(memory, streams, *numbers)
    except Fault:
        return FAULT
