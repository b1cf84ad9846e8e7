"""Merges floods of equal denials: the first is an entry at once, the rest of its second are one entry with a count.

What is counted but not in the log yet is kept in a small file beside it, so that a killed supervisor loses none of it
(recover.py reads the file). Only denials are ever merged.
"""

import os
import struct
from collections.abc import Iterable, Sequence

import msgspec

from akbox.kernel.digest import sha256
from akbox.kernel.events import ALLOW, RECORD, Event, EventError, pack_event, parse_events

WINDOW_NS = 1_000_000_000
MAX_KEYS = 4096
MAGIC = b"AKPEND1\0"
_HEAD = struct.Struct("<8sI32s")  # magic, payload bytes, SHA-256 of the payload
_COUNT = struct.Struct("<QQ")  # count, last_ts_ns; in front of each record


class _Window(msgspec.Struct):
    start_ns: int
    pending: Event | None = None


def flood_key(event: Event) -> tuple[object, ...]:
    """What makes two denials equal: the same task refused the same thing for the same reason."""
    return (
        event.op,
        event.tid,
        event.nr,
        event.need,
        event.error,
        event.rule,
        event.missing,
        event.target,
        event.target2,
    )


class FloodFilter:
    """Holds the windows of one log. Not thread-safe: the log's lock is held."""

    def __init__(self, pending_path: str | os.PathLike[str] | None = None) -> None:
        self._windows: dict[tuple[object, ...], _Window] = {}  # in order of start_ns
        self._path = pending_path
        self._fd = -1
        self._pending_count = 0
        self._changed = False

    def admit(self, events: Iterable[Event]) -> list[Event]:
        """The events to log now, in order: those passed in that are not merged, and merged ones whose second is
        over."""
        out: list[Event] = []
        windows = self._windows
        for event in events:
            if event.decision == ALLOW:
                out.append(event)
                continue
            if windows:
                self._expire(event.ts_ns, out)
            key = flood_key(event)
            window = windows.get(key)
            if window is None:
                if len(windows) >= MAX_KEYS:
                    self._close(next(iter(windows)), out)
                windows[key] = _Window(event.ts_ns)
                out.append(event)
                continue
            self._changed = True
            if window.pending is None:
                self._pending_count += 1
                window.pending = msgspec.structs.replace(event, count=1, last_ts_ns=event.ts_ns)
            else:
                window.pending.count += 1
                window.pending.last_ts_ns = max(event.ts_ns, window.pending.last_ts_ns)
        return out

    def due(self, now_ns: int | None = None) -> list[Event]:
        """Merged events whose second is over at `now_ns` (None: all)."""
        out: list[Event] = []
        if now_ns is None:
            for key in list(self._windows):
                self._close(key, out)
        else:
            self._expire(now_ns, out)
        return out

    @property
    def idle(self) -> bool:
        return not self._pending_count

    def persist(self) -> None:
        """Writes the counts that are not in the log to the file beside it; call after the log has what it was given."""
        if not self._changed or self._path is None:
            return
        if self._fd < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o600)
        payload = b"".join(
            _COUNT.pack(w.pending.count, w.pending.last_ts_ns) + pack_event(w.pending)
            for w in self._windows.values()
            if w.pending
        )
        data = _HEAD.pack(MAGIC, len(payload), sha256(payload)) + payload
        if os.pwrite(self._fd, data, 0) != len(data):
            raise OSError(28, "short write of the pending counts")
        self._changed = False

    def close(self) -> None:
        """Closes the file, and takes it away when it holds nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if self.idle and not self._changed and self._path is not None:
                os.unlink(self._path)

    def _expire(self, now_ns: int, out: list[Event]) -> None:
        while self._windows:
            key = next(iter(self._windows))
            # A clock that was set back must not keep a count waiting until it has caught up.
            if abs(now_ns - self._windows[key].start_ns) < WINDOW_NS:
                return
            self._close(key, out)

    def _close(self, key: tuple[object, ...], out: list[Event]) -> None:
        pending = self._windows.pop(key).pending
        if pending is not None:
            self._changed = True
            self._pending_count -= 1
            out.append(pending)


def read_pending(data: bytes) -> Sequence[Event]:
    """The merged events that a pending file holds. Raises EventError when it is not whole."""
    if not data:
        return []
    if len(data) < _HEAD.size:
        raise EventError("the pending file is cut")
    magic, length, digest = _HEAD.unpack_from(data)
    payload = data[_HEAD.size : _HEAD.size + length]
    if magic != MAGIC or len(payload) != length or sha256(payload) != digest:
        raise EventError("the pending file is damaged")
    out: list[Event] = []
    offset = 0
    while offset < length:
        count, last_ts_ns = _COUNT.unpack_from(payload, offset)
        offset += _COUNT.size
        (size,) = struct.unpack_from("<I", payload, offset)
        if size < RECORD.size:
            raise EventError("the pending file is damaged")
        (event,) = parse_events(payload[offset : offset + size])
        event.count, event.last_ts_ns = count, last_ts_ns
        out.append(event)
        offset += size
    return out
