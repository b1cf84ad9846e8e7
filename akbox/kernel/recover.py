"""After a crash: brings into the log what the ring and the pending file hold and it does not, so that a killed
supervisor loses no decision (design 04). Doing it twice changes nothing the second time.

Which events the log has is decided by what they are (task, time, op, names), not by positions: a supervisor may have
died between writing an entry and moving the ring's tail. A torn last line is cut off, and the new entry says what it
was.
"""

from __future__ import annotations

import os
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from akbox.kernel.audit import RULES_NAME, AuditError, AuditLog
from akbox.kernel.entry import Draft, Entry, timestamp
from akbox.kernel.event_lines import event_draft
from akbox.kernel.events import ALLOW, Event, EventError, parse_events
from akbox.kernel.flood import flood_key, read_pending
from akbox.kernel.logfiles import log_files
from akbox.kernel.logwriter import open_locked
from akbox.kernel.ops import Op, op_name
from akbox.kernel.verify import scan

if TYPE_CHECKING:
    from akbox.kernel.signing import Signer

RING_MAGIC = b"AKRING1\0"
RING_HEADER_BYTES = 4096
_RING_HEAD = struct.Struct("<8sQQQ16s")  # magic, size of the data area, head, tail, run


NOBODY = bytes(16)


class Recovery(msgspec.Struct, frozen=True):
    """What was done: entries added from the ring, counted denials added from the pending file, bytes of a torn line
    cut, entries of calls added whose changes had been made."""

    events: int
    pending: int
    torn_bytes: int
    calls: int = 0

    @property
    def changed(self) -> bool:
        return bool(self.events or self.pending or self.torn_bytes or self.calls)


def recover(
    run_dir: str | os.PathLike[str], *, rules: Sequence[object] | None = None, signer: Signer | None = None
) -> Recovery:
    """Completes the log of a run whose supervisor is gone, and signs a checkpoint over it. `rules` is what rule numbers
    mean (`CompiledPolicy.rules`). Raises AuditError when the log is damaged beyond a torn last line, when the ring is,
    or when the run is still alive (its log is locked)."""
    directory = Path(run_dir)
    path = directory / "audit.jsonl"
    run, waiting = read_ring(directory / "ring")
    pending = _read_pending(directory / "pending")
    with _held(path):  # what a living supervisor is just writing would look torn
        found = _survey(path)
        torn_hash = _cut(path, found.torn_bytes)
    run = run or found.run
    if run is None:
        raise AuditError(f"{directory} holds neither a ring nor a log")
    if rules is None:
        rules = _read_rules(directory / RULES_NAME)
    log = AuditLog(path, run, rules=rules, signer=signer)
    try:
        missing, late = _missing(log, waiting, pending, rules)
        calls = _missing_calls(log, directory / "kernel.db")
        sides = [(agent, *_missing_of_agent(log, directory, agent)) for agent in _agents(directory)]
        done = Recovery(
            len(missing) + sum(len(side[1]) for side in sides), len(late) + sum(len(side[2]) for side in sides),
            found.torn_bytes, len(calls),
        )  # fmt: skip
        if done.changed:
            log.append_events([*late, *missing], found.agent)
            for agent, events, counts in sides:
                log.append_events([*counts, *events], agent)
            for call in calls:
                log.append(call)
            log.append(_entry(done, found.agent, torn_hash))
    finally:
        log.close()
    return done


