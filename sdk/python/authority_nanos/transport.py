"""The two doors to the kernel, by ctypes: a reserved prctl option, and the raw system call numbers. Where neither is
served, the channel that AKBOX_CHANNEL names (channel.py).

Both return the reply's length, or fail with an errno; the error's JSON is then in the reply buffer. Outside akbox prctl
says EINVAL and the raw number ENOSYS, both without touching the buffer, which is how the two cases are told apart.
ctypes releases the GIL during a call and keeps errno per thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading

from .errors import AuthorityKernelError, BufferOverflowError, NotUnderAkboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .channel import Channel

    Door = Callable[[int, bytes, Any, int, bool], int]

PRCTL_BASE = 0x414B0000
PRCTL_FETCH = 1 << 15
FETCH = 1
FIRST_CAPACITY = 1 << 16
LAST_CAPACITY = 1 << 26


class Doors:
    """Calls the kernel through whichever door is served here. Thread-safe; every thread has its own reply buffer."""

    def __init__(self, libc: Any = None) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True) if libc is None else libc
        self._local = threading.local()
        self._door: Door | None = None
        self._channel: Channel | None = None
        prctl, syscall = self._libc.prctl, self._libc.syscall
        prctl.restype = ctypes.c_int
        prctl.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong]
        syscall.restype = ctypes.c_long
        syscall.argtypes = [
            ctypes.c_long, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
            ctypes.c_ulong,
        ]  # fmt: skip

    def __call__(self, nr: int, request: bytes) -> tuple[int, bytes]:
        """(0, reply) or (errno, error reply). Raises NotUnderAkboxError when neither door is served."""
        if self._door is not None:
            return self._through(self._door, nr, request)
        if self._channel is not None:
            return self._channel(nr, request)
        for door, absent in ((self._prctl, errno.EINVAL), (self._raw, errno.ENOSYS)):
            error, body = self._through(door, nr, request)
            if error != absent or body:
                self._door = door
                return error, body
        if not os.environ.get("AKBOX_CHANNEL"):
            raise NotUnderAkboxError
        from .channel import Channel

        self._channel = Channel()
        return self._channel(nr, request)

    def _through(self, door: Door, nr: int, request: bytes) -> tuple[int, bytes]:
        buffer = self._buffer(FIRST_CAPACITY)
        error, body = self._once(door, nr, request, buffer, False)
        while error == errno.EMSGSIZE and not body:  # the reply waits for a larger buffer; nothing is done twice
            capacity = len(buffer) * 8
            if capacity > LAST_CAPACITY:
                raise BufferOverflowError(f"the reply is larger than {len(buffer)} bytes", errno=error)
            buffer = ctypes.create_string_buffer(capacity)
            error, body = self._once(door, nr, request, buffer, True)
        return error, body

    @staticmethod
    def _once(door: Door, nr: int, request: bytes, buffer: Any, fetch: bool) -> tuple[int, bytes]:
        buffer[0] = b"\0"
        length = door(nr, request, buffer, len(buffer), fetch)
        if length >= 0:
            if length > len(buffer):
                raise AuthorityKernelError(f"a reply of {length} bytes in a buffer of {len(buffer)}")
            return 0, ctypes.string_at(buffer, length)
        return ctypes.get_errno(), buffer.value

    def _prctl(self, nr: int, request: bytes, buffer: Any, capacity: int, fetch: bool) -> int:
        option = PRCTL_BASE | (PRCTL_FETCH if fetch else 0) | nr
        return int(self._libc.prctl(option, request, len(request), ctypes.addressof(buffer), capacity))

    def _raw(self, nr: int, request: bytes, buffer: Any, capacity: int, fetch: bool) -> int:
        flags = FETCH if fetch else 0
        return int(self._libc.syscall(nr, None, request, len(request), ctypes.addressof(buffer), capacity, flags))

    def _buffer(self, capacity: int) -> Any:
        """This thread's buffer. A forked child has its own copy of it: memory is not shared."""
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = ctypes.create_string_buffer(capacity)
        return buffer


def default_transport() -> Doors:
    """The doors of this process."""
    if os.name != "posix":
        raise NotUnderAkboxError
    return Doors()
