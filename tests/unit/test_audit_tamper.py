"""Issue 6: every class of edit of a 10,000-entry log is found, with the first bad entry, given the log and one
checkpoint that was kept elsewhere. akbox and the independent verifier must say the same."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from kernel_kit import EPOCH_NS, event

from akbox.kernel.audit import AuditLog
from akbox.kernel.checkpoint import Checkpoint, make, read_checkpoints
from akbox.kernel.entry import Draft, render
from akbox.kernel.events import pack_event
from akbox.kernel.merkle import MerkleTree
from akbox.kernel.signing import Signer
from akbox.kernel.verify import verify

VERIFY_LOG = Path(__file__).parents[2] / "scripts" / "verify-log"
AGENT = bytes(range(16, 32))
ENTRIES = 10_000
Lines = list[bytes]


class Made(msgspec.Struct):
    """A log as its lines, its own checkpoints, and the one that was kept elsewhere."""

    run: bytes
    lines: Lines
    points: list[Checkpoint]

    @property
    def anchor(self) -> str:
        return self.points[-1].note


def make_log(directory: Path, run: bytes, signer: Signer) -> Made:
    log = AuditLog(directory / "audit.jsonl", run, signer=signer, rules=("fs.read /app/**",))
    for n in range(0, ENTRIES, 20):
        events = [event(f"/app/{n}/{i}", allow=i % 7 > 0, tid=n + i, ts=n * 1000 + i) for i in range(19)]
        log.append_records(b"".join(map(pack_event, events)), AGENT)
        log.append(draft(n, {"args": {"value": [1.5, "é", None, {"b": 1, "a": 2}], "n": n}}))
        if n % 1000 == 980:
            log.checkpoint()
    log.close(AGENT)
    with open(directory / "checkpoints", "rb") as file:
        points = list(read_checkpoints(file))
    return Made(run, (directory / "audit.jsonl").read_bytes().splitlines(keepends=True), points)


def draft(n: int, req: dict[str, object]) -> Draft:
    return Draft(
        ts_ns=EPOCH_NS + n, agent=AGENT, op=1025, name="ALLOC", target="heap:x", decision="allow", req=req,
        res={"errno": 0},
    )  # fmt: skip


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Made]:
    """Two runs of one user."""
    signer = Signer(bytes(range(32)))
    runs = bytes(range(16)), bytes(range(1, 17))
    return tuple(make_log(tmp_path_factory.mktemp("log"), run, signer) for run in runs)  # type: ignore[return-value]


def rewritten(made: Made, at: int, signer: Signer) -> tuple[Lines, list[Checkpoint]]:
    """What somebody with the whole directory would do: entry `at` says something else, and all after it is made anew,
    the checkpoints among it."""
    lines = made.lines[: at - 1]
    prev = bytes.fromhex(json.loads(lines[-1])["this_hash"])
    tree, points = MerkleTree(), {point.seq for point in made.points}
    tree.extend(b"".join(bytes.fromhex(json.loads(line)["this_hash"]) for line in lines))
    new = [point for point in made.points if point.seq < at]
    for seq, line in enumerate(made.lines[at - 1 :], at):
        e = json.loads(line)
        line, prev = render(
            Draft(
                ts_ns=EPOCH_NS + seq, agent=AGENT, op=e["op"], name=e["name"],
                target="/other" if seq == at else e["target"], decision=e["decision"], stage=e["stage"],
                rule=e["rule"], pid=e["pid"], req=e["req"], res=e["res"],
            ),
            seq=seq, run=made.run, prev=prev,
        )  # fmt: skip
        lines.append(line)
        tree.extend(prev)
        if seq in points:
            new.append(make(run=made.run, seq=seq, this_hash=prev, root=tree.root(), time_ns=EPOCH_NS, signer=signer))
    return lines, new


def verdict(
    directory: Path, lines: Lines, points: list[Checkpoint] | None, anchor: str, *, independent: bool = True
) -> int | None:
    """The first bad entry by akbox; the independent verifier must name the same."""
    log, own, kept = directory / "audit.jsonl", directory / "checkpoints", directory / "kept"
    log.write_bytes(b"".join(lines))
    own.write_text("".join(point.note + "\n" for point in points or ()))
    kept.write_text(anchor)
    found = verify(log, None if points is None else own, anchored=[kept])
    if independent:
        argv = [VERIFY_LOG, log, *([] if points is None else [own]), "--checkpoint", kept]
        other = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert other.stderr == ""
        wanted = f"ok: {found.entries} entries" if found.ok else rf"bad: entry {found.first_bad_seq}: "
        assert re.match(wanted, other.stdout), (found, other.stdout)
    assert found.ok == (found.first_bad_seq is None)
    return found.first_bad_seq


def swap(x: Lines) -> Lines:
    return [*x[:4000], x[4001], x[4000], *x[4002:]]


EDITS: list[tuple[str, Callable[[Made, Made], tuple[Lines, list[Checkpoint] | None]], int | None]] = [
    ("none", lambda a, _: (a.lines, a.points), None),
    ("none, without its own checkpoints", lambda a, _: (a.lines, None), None),
    ("swap", lambda a, _: (swap(a.lines), a.points), 4001),
    ("delete", lambda a, _: (a.lines[:7777] + a.lines[7778:], a.points), 7778),
    ("delete the first", lambda a, _: (a.lines[1:], a.points), 1),
    ("insert", lambda a, b: ([*a.lines[:100], b.lines[100], *a.lines[100:]], a.points), 101),
    ("duplicate", lambda a, _: ([*a.lines[:9999], a.lines[9998], a.lines[9999]], a.points), 10_000),
    ("cut one", lambda a, _: (a.lines[:-1], None), 10_000),
    ("cut the tail", lambda a, _: (a.lines[:6000], None), 6001),
    ("cut all", lambda a, _: ([], None), 1),
    ("splice", lambda a, b: (a.lines[:5000] + b.lines[5000:], a.points), 5001),
    ("another run", lambda _a, b: (b.lines, b.points), 1000),
    ("rewritten, signed by the same key", lambda a, _: rewritten(a, 4500, Signer(bytes(range(32)))), 10_000),
    ("rewritten, signed by another key", lambda a, _: rewritten(a, 4500, Signer(bytes(32))), 5000),
    ("key replaced", lambda a, _: (a.lines, [resigned(a, p) for p in a.points]), 1000),
    ("roll back to an older checkpoint", lambda a, _: (a.lines[:7000], a.points[:7]), 7001),
]


def resigned(made: Made, point: Checkpoint) -> Checkpoint:
    return make(
        run=made.run, seq=point.seq, this_hash=bytes.fromhex(point.hash), root=bytes.fromhex(point.merkle_root),
        time_ns=EPOCH_NS, signer=Signer(bytes(32)),
    )  # fmt: skip


@pytest.mark.parametrize(("what", "edit", "first_bad"), EDITS, ids=[e[0] for e in EDITS])
def test_every_edit_is_found(
    logs: tuple[Made, Made],
    tmp_path: Path,
    what: str,
    edit: Callable[[Made, Made], tuple[Lines, list[Checkpoint] | None]],
    first_bad: int | None,
) -> None:
    a, b = logs
    assert [len(a.lines), len(b.lines), a.points[-1].seq] == [ENTRIES] * 3
    lines, points = edit(a, b)
    if what == "another run":  # the kept checkpoint is found to be of another run where it stands
        first_bad = ENTRIES
    assert verdict(tmp_path, lines, points, a.anchor) == first_bad


def test_flipped_bits_at_random_places(logs: tuple[Made, Made], tmp_path: Path) -> None:
    made, chosen = logs[0], random.Random(6)
    data = b"".join(made.lines)
    ends = [0]
    for line in made.lines:
        ends.append(ends[-1] + len(line))
    for n in range(80):
        bad, bit = bytearray(data), chosen.randrange(8 * len(data))
        bad[bit // 8] ^= 1 << bit % 8
        wanted = next(seq for seq in range(1, ENTRIES + 1) if bit // 8 < ends[seq])
        assert verdict(tmp_path, [bytes(bad)], None, made.anchor, independent=n % 40 == 0) == wanted, bit


def test_flipped_bits_of_the_kept_checkpoint(logs: tuple[Made, Made], tmp_path: Path) -> None:
    """It is signed: no bit of it can change without being found (the signature's own, by its form or by the check)."""
    made = logs[0]
    log, kept = tmp_path / "audit.jsonl", tmp_path / "kept"
    log.write_bytes(b"".join(made.lines[:3]))
    short = make(
        run=made.run, seq=3, this_hash=bytes.fromhex(json.loads(made.lines[2])["this_hash"]),
        root=tree_root(made.lines[:3]), time_ns=EPOCH_NS, signer=Signer(bytes(32)),
    )  # fmt: skip
    kept.write_bytes(short.note.encode())
    key = Signer(bytes(32)).public_hex()
    assert verify(log, anchored=[kept], public_key=key).ok
    note = short.note.encode()
    for bit in range(0, 8 * len(note), 3):
        bad = bytearray(note)
        bad[bit // 8] ^= 1 << bit % 8
        kept.write_bytes(bad)
        assert not verify(log, anchored=[kept], public_key=key).ok, (bit, bytes(bad))


def tree_root(lines: Lines) -> bytes:
    tree = MerkleTree()
    tree.extend(b"".join(bytes.fromhex(json.loads(line)["this_hash"]) for line in lines))
    return tree.root()
