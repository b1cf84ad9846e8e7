"""What is on disk when: a power cut takes every write that was not synced, and no authority call that was answered."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from kernel_kit import Box, event

from akbox.kernel.audit import AuditLog
from akbox.kernel.checkpoint import read_checkpoints
from akbox.kernel.events import pack_event
from akbox.kernel.flood import FloodFilter
from akbox.kernel.recover import recover
from akbox.kernel.verify import verify

SECOND = 1_000_000_000


class Disk:
    """Knows of every file of a directory what a sync has put on disk; the rest of it is what a power cut takes. A sync
    covers what was written before it began."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.synced: dict[int, bytes] = {}  # by inode: a file may get another name
        self.names: dict[str, int] = {}  # on disk, with the inodes that they name
        self.real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fdatasync(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.parent == self.directory:
            self.synced[path.stat().st_ino] = path.read_bytes()
        self.real(fd)

    def fsync(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path == self.directory:
            self.names = self.now()

    def now(self) -> dict[str, int]:
        return {entry.name: entry.stat().st_ino for entry in self.directory.iterdir()}

    def cut(self, into: Path, chosen: random.Random) -> None:
        """What is there after a power cut: the names that were synced, and of each file what was and, as it may be, the
        beginning of what was written since."""
        into.mkdir()
        paths = {inode: self.directory / name for name, inode in self.now().items()}
        for name, inode in self.names.items():
            if inode in paths and paths[inode].is_file():
                now, safe = paths[inode].read_bytes(), self.synced.get(inode, b"")
                kept = now[: len(safe) + chosen.randrange(len(now) - len(safe) + 1)] if now.startswith(safe) else safe
                (into / name).write_bytes(kept)
        assert (into / "audit.jsonl").exists()


def test_a_power_cut_keeps_every_authority_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live, chosen = tmp_path / "live", random.Random(3)
    live.mkdir()
    disk = Disk(live, monkeypatch)
    box = Box(live, rotate_bytes=30_000)
    for n in range(60):
        events = [event(f"/app/{n}/{i}", allow=i % 3 > 0, ts=n * 100 + i) for i in range(chosen.randrange(25))]
        box.kernel.record(box.kernel.root, events)
        box.call(1025, type="t", value=n)
        if n % 7 == 3:
            box.call(1030)
        if n % 6 == 0:
            after = tmp_path / f"after-{n}"
            disk.cut(after, chosen)
            recover(after)
            found = verify(after, after / "checkpoints")
            assert found.ok, found
            values = [e["req"]["args"]["value"] for e in entries(after) if e["op"] == 1025]
            assert values[: n + 1] == list(range(n + 1))
    box.close()


def entries(directory: Path) -> list[dict[str, Any]]:
    files = [*sorted(directory.glob("audit-*.jsonl")), directory / "audit.jsonl"]
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def test_the_test_of_the_power_cut_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With "async", where nothing is synced, the same cut takes answered calls away."""
    live = tmp_path / "live"
    live.mkdir()
    disk = Disk(live, monkeypatch)
    box = Box(live, durability="async")
    for n in range(5):
        box.call(1025, type="t", value=n)
    disk.names = disk.now()
    lost = False
    for n in range(20):
        disk.cut(tmp_path / f"after-{n}", random.Random(n))
        lost |= (tmp_path / f"after-{n}" / "audit.jsonl").read_bytes().count(b"\n") < 5
    assert lost
    box.close()


def test_no_checkpoint_names_what_is_not_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = tmp_path / "live"
    live.mkdir()
    disk = Disk(live, monkeypatch)
    log = AuditLog(live / "audit.jsonl", bytes(16))
    seen: list[int] = []

    def look(point: Any) -> None:
        seen.append(point.seq)
        assert disk.synced[(live / "audit.jsonl").stat().st_ino].count(b"\n") >= point.seq

    log.on_checkpoint(look)
    for n in range(30):
        log.append_records(b"".join(pack_event(event(f"/app/{n}/{i}")) for i in range(200)), bytes(16))
    log.close()
    assert seen[-1] == 6000
    with open(live / "checkpoints", "rb") as file:
        assert [point.seq for point in read_checkpoints(file)] == seen


def test_a_clock_that_steps_back_holds_no_count_back(tmp_path: Path) -> None:
    flood = FloodFilter(tmp_path / "pending")
    assert len(flood.admit([event("/x", allow=False, ts=i) for i in range(9)])) == 1
    assert flood.due(event().ts_ns - 3600 * SECOND)[0].count == 8
    assert flood.idle


def test_entries_keep_their_order_when_the_clock_steps_back(tmp_path: Path) -> None:
    now = [event().ts_ns]
    box = Box(tmp_path, clock_ns=lambda: now[0])
    box.kernel.clock_ns = lambda: now[0]
    box.kernel.start({})
    box.kernel.record(box.kernel.root, [event("/app/1", ts=5)])
    now[0] -= 3600 * SECOND
    box.kernel.record(
        box.kernel.root, [event("/app/2", ts=-3600 * SECOND), event("/x", allow=False, ts=-3600 * SECOND)]
    )
    box.kernel.finish({})
    box.close()
    assert [e["target"] for e in box.entries()] == ["run:start", "/app/1", "/app/2", "/x", "run:finish"]
    assert verify(tmp_path / "audit.jsonl", tmp_path / "checkpoints").ok


@pytest.mark.parametrize("when", ["linked", "renamed"])
def test_killed_while_it_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Between the two names of the file, and right after: the log is whole, and goes on."""
    child = os.fork()
    if child == 0:
        step = "rename" if when == "linked" else "fsync"
        monkeypatch.setattr(os, step, lambda *_: os._exit(7))
        log = AuditLog(tmp_path / "audit.jsonl", bytes(16), rotate_bytes=10_000, durability="async")
        for n in range(100):
            log.append_records(pack_event(event(f"/app/{n}")), bytes(16))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    before = verify(tmp_path)
    count = before.entries
    assert before.ok
    assert count > 10
    log = AuditLog(tmp_path / "audit.jsonl", bytes(16), rotate_bytes=10_000)
    for n in range(50):
        log.append_records(pack_event(event(f"/app/again/{n}")), bytes(16))
    assert [e.seq for e in log.entries()] == list(range(1, count + 51))
    log.close()
    found = verify(tmp_path, tmp_path / "checkpoints")
    assert (found.ok, found.entries) == (True, count + 50)
    assert len(list(tmp_path.glob("audit-*.jsonl"))) >= 2


def test_a_log_in_many_files_is_one_log(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", bytes(16), rotate_bytes=8_000)
    for n in range(300):
        log.append_records(b"".join(pack_event(event(f"/app/{n}/{i}")) for i in range(3)), bytes(16))
    for first, last in ((1, 900), (450, 451), (899, 900), (1, 1)):
        assert [e.seq for e in log.entries(first, last)] == list(range(first, last + 1))
    log.close()
    files = sorted(tmp_path.glob("audit-*.jsonl"))
    assert len(files) > 20
    found = verify(tmp_path / "audit.jsonl", tmp_path / "checkpoints")
    assert (found.ok, found.entries) == (True, 900)
    first = json.loads(files[3].read_bytes().splitlines()[0])["seq"]
    assert files[3].name == f"audit-{first:012d}.jsonl"
    files[3].unlink()
    found = verify(tmp_path / "audit.jsonl", tmp_path / "checkpoints")
    assert (found.ok, found.first_bad_seq) == (False, first)
