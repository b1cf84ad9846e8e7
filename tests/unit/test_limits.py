"""What measures a run and what stops it: the footprint of a tree, control groups, the watchdog."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from akbox.linux import cgroup
from akbox.linux.footprint import Footprint
from akbox.linux.watchdog import Counter, Watchdog

MEGABYTE = 1 << 20


@contextmanager
def holder(make: str) -> Iterator[int]:
    """A process that holds what `make` (Python, with os, mmap and M = a megabyte) makes; ready when this is entered."""
    script = f"import mmap, os, sys\nM = 1 << 20\n{make}\nprint(flush=True); sys.stdin.read()"
    command = [sys.executable, "-I", "-S", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.kill()


FILL = "[x.write(bytes(M)) for i in range(20)]"
FILE = "fd = os.memfd_create('x'); [os.write(fd, bytes(M)) for i in range(20)]"
HELD = [
    ("anonymous", f"x = mmap.mmap(-1, 20 * M, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); {FILL}"),
    ("shared", f"x = mmap.mmap(-1, 20 * M); {FILL}"),
    ("memory file", FILE),
    ("memory file, mapped too", f"{FILE}; x = mmap.mmap(fd, 20 * M); sum(x[::4096])"),
    ("memory file, only mapped", f"{FILE}; x = mmap.mmap(fd, 20 * M); sum(x[::4096]); os.close(fd)"),
    ("tmpfs, deleted", "fd = os.open('/dev/shm', os.O_TMPFILE | os.O_RDWR); os.write(fd, bytes(20 * M))"),
]


@pytest.mark.parametrize("make", [row[1] for row in HELD], ids=[row[0] for row in HELD])
def test_what_a_process_holds_is_counted_once(make: str) -> None:
    pids: list[int] = []
    footprint = Footprint(lambda: pids, [], "/")
    with holder("pass") as base:
        pids.append(base)
        before = footprint.exact()
    with holder(make) as pid:
        pids[:] = [pid]
        bound, exact = footprint.bound(), footprint.exact()
    assert 19 * MEGABYTE < exact - before < 22 * MEGABYTE
    assert bound > exact - 2 * MEGABYTE  # of what was forked, pages that are shared with this process


def test_what_is_left_behind_on_a_tmpfs(tmp_path: Path) -> None:
    """Files that the run may have made count, those that were there before do not."""
    folder = Path("/dev/shm") / f"akbox-test-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "old").write_bytes(bytes(5 * MEGABYTE))
        footprint = Footprint(list, [str(folder)], str(tmp_path))
        assert footprint.exact() == 0
        (folder / "below").mkdir()
        (folder / "below/new").write_bytes(bytes(7 * MEGABYTE))
        assert footprint.exact() == 7 * MEGABYTE
        own = Footprint(list, [], str(folder))
        assert own.exact() == 12 * MEGABYTE
    finally:
        for name in ("old", "below/new"):
            (folder / name).unlink(missing_ok=True)
        (folder / "below").rmdir()
        folder.rmdir()


def test_processes_that_are_gone_hold_nothing() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    zombie = Footprint(lambda: [pid, 2**22 - 1], [], "/").exact()
    os.waitpid(pid, 0)
    assert zombie == 0


class Groups:
    """A tree that looks like cgroup v2: own group /a/b, whose parents may or may not be used."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        (root / "a/b").mkdir(parents=True)
        for path in (root, root / "a", root / "a/b"):
            self.file(path, "cgroup.procs", "")
            self.file(path, "cgroup.controllers", "cpu memory pids\n")
            self.file(path, "cgroup.subtree_control", "\n")
        monkeypatch.setattr(cgroup, "_mount", lambda: (root, "/"))
        monkeypatch.setattr(cgroup, "_own_path", lambda: "/a/b")

    def file(self, path: Path, name: str, text: str) -> None:
        (path / name).write_text(text)


def test_a_group_is_made_below_the_nearest_that_allows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Groups(tmp_path, monkeypatch)
    assert cgroup.parents() == [tmp_path / "a/b", tmp_path / "a", tmp_path]
    groups.file(tmp_path / "a/b", "cgroup.controllers", "pids\n")
    groups.file(tmp_path / "a", "cgroup.subtree_control", "memory pids\n")
    made = cgroup.make_cgroup("akbox-1", 64 * MEGABYTE)
    assert made is not None
    assert made.path == tmp_path / "a/akbox-1"
    assert (made.path / "memory.max").read_text() == str(64 * MEGABYTE)
    assert (made.path / "memory.oom.group").read_text() == "1"
    made.admit(123)
    assert (made.path / "cgroup.procs").read_text() == "123"
    assert not made.killed_for_memory()
    assert made.peak() is None
    groups.file(made.path, "memory.events", "low 0\noom 1\noom_kill 2\n")
    groups.file(made.path, "memory.peak", "67108864\n")
    assert made.killed_for_memory()
    assert made.peak() == 64 * MEGABYTE


def test_no_group_where_none_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Groups(tmp_path, monkeypatch)
    for path in (tmp_path, tmp_path / "a", tmp_path / "a/b"):
        groups.file(path, "cgroup.controllers", "cpu\n")
    assert cgroup.make_cgroup("akbox-1", MEGABYTE) is None
    assert not list(tmp_path.rglob("akbox-1"))
    monkeypatch.setattr(cgroup, "_mount", lambda: None)
    assert cgroup.parents() == []


class Level:
    """A gauge that is passed from a moment on."""

    def __init__(self, after_s: float, patient: bool) -> None:
        self.reason, self.patient = "limit level", patient
        self._at = time.monotonic() + after_s

    def passed(self) -> bool:
        return time.monotonic() >= self._at

    def pause_s(self) -> float:
        return 0.01


def stops(wall_ms: int | None, *gauges: Level | Counter, least: int = 1) -> list[tuple[str, bool]]:
    seen: list[tuple[str, bool]] = []
    enough = threading.Event()

    def stop(reason: str, hard: bool) -> None:
        seen.append((reason, hard))
        if len(seen) >= least:
            enough.set()

    dog = Watchdog(wall_ms=wall_ms, gauges=gauges, stop=stop)
    dog.start()
    assert enough.wait(10)
    dog.close()
    return seen


def test_the_watchdog_asks_first_and_cannot_wait_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("akbox.linux.watchdog.GRACE_S", 0.05)
    assert stops(20, least=2) == [("budget wall_time_ms", False), ("budget wall_time_ms", True)]
    assert stops(None, Counter("budget cpu_ns", 5, lambda: 5), least=2)[0] == ("budget cpu_ns", False)
    assert stops(None, Level(0.02, patient=False)) == [("limit level", True)]


def test_memory_is_watched_while_a_run_is_asked_to_end() -> None:
    """Five seconds are enough to take everything there is."""
    began = time.monotonic()
    seen = stops(20, Level(0.1, patient=False), least=2)
    assert seen == [("budget wall_time_ms", False), ("limit level", True)]
    assert time.monotonic() - began < 4


def test_nothing_to_watch_is_no_thread() -> None:
    dog = Watchdog(wall_ms=None, gauges=(), stop=lambda reason, hard: None)
    dog.start()
    assert "akbox-watchdog" not in {thread.name for thread in threading.enumerate()}
    dog.close()
