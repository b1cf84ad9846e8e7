"""Calls that change attributes, under the enforcer: judged as writes, by name and by descriptor."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import calls
import enforcer_run as e
import pytest
from calls import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, Tree, dirty, inside, sys, unchanged

from akbox._native import FLAG_STRICT_METADATA

ATTR = (
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes", "futimesat",
    "utimensat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr", "fremovexattr",
    "removexattrat",
)  # fmt: skip
EACCES, EBADF, ENOENT, EINVAL, ERANGE, E2BIG = -13, -9, -2, -22, -34, -7
UTIME_OMIT = 0x3FFFFFFE
TIMES = struct.pack("<qqqq", 1000, 500, 2000, 7)
NAME = b"user.akbox\0"


def xattr_args(value: bytes, size: int, flags: int = 0) -> bytes:
    """struct xattr_args; `value` must outlive the call."""
    return struct.pack("<QII", ctypes.cast(ctypes.c_char_p(value), ctypes.c_void_p).value or 0, size, flags)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "t")


def every_call(t: Tree) -> list[int]:
    """Each call, in w/ only, with int registers dirty."""
    os.symlink("ok", t.root / "w/sl")
    b, here, uid, gid = t.b, dirty(AT_FDCWD), dirty(os.getuid()), dirty(os.getgid())
    fd = os.open(t.root / "w/ok", os.O_RDONLY)
    path_fd = os.open(t.root / "w/ok", os.O_PATH)
    pipe, _ = os.pipe()
    memfd = os.memfd_create("x")
    value = b"v" * 70000
    results = [
        sys("fchmodat", here, b("w/ok"), dirty(0o4640)),
        sys("fchmodat", here, b("w/sl"), 0o600),
        sys("fchmodat", here, b("w/missing"), 0o600),
        sys("fchmodat", here, b("w/ok/"), 0o600),
        sys("fchmodat2", here, b("w/sub"), dirty(0o1711), 0),
        sys("fchmodat2", here, b("w/sl"), 0o600, dirty(AT_SYMLINK_NOFOLLOW)),
        sys("fchmodat2", dirty(fd), b"", 0o604, AT_EMPTY_PATH),
        sys("fchmodat2", path_fd, b"", 0o644, AT_EMPTY_PATH),
        sys("fchmodat2", here, b("w/ok"), 0o600, 1),
        sys("fchmod", dirty(fd), 0o600),
        sys("fchmod", path_fd, 0o600),
        sys("fchmod", 999, 0o600),
        sys("fchmod", dirty(-1), 0o600),
        sys("fchmod", pipe, 0o600),
        sys("fchmod", memfd, 0o600),
        sys("fchownat", here, b("w/ok"), uid, gid, 0),
        sys("fchownat", here, b("w/sl"), dirty(-1), dirty(-1), AT_SYMLINK_NOFOLLOW),
        sys("fchownat", here, b("w/ok"), 12345, 12345, 0),
        sys("fchownat", here, b("w/ok"), 0, 0, 1),
        sys("fchownat", fd, b"", uid, gid, AT_EMPTY_PATH),
        sys("fchown", dirty(fd), uid, gid),
        sys("fchown", path_fd, uid, gid),
        sys("utimensat", here, b("w/ok"), TIMES, 0),
        sys("utimensat", here, b("w/sl"), TIMES, dirty(AT_SYMLINK_NOFOLLOW)),
        sys("utimensat", dirty(fd), 0, TIMES, 0),
        sys("utimensat", fd, 0, TIMES, AT_SYMLINK_NOFOLLOW),
        sys("utimensat", path_fd, 0, TIMES, 0),
        sys("utimensat", here, 0, TIMES, 0),
        sys("utimensat", here, b("w/none"), struct.pack("<qqqq", 0, UTIME_OMIT, 0, UTIME_OMIT), 0),
        sys("utimensat", here, b("w/ok"), struct.pack("<qqqq", 0, 1 << 30, 0, 1), 0),
        sys("utimensat", here, b("w/ok"), TIMES, 1),
        sys("utimensat", here, b("w/ok"), 1, 0),
        sys("setxattr", b("w/ok"), NAME, b"value", 5, dirty(0)),
        sys("setxattr", b("w/sl"), NAME, b"value", 5, 1),
        sys("setxattr", b("w/ok"), NAME, value, 2000, 2),
        sys("setxattr", b("w/ok"), NAME, value, 65537, 0),
        sys("setxattr", b("w/ok"), NAME, value, 5 | 1 << 32, 0),
        sys("setxattr", b("w/ok"), NAME, b"value", 5, 4),
        sys("setxattr", b("w/ok"), b"", b"value", 5, 0),
        sys("setxattr", b("w/ok"), b"user." + b"n" * 251, b"value", 5, 0),
        sys("setxattr", b("w/ok"), b"bogus.x", b"value", 5, 0),
        sys("setxattr", b("w/ok"), b"trusted.x", b"value", 5, 0),
        sys("setxattr", b("w/ok"), NAME, 0, 5, 0),
        sys("lsetxattr", b("w/sl"), NAME, b"value", 5, 0),
        sys("fsetxattr", dirty(fd), b"user.two", b"", 0, 0),
        sys("fsetxattr", path_fd, b"user.two", b"", 0, 0),
        sys("removexattr", b("w/ok"), NAME),
        sys("removexattr", b("w/ok"), NAME),
        sys("lremovexattr", b("w/sl"), NAME),
        sys("fremovexattr", fd, b"user.two"),
        sys("setxattrat", here, b("w/ok"), 0, NAME, xattr_args(value, 3), 16),
        sys("setxattrat", fd, b"", dirty(AT_EMPTY_PATH), NAME, xattr_args(value, 4), 16),
        sys("setxattrat", here, b("w/ok"), 0, NAME, xattr_args(value, 3), 8),
        sys("setxattrat", here, b("w/ok"), 0, NAME, xattr_args(value, 3) + b"\1", 17),
        sys("setxattrat", here, b("w/ok"), 0, NAME, xattr_args(value, 3) + bytes(8), 24),
        sys("setxattrat", here, b("w/ok"), 1, NAME, xattr_args(value, 3), 16),
        sys("removexattrat", here, b("w/ok"), 0, NAME),
    ]
    return results


def old_calls(t: Tree) -> list[int]:
    """What only x86-64 has."""
    b = t.b
    os.symlink("ok", t.root / "w/sl")
    fd = os.open(t.root / "w/ok", os.O_RDONLY)
    usec = struct.pack("<qqqq", 1000, 999_999, 2000, 1)
    return [
        sys("chmod", b("w/ok"), dirty(0o100640)),
        sys("chown", b("w/sl"), dirty(-1), dirty(-1)),
        sys("lchown", b("w/sl"), os.getuid(), os.getgid()),
        sys("utime", b("w/ok"), struct.pack("<qq", 5, 6)),
        sys("utime", b("w/missing"), 0),
        sys("utimes", b("w/ok"), usec),
        sys("utimes", b("w/ok"), struct.pack("<qqqq", 1, 1_000_000, 1, 0)),
        sys("utimes", b("w/ok"), struct.pack("<qqqq", 1, -1, 1, 0)),
        sys("futimesat", dirty(AT_FDCWD), b("w/sub"), usec),
        sys("futimesat", fd, 0, usec),
        sys("futimesat", AT_FDCWD, 0, usec),
    ]


def attributes(t: Tree) -> dict[str, tuple[int, int, int]]:
    """Mode and mtime where a test set it, size of the xattr list."""
    found = {}
    for path in sorted(t.root.rglob("*")):
        st = path.lstat()
        listed = len(os.listxattr(path, follow_symlinks=False))
        found[str(path.relative_to(t.root))] = (st.st_mode, st.st_mtime_ns if st.st_mtime < 10_000 else -1, listed)
    return found


@pytest.mark.parametrize(
    "body", [every_call, pytest.param(old_calls, marks=pytest.mark.skipif(e.ARM, reason="x86-64"))]
)
def test_allowed_calls_are_as_bare(tmp_path: Path, body: Callable[[Tree], list[int]]) -> None:
    twin, real = Tree(tmp_path / "bare"), Tree(tmp_path / "boxx")
    expected = calls.bare(lambda: body(twin))
    got, _ = inside(real, lambda: body(real), *ATTR)
    assert got == expected
    assert attributes(real) == attributes(twin)
    assert 0 in expected


def by_fd(flags: int, act: Callable[[int], int]) -> Callable[[Tree], int]:
    return lambda t: act(os.open(t.root / "r/a", flags))


DENIED: list[tuple[str, Callable[[Tree], int]]] = [
    ("chmod R", lambda t: sys("fchmodat", AT_FDCWD, t.b("r/a"), 0o777)),
    ("chmod secret", lambda t: sys("fchmodat", AT_FDCWD, t.b("w/secret"), 0o777)),
    ("chmod outside", lambda t: sys("fchmodat", AT_FDCWD, t.b("out/h"), 0o777)),
    ("setuid R", lambda t: sys("fchmodat", AT_FDCWD, t.b("r/a"), 0o4755)),
    ("fchmodat2 R", lambda t: sys("fchmodat2", AT_FDCWD, t.b("r/a"), 0o777, 0)),
    ("fchmodat2 of a descriptor", by_fd(os.O_RDONLY, lambda fd: sys("fchmodat2", fd, b"", 0o777, AT_EMPTY_PATH))),
    ("fchmodat2 of a path descriptor", by_fd(os.O_PATH, lambda fd: sys("fchmodat2", fd, b"", 0o777, AT_EMPTY_PATH))),
    ("fchmod of a read-only descriptor", by_fd(os.O_RDONLY, lambda fd: sys("fchmod", dirty(fd), 0o777))),
    (
        "chmod through /proc/self/fd",
        by_fd(os.O_RDONLY, lambda fd: sys("fchmodat", AT_FDCWD, b"/proc/self/fd/%d" % fd, 0)),
    ),
    ("chown R", lambda t: sys("fchownat", AT_FDCWD, t.b("r/a"), os.getuid(), -1 & 0xFFFFFFFF, 0)),
    ("fchown of a read-only descriptor", by_fd(os.O_RDONLY, lambda fd: sys("fchown", fd, os.getuid(), os.getgid()))),
    ("utimensat R", lambda t: sys("utimensat", AT_FDCWD, t.b("r/a"), TIMES, 0)),
    ("utimensat now", lambda t: sys("utimensat", AT_FDCWD, t.b("r/a"), 0, 0)),
    ("futimens of a read-only descriptor", by_fd(os.O_RDONLY, lambda fd: sys("utimensat", fd, 0, TIMES, 0))),
    ("setxattr R", lambda t: sys("setxattr", t.b("r/a"), NAME, b"v", 1, 0)),
    ("fsetxattr of a read-only descriptor", by_fd(os.O_RDONLY, lambda fd: sys("fsetxattr", fd, NAME, b"v", 1, 0))),
    ("setxattrat R", lambda t: sys("setxattrat", AT_FDCWD, t.b("r/a"), 0, NAME, xattr_args(b"v", 1), 16)),
    ("chmod of the directory", lambda t: sys("fchmodat", AT_FDCWD, t.b("r"), 0o777)),
]


@pytest.mark.parametrize("action", [d[1] for d in DENIED], ids=[d[0] for d in DENIED])
def test_denied(tmp_path: Path, tree: Tree, action: Callable[[Tree], int]) -> None:
    twin = Tree(tmp_path / "bare")
    assert calls.bare(lambda: action(twin)) == 0
    ctimes = {p: p.stat().st_ctime_ns for p in tree.root.rglob("*")}
    with unchanged(tree):
        got, events = inside(tree, lambda: action(tree), *ATTR)
    assert got == EACCES
    assert {p: p.stat().st_ctime_ns for p in tree.root.rglob("*")} == ctimes
    assert [(v.op, v.decision, v.need, v.error) for v in events] == [(0x106, 0, 2, 13)]


@pytest.mark.parametrize("name", ["removexattr", "fremovexattr", "removexattrat"])
def test_removexattr_denied(tmp_path: Path, tree: Tree, name: str) -> None:
    def act(t: Tree) -> int:
        if name == "removexattr":
            return sys(name, t.b("r/a"), NAME)
        if name == "removexattrat":
            return sys(name, AT_FDCWD, t.b("r/a"), 0, NAME)
        return sys(name, os.open(t.root / "r/a", os.O_RDONLY), NAME)

    twin = Tree(tmp_path / "bare")
    for t in (twin, tree):
        os.setxattr(t.root / "r/a", "user.akbox", b"v")
    assert calls.bare(lambda: act(twin)) == 0
    assert inside(tree, lambda: act(tree), *ATTR)[0] == EACCES
    assert os.listxattr(tree.root / "r/a") == ["user.akbox"]


def test_a_deleted_read_only_file_is_still_not_the_agents(tree: Tree) -> None:
    """Another hard link may be left, so a descriptor of a removed name is judged by that name."""
    os.link(tree.root / "r/a", tree.root / "out/same")

    def body() -> list[int]:
        fd = os.open(tree.root / "r/a", os.O_RDONLY)
        os.unlink(tree.root / "r/a")
        return [sys("fchmod", fd, 0o777), sys("fchmodat", AT_FDCWD, b"/proc/self/fd/%d" % fd, 0o777)]

    mode = (tree.root / "out/same").stat().st_mode
    assert inside(tree, body, *ATTR)[0] == [EACCES, EACCES]
    assert (tree.root / "out/same").stat().st_mode == mode


def test_set_id_bits_inside_w_are_the_kernels_business(tree: Tree) -> None:
    assert inside(tree, lambda: sys("fchmodat", AT_FDCWD, tree.b("w/ok"), 0o4755), *ATTR)[0] == 0
    assert stat.S_IMODE((tree.root / "w/ok").stat().st_mode) == 0o4755


def test_strict_metadata_tells_nothing_of_hidden_names(tree: Tree) -> None:
    def body() -> list[tuple[int, ...]]:
        return [
            (
                sys("fchmodat", AT_FDCWD, tree.b(name), 0o777),
                sys("fchownat", AT_FDCWD, tree.b(name), 0, 0, 0),
                sys("utimensat", AT_FDCWD, tree.b(name), 0, 0),
                sys("setxattr", tree.b(name), NAME, b"v", 1, 0),
                sys("fchmodat", AT_FDCWD, tree.b(name + "/x"), 0o777),
            )
            for name in ("out/h", "out/none")
        ]

    got, _ = inside(tree, body, *ATTR, flags=FLAG_STRICT_METADATA)
    assert got == [(ENOENT,) * 5] * 2
