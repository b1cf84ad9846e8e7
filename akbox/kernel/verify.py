"""Does a log hold together? Names the first entry that does not, and why. `scripts/verify-log` is a second, independent
implementation of the same rules; the tests run both on the same damaged logs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from akbox.kernel.canonical import CanonicalError
from akbox.kernel.checkpoint import Checkpoint, read_checkpoints
from akbox.kernel.entry import DECISIONS, GENESIS, HASHED_WITH_REQ, Draft, Entry, render
from akbox.kernel.merkle import MerkleTree
from akbox.kernel.strictjson import StrictJSONError, parse

MAX_LINE_BYTES = 16 << 20


class Scanned(msgspec.Struct, frozen=True):
    """One line as it was checked. `problem` is None for a good one; after a bad one the scan ends."""

    seq: int
    length: int
    run: bytes = b""
    this_hash: bytes = b""
    problem: str | None = None
    torn: bool = False


class Verification(msgspec.Struct, frozen=True):
    """`ok`, the number of good entries from the start, and for a bad log the first bad seq and why. `torn_tail` is the
    number of bytes of a last line that was never finished (what a crash leaves; it makes the log not ok)."""

    ok: bool
    entries: int
    first_bad_seq: int | None = None
    reason: str | None = None
    torn_tail: int = 0
    checkpoints: int = 0


def scan(path: str | os.PathLike[str]) -> Iterator[Scanned]:
    """Checks the lines of a log one by one, in a bounded amount of memory; ends after the first bad one."""
    prev, run = GENESIS, b""
    with open(path, "rb") as file:
        seq = 0
        while line := file.readline(MAX_LINE_BYTES):
            seq += 1
            if not line.endswith(b"\n"):
                yield Scanned(seq, len(line), problem="the last line is torn", torn=True)
                return
            try:
                entry = _parse(line)
                if run and entry.run != run.hex():
                    raise _Bad("belongs to another run")
                run = _identity(entry.run)
                this = _check(line, entry, seq, run, prev)
            except (_Bad, CanonicalError) as error:
                yield Scanned(seq, len(line), run, problem=str(error))
                return
            yield Scanned(seq, len(line), run, this)
            prev = this


def _identity(text: str) -> bytes:
    """16 bytes as hex, exactly: bytes.fromhex() alone also takes blanks and capitals."""
    try:
        identity = bytes.fromhex(text)
    except ValueError:
        raise _Bad("an identity is no hexadecimal number") from None
    if identity.hex() != text or len(identity) != 16:
        raise _Bad("an identity is not 32 hexadecimal digits")
    return identity


def verify(
    path: str | os.PathLike[str],
    checkpoints: str | os.PathLike[str] | None = None,
    *,
    public_key: str | None = None,
) -> Verification:
    """Verifies the chain of `path` from genesis and, where given, against a checkpoints file: that every checkpoint's
    hash and Merkle root are the log's at its seq (a log that ends before is cut), and its signature, by the key
    `public_key` (hex) or, without one, by the key in the checkpoint. Raises OSError when a file can't be read."""
    try:
        points = list(read_checkpoints(Path(checkpoints).read_bytes())) if checkpoints is not None else []
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Verification(False, 0, None, f"the checkpoints file is damaged: {error}")
    by_seq: dict[int, list[Checkpoint]] = {}
    for point in points:
        if problem := _signature_problem(point, public_key):
            return Verification(False, 0, point.seq, problem)
        by_seq.setdefault(point.seq, []).append(point)
    tree, good = MerkleTree(), 0
    for line in scan(path):
        if line.problem is not None:
            return Verification(False, good, line.seq, line.problem, line.length if line.torn else 0)
        good = line.seq
        tree.append(line.this_hash)
        for point in by_seq.pop(good, ()):
            if point.run != line.run.hex():
                return Verification(False, good - 1, good, "a checkpoint is of another run")
            if point.hash != line.this_hash.hex() or point.merkle_root != tree.root().hex():
                return Verification(False, good - 1, good, "differs from its checkpoint (the log was rewritten)")
    by_seq.pop(0, None)  # a checkpoint of an empty log says nothing
    if by_seq:
        return Verification(False, good, good + 1, f"cut tail: a checkpoint names entry {max(by_seq)}")
    return Verification(True, good, checkpoints=len(points))


class _Bad(Exception):
    pass


def _parse(line: bytes) -> Entry:
    try:
        return msgspec.convert(parse(line[:-1], wide_ints=True), Entry)
    except (StrictJSONError, msgspec.ValidationError) as error:
        raise _Bad(f"not an entry: {error}") from None


def _check(line: bytes, entry: Entry, seq: int, run: bytes, prev: bytes) -> bytes:
    """The entry's this_hash, if the line is what the writer would have written at this place. The order of the checks
    is the order in which they say most: a gap before a chain break before a changed bit."""
    if entry.seq != seq:
        raise _Bad(f"has seq {entry.seq}: an entry is {'missing' if entry.seq > seq else 'repeated or out of order'}")
    if entry.prev_hash != prev.hex():
        raise _Bad("does not follow the entry before it (prev_hash)")
    if entry.decision not in DECISIONS or any(key in entry.req for key in HASHED_WITH_REQ):
        raise _Bad("has fields no writer gives")
    try:
        agent, ts_ns = bytes.fromhex(entry.agent), _parse_timestamp(entry.ts)
    except ValueError:
        raise _Bad("has an agent or a time that is none") from None
    if len(agent) != 16 or len(run) != 16 or not 0 <= entry.op <= 0xFFFF:
        raise _Bad("has an agent, run or op that is none")
    draft = Draft(
        ts_ns=ts_ns, agent=agent, op=entry.op, name=entry.name, target=entry.target, decision=entry.decision,
        stage=entry.stage, rule=entry.rule, pid=entry.pid, req=entry.req, res=entry.res,
    )  # fmt: skip
    rendered, this = render(draft, seq=seq, run=run, prev=prev)
    if rendered == line:
        return this
    if this.hex() != entry.this_hash:
        raise _Bad("was changed (its hash differs)")
    raise _Bad("was changed (it is not written as the log writes it)")


def _parse_timestamp(text: str) -> int:
    import calendar
    import time

    if len(text) != 30 or text[19] != "." or text[29] != "Z" or not text[20:29].isascii() or not text[20:29].isdigit():
        raise ValueError(text)
    return calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) * 1_000_000_000 + int(text[20:29])


def _signature_problem(point: Checkpoint, public_key: str | None) -> str | None:
    if point.sig is None and point.key is None and public_key is None:
        return None
    if point.sig is None or point.key is None:
        return "a checkpoint is not signed"
    if public_key is not None and point.key != public_key.strip():
        return "a checkpoint is signed by another key"
    from akbox.kernel.signing import verify_signature

    try:
        signature = bytes.fromhex(point.sig)
    except ValueError:
        signature = b""
    return None if verify_signature(point.key, signature, point.signed_bytes()) else "a checkpoint has a bad signature"
