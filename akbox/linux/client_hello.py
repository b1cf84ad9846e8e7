"""The name in a TLS ClientHello (RFC 8446, 4.1.2; RFC 6066, 3), read without decrypting anything.

A name that is encrypted (ECH) is not seen; the outer one is then what counts. Everything is bounded by HELLO_MAX.
"""

from __future__ import annotations

from msgspec import Struct

HELLO_MAX = 16384 + 2048  # bytes looked at; a longer hello is refused
_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0
_RECORD_MAX = 16384


class Hello(Struct, frozen=True):
    """`complete`: enough was seen to tell. `tls`: it begins as TLS does. `name`: what it asks for; "" for none."""

    complete: bool
    tls: bool
    name: str = ""


MORE, OTHER = Hello(False, True), Hello(True, False)


class _Cut(Exception):
    """More bytes are needed."""


class _Bad(Exception):
    """Not what a client would send."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int, cut: type[Exception] = _Bad) -> bytes:
        if count > len(self._data) - self._at:
            raise cut
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int, cut: type[Exception] = _Bad) -> int:
        return int.from_bytes(self.take(size, cut), "big")

    def part(self, length_size: int) -> _Reader:
        """What a length in front says belongs together."""
        return _Reader(self.take(self.number(length_size)))

    @property
    def more(self) -> bool:
        return self._at < len(self._data)


def parse_hello(data: bytes) -> Hello:
    """What the first bytes of a connection say. A hello that is broken or too long is TLS without a name."""
    if data and data[0] != _HANDSHAKE:  # told by the first byte: there may be no second one before an answer
        return OTHER
    try:
        message = _handshake(_Reader(data))
        return Hello(True, True, _server_name(message))
    except _Cut:
        return MORE if len(data) < HELLO_MAX else Hello(True, True)
    except _Bad:
        return Hello(True, data[:1] == bytes([_HANDSHAKE]))


def _handshake(records: _Reader) -> _Reader:
    """The ClientHello's body, from as many records as it is spread over."""
    message = b""
    while True:
        kind, major = records.number(1, _Cut), records.number(1, _Cut)
        if kind != _HANDSHAKE or major != 3:
            raise _Bad
        records.take(1, _Cut)
        length = records.number(2, _Cut)
        if not 0 < length <= _RECORD_MAX:
            raise _Bad
        message += records.take(length, _Cut)
        if message[0] != _CLIENT_HELLO:
            raise _Bad
        if len(message) >= 4 and len(message) - 4 >= int.from_bytes(message[1:4], "big"):
            return _Reader(message[4 : 4 + int.from_bytes(message[1:4], "big")])


def _server_name(hello: _Reader) -> str:
    hello.take(2 + 32)  # version, random
    for size in (1, 2, 1):  # session id, cipher suites, compression
        hello.part(size)
    names: list[str] = []
    extensions = hello.part(2) if hello.more else _Reader(b"")
    while extensions.more:
        kind, body = extensions.number(2), extensions.part(2)
        if kind == _SERVER_NAME:
            entries = body.part(2)
            while entries.more:
                entry, name = entries.number(1), entries.part(2)
                if entry == _HOST_NAME:
                    names.append(name.take(len(name._data)).decode("ascii", "replace"))
    if len(names) > 1:
        raise _Bad  # servers differ in which they take
    return names[0] if names else ""
