"""inotify_add_watch, and the calls that tell about names under fs.metadata = "strict"."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from pathlib import Path

import calls
import enforcer_run as e
import pytest
from calls import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, Tree, dirty, inside, sys

from akbox._native import FLAG_STRICT_METADATA

META = (
    "stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "statfs",
    "chdir", "getxattr", "lgetxattr", "getxattrat", "listxattr", "llistxattr", "listxattrat",
)  # fmt: skip
STRICT = FLAG_STRICT_METADATA
EACCES, ENOENT, EINVAL, ENOTDIR, EFAULT, ERANGE, ENODATA, EBADF = -13, -2, -22, -20, -14, -34, -61, -9
NAME = b"user.akbox\0"
IN_CREATE, IN_DELETE_SELF, IN_DONT_FOLLOW, IN_ONLYDIR = 0x100, 0x400, 0x02000000, 0x01000000


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "t")


# ---- inotify ---------------------------------------------------------------------------------------------------------


def test_watches_are_reads(tmp_path: Path, tree: Tree) -> None:
    def body(t: Tree) -> list[int]:
        fd = sys("inotify_init1", 0)
        os.symlink(t.root / "out", t.root / "w/link")
        return [
            sys("inotify_add_watch", fd, t.b(name), IN_CREATE | extra)
            for name, extra in (
                ("w", 0), ("r", IN_ONLYDIR), ("r/a", IN_ONLYDIR), ("w/none", 0), ("w/link", IN_DONT_FOLLOW),
                ("out", 0), ("out/h", 0), ("w/secret", 0), ("w/link", 0),
            )
        ] + [sys("inotify_add_watch", bad, t.b("w"), IN_CREATE) for bad in (999, 0)]  # fmt: skip

    twin = Tree(tmp_path / "bare")
    expected = calls.bare(lambda: body(twin))
    got, events = inside(tree, lambda: body(tree), "inotify_add_watch")
    assert got == [*expected[:5], EACCES, EACCES, EACCES, EACCES, *expected[9:]]
    assert all(r > 0 for r in expected[5:9])
    assert [v.target.removeprefix(f"{tree.root}/") for v in events if v.decision == 0] == [
        "out",
        "out/h",
        "w/secret",
        "out",
    ]


def test_a_watch_tells_of_changes(tree: Tree) -> None:
    """It is set on the agent's own descriptor, and on the object rather than our name for it."""

    def body() -> tuple[int, int, bytes]:
        fd = sys("inotify_init1", 0)
        wd = sys("inotify_add_watch", dirty(fd), tree.b("w"), dirty(IN_CREATE))
        os.mkdir(tree.root / "w/seen")
        got_wd, mask, _, length = struct.unpack("iIII", (data := os.read(fd, 4096))[:16])
        return wd - got_wd, mask & IN_CREATE, data[16 : 16 + length].rstrip(b"\0")

    assert inside(tree, body, "inotify_add_watch")[0] == (0, IN_CREATE, b"seen")


# ---- strict metadata -------------------------------------------------------------------------------------------------


def looks(t: Tree, name: str) -> list[int]:
    """Each call on one name: result or -errno, with results that carry no more than "it is there"."""
    p, buf, here = t.b(name), ctypes.create_string_buffer(4096), dirty(AT_FDCWD)
    results = [
        sys("newfstatat", here, p, buf, 0),
        sys("newfstatat", here, p, buf, dirty(AT_SYMLINK_NOFOLLOW)),
        sys("statx", here, p, dirty(0), 0xFFF, buf),
        sys("faccessat", here, p, dirty(0)),
        sys("faccessat2", here, p, 0, AT_SYMLINK_NOFOLLOW),
        sys("readlinkat", here, p, buf, 4096),
        sys("statfs", p, buf),
        sys("chdir", p),
        sys("getxattr", p, NAME, buf, 4096),
        sys("listxattr", p, buf, 4096),
        sys("llistxattr", p, buf, 0),
    ]
    if not e.ARM:
        results += [sys("stat", p, buf), sys("lstat", p, buf), sys("access", p, 0), sys("readlink", p, buf, dirty(9))]
    return results


def test_hidden_names_do_not_exist(tree: Tree) -> None:
    """Whether out/h is there or not, a file or a directory, nothing differs."""
    (tree.root / "w/into-file").symlink_to(tree.root / "out/h/x")
    (tree.root / "w/into-none").symlink_to(tree.root / "out/none/x")
    names = ("out/h", "out/none", "out", "out/h/x", "w/into-file/y", "w/into-none/y")
    got, events = inside(tree, lambda: [looks(tree, n) for n in names], *META, flags=STRICT)
    assert got == [[ENOENT] * len(got[0])] * len(names)
    assert {(v.op, v.decision, v.error) for v in events if "/out" in v.target} == {(0x105, 0, 2)}


def test_a_link_to_a_hidden_name_dangles(tree: Tree) -> None:
    (tree.root / "w/to-out").symlink_to(tree.root / "out/h")

    def body() -> list[object]:
        return [
            os.path.exists(tree.root / "w/to-out"),
            os.path.lexists(tree.root / "w/to-out"),
            os.readlink(tree.root / "w/to-out"),
        ]

    assert inside(tree, body, *META, flags=STRICT)[0] == [False, True, str(tree.root / "out/h")]


def test_an_ancestor_of_a_grant_exists(tree: Tree) -> None:
    assert inside(tree, lambda: os.path.isdir(tree.root), *META, flags=STRICT)[0] is True


