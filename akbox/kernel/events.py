"""Events: decisions that the compiled matcher took in C, as the ring holds them (native/ring.h, struct ak_event)."""

import struct
from collections.abc import Iterator

import msgspec

RECORD = struct.Struct("<IHBBQiiiiIIQHH12x")
"""struct ak_event without its strings."""
HEADER_BYTES = RECORD.size
PAD = 0
NO_RULE = 0xFFFFFFFF
DENY, ALLOW, ASK = 0, 1, 2
DECISION_NAMES = ("deny", "allow", "ask")
NEED_NAMES = tuple("+".join(n for b, n in ((1, "read"), (2, "write"), (4, "exec")) if bits & b) for bits in range(8))


class Event(msgspec.Struct, array_like=True):
    """One record. `error` is the errno the caller got (0 = let through), `rule` an index into the policy's rules or
    NO_RULE, `need` and `missing` bits of enum ak_need, `arg` what the op makes of it (open flags, mode, port, signal).
    `count` and `last_ts_ns` are not in the ring: equal denials merged into this one (flood.py)."""

    op: int
    decision: int
    need: int
    ts_ns: int
    tgid: int
    tid: int
    nr: int
    error: int
    rule: int
    missing: int
    arg: int
    target: bytes
    target2: bytes
    count: int = 1
    last_ts_ns: int = 0


class EventError(ValueError):
    """The bytes are not whole, well-formed records."""


def parse_events(data: bytes) -> Iterator[Event]:
    """Events in `data`, which must hold whole records (padding records are passed over). Raises EventError."""
    unpack, view_end, offset = RECORD.unpack_from, len(data), 0
    while offset < view_end:
        if view_end - offset < 8:
            raise EventError(f"torn record at byte {offset}")
        length, op = int.from_bytes(data[offset : offset + 4], "little"), data[offset + 4] | data[offset + 5] << 8
        end = offset + length
        if length < 8 or length % 8 or end > view_end:
            raise EventError(f"record of {length} bytes at byte {offset} of {view_end}")
        if op == PAD:
            offset = end
            continue
        if length < HEADER_BYTES:
            raise EventError(f"record of {length} bytes at byte {offset} is shorter than its header")
        (_, _, decision, need, ts_ns, tgid, tid, nr, error, rule, missing, arg, len1, len2) = unpack(data, offset)
        start = offset + HEADER_BYTES
        if start + len1 + len2 > end or decision > ASK:
            raise EventError(f"inconsistent record at byte {offset}")
        yield Event(
            op, decision, need & 7, ts_ns, tgid, tid, nr, error, rule, missing & 7, arg,
            data[start : start + len1], data[start + len1 : start + len1 + len2],
        )  # fmt: skip
        offset = end


def pack_event(event: Event) -> bytes:
    """The bytes of one record, as native/ring.c writes them (used by the ptrace side and by tests)."""
    length = (HEADER_BYTES + len(event.target) + len(event.target2) + 7) & ~7
    head = RECORD.pack(
        length, event.op, event.decision, event.need, event.ts_ns, event.tgid, event.tid, event.nr, event.error,
        event.rule, event.missing, event.arg, len(event.target), len(event.target2),
    )  # fmt: skip
    return (head + event.target + event.target2).ljust(length, b"\0")