def read_ring(path: str | os.PathLike[str]) -> tuple[bytes | None, list[Event]]:
    """(run id, events between tail and head) of a ring file; (None, []) when there is none. Raises AuditError."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return None, []
    if len(data) < RING_HEADER_BYTES:
        return None, []  # killed before the header was written: no event can have been
    magic, size, head, tail, run = _RING_HEAD.unpack_from(data)
    if magic == bytes(8):
        return None, []
    area = data[RING_HEADER_BYTES : RING_HEADER_BYTES + size]
    if magic != RING_MAGIC or len(area) != size or size & (size - 1) or not 0 <= head - tail <= size:
        raise AuditError(f"{path}: the ring's header is damaged")
    start, end = tail % size if size else 0, head - tail
    flat = (area[start:] + area[:start])[:end]  # a record never straddles the end of the area, so this is whole records
    try:
        return run, list(parse_events(flat))
    except EventError as error:
        raise AuditError(f"{path}: {error}") from error


def _missing(
    log: AuditLog, waiting: list[Event], pending: Sequence[Event], rules: Sequence[object]
) -> tuple[list[Event], list[Event]]:
    """(ring events, pending counts) that no entry of the log stands for. Of the log only what could be one of these is
    kept in memory."""
    ring = [(_key(event_draft(event, NOBODY, rules)), timestamp(event.ts_ns), event) for event in waiting]
    counts = [(_key(event_draft(event, NOBODY, rules)), timestamp(event.ts_ns), event) for event in pending]
    wanted = {(key, ts) for key, ts, _ in (*ring, *counts)}
    keys = {key for key, _ in wanted}
    single: Counter[tuple[object, str]] = Counter()
    merged: dict[tuple[object, ...], set[tuple[str, str]]] = {}
    for e in log.entries() if wanted else ():
        if "nr" not in e.req or (key := _key(e)) not in keys:
            continue
        if "last_ts" in e.req:
            merged.setdefault(key, set()).add((e.ts, str(e.req["last_ts"])))
        elif (key, e.ts) in wanted:
            single[key, e.ts] += 1

    late: list[Event] = []
    for key, ts, event in counts:
        if ts in {start for start, _ in merged.get(key, ())} or single[key, ts]:
            continue
        late.append(event)
    counted = {flood_key(e): (e.ts_ns, e.last_ts_ns) for e in pending}

    missing: list[Event] = []
    for key, ts, event in ring:
        if single[key, ts] > 0:
            single[key, ts] -= 1
            continue
        if event.decision != ALLOW:
            if any(start <= ts <= end for start, end in merged.get(key, ())):
                continue
            since, until = counted.get(flood_key(event), (1, 0))
            if since <= event.ts_ns <= until:
                continue
        missing.append(event)
    return missing, late


def _agents(directory: Path) -> list[bytes]:
    """Child agents that had a ring when the supervisor died."""
    names = [path.name.removeprefix("ring-") for path in sorted(directory.glob("ring-*"))]
    return [bytes.fromhex(name) for name in names if len(name) == 32]


def _missing_of_agent(log: AuditLog, directory: Path, agent: bytes) -> tuple[list[Event], list[Event]]:
    """As `_missing`, of one child agent, whose rule numbers have a meaning of their own."""
    name = agent.hex()
    rules = _read_rules(directory / f"rules-{name}.json")
    _, waiting = read_ring(directory / f"ring-{name}")
    pending = _read_pending(directory / f"pending-{name}")
    log.open_side(agent, rules)
    return _missing(log, waiting, pending, rules)


def _missing_calls(log: AuditLog, path: Path) -> list[Draft]:
    """Entries that were kept with a change (Context.journal) and that the log does not have."""
    if not path.exists():
        return []
    from akbox.store.base import StoreError
    from akbox.store.sqlite import SqliteStore

    store = SqliteStore(path)
    try:
        kept = store.journaled()
        if not kept:
            return []
        numbers = {number for number, _ in kept}
        known = {tx for e in log.entries() if (tx := e.res.get("tx")) in numbers}
        return [msgspec.json.decode(draft, type=Draft) for number, draft in kept if number not in known]
    except (StoreError, msgspec.MsgspecError) as error:
        raise AuditError(f"{path}: {error}") from error
    finally:
        store.close()


def _key(e: Entry | Draft) -> tuple[object, ...]:
    """What an event is, but for its time."""
    req = e.req
    return (e.op, e.pid, req["tid"], req["nr"], e.target, req.get("target2"), req["need"], e.decision, e.res["errno"])


class _Found(msgspec.Struct, frozen=True):
    """What is there of the log: its run and first agent, and the bytes of a torn last line."""

    run: bytes | None = None
    agent: bytes = NOBODY
    torn_bytes: int = 0


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Holds the log's lock. Raises AuditError when a supervisor has it."""
    if not os.path.lexists(path):
        yield
        return
    fd = open_locked(path)
    try:
        yield
    finally:
        os.close(fd)


def _survey(path: Path) -> _Found:
    run, torn, files = None, 0, log_files(path)
    try:
        for part in scan(files):
            if part.torn and part.file == files[-1]:
                torn = part.length
            elif part.problem is not None:
                raise AuditError(f"{path}: entry {part.seq}: {part.problem}")
            else:
                run = part.run
    except FileNotFoundError:
        return _Found()
    if run is None:
        return _Found(None, NOBODY, torn)
    with open(files[0], "rb") as file:
        agent = bytes.fromhex(msgspec.json.decode(file.readline(), type=Entry).agent)
    return _Found(run, agent, torn)


def _cut(path: Path, torn_bytes: int) -> str | None:
    """Cuts a torn last line off; returns the SHA-256 of what it was."""
    if not torn_bytes:
        return None
    with open(path, "r+b") as file:
        end = file.seek(-torn_bytes, os.SEEK_END)
        digest = sha256(file.read()).hexdigest()
        file.truncate(end)
    return digest


def _read_pending(path: Path) -> Sequence[Event]:
    try:
        return read_pending(path.read_bytes())
    except FileNotFoundError:
        return []
    except EventError as error:
        raise AuditError(f"{path}: {error}") from error


def _read_rules(path: Path) -> Sequence[object]:
    """Without the file, which is written before the first event, rules stay numbers."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[str])
    except (FileNotFoundError, msgspec.DecodeError):
        return ()


def _entry(done: Recovery, agent: bytes, torn_hash: str | None) -> Draft:
    req: dict[str, object] = {"events": done.events, "pending": done.pending, "calls": done.calls}
    if done.torn_bytes:
        req |= {"torn_bytes": done.torn_bytes, "torn_sha256": torn_hash}
    return Draft(
        ts_ns=time.time_ns(),
        agent=agent,
        op=Op.LIFECYCLE,
        name=op_name(Op.LIFECYCLE),
        target="run:recovered",
        decision="allow",
        req=req,
        res={},
    )
