"""Does a log hold together? Names the first entry that does not, and why. `scripts/verify-log` is a second, independent
implementation of the same rules; the tests run both on the same damaged logs.

Most lines are checked in C (native/check.h), a megabyte at a time; what C does not vouch for is looked at here.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from akbox.kernel.canonical import CanonicalError
from akbox.kernel.checkpoint import Checkpoint, read_checkpoints
from akbox.kernel.entry import DECISIONS, GENESIS, HASHED_WITH_REQ, Draft, Entry, render
from akbox.kernel.logfiles import log_files
from akbox.kernel.merkle import HASH_BYTES, MerkleTree
from akbox.kernel.strictjson import StrictJSONError, parse

MAX_LINE_BYTES = 16 << 20
_READ_BYTES = 1 << 20


class Checked(msgspec.Struct, frozen=True):
    """Good entries that lie one behind the other in a file: the number of the first, their this_hashes, where they
    begin and how long they are. With `problem` set it is the first bad line instead (`hashes` is empty), and the last
    that is told."""

    seq: int
    run: bytes
    hashes: bytes
    file: Path
    offset: int
    length: int
    problem: str | None = None
    torn: bool = False

    @property
    def last(self) -> int:
        return self.seq + len(self.hashes) // HASH_BYTES - 1


class Verification(msgspec.Struct, frozen=True):
    """`ok`, the number of good entries from the start, and for a bad log the first bad seq and why. `torn_tail` is the
    number of bytes of a last line that was never finished (what a crash leaves; it makes the log not ok). `key` is the
    public key that signed all of the `checkpoints` (None: they are not signed, or there are none), `head` the last good
    entry's hash."""

    ok: bool
    entries: int
    first_bad_seq: int | None = None
    reason: str | None = None
    torn_tail: int = 0
    checkpoints: int = 0
    key: str | None = None
    head: str = GENESIS.hex()
    run: str | None = None


def scan(files: Sequence[Path]) -> Iterator[Checked]:
    """Checks the lines of a log, whose `files` are given in order, in a bounded amount of memory; ends after the first
    bad one. Raises OSError."""
    from akbox._native import check_lines

    seq, prev, run = 1, GENESIS, b""
    for path in files:
        offset = 0
        with open(path, "rb") as file:
            data, at = file.read(_READ_BYTES), 0
            while True:
                if run:
                    end, hashes = check_lines(data, at, seq, prev, run)
                    if hashes:
                        yield Checked(seq, run, hashes, path, offset, end - at)
                        seq, prev = seq + len(hashes) // HASH_BYTES, hashes[-HASH_BYTES:]
                        offset, at = offset + end - at, end
                line_end = data.find(b"\n", at) + 1
                if not line_end:
                    more = file.read(_READ_BYTES)
                    if more and len(data) - at < MAX_LINE_BYTES:
                        data, at = data[at:] + more, 0
                        continue
                    if more:
                        yield Checked(seq, run, b"", path, offset, len(data) - at, "not an entry: the line is too long")
                        return
                    line = data[at:]
                else:
                    line = data[at:line_end]
                if not line:
                    break
                problem, this = "the last line is torn", b""
                if line_end:
                    problem, this, run = _look_at(line, seq, prev, run)
                if not this:
                    yield Checked(seq, run, b"", path, offset, len(line), problem, not line_end)
                    return
                yield Checked(seq, run, this, path, offset, len(line))
                seq, prev, offset, at = seq + 1, this, offset + len(line), line_end


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
    anchored: Iterable[str | os.PathLike[str]] = (),
    public_key: str | None = None,
) -> Verification:
    """Verifies the chain of a log from genesis, and against checkpoints: its own file `checkpoints`, and those of files
    `anchored` that were kept elsewhere. Each one's hash and Merkle root must be the log's at its seq (a log that ends
    before is cut), and all must be signed by one key: `public_key` (hex), else the anchored ones', else their own.
    Raises OSError when a file can't be read."""
    key = public_key.strip().lower() if public_key is not None else None
    try:
        kept = sorted((p for file in anchored for p in _points(Path(file))), key=_seq)
    except ValueError as error:
        return Verification(False, 0, None, f"an anchored checkpoint is damaged: {error}")
    if key is None and kept:
        key = kept[0].key
    with ExitStack() as stack:
        own: Iterator[Checkpoint] = iter(())
        if checkpoints is not None:
            own = read_checkpoints(stack.enter_context(open(checkpoints, "rb")))
        return _verify(scan(log_files(path)), _Points(own, kept, key))


