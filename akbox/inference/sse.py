"""Server-sent events (WHATWG HTML, 9.2) split into whole events as their bytes come, each with its own bytes kept."""

from __future__ import annotations

from collections.abc import Iterator

from akbox.inference.wire import WireError

MAX_EVENT_BYTES = 16 << 20


class Splitter:
    """Feed bytes, get events (name, data, raw): `raw` is what came, with its empty line, to be sent on as it is."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._seen = 0  # of _rest, looked through without finding an end

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Raises WireError for an event over MAX_EVENT_BYTES."""
        rest = self._rest
        rest += data
        while True:
            end = _end(rest, max(self._seen - 3, 0))
            if end < 0:
                self._seen = len(rest)
                if len(rest) > MAX_EVENT_BYTES:
                    raise WireError("an event of the stream is too long")
                return
            raw = bytes(rest[:end])
            del rest[:end]
            self._seen = 0
            yield (*_fields(raw), raw)

    @property
    def rest(self) -> bytes:
        """What came after the last whole event."""
        return bytes(self._rest)


def _end(data: bytearray, start: int) -> int:
    """Where the first event ends, behind its empty line; -1: it has not ended yet."""
    ends = [at + len(mark) for mark in (b"\n\n", b"\r\n\r\n", b"\r\r") if (at := data.find(mark, start)) >= 0]
    return min(ends, default=-1)


def _fields(raw: bytes) -> tuple[bytes, bytes]:
    name, data = b"", []
    for line in raw.splitlines():
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return name, b"\n".join(data)


def event(name: str, data: bytes) -> bytes:
    """One event; name "": without one."""
    return (b"event: %s\n" % name.encode() if name else b"") + b"data: " + data + b"\n\n"
