"""Signals, scheduling and limits on other processes, and the prctl options that could blind the supervisor."""

from __future__ import annotations

import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import calls
import pytest
from calls import Tree, dirty, inside, sys

MISC = (
    "prctl", "kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal", "pidfd_open",
    "prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr",
    "setpriority", "ioprio_set",
)  # fmt: skip
EPERM, ESRCH, EINVAL, EBADF = -1, -3, -22, -9
SET_DUMPABLE, SET_SECUREBITS, SET_MM, SUBREAPER, CAP_AMBIENT, SET_PTRACER = 4, 28, 35, 36, 47, 0x59616D61
NOBODY = 0x3FFFFF
QUEUED = struct.pack("<iii", 10, 0, -1).ljust(128, b"\0")  # siginfo_t with SI_QUEUE


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "t")


@pytest.fixture
def host() -> Iterator[int]:
    """A process that is not of the run, in a process group of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    os.setpgid(pid, pid)
    yield pid
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0, "the host process was hit"


ON_OTHERS: list[tuple[str, Callable[[int], int]]] = [
    ("kill", lambda p: sys("kill", dirty(p), dirty(0))),
    ("kill KILL", lambda p: sys("kill", p, signal.SIGKILL)),
    ("kill a group", lambda p: sys("kill", dirty(-p), signal.SIGKILL)),
    ("tkill", lambda p: sys("tkill", dirty(p), signal.SIGKILL)),
    ("tgkill", lambda p: sys("tgkill", dirty(p), dirty(p), signal.SIGKILL)),
    ("tgkill with another group", lambda p: sys("tgkill", os.getpid(), p, signal.SIGKILL)),
    ("rt_sigqueueinfo", lambda p: sys("rt_sigqueueinfo", dirty(p), signal.SIGUSR1, QUEUED)),
    ("rt_tgsigqueueinfo", lambda p: sys("rt_tgsigqueueinfo", p, p, signal.SIGUSR1, QUEUED)),
    ("pidfd_open", lambda p: sys("pidfd_open", dirty(p), 0)),
    ("prlimit64", lambda p: sys("prlimit64", dirty(p), 7, struct.pack("<QQ", 10, 10), 0)),
    ("sched_setaffinity", lambda p: sys("sched_setaffinity", dirty(p), 8, struct.pack("<Q", 1))),
    ("sched_setscheduler", lambda p: sys("sched_setscheduler", p, 3, struct.pack("<i", 0))),
    ("sched_setparam", lambda p: sys("sched_setparam", p, struct.pack("<i", 0))),
    ("setpriority", lambda p: sys("setpriority", dirty(0), dirty(p), 5)),
    ("setpriority of a group", lambda p: sys("setpriority", 1, p, 5)),
    ("setpriority of a user", lambda p: sys("setpriority", 2, os.getuid(), 5)),
    ("ioprio_set", lambda p: sys("ioprio_set", dirty(1), dirty(p), 3 << 13)),
    ("ioprio_set of a user", lambda p: sys("ioprio_set", 3, os.getuid(), 3 << 13)),
]  # fmt: skip


@pytest.mark.parametrize("action", [a[1] for a in ON_OTHERS], ids=[a[0] for a in ON_OTHERS])
def test_others_are_out_of_reach(tree: Tree, host: int, action: Callable[[int], int]) -> None:
    limit = resource.prlimit(host, resource.RLIMIT_NOFILE)
    got, events = inside(tree, lambda: action(host), *MISC)
    assert got == EPERM
    assert [(v.op, v.decision, v.error) for v in events] == [(0x301, 0, 1)]
    assert resource.prlimit(host, resource.RLIMIT_NOFILE) == limit
    assert os.getpriority(os.PRIO_PROCESS, host) == os.getpriority(os.PRIO_PROCESS, 0)


def test_the_supervisor_and_everybody(tree: Tree) -> None:
    def body() -> list[int]:
        return [sys("kill", os.getppid(), 0), sys("kill", dirty(-1), 0), sys("kill", 1, 0)]

    got, events = inside(tree, body, *MISC)
    assert got == [EPERM] * 3
    assert [v.target for v in events] == [f"pid:{os.getpid()}", "pid:-1", "pid:1"]


def test_ones_own_are_within_reach(tree: Tree) -> None:
    def body() -> list[object]:
        os.setpgid(0, 0)
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        results: list[object] = [
            sys("kill", dirty(child), 0), sys("tkill", child, 0), sys("tgkill", child, child, 0),
            sys("kill", dirty(-os.getpgid(0)), 0), sys("kill", 0, 0), sys("kill", os.getpid(), 0),
            sys("prlimit64", child, 7, 0, 0), sys("prlimit64", 0, 7, 0, 0), sys("setpriority", 0, child, 1),
            sys("setpriority", 1, 0, 1), sys("sched_setaffinity", child, 8, struct.pack("<Q", 3)) >= 0,
            sys("ioprio_set", 1, dirty(0), 3 << 13),
        ]  # fmt: skip
        pidfd = sys("pidfd_open", child, 0)
        results += [pidfd >= 0, sys("pidfd_send_signal", dirty(pidfd), dirty(signal.SIGTERM), 0, 0)]
        results.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        results.append(sys("pidfd_send_signal", pidfd, 0, 0, 0))
        return results

    expected = [0] * 10 + [True, 0, True, 0, -signal.SIGTERM, ESRCH]
    assert calls.bare(body) == expected
    got, events = inside(tree, body, *MISC)
    assert got == expected
    assert {v.decision for v in events} == {1}


def test_pidfds_of_others(tree: Tree, host: int) -> None:
    """One may exist in the agent (pidfd_open is not trapped everywhere); the signal is still judged."""

    def body() -> list[int]:
        pidfd = os.pidfd_open(host)
        return [
            sys("pidfd_send_signal", pidfd, signal.SIGKILL, 0, 0),
            sys("pidfd_send_signal", 0, 0, 0, 0),
            sys("pidfd_send_signal", 999, 0, 0, 0),
        ]

    got, _ = inside(tree, body, "pidfd_send_signal")
    assert got == [EPERM, EBADF, EBADF]


def test_nobody_is_nobody(tree: Tree) -> None:
    def body() -> list[int]:
        return [
            sys("kill", NOBODY, 0), sys("kill", dirty(-(2**31)), 0), sys("kill", -NOBODY, 0), sys("tkill", NOBODY, 0),
            sys("tkill", dirty(-5), 0), sys("tgkill", 0, 0, 0),
            sys("rt_sigqueueinfo", -5, 10, bytes(128)) in (EPERM, ESRCH),
            sys("prlimit64", NOBODY, 7, 0, 0), sys("setpriority", 0, NOBODY, 1), sys("setpriority", 7, 0, 1),
            sys("ioprio_set", 9, 0, 0), sys("pidfd_open", NOBODY, 0), sys("pidfd_open", -1, 0),
        ]  # fmt: skip

    expected = calls.bare(body)
    got, events = inside(tree, body, *MISC)
    assert got == expected
    assert events == []


def test_prctl(tree: Tree) -> None:
    def body() -> list[int]:
        return [
            sys("prctl", dirty(SET_DUMPABLE), 0, 0, 0, 0),
            sys("prctl", SET_DUMPABLE, 2, 0, 0, 0),
            sys("prctl", SET_DUMPABLE, 1, 0, 0, 0),
            sys("prctl", dirty(SUBREAPER), 1, 0, 0, 0),
            sys("prctl", SET_SECUREBITS, 0, 0, 0, 0),
            sys("prctl", SET_MM, 1, 0, 0, 0),
            sys("prctl", SET_PTRACER, -1 & 0xFFFFFFFF, 0, 0, 0),
            sys("prctl", dirty(CAP_AMBIENT), 4, 0, 0, 0),
            sys("prctl", 12345, 0, 0, 0, 0),
        ]

    got, events = inside(tree, body, *MISC)
    assert got == [0, EINVAL, 0, 0, EPERM, EPERM, EPERM, EPERM, EPERM]
    assert [v.target for v in events] == [
        f"prctl:{o}" for o in (SET_SECUREBITS, SET_MM, SET_PTRACER, CAP_AMBIENT, 12345)
    ]


def test_becoming_unreadable_is_answered_and_not_done(tree: Tree) -> None:
    """Otherwise the next trapped call's path could not be read."""

    def body() -> int:
        assert sys("prctl", SET_DUMPABLE, 0, 0, 0, 0) == 0
        return sys("mkdirat", calls.AT_FDCWD, tree.b("w/after"), 0o755)

    assert inside(tree, body, "prctl", "mkdirat")[0] == 0
    assert (tree.root / "w/after").is_dir()
