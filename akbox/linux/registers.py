"""Where a stopped task's call number, arguments and instruction are, by architecture. Tracer thread only.

python-ptrace reads and writes the registers; this module knows their names. It is imported at the first stop that needs
it: most runs make their authority calls through the prctl door and never do.
"""

from __future__ import annotations

import errno
import platform
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from ptrace.binding import ptrace_getregs, ptrace_setregs
from ptrace.error import PtraceError


class Names(Struct, frozen=True):
    number: str
    arguments: tuple[str, str, str, str, str, str]
    result: str
    instruction: str
    call_bytes: int  # length of the system call instruction


_BY_MACHINE = {
    "x86_64": Names("orig_rax", ("rdi", "rsi", "rdx", "r10", "r8", "r9"), "rax", "rip", 2),
    "aarch64": Names("r8", ("r0", "r1", "r2", "r3", "r4", "r5"), "r0", "pc", 4),
}
NAMES = _BY_MACHINE[platform.machine()]
_WORD = (1 << 64) - 1


def asked(request: Callable[..., Any], tid: int, *arguments: Any) -> Any:
    """What a ptrace request of python-ptrace returns. Raises OSError: ProcessLookupError (ESRCH) when the task was
    killed since it stopped, which may happen at any moment."""
    try:
        return request(tid, *arguments)
    except PtraceError as error:
        raise OSError(error.errno or errno.EIO, str(error)) from error


class Registers(Struct):
    """A task's registers as read at a stop; `store()` writes them back. Precondition: the task is stopped and ours.
    Both raise OSError."""

    tid: int
    raw: Any  # python-ptrace's ctypes structure, one per architecture

    @classmethod
    def load(cls, tid: int) -> Registers:
        return cls(tid, asked(ptrace_getregs, tid))

    def store(self) -> None:
        asked(ptrace_setregs, self.tid, self.raw)

    def get(self, name: str) -> int:
        return int(getattr(self.raw, name))

    def set(self, name: str, value: int) -> None:
        setattr(self.raw, name, value & _WORD)

    @property
    def arguments(self) -> tuple[int, int, int, int, int, int]:
        a, b, c, d, e, f = (self.get(name) for name in NAMES.arguments)
        return a, b, c, d, e, f
