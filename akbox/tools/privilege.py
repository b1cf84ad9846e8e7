"""File work of a tool is done with no capability at all, as the agent's own is: a supervisor that root started may read
what root's agent may not.

Capabilities are a thread's own (capabilities(7)), so the work is done on a thread that has given them up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import TypeVar

T = TypeVar("T")

_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_VERSION_3 = 0x20080522


def as_the_agent(work: Callable[[], T]) -> T:
    """The result of `work`, done without capabilities; whatever it raises."""
    if not _has_capabilities():
        return work()
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            _give_up()
            done.append(work())
        except BaseException as error:  # handed on to the thread that waits
            failed.append(error)

    thread = threading.Thread(target=run, name="akbox-tool-files", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


@cache
def _has_capabilities() -> bool:
    """Of this process, whose threads all have what it began with, but those that gave it up."""
    with open("/proc/self/status", "rb") as file:
        words = dict(line.split(b":", 1) for line in file if line.startswith(b"Cap"))
    return any(int(words[name], 16) for name in (b"CapEff", b"CapPrm"))


def _give_up() -> None:
    """Raises OSError when the kernel does not take them: then the work is not done."""
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYS_CAPSET[os.uname().machine]
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.syscall(ctypes.c_long(number), header, data) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
