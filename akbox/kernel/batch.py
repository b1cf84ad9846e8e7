"""A batch of ring records on its way into the log: C renders them as they lie (native/chain.h), Python only sees what
was refused, because equal denials are merged (flood.py).

What C writes is byte for byte what EventRenderer writes; tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from akbox.kernel.event_lines import EventRenderer
from akbox.kernel.events import Event, EventError, parse_events
from akbox.kernel.ops import NAMES

if TYPE_CHECKING:
    from akbox._native import Chain
    from akbox.kernel.flood import FloodFilter

Part = bytes | list[Event]
"""Entries to be, in order: whole records, or events that are not in the ring as they are (merged ones)."""


class Batch(msgspec.Struct):
    """`parts` makes the entries; `refused` has each refused event with its place among them (from 0), or None where it
    was merged into another entry."""

    parts: list[Part]
    refused: list[tuple[Event, int | None]]


def scan(records: bytes) -> list[tuple[int, int, int]]:
    """(start, end, index) of each record that was not allowed: its bytes, and its place among the records. Raises
    EventError for bytes that are not whole records."""
    from akbox._native import scan_records

    try:
        return scan_records(records)
    except ValueError as error:
        raise EventError(str(error)) from error


def admit(records: bytes, refused: list[tuple[int, int, int]], flood: FloodFilter) -> Batch:
    """Passes what was refused (see `scan`) through `flood`, which may hold events back or let out earlier ones before
    them."""
    batch = Batch([], [])
    start = shift = 0  # where the current run of records begins; entries so far, less records so far
    events = parse_events(b"".join([records[begin:end] for begin, end, _ in refused]))
    for (begin, end, index), event in zip(refused, events, strict=True):
        late = flood.admit((event,))
        passed = bool(late) and late[-1] is event
        if passed:
            late.pop()
        if late or not passed:
            _add(batch, records[start:begin], late)
            start = begin if passed else end
            shift += len(late)
        batch.refused.append((event, index + shift if passed else None))
        shift -= not passed
    _add(batch, records[start:], [])
    return batch


def _add(batch: Batch, records: bytes, events: list[Event]) -> None:
    if records:
        batch.parts.append(records)
    if events:
        batch.parts.append(events)


class BatchRenderer:
    """Renders batches of one run. Not thread-safe: the log's lock is held."""

    def __init__(self, run: bytes, rules: Sequence[object]) -> None:
        self._run = run
        self._rules = rules
        self._events = EventRenderer(run, rules)
        self._chain: Chain | None = None

    def render(self, parts: Sequence[Part], *, agent: bytes, seq: int, prev: bytes) -> tuple[bytes, bytes]:
        """(lines, their this_hashes), the first of which gets number `seq` and follows `prev`. Raises EventError."""
        all_lines: list[bytes] = []
        all_hashes: list[bytes] = []
        for part in parts:
            if isinstance(part, bytes):
                lines, hashes = self._records(part, agent, seq, prev)
            else:
                texts, digests = self._events.render(part, agent=agent, seq=seq, prev=prev)
                lines, hashes = "".join(texts).encode(), b"".join(digests)
            if hashes:  # a part may be nothing but padding
                all_lines.append(lines)
                all_hashes.append(hashes)
                seq += len(hashes) // 32
                prev = hashes[-32:]
        if len(all_lines) == 1:
            return all_lines[0], all_hashes[0]
        return b"".join(all_lines), b"".join(all_hashes)

    def _records(self, records: bytes, agent: bytes, seq: int, prev: bytes) -> tuple[bytes, bytes]:
        if self._chain is None:
            from akbox._native import Chain

            names = tuple((op, NAMES[op].encode()) for op in sorted(NAMES))
            self._chain = Chain(self._run, names, tuple(msgspec.json.encode(str(rule)) for rule in self._rules))
        try:
            return self._chain.render(records, agent, seq, prev)
        except ValueError as error:
            raise EventError(str(error)) from error
