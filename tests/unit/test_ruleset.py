"""The ruleset holds in the kernel what the plan says, tried in a child with and without it."""

import ctypes
import errno
import os
import signal
import socket
from pathlib import Path

import pytest

from akbox import _native
from akbox.linux.ruleset import build_ruleset, make_ruleset, missing_layers
from akbox.policy.landlock import LandlockPlan, PathGrant
from tests.unit.child import in_child

READ = ("READ_FILE", "READ_DIR")
SYS_LANDLOCK_RESTRICT_SELF = 446


def plan(*grants: tuple[Path | str, tuple[str, ...], bool]) -> LandlockPlan:
    return LandlockPlan(tuple(PathGrant(str(p), rights, tree, (0,)) for p, rights, tree in grants), (), {})


def restrict(fd: int) -> None:
    _native.prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    assert ctypes.CDLL(None, use_errno=True).syscall(SYS_LANDLOCK_RESTRICT_SELF, fd, 0) == 0, os.strerror(
        ctypes.get_errno()
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = Path(os.path.realpath(tmp_path))
    for name in ("in/a", "in/deep/b", "out/c", "one", "two"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "link").symlink_to(root / "out")
    return root


def refused(attempt: object, *args: object) -> int:
    try:
        attempt(*args)  # type: ignore[operator]
    except OSError as error:
        return error.errno or -1
    return 0


def test_trees_and_files_are_granted_and_nothing_else(tree: Path) -> None:
    def body() -> None:
        assert (tree / "out/c").read_text() == "out/c"  # the positive control
        restrict(make_ruleset(plan((tree / "in", READ, True), (tree / "one", READ, False))))
        assert (tree / "in/deep/b").read_text() == "in/deep/b"
        assert sorted(os.listdir(tree / "in")) == ["a", "deep"]
        assert (tree / "one").read_text() == "one"
        for attempt in (
            lambda: (tree / "out/c").read_text(),
            lambda: (tree / "two").read_text(),
            lambda: os.listdir(tree),
            lambda: (tree / "in/a").write_text("x"),
            lambda: (tree / "in/new").touch(),
            lambda: (tree / "in/a").unlink(),
        ):
            assert refused(attempt) == errno.EACCES

    assert in_child(body) == 0


def test_what_is_not_there_or_not_meant_is_skipped(tree: Path) -> None:
    ruleset = build_ruleset(
        plan(
            (tree / "absent", READ, True),
            (tree / "in", READ, False),  # a directory where one file was meant
            (tree / "link", READ, True),  # not canonical
            (tree / "link/c", READ, False),
            (tree / "one", ("READ_DIR",), True),  # nothing of it applies to a file
        )
    )
    os.close(ruleset.fd)
    assert set(ruleset.skipped) == {str(tree / n) for n in ("absent", "in", "link", "link/c", "one")}


def test_the_descriptor_is_close_on_exec_and_none_leaks(tree: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    fd = make_ruleset(plan((tree / "in", READ, True)))
    assert not os.get_inheritable(fd)
    os.close(fd)
    with pytest.raises(KeyError):
        make_ruleset(plan((tree / "in", ("NO_SUCH_RIGHT",), True)))
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_own_proc_directory_is_reached_through_proc() -> None:
    def body() -> None:
        restrict(make_ruleset(plan(("/proc/self", READ, True))))
        assert os.listdir(f"/proc/{os.getpid()}/task")
        assert refused(os.listdir, "/etc") == errno.EACCES

    assert in_child(body) == 0


def test_ports_are_handled_and_listed_ones_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listed, socket.create_server(("127.0.0.1", 0)) as other:
        ports = listed.getsockname(), other.getsockname()

        def connect(address: tuple[str, int]) -> None:
            with socket.socket() as s:
                s.connect(address)

        def body() -> None:
            connect(ports[1])
            restrict(build_ruleset(plan(), connect_ports=[ports[0][1]]).fd)
            connect(ports[0])
            assert refused(connect, ports[1]) == errno.EACCES
            with socket.socket() as s:
                assert refused(s.bind, ("127.0.0.1", 0)) == errno.EACCES

        assert in_child(body) == 0


def test_signals_and_abstract_sockets_stay_inside() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0")  # the kernel chooses a name
        server.listen()
        name, parent = server.getsockname(), os.getpid()

        def connect() -> None:
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(name)

        def body() -> None:
            connect()
            os.kill(parent, 0)
            restrict(make_ruleset(plan()))
            assert refused(connect) == errno.EPERM
            assert refused(os.kill, parent, 0) == errno.EPERM
            assert refused(os.kill, parent, signal.SIGCONT) == errno.EPERM

        assert in_child(body) == 0


def test_missing_features_have_names() -> None:
    assert missing_layers(0)[0].name == "landlock"
    assert [layer.name for layer in missing_layers(3)] == ["landlock-net", "landlock-ioctl-dev", "landlock-scope"]
    assert missing_layers(6) == missing_layers(7) == ()
    assert all(layer.remedy and not layer.works for layer in missing_layers(0))