def _points(path: Path) -> list[Checkpoint]:
    with open(path, "rb") as file:
        return list(read_checkpoints(file, whole=True))


def _seq(point: Checkpoint) -> int:
    return point.seq


class _Points:
    """Checkpoints in the order of their entries, checked for themselves as they are taken."""

    def __init__(self, own: Iterator[Checkpoint], kept: Sequence[Checkpoint], key: str | None) -> None:
        self.key = key
        self.count = 0
        self._fixed = key is not None  # False: the first checkpoint says whether they are signed, and by whom
        self._all = heapq.merge(self._in_order(own), kept, key=_seq)
        self.next: Checkpoint | None = None

    def _in_order(self, own: Iterator[Checkpoint]) -> Iterator[Checkpoint]:
        last = 0
        for point in own:
            if point.seq < last:
                raise _Bad("the checkpoints are not in order", point.seq)
            last = point.seq
            yield point

    def advance(self) -> None:
        """Raises _Bad for a checkpoint that is none or not rightly signed."""
        try:
            self.next = next(self._all, None)
        except ValueError as error:
            after = self.next.seq + 1 if self.next is not None else None
            raise _Bad(f"the checkpoints file is damaged: {error}", after) from None
        if self.next is not None:
            self.count += 1
            if problem := self._problem(self.next):
                raise _Bad(problem, self.next.seq)

    def _problem(self, point: Checkpoint) -> str | None:
        if not self._fixed:
            self.key, self._fixed = point.key, True
        if point.key != self.key:
            return "a checkpoint is not signed" if point.key is None else "a checkpoint is signed by another key"
        if point.key is None:
            return None
        if point.signature is None:
            return "a checkpoint is not signed"
        from akbox.kernel.signing import verify_signature

        good = verify_signature(point.key, bytes.fromhex(point.signature), point.text().encode())
        return None if good else "a checkpoint has a bad signature"


def _verify(log: Iterator[Checked], points: _Points) -> Verification:
    tree, good, head, run = MerkleTree(), 0, GENESIS, b""

    def bad(seq: int | None, reason: str, torn: int = 0) -> Verification:
        before = good if seq is None else min(good, seq - 1)
        return Verification(False, before, seq, reason, torn, points.count, points.key, head.hex(), run.hex() or None)

    try:
        points.advance()
        while points.next is not None and points.next.seq == 0:  # of an empty log: says nothing
            points.advance()
        for part in log:
            if part.problem is not None:
                return bad(part.seq, part.problem, part.length if part.torn else 0)
            run, at = part.run, 0
            while points.next is not None and points.next.seq <= part.last:
                point, end = points.next, (points.next.seq - part.seq + 1) * HASH_BYTES
                if end > at:
                    tree.extend(part.hashes[at:end])
                    at, good, head = end, point.seq, part.hashes[end - HASH_BYTES : end]
                if point.run != run.hex():
                    return bad(point.seq, "a checkpoint is of another run")
                if point.hash != head.hex() or point.merkle_root != tree.root().hex():
                    return bad(point.seq, "differs from its checkpoint (the log was rewritten)")
                points.advance()
            if at < len(part.hashes):
                tree.extend(part.hashes[at:])
                good, head = part.last, part.hashes[-HASH_BYTES:]
        if points.next is not None:
            last = points.next.seq
            while points.next is not None:
                last = points.next.seq
                points.advance()
            return bad(good + 1, f"cut tail: a checkpoint names entry {last}")
    except _Bad as problem:
        return bad(problem.seq, str(problem))
    return Verification(True, good, None, None, 0, points.count, points.key, head.hex(), run.hex() or None)


class _Bad(Exception):
    def __init__(self, reason: str, seq: int | None = None) -> None:
        super().__init__(reason)
        self.seq = seq


def _look_at(line: bytes, seq: int, prev: bytes, run: bytes) -> tuple[str, bytes, bytes]:
    """(what is wrong with a whole line, its this_hash or b"", the run)."""
    try:
        entry = _parse(line)
        if run and entry.run != run.hex():
            raise _Bad("belongs to another run")
        found = _identity(entry.run)
        return "", _check(line, entry, seq, found, prev), found
    except (_Bad, CanonicalError) as error:
        return str(error), b"", run


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
