"""Streams of a library run: everything arrives, in both directions at once, and nobody waits for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import akbox


@pytest.fixture
def sandbox(tmp_path: Path) -> akbox.Sandbox:
    return akbox.Sandbox("default", cwd=tmp_path, state_dir=tmp_path / "state")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_more_than_a_pipe_holds_in_both_directions(sandbox: akbox.Sandbox) -> None:
    data = os.urandom(1 << 20)
    result = sandbox.run(["cat"], stdin=data)
    assert result.stdout == data
    assert result.stderr == b""


def test_both_streams(sandbox: akbox.Sandbox) -> None:
    result = sandbox.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 3)


@pytest.mark.parametrize("stdin", [None, b""])
def test_no_input_is_the_end_of_the_input(sandbox: akbox.Sandbox, stdin: bytes | None) -> None:
    assert sandbox.run(["cat"], stdin=stdin).stdout == b""


def test_an_agent_need_not_read(sandbox: akbox.Sandbox) -> None:
    assert sandbox.run(["true"], stdin=bytes(1 << 20)).exit_code == 0


def test_streams_may_end_before_the_run(sandbox: akbox.Sandbox) -> None:
    result = sandbox.run(["sh", "-c", "echo early; exec >&- 2>&-; read line; exit 5"], stdin=b"go\n")
    assert (result.stdout, result.exit_code) == (b"early\n", 5)


def test_a_timeout_ends_the_run_and_leaves_no_descriptor(sandbox: akbox.Sandbox) -> None:
    sandbox.run(["true"])
    before = open_descriptors()
    with pytest.raises(TimeoutError) as caught:
        sandbox.run(["sleep", "600"], timeout=0.2)
    caught.value.__traceback__ = None  # it holds the run
    del caught
    assert open_descriptors() == before


def test_without_capture_nothing_is_kept(sandbox: akbox.Sandbox) -> None:
    assert sandbox.run(["echo", "lost"], capture=False).stdout == b""
