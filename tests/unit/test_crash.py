"""kill -9 between any two steps of a WRITE: afterwards both the entry and the change are there, or neither."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from akbox.kernel.recover import recover
from akbox.kernel.verify import verify
from akbox.store.sqlite import SqliteStore

CHILD = Path(__file__).with_name("crash_child.py")


def crash(directory: Path, step: int, kind: str = "step") -> tuple[int, str]:
    directory.mkdir()
    command = [sys.executable, str(CHILD), str(directory), str(step), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout or done.stderr


def state(directory: Path) -> tuple[int, int]:
    """(value in the heap, entries of a WRITE that went well) after recovery, with a log that verifies."""
    recover(directory)
    assert not recover(directory).changed  # the second time there is nothing to do
    found = verify(directory / "audit.jsonl")
    assert found.ok, found
    store = SqliteStore(directory / "kernel.db")
    item = store.get(1)
    store.close()
    assert item is not None
    entries = [json.loads(line) for line in (directory / "audit.jsonl").read_text().splitlines()]
    writes = [e for e in entries if e["name"] == "WRITE" and e["decision"] == "allow"]
    assert all(e["res"]["result"] == {"version": 2} and e["res"]["stages"]["EXECUTE"] == "pass" for e in writes)
    return json.loads(item.value)["value"], len(writes)


def test_every_step(tmp_path: Path) -> None:
    code, output = crash(tmp_path / "whole", 0)
    assert code == 0, output
    steps = int(output)
    assert steps >= 10, "the steps are no longer seen"
    assert state(tmp_path / "whole") == (7, 1)
    seen = set()
    for step in range(1, steps + 1):
        code, output = crash(tmp_path / str(step), step)
        assert code == -signal.SIGKILL, output
        seen.add(state(tmp_path / str(step)))
    assert seen == {(0, 0), (7, 1)}


@pytest.mark.parametrize("kind", ["torn"])
def test_a_line_that_was_half_written(tmp_path: Path, kind: str) -> None:
    assert crash(tmp_path / "torn", 0, kind)[0] == -signal.SIGKILL
    assert state(tmp_path / "torn") == (7, 1)
