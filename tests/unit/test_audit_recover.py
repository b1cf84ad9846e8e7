"""A killed supervisor loses nothing: ring and pending file are replayed, once."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_kit import Box, compiled, event

from akbox.kernel.audit import AuditError
from akbox.kernel.events import Event, pack_event
from akbox.kernel.recover import RING_HEADER_BYTES, RING_MAGIC, Recovery, read_ring, recover
from akbox.kernel.verify import verify
from akbox.linux.unfinished import mark, recover_unfinished

SIZE = 1 << 16


def write_ring(path: Path, run: bytes, events: list[Event], *, tail: int = 0, size: int = SIZE) -> None:
    """A ring file as native/ring.c leaves it, starting at byte `tail`, with padding where a record would straddle the
    end."""
    area, head = bytearray(size), tail
    for one in events:
        data = pack_event(one)
        room = size - head % size
        if room < len(data):
            area[head % size :] = struct.pack("<IH", room, 0).ljust(room, b"\0")
            head += room
        area[head % size : head % size + len(data)] = data
        head += len(data)
    header = struct.pack("<8sQQQ16s", RING_MAGIC, size, head, tail, run).ljust(RING_HEADER_BYTES, b"\0")
    path.write_bytes(header + bytes(area))


def abandon(box: Box) -> None:
    """What a SIGKILL leaves: no close, no flush; only the kernel's part (the lock goes with the descriptor)."""
    box.log._file.close()
    box.store.close()


def targets(directory: Path) -> list[str]:
    return [e["target"] for e in map(json.loads, (directory / "audit.jsonl").read_bytes().splitlines())]


def test_what_the_log_lacks_is_added_once(tmp_path: Path) -> None:
    box = Box(tmp_path)
    events = [event(f"/app/{i}", ts=i) for i in range(6)]
    box.kernel.record(box.kernel.root, events[:4])
    abandon(box)
    write_ring(tmp_path / "ring", box.run_id, events[2:], tail=SIZE * 3 - 200)  # 2 and 3 were logged, not yet consumed
    assert recover(tmp_path) == Recovery(2, 0, 0)
    assert targets(tmp_path) == [*(f"/app/{i}" for i in range(6)), "run:recovered"]
    lines = (tmp_path / "audit.jsonl").read_bytes().splitlines()
    assert {json.loads(line)["rule"] for line in lines[:-1]} == {"fs.read /app/**"}  # from rules.json
    before = (tmp_path / "audit.jsonl").read_bytes()
    assert recover(tmp_path) == Recovery(0, 0, 0)
    assert (tmp_path / "audit.jsonl").read_bytes() == before
    assert verify(tmp_path / "audit.jsonl", tmp_path / "checkpoints").ok


def test_merged_denials_are_counted_once(tmp_path: Path) -> None:
    """A count that is on disk beside the log, the same events still in the ring, and one that nobody has seen yet."""
    box = Box(tmp_path)
    events = [event("/x", allow=False, ts=i) for i in range(5)]
    box.kernel.record(box.kernel.root, events[:4])
    abandon(box)
    write_ring(tmp_path / "ring", box.run_id, events)
    assert recover(tmp_path) == Recovery(1, 1, 0)
    assert [e["req"].get("count") for e in map(json.loads, (tmp_path / "audit.jsonl").read_bytes().splitlines())] == [
        None, 3, None, None,
    ]  # fmt: skip
    assert recover(tmp_path) == Recovery(0, 0, 0)


def test_a_count_that_reached_the_log_is_not_added_again(tmp_path: Path) -> None:
    box = Box(tmp_path)
    events = [event("/x", allow=False, ts=i) for i in range(5)]
    box.kernel.record(box.kernel.root, events)
    old = (tmp_path / "pending").read_bytes()
    box.kernel.flush_events()
    abandon(box)
    (tmp_path / "pending").write_bytes(old)  # killed between the log's write and the pending file's
    write_ring(tmp_path / "ring", box.run_id, events)
    assert recover(tmp_path) == Recovery(0, 0, 0)


