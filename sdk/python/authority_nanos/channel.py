"""The framed channel (AKBOX_CHANNEL): for programs whose system calls do not reach the kernel.

One connection, shared by all threads, one call at a time; a forked child opens its own.
"""

from __future__ import annotations

import json
import os
import struct
import threading

from .errors import AuthorityKernelError, BufferOverflowError, NotUnderAkboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADER = struct.Struct("<HBBIQI")
MAGIC, VERSION, REQUEST, ERROR = 0x414B, 1, 1, 4
MAX_REQUEST, MAX_REPLY = 1 << 20, 16 << 20


def _table() -> list[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ 0x82F63B78 if n & 1 else n >> 1
        table.append(n)
    return table


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4)."""
    table = _table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def pack(flags: int, sequence: int, payload: bytes) -> bytes:
    head = HEADER.pack(MAGIC, VERSION, flags, len(payload), sequence, 0)[:16]
    return head + struct.pack("<I", crc32c(head + payload)) + payload


class Channel:
    """A transport like Doors. `path` and `token`: by default AKBOX_CHANNEL and AKBOX_CHANNEL_TOKEN."""

    def __init__(self, path: str | None = None, token: str | None = None) -> None:
        self._path = os.environ.get("AKBOX_CHANNEL") if path is None else path
        self._token = os.environ.get("AKBOX_CHANNEL_TOKEN") if token is None else token
        self._lock = threading.Lock()
        self._socket: Any = None
        self._pid = 0
        self._sequence = 0

    def __call__(self, nr: int, request: bytes) -> tuple[int, bytes]:
        """(0, reply) or (an errno, error reply). Raises NotUnderAkboxError, AuthorityKernelError."""
        if not self._path or not self._token:
            raise NotUnderAkboxError
        body = json.loads(request.decode("utf-8"))
        payload = json.dumps(dict(body, op=nr)).encode("utf-8")
        with self._lock:
            if self._pid != os.getpid():
                self._connect()
            failed, reply = self._exchange(payload)
        return (_errno(reply) if failed else 0), reply

    def _connect(self) -> None:
        import socket

        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._pid, self._sequence = 0, 0
        try:
            self._socket.connect(self._path)
            failed, reply = self._exchange(json.dumps({"op": "HELLO", "token": self._token}).encode("utf-8"))
        except OSError as error:
            raise AuthorityKernelError(f"the channel {self._path}: {error.strerror}", errno=error.errno or 0) from error
        if failed:
            raise AuthorityKernelError(f"the channel was refused: {reply.decode('utf-8', 'replace')}")
        self._pid = os.getpid()

    def _exchange(self, payload: bytes) -> tuple[bool, bytes]:
        if len(payload) > MAX_REQUEST:
            raise BufferOverflowError(f"a request has at most {MAX_REQUEST} bytes")
        self._sequence += 1
        try:
            self._socket.sendall(pack(REQUEST, self._sequence, payload))
            header = self._read(HEADER.size)
            magic, version, flags, length, _sequence, crc = HEADER.unpack(header)
            if magic != MAGIC or version != VERSION or length > MAX_REPLY:
                raise AuthorityKernelError("the kernel sent what is no frame")
            reply = self._read(length)
        except OSError as error:
            self._pid = 0
            raise AuthorityKernelError(f"the channel broke: {error}", errno=error.errno or 0) from error
        if crc32c(header[:16] + reply) != crc:
            self._pid = 0
            raise AuthorityKernelError("a frame came damaged")
        return bool(flags & ERROR), reply

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                self._pid = 0
                raise AuthorityKernelError("the channel was closed")
            data += part
        return data


def _errno(reply: bytes) -> int:
    """The channel carries no errno: any that is not 0 says that it failed; the reply says how."""
    import errno

    return errno.EPERM if reply else errno.EIO
