"""One line of the log: its fields, its exact bytes and its hashes (design 04, docs/audit.md).

A line is one rendering and no other: fixed key order, canonical JSON values, no blanks. So a verifier renders the line
anew and compares bytes, and there is no bit of the file that could change unseen.
"""

import struct
import time
from typing import Any

import msgspec

from akbox.kernel.canonical import canonical
from akbox.kernel.digest import sha256

PACKED = struct.Struct("<Q16s16sH32s32s")
"""What is chained: seq u64, agent, run, op u16, req_hash, res_hash; little-endian, no padding, 106 bytes."""
GENESIS = bytes(32)
HASHED_WITH_REQ = frozenset({"decision", "name", "pid", "rule", "stage", "target", "ts"})
"""Fields of the line that are hashed inside `req`, whose own keys must therefore be others."""
DECISIONS = ("allow", "deny", "ask")

_encode = msgspec.json.Encoder().encode


class Draft(msgspec.Struct, kw_only=True):
    """An entry before it has a place in the chain. `req` and `res` are redacted and interoperable already."""

    ts_ns: int
    agent: bytes
    op: int
    name: str
    target: str
    decision: str
    stage: str | None = None
    rule: str | None = None
    pid: int = 0
    req: dict[str, Any]
    res: dict[str, Any]


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A line of the log, read back. Hashes are lower-case hex."""

    seq: int
    ts: str
    agent: str
    run: str
    op: int
    name: str
    target: str
    decision: str
    stage: str | None
    rule: str | None
    trace: str
    pid: int
    req: dict[str, Any]
    res: dict[str, Any]
    req_hash: str
    res_hash: str
    prev_hash: str
    this_hash: str


def timestamp(ts_ns: int) -> str:
    """RFC 3339 in UTC with nine digits."""
    seconds, nanos = divmod(ts_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanos:09d}Z"


def trace_id(run: bytes, seq: int) -> str:
    """Names an entry outside its log: the run's first four bytes and the sequence number, 16 hex digits."""
    return f"{run[:4].hex()}{seq:08x}"


def render(draft: Draft, *, seq: int, run: bytes, prev: bytes) -> tuple[bytes, bytes]:
    """The entry's line (with its newline) and its this_hash.

    Raises CanonicalError for values that have no exact form, ValueError for a key of `req` that the line has already.
    """
    if taken := draft.req.keys() & HASHED_WITH_REQ:
        raise ValueError(f"req may not have {', '.join(sorted(taken))}: they are hashed with it under these names")
    ts = timestamp(draft.ts_ns)
    fields = {
        "decision": draft.decision,
        "name": draft.name,
        "pid": draft.pid,
        "rule": draft.rule,
        "stage": draft.stage,
        "target": draft.target,
        "ts": ts,
    }
    res = canonical(draft.res)
    req_hash = sha256(canonical(draft.req | fields))
    res_hash = sha256(res)
    this = sha256(prev + PACKED.pack(seq, draft.agent, run, draft.op, req_hash, res_hash))
    line = (
        b'{"seq":%d,"ts":"%s","agent":"%s","run":"%s","op":%d,"name":%s,"target":%s,"decision":"%s","stage":%s,"rule":%s,'
        b'"trace":"%s","pid":%d,"req":%s,"res":%s,"req_hash":"%s","res_hash":"%s","prev_hash":"%s","this_hash":"%s"}\n'
    ) % (
        seq,
        ts.encode(),
        draft.agent.hex().encode(),
        run.hex().encode(),
        draft.op,
        _encode(draft.name),
        _encode(draft.target),
        draft.decision.encode(),
        _encode(draft.stage),
        _encode(draft.rule),
        trace_id(run, seq).encode(),
        draft.pid,
        canonical(draft.req),
        res,
        req_hash.hex().encode(),
        res_hash.hex().encode(),
        prev.hex().encode(),
        this.hex().encode(),
    )
    return line, this