def served(t: Tree) -> list[object]:
    """Everything a call returns about visible names, its buffer included."""
    here, buf = dirty(AT_FDCWD), ctypes.create_string_buffer(4096)
    os.symlink("ok", t.root / "w/sl")
    os.setxattr(t.root / "w/ok", "user.akbox", b"value")
    fd = os.open(t.root / "w/ok", os.O_RDONLY)
    link_fd = os.open(t.root / "w/sl", os.O_PATH | os.O_NOFOLLOW)
    pipe, _ = os.pipe()
    out: list[object] = []

    def look(name: str, *args: object, size: int = 0) -> None:
        ctypes.memset(buf, 0, 4096)
        out.append((name, sys(name, *args), buf.raw[:size]))

    for name in ("w/ok", "w/sl", "w/sub", "r/a", "w/none", "w/ok/", "w/ok/x", "w/sub/"):
        p = t.b(name)
        look("newfstatat", here, p, buf, 0)
        look("faccessat", here, p, 4)
        look("readlinkat", here, p, buf, 4096, size=64)
        look("getxattr", p, NAME, buf, 4096, size=64)
        look("getxattr", p, NAME, buf, 2)
        look("getxattr", p, NAME, 0, 0)
        look("listxattr", p, buf, 4096, size=64)
        look("statx", here, p, AT_SYMLINK_NOFOLLOW, 0x7FF, 1)
    look("newfstatat", here, t.b("w/ok"), buf, 1)
    look("newfstatat", here, t.b("w/ok"), 1, 0)
    look("newfstatat", here, 1, buf, 0)
    look("newfstatat", here, b"", buf, 0)
    look("newfstatat", dirty(fd), b"", buf, AT_EMPTY_PATH)
    look("newfstatat", pipe, b"", buf, AT_EMPTY_PATH)
    look("newfstatat", 999, b"", buf, AT_EMPTY_PATH)
    look("readlinkat", link_fd, b"", buf, 4096, size=8)
    look("readlinkat", fd, b"", buf, 4096)
    look("readlinkat", here, b"", buf, 4096)
    look("readlinkat", here, t.b("w/sl"), buf, 1, size=3)
    look("readlinkat", here, t.b("w/sl"), buf, dirty(0))
    look("readlinkat", here, t.b("w/sl"), buf, dirty(-5))
    look("faccessat2", here, t.b("w/ok"), 2, 0)
    look("faccessat2", here, t.b("w/ok"), 8, 0)
    look("faccessat2", here, t.b("w/ok"), 0, 1)
    look("statx", here, t.b("w/ok"), 0x6000, 0x7FF, buf)
    look("statx", here, t.b("w/ok"), 0, 1 << 31, buf)
    look("getxattr", t.b("w/ok"), b"", buf, 10)
    look("lgetxattr", t.b("w/sl"), NAME, buf, 10)
    os.chdir(t.root / "w/sub")
    look("faccessat", here, b"../ok", 0)
    look("chdir", t.b("w/ok"))
    return out


def test_visible_names_are_served_as_bare(tmp_path: Path) -> None:
    twin, real = Tree(tmp_path / "bare"), Tree(tmp_path / "boxx")
    expected = calls.bare(lambda: served(twin))
    got, _ = inside(real, lambda: served(real), *META, flags=STRICT)
    assert got == expected


def test_stat_is_the_kernels(tree: Tree) -> None:
    """The whole structure, by each call, against fstat of the parent process."""
    host = os.stat(tree.root / "r/a")

    def body() -> list[object]:
        buf = ctypes.create_string_buffer(256)
        assert sys("statx", AT_FDCWD, tree.b("r/a"), 0, 0xFFF, buf) == 0
        return [os.stat(tree.root / "r/a"), struct.unpack_from("<Q", buf, 32)[0], os.statvfs(tree.root / "r").f_bsize]

    got, _ = inside(tree, body, *META, flags=STRICT)
    assert got == [host, host.st_ino, os.statvfs(tree.root).f_bsize]


def test_access_answers_what_open_would(tree: Tree) -> None:
    def body() -> list[bool]:
        return [
            os.access(tree.root / "r/a", os.R_OK), os.access(tree.root / "r/a", os.W_OK),
            os.access(tree.root / "w/ok", os.W_OK), os.access(tree.root / "w/secret", os.R_OK),
            os.access(tree.root / "w", os.X_OK),
        ]  # fmt: skip

    os.chmod(tree.root / "w/ok", 0o777)
    assert inside(tree, body, *META, flags=STRICT)[0] == [True, False, True, False, True]


def test_proc_self_is_the_agents_own(tree: Tree) -> None:
    def body() -> list[bool]:
        fd = os.open(tree.root / "r/a", os.O_RDONLY)
        os.chdir(tree.root / "w/sub")
        return [
            os.readlink("/proc/self") == str(os.getpid()),
            os.readlink("/proc/thread-self") == f"{os.getpid()}/task/{threading.get_native_id()}",
            os.readlink(f"/proc/self/fd/{fd}") == str(tree.root / "r/a"),
            os.readlink("/proc/self/cwd") == str(tree.root / "w/sub"),
            os.stat(f"/proc/self/fd/{fd}").st_ino == os.fstat(fd).st_ino,
        ]

    policy = tree.policy().replace("'/usr/**'", "'/usr/**', '/proc/self/**', '/proc/thread-self'", 1)
    assert inside(tree, body, *META, flags=STRICT, policy=policy)[0] == [True] * 5


def test_only_refusals_have_entries(tree: Tree) -> None:
    _, events = inside(tree, lambda: [looks(tree, "w/ok"), looks(tree, "w/none")], *META, flags=STRICT)
    assert events == []
