"""Proofs that a stranger can check without the log: that an entry is in it, that an older checkpoint is a prefix of a
newer one. One pass over the log, which is verified on the way; memory does not grow with it.

An entry's proof is a C2SP tlog-proof whose extra data is the entry's line, so that it needs nothing else.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import msgspec

from akbox.kernel.checkpoint import Checkpoint, read_checkpoints
from akbox.kernel.logfiles import log_files
from akbox.kernel.merkle import HASH_BYTES, Range, RangeRoots, consistency_ranges, inclusion_ranges
from akbox.kernel.verify import scan

HEAD = "c2sp.org/tlog-proof@v1"


class ProofError(Exception):
    """There is no such proof: why."""


class Inclusion(msgspec.Struct, frozen=True):
    """That `entry` (its line) is number `index` (0-based) of the log that `checkpoint` names: `path` leads from its
    leaf to the root. Hashes in base64, from the leaf up."""

    index: int
    entry: str
    this_hash: str
    path: list[str]
    checkpoint: str

    def text(self) -> str:
        """As a C2SP tlog-proof."""
        extra = b64encode(self.entry.encode()).decode()
        return "\n".join([HEAD, f"extra {extra}", f"index {self.index}", *self.path, "", self.checkpoint])


class Consistency(msgspec.Struct, frozen=True):
    """That the log of the note `old` is how the one of the note `new` begins."""

    old: str
    new: str
    path: list[str]


def points_of(path: Path) -> list[Checkpoint]:
    """The checkpoints of a file. Raises ProofError, OSError."""
    try:
        with open(path, "rb") as file:
            return list(read_checkpoints(file))
    except ValueError as error:
        raise ProofError(f"{path}: {error}") from error


def prove_entry(log: Path, seq: int, points: Sequence[Checkpoint]) -> Inclusion:
    """That entry `seq` is in the log of the last of `points`. Raises ProofError, OSError."""
    point = _last(points)
    if not 1 <= seq <= point.seq:
        raise ProofError(f"entry {seq} is not among the {point.seq} of the checkpoint")
    ranges = inclusion_ranges(seq - 1, point.seq)
    roots, line, this = _pass(log, ranges, point, seq)
    return Inclusion(seq - 1, line.decode(), this.hex(), _path(ranges, roots), point.note)


def prove_prefix(log: Path, old: Checkpoint, new: Checkpoint) -> Consistency:
    """That `old` is a prefix of `new`. Raises ProofError, OSError."""
    if old.run != new.run:
        raise ProofError("the checkpoints are of two runs")
    if not 0 < old.seq <= new.seq:
        raise ProofError(f"a checkpoint of {old.seq} entries is no prefix of one of {new.seq}")
    ranges = consistency_ranges(old.seq, new.seq)
    whole = [(0, old.seq)]
    roots, _, _ = _pass(log, ranges, new, None)
    before, _, _ = _pass(log, whole, old, None)
    if before[whole[0]].hex() != old.merkle_root:
        raise ProofError("the older checkpoint is not of this log: it was rewritten")
    return Consistency(old.note, new.note, _path(ranges, roots))


def _last(points: Sequence[Checkpoint]) -> Checkpoint:
    if not points:
        raise ProofError("there is no checkpoint yet to prove an entry against")
    return max(points, key=lambda point: point.seq)


def _path(ranges: Sequence[Range], roots: dict[Range, bytes]) -> list[str]:
    return [b64encode(roots[one]).decode() for one in ranges]


def _pass(
    log: Path, ranges: Sequence[Range], point: Checkpoint, seq: int | None
) -> tuple[dict[Range, bytes], bytes, bytes]:
    """The roots of `ranges`, and the line and this_hash of entry `seq`. The log must be the checkpoint's."""
    finder, whole = RangeRoots(ranges), RangeRoots([(0, point.seq)])
    line = this = b""
    for part in scan(log_files(log)):
        if part.problem is not None:
            raise ProofError(f"the log does not verify: entry {part.seq}: {part.problem}")
        if part.run.hex() != point.run:
            raise ProofError("the checkpoint is of another run")
        if seq is not None and part.seq <= seq <= part.last:
            this = part.hashes[(seq - part.seq) * HASH_BYTES :][:HASH_BYTES]
            with open(part.file, "rb") as file:
                file.seek(part.offset)
                line = file.read(part.length).split(b"\n")[seq - part.seq] + b"\n"
        finder.feed(part.hashes)
        whole.feed(part.hashes)
        if part.last >= point.seq:
            break
    if (root := whole.roots.get((0, point.seq))) is None:
        raise ProofError(f"the log ends before entry {point.seq}, which the checkpoint names")
    if root.hex() != point.merkle_root:
        raise ProofError("differs from its checkpoint (the log was rewritten)")
    return finder.roots, line, this
