"""The call families by the other door: Enforcer.serve(), as the tracer uses it, on a task that is stopped elsewhere."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from pathlib import Path

import enforcer_run as e
import pytest
from calls import AT_FDCWD, NR, Tree, dirty
from test_calls_net import unix

RESULT, LATER = 0, 3
EACCES, EAGAIN = -13, -11


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "t")


def serve(run: e.Run, name: str, *args: int, may_block: bool = False) -> tuple[int, int]:
    """(Outcome kind, result) of a call that the child is said to have made."""
    kind, value, fd, _ = run.enforcer.serve(run.pid, e.ARCH, NR[name], [*args, *[0] * (6 - len(args))], may_block)
    assert fd == -1
    return kind, value


def test_files(tree: Tree) -> None:
    """The child is a fork, so a buffer made here has the same address in it."""
    good, bad = ctypes.create_string_buffer(tree.b("w/new")), ctypes.create_string_buffer(tree.b("r/new"))
    before = os.umask(0o13)
    with e.launch(lambda: None, tree.policy()) as run:
        os.umask(0o55)
        try:
            assert serve(run, "mkdirat", dirty(AT_FDCWD), ctypes.addressof(good), 0o777) == (RESULT, 0)
            assert serve(run, "mkdirat", dirty(AT_FDCWD), ctypes.addressof(bad), 0o777) == (RESULT, EACCES)
            assert serve(run, "fchmodat", dirty(AT_FDCWD), ctypes.addressof(good), 0o711) == (RESULT, 0)
            assert os.umask(before) == 0o55
        finally:
            os.umask(before)
        assert [(v.op, v.decision) for v in run.events()] == [(0x103, 1), (0x103, 0), (0x106, 1)]
    assert (tree.root / "w/new").stat().st_mode & 0o777 == 0o711


def test_a_blocking_connect_waits_where_it_is_served(tree: Tree) -> None:
    """LATER where waiting is not allowed, with no entry; else as long as SO_SNDTIMEO says, and one entry."""
    path = str(tree.root / "w/full")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(path)
        server.listen(0)
        first.connect(path)
        with socket.socket(socket.AF_UNIX) as second:
            second.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("qq", 0, 30_000))
            addr = ctypes.create_string_buffer(unix(os.fsencode(path)))
            with e.launch(lambda: None, tree.policy()) as run:
                call = ("connect", dirty(second.fileno()), ctypes.addressof(addr), len(addr))
                assert serve(run, *call)[0] == LATER
                assert run.events() == []
                assert serve(run, *call, may_block=True) == (RESULT, EAGAIN)
                assert [(v.decision, v.error) for v in run.events()] == [(1, 11)]