def test_a_torn_line_is_cut_and_said_so(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.kernel.record(box.kernel.root, [event("/app/1"), event("/app/2", ts=1)])
    abandon(box)
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    write_ring(tmp_path / "ring", box.run_id, [event("/app/1"), event("/app/2", ts=1)])
    done = recover(tmp_path)
    assert done.events == 1
    assert done.torn_bytes > 0
    assert targets(tmp_path) == ["/app/1", "/app/2", "run:recovered"]
    assert json.loads(path.read_bytes().splitlines()[2])["req"]["torn_bytes"] == done.torn_bytes
    assert verify(path).ok
    assert not recover(tmp_path).changed


def test_damage_is_not_papered_over(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.kernel.record(box.kernel.root, [event("/app/1"), event("/app/2")])
    with pytest.raises(AuditError, match="a run is writing it"):
        recover(tmp_path)
    abandon(box)
    path = tmp_path / "audit.jsonl"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"/app/1", b"/app/9"))
    with pytest.raises(AuditError, match="entry 1: was changed"):
        recover(tmp_path)
    path.write_bytes(good)
    write_ring(tmp_path / "ring", bytes(16), [])
    with pytest.raises(AuditError, match="another run"):
        recover(tmp_path)
    ring = bytearray((tmp_path / "ring").read_bytes())
    ring[:4] = b"ELSE"
    (tmp_path / "ring").write_bytes(ring)
    with pytest.raises(AuditError, match="damaged"):
        recover(tmp_path)
    (tmp_path / "ring").write_bytes(bytes(10))
    assert read_ring(tmp_path / "ring") == (None, [])


def test_nothing_to_recover_from(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="neither"):
        recover(tmp_path)
    write_ring(tmp_path / "ring", bytes(range(16)), [event("/app/1")])
    assert recover(tmp_path) == Recovery(1, 0, 0)  # killed before the log was made
    assert verify(tmp_path / "audit.jsonl").entries == 2


WRITER = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from kernel_kit import *
box = Box(Path({directory!r}))
print(box.run_id.hex(), flush=True)
n = 0
while True:
    box.kernel.record(box.kernel.root, [event(f"/app/{{n}}/{{i}}", allow=i % 2 > 0, ts=n * 10 + i) for i in range(10)])
    box.raw(1025, b'{{"type":"t","value":' + str(n).encode() + b"}}")
    print(n, flush=True)
    n += 1
"""


@pytest.mark.parametrize("after", [1, 7, 23])
def test_sigkill_of_the_writer(tmp_path: Path, after: int) -> None:
    """Whatever was acknowledged before the kill is in the log, and the log holds."""
    program = WRITER.format(path=sys.path, directory=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as child:
        assert child.stdout is not None
        run = bytes.fromhex(child.stdout.readline())
        for _ in range(after):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        acknowledged = after + len(child.stdout.read().splitlines())
    late = [event("/app/late", ts=10**12)]
    write_ring(tmp_path / "ring", run, late)
    done = recover(tmp_path)
    assert done.events == 1
    found = verify(tmp_path / "audit.jsonl", tmp_path / "checkpoints")
    assert found.ok, found
    seen = targets(tmp_path)
    assert {f"/app/{n}/{i}" for n in range(acknowledged) for i in range(10)} <= set(seen)
    assert seen.count("heap:t") >= acknowledged
    assert seen[-1] == "run:recovered"
    assert "/app/late" in seen[-3:-1]  # behind it, as it may be, a call whose change was made and whose entry was not


def test_the_ring_of_a_child_agent(tmp_path: Path) -> None:
    """Its events come back under its own id, and with its own rules."""
    box = Box(tmp_path)
    child = box.kernel.tree.add(box.kernel.root, "child", compiled('version = "1.0"\n[fs]\nread = ["/x/**"]\n'), {})
    box.kernel.record(box.kernel.root, [event("/app/r")])
    abandon(box)
    events = [event("/app/a", rule=0), event("/app/b", allow=False, ts=5)]
    write_ring(tmp_path / f"ring-{child.id.hex()}", box.run_id, events)
    assert recover(tmp_path).events == 2
    assert not recover(tmp_path).changed
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    mine = [line for line in lines if line["agent"] == child.id.hex()]
    assert [(line["target"], line["rule"]) for line in mine] == [("/app/a", "fs.read /x/**"), ("/app/b", None)]


def test_a_mark_without_a_log_does_not_stay(tmp_path: Path) -> None:
    """A power cut before the first sync leaves it; a run that is just starting has it, too, for a moment."""
    old, new, logged = ("0" * 31 + digit for digit in "123")
    for run in (old, new, logged):
        (tmp_path / "runs" / run).mkdir(parents=True)
        mark(tmp_path, run)
        os.utime(tmp_path / "live" / run, (0, 0) if run != new else None)
    (tmp_path / "runs" / logged / "audit.jsonl").write_text("damaged\n")
    recover_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path / "live")) == [new, logged]
