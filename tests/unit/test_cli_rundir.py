"""The state directory refuses what somebody else could control, and runs are found by prefix."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from akbox.rundir import StateError, all_runs, find_run, new_run_dir, state_root

A = "aaaa" + "0" * 28
B = "aaab" + "0" * 28


def test_state_root_follows_xdg_and_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "deep" / "state"))
    root = state_root()
    assert root == tmp_path / "deep" / "state" / "akbox"
    assert root.stat().st_mode & 0o777 == 0o700


def test_relative_xdg_state_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_root() == tmp_path / ".local/state/akbox"


def test_a_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(StateError, match="cannot be used"):
        state_root(tmp_path / "link")
    assert state_root(tmp_path / "real") == tmp_path / "real"


def test_a_directory_others_can_write_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "open"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(StateError, match="others can write"):
        state_root(root)


def test_a_readable_directory_is_closed(tmp_path: Path) -> None:
    root = tmp_path / "s"
    root.mkdir(mode=0o755)
    state_root(root)
    assert root.stat().st_mode & 0o777 == 0o700


def test_runs_link_is_refused(tmp_path: Path) -> None:
    root = state_root(tmp_path / "s")
    (tmp_path / "elsewhere").mkdir()
    (root / "runs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError):
        new_run_dir(A, root)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_new_run_is_exclusive_and_private(tmp_path: Path) -> None:
    root = state_root(tmp_path / "s")
    run = new_run_dir(A, root)
    assert run == root / "runs" / A
    assert run.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):
        new_run_dir(A, root)
    with pytest.raises(ValueError, match="not a run id"):
        new_run_dir("../" + A[3:], root)


def test_find_by_prefix_last_and_errors(tmp_path: Path) -> None:
    root = state_root(tmp_path / "s")
    with pytest.raises(StateError, match="no run in"):
        find_run("last", root)
    first, second = new_run_dir(A, root), new_run_dir(B, root)
    os.utime(first, ns=(1, 1))
    assert find_run("last", root) == second
    assert find_run("aaaa", root) == first
    assert find_run(B, root) == second
    assert all_runs(root) == [first, second]
    for name, message in [("aaa", "not a run"), ("bbbb", "no run"), ("../x", "not a run"), ("", "not a run")]:
        with pytest.raises(StateError, match=message):
            find_run(name, root)
    new_run_dir("aaaa" + "1" * 28, root)
    with pytest.raises(StateError, match="fits 2 runs"):
        find_run("aaaa", root)
