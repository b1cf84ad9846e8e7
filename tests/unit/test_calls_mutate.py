"""Calls that change directory entries, under the enforcer: as bare where allowed, refused without a trace elsewhere."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import calls
import enforcer_run as e
import pytest
from calls import AT_EMPTY_PATH, AT_FDCWD, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, Tree, dirty, inside, sys, unchanged

from akbox._native import FLAG_STRICT_METADATA

MUTATE = (
    "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "symlink",
    "symlinkat", "mknod", "mknodat", "truncate",
)  # fmt: skip
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
EACCES, EPERM, ENOENT, EEXIST, EINVAL, EBUSY, ENOTEMPTY, ENOTDIR, EISDIR = -13, -1, -2, -17, -22, -16, -39, -20, -21


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "t")


def at(name: str, *args: object) -> int:
    """The *at form of a call with AT_FDCWD in a dirty register."""
    return sys(name, dirty(AT_FDCWD), *args)


def every_call(t: Tree) -> list[int]:
    """Each call with a spread of arguments, in w/ only."""
    b = t.b
    results = [
        at("mkdirat", b("w/new"), dirty(0o777)),
        at("mkdirat", b("w/new"), 0o777),
        at("mkdirat", b("w/slash/"), 0o700),
        at("mkdirat", b("w/none/x"), 0o777),
        at("mkdirat", b("w/ok/x"), 0o777),
        at("mkdirat", b("w/."), 0o777),
        at("mkdirat", b("w/.."), 0o777),
        at("mkdirat", b"", 0o777),
        at("mkdirat", b("w/" + "n" * 256), 0o777),
        at("mkdirat", b"/", 0o777),
        at("unlinkat", b("w/missing"), 0),
        at("unlinkat", b("w/sub"), 0),
        at("unlinkat", b("w/sub/"), 0),
        at("unlinkat", b("w/ok/"), 0),
        at("unlinkat", b("w/."), 0),
        at("unlinkat", b("w/plain"), dirty(AT_REMOVEDIR)),
        at("unlinkat", b("w/ok"), AT_REMOVEDIR),
        at("unlinkat", b("w/sub/."), AT_REMOVEDIR),
        at("unlinkat", b("w/sub/.."), AT_REMOVEDIR),
        at("unlinkat", b("w/ok"), 0x40),
        sys("symlinkat", b"ok", dirty(AT_FDCWD), b("w/here")),
        sys("symlinkat", b"ok", AT_FDCWD, b("w/here")),
        sys("symlinkat", b"", AT_FDCWD, b("w/empty")),
        sys("symlinkat", b"ok", AT_FDCWD, b("w/trail/")),
        sys("linkat", dirty(AT_FDCWD), b("w/ok"), AT_FDCWD, b("w/hard"), 0),
        sys("linkat", AT_FDCWD, b("w/ok"), AT_FDCWD, b("w/hard"), 0),
        sys("linkat", AT_FDCWD, b("w/here"), AT_FDCWD, b("w/link-of-link"), 0),
        sys("linkat", AT_FDCWD, b("w/here"), AT_FDCWD, b("w/link-of-file"), dirty(AT_SYMLINK_FOLLOW)),
        sys("linkat", AT_FDCWD, b("w/sub"), AT_FDCWD, b("w/dirlink"), 0),
        sys("linkat", AT_FDCWD, b("w/missing"), AT_FDCWD, b("w/l"), 0),
        sys("linkat", AT_FDCWD, b("w/ok"), AT_FDCWD, b("w/l2"), 1),
        at("mknodat", b("w/fifo"), dirty(stat.S_IFIFO | 0o666), 0),
        at("mknodat", b("w/reg"), stat.S_IFREG | 0o666, 0),
        at("mknodat", b("w/reg0"), 0o640, 0),
        at("mknodat", b("w/dir"), stat.S_IFDIR | 0o777, 0),
        at("mknodat", b("w/odd"), 0o030000, 0),
        at("mknodat", b("w/fifo"), stat.S_IFIFO | 0o666, 0),
        sys("truncate", b("w/ok"), 3),
        sys("truncate", b("w/ok"), -1),
        sys("truncate", b("w/sub"), 0),
        sys("truncate", b("w/fifo"), 0),
        sys("truncate", b("w/missing"), 0),
        sys("truncate", b("w/here"), 5),
        sys("renameat2", AT_FDCWD, b("w/reg"), AT_FDCWD, b("w/reg2"), 0),
        sys("renameat2", AT_FDCWD, b("w/reg"), AT_FDCWD, b("w/reg3"), 0),
        sys("renameat2", AT_FDCWD, b("w/reg2"), AT_FDCWD, b("w/reg0"), dirty(NOREPLACE)),
        sys("renameat2", dirty(AT_FDCWD), b("w/reg2"), dirty(AT_FDCWD), b("w/reg0"), dirty(EXCHANGE)),
        sys("renameat2", AT_FDCWD, b("w/reg2"), AT_FDCWD, b("w/missing"), EXCHANGE),
        sys("renameat2", AT_FDCWD, b("w/reg2"), AT_FDCWD, b("w/reg0"), EXCHANGE | NOREPLACE),
        sys("renameat2", AT_FDCWD, b("w/reg2"), AT_FDCWD, b("w/reg0"), 8),
        sys("renameat2", AT_FDCWD, b("w/reg2"), AT_FDCWD, b("w/sub"), 0),
        sys("renameat2", AT_FDCWD, b("w/sub"), AT_FDCWD, b("w/sub/in"), 0),
        sys("renameat2", AT_FDCWD, b("w/plain"), AT_FDCWD, b("w/moved"), 0),
        sys("renameat2", AT_FDCWD, b("w/moved"), AT_FDCWD, b("w/new"), 0),
        sys("renameat2", AT_FDCWD, b("w/sub/."), AT_FDCWD, b("w/dot"), 0),
        sys("renameat2", AT_FDCWD, b("w/reg0/"), AT_FDCWD, b("w/slashed"), 0),
        sys("renameat2", AT_FDCWD, 1, AT_FDCWD, b("w/fault"), 0),
        at("unlinkat", b("w/slash"), AT_REMOVEDIR),
        at("unlinkat", b("w/hard"), 0),
    ]
    fd = os.open(t.root / "w", os.O_PATH)
    file = os.open(t.root / "w/ok", os.O_RDONLY)
    results += [
        sys("mkdirat", dirty(fd), b"relative", 0o755),
        sys("mkdirat", file, b"relative", 0o755),
        sys("mkdirat", 999, b"relative", 0o755),
        sys("unlinkat", 999, b("w/reg0"), 0),
    ]
    os.chdir(t.root / "w/sub")
    results += [at("mkdirat", b"in-cwd", 0o755), at("unlinkat", b"../relative", AT_REMOVEDIR)]
    return results


def modes(t: Tree) -> dict[str, tuple[int, int]]:
    return {k: (v[0], v[1]) for k, v in t.state().items()}


def test_allowed_calls_are_as_bare(tmp_path: Path) -> None:
    twin, real = Tree(tmp_path / "bare"), Tree(tmp_path / "boxx")

    def body(t: Tree) -> Callable[[], list[int]]:
        def run() -> list[int]:
            os.umask(0o027)
            return every_call(t)

        return run

    expected = calls.bare(body(twin))
    got, _ = inside(real, body(real), *MUTATE)
    assert got == expected
    assert modes(real) == modes(twin)


@pytest.mark.skipif(e.ARM, reason="the older calls are x86-64's")
def test_older_calls_are_as_bare(tmp_path: Path) -> None:
    twin, real = Tree(tmp_path / "bare"), Tree(tmp_path / "boxx")

    def body(t: Tree) -> Callable[[], list[int]]:
        return lambda: [
            sys("mkdir", t.b("w/new"), dirty(0o750)),
            sys("mknod", t.b("w/fifo"), stat.S_IFIFO | 0o600, 0),
            sys("symlink", b"ok", t.b("w/sl")),
            sys("link", t.b("w/ok"), t.b("w/hl")),
            sys("rename", t.b("w/sl"), t.b("w/sl2")),
            sys("renameat", dirty(AT_FDCWD), t.b("w/hl"), AT_FDCWD, t.b("w/hl2")),
            sys("unlink", t.b("w/hl2")),
            sys("unlink", t.b("w/hl2")),
            sys("unlink", t.b("w/sub")),
            sys("unlink", t.b("w/..")),
            sys("rmdir", t.b("w/new")),
            sys("rmdir", t.b("w/plain")),
            sys("rmdir", t.b("w/sub/.")),
            sys("rename", t.b("w/sub"), t.b("w/..")),
        ]

    expected = calls.bare(body(twin))
    got, _ = inside(real, body(real), *MUTATE)
    assert got == expected
    assert modes(real) == modes(twin)


DENIED: list[tuple[str, Callable[[Tree], int]]] = [
    ("unlink secret", lambda t: at("unlinkat", t.b("w/secret"), 0)),
    ("unlink read-only", lambda t: at("unlinkat", t.b("r/a"), 0)),
    ("unlink outside", lambda t: at("unlinkat", t.b("out/h"), 0)),
    ("rmdir outside", lambda t: at("unlinkat", t.b("out/empty"), AT_REMOVEDIR)),
    ("mkdir read-only", lambda t: at("mkdirat", t.b("r/new"), 0o777)),
    ("mkdir denied name that is not there", lambda t: at("mkdirat", t.b("w/new-secret"), 0o777)),
    ("symlink denied name", lambda t: sys("symlinkat", b"ok", AT_FDCWD, t.b("w/new-secret"))),
    ("mkfifo read-only", lambda t: at("mknodat", t.b("r/f"), stat.S_IFIFO | 0o666, 0)),
    ("rename secret away", lambda t: sys("renameat2", AT_FDCWD, t.b("w/secret"), AT_FDCWD, t.b("w/z"), 0)),
    ("rename onto secret", lambda t: sys("renameat2", AT_FDCWD, t.b("w/ok"), AT_FDCWD, t.b("w/secret"), 0)),
    ("rename to a denied name", lambda t: sys("renameat2", AT_FDCWD, t.b("w/ok"), AT_FDCWD, t.b("w/new-secret"), 0)),
    ("exchange with secret", lambda t: sys("renameat2", AT_FDCWD, t.b("w/ok"), AT_FDCWD, t.b("w/secret"), EXCHANGE)),
    ("exchange of secret", lambda t: sys("renameat2", AT_FDCWD, t.b("w/secret"), AT_FDCWD, t.b("w/ok"), EXCHANGE)),
    ("rename an ancestor of a secret", lambda t: sys("renameat2", AT_FDCWD, t.b("w/d"), AT_FDCWD, t.b("w/e"), 0)),
    ("exchange an ancestor", lambda t: sys("renameat2", AT_FDCWD, t.b("w/sub"), AT_FDCWD, t.b("w/d"), EXCHANGE)),
    ("rename read-only into w", lambda t: sys("renameat2", AT_FDCWD, t.b("r/a"), AT_FDCWD, t.b("w/a"), 0)),
    ("rename into read-only", lambda t: sys("renameat2", AT_FDCWD, t.b("w/ok"), AT_FDCWD, t.b("r/b"), 0)),
    ("rename out", lambda t: sys("renameat2", AT_FDCWD, t.b("w/ok"), AT_FDCWD, t.b("out/ok"), 0)),
    ("link secret", lambda t: sys("linkat", AT_FDCWD, t.b("w/secret"), AT_FDCWD, t.b("w/l"), 0)),
    ("link read-only", lambda t: sys("linkat", AT_FDCWD, t.b("r/a"), AT_FDCWD, t.b("w/l"), 0)),
    ("link outside", lambda t: sys("linkat", AT_FDCWD, t.b("out/h"), AT_FDCWD, t.b("w/l"), 0)),
    ("link to read-only", lambda t: sys("linkat", AT_FDCWD, t.b("w/ok"), AT_FDCWD, t.b("r/l"), 0)),
    ("truncate secret", lambda t: sys("truncate", t.b("w/secret"), 0)),
    ("truncate read-only", lambda t: sys("truncate", t.b("r/a"), 0)),
    ("truncate by a longer way", lambda t: sys("truncate", t.b("w/sub/.././/secret"), 0)),
]


@pytest.mark.parametrize("action", [d[1] for d in DENIED], ids=[d[0] for d in DENIED])
def test_denied(tmp_path: Path, tree: Tree, action: Callable[[Tree], int]) -> None:
    twin = Tree(tmp_path / "bare")
    assert calls.bare(lambda: action(twin)) == 0
    with unchanged(tree):
        got, events = inside(tree, lambda: action(tree), *MUTATE)
    assert got == EACCES
    assert [(v.decision, v.error) for v in events] == [(0, 13)]


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK], ids=["char", "block", "socket"])
def test_nodes_are_never_made(tree: Tree, kind: int) -> None:
    with unchanged(tree):
        got, events = inside(tree, lambda: at("mknodat", tree.b("w/node"), kind | 0o666, os.makedev(1, 3)), *MUTATE)
    assert got == EPERM
    assert [(v.op, v.decision, v.error, v.target) for v in events] == [(0x100, 0, 1, f"{tree.root}/w/node")]


def test_whiteout_is_refused(tree: Tree) -> None:
    with unchanged(tree):
        got, events = inside(
            tree, lambda: sys("renameat2", AT_FDCWD, tree.b("w/ok"), AT_FDCWD, tree.b("w/o"), WHITEOUT), *MUTATE
        )
    assert got == EPERM
    assert [v.decision for v in events] == [0]


def test_a_symlink_on_the_way_is_judged_by_what_it_leads_to(tree: Tree) -> None:
    (tree.root / "w/to-out").symlink_to(tree.root / "out")
    (tree.root / "w/to-secret").symlink_to("secret")
    with unchanged(tree):
        got, _ = inside(
            tree,
            lambda: [
                at("unlinkat", tree.b("w/to-out/h"), 0),
                at("mkdirat", tree.b("w/to-out/new"), 0o777),
                sys("truncate", tree.b("w/to-secret"), 0),
                sys("linkat", AT_FDCWD, tree.b("w/to-secret"), AT_FDCWD, tree.b("w/l"), AT_SYMLINK_FOLLOW),
                at("unlinkat", b"/proc/self/root" + tree.b("out/h"), 0),
            ],
            *MUTATE,
        )
    assert got == [EACCES] * 5


def test_what_cannot_happen_leaves_no_entry(tree: Tree) -> None:
    got, events = inside(
        tree,
        lambda: [
            at("unlinkat", tree.b("out/none"), 0),
            at("mkdirat", tree.b("out"), 0o777),
            sys("renameat2", AT_FDCWD, tree.b("out/none"), AT_FDCWD, tree.b("w/x"), 0),
        ],
        *MUTATE,
    )
    assert got == [ENOENT, EEXIST, ENOENT]
    assert events == []


def test_events_name_both_ends(tree: Tree) -> None:
    _, events = inside(
        tree, lambda: sys("renameat2", AT_FDCWD, tree.b("w/ok"), AT_FDCWD, tree.b("w/./sub/../n"), 0), *MUTATE
    )
    assert [(v.op, v.decision, v.target, v.target2) for v in events] == [
        (0x102, 1, f"{tree.root}/w/ok", f"{tree.root}/w/n")
    ]


def test_unnamed_file_gets_its_name(tree: Tree) -> None:
    """open(O_TMPFILE) and linkat of /proc/self/fd/N, as Python's and systemd's atomic writes do."""

    def body() -> list[int]:
        fd = os.open(tree.root / "w", os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(fd, b"new")
        name = b"/proc/self/fd/%d" % fd
        return [
            sys("linkat", AT_FDCWD, name, AT_FDCWD, tree.b("r/named"), AT_SYMLINK_FOLLOW),
            sys("linkat", AT_FDCWD, name, AT_FDCWD, tree.b("w/named"), AT_SYMLINK_FOLLOW),
            sys("linkat", fd, b"", AT_FDCWD, tree.b("w/new-secret"), AT_EMPTY_PATH),
        ]

    got, _ = inside(tree, body, *MUTATE)
    assert got == [EACCES, 0, EACCES]
    assert (tree.root / "w/named").read_text() == "new"
    assert sorted(p.name for p in (tree.root / "r").iterdir()) == ["a"]


def test_a_read_only_descriptor_does_not_become_a_name_in_w(tree: Tree) -> None:
    def body() -> list[int]:
        fd = os.open(tree.root / "r/a", os.O_RDONLY)
        name = b"/proc/self/fd/%d" % fd
        return [
            sys("linkat", AT_FDCWD, name, AT_FDCWD, tree.b("w/l"), AT_SYMLINK_FOLLOW),
            sys("truncate", name, 0),
        ]

    with unchanged(tree):
        got, _ = inside(tree, body, *MUTATE)
    assert got == [EACCES, EACCES]


def test_the_umask_is_the_agents(tree: Tree) -> None:
    def body() -> list[int]:
        results = []
        for i, mask in enumerate((0, 0o77, 0o22)):
            os.umask(mask)
            results.append(at("mkdirat", tree.b(f"w/m{i}"), 0o777))
        return results

    before = os.umask(0o13)
    try:
        assert inside(tree, body, *MUTATE)[0] == [0, 0, 0]
        assert [stat.S_IMODE((tree.root / f"w/m{i}").stat().st_mode) for i in range(3)] == [0o777, 0o700, 0o755]
    finally:
        assert os.umask(before) == 0o13, "the supervisor's own umask was changed"


def test_strict_metadata_tells_nothing_of_hidden_names(tree: Tree) -> None:
    """Both a name that is there and one that is not give the same answer."""

    def body() -> list[tuple[int, ...]]:
        pairs: list[tuple[int, ...]] = []
        for name in ("out/h", "out/none"):
            p = tree.b(name)
            pairs.append(
                (
                    at("unlinkat", p, 0),
                    at("mkdirat", p, 0o777),
                    sys("truncate", p, 0),
                    sys("renameat2", AT_FDCWD, p, AT_FDCWD, tree.b("w/x"), 0),
                    sys("linkat", AT_FDCWD, tree.b("w/ok"), AT_FDCWD, p, 0),
                    at("unlinkat", p + b"/x", 0),
                )
            )
        return pairs

    with unchanged(tree):
        got, _ = inside(tree, body, *MUTATE, flags=FLAG_STRICT_METADATA)
    assert got[0] == got[1] == (ENOENT,) * 6


ROUNDS = 400


def test_four_threads_against_a_swapped_symlink(tree: Tree) -> None:
    """w/p flips between a directory and a symlink to out/ while four threads make, rename and remove below it: nothing
    below out/ may ever change, and something below w/ must have worked."""

    def body() -> int:
        root = tree.root
        (root / "w/real").mkdir()
        worked = [0] * 4
        stop = threading.Event()

        def worker(n: int) -> None:
            for i in range(ROUNDS):
                worked[n] += (at("mkdirat", tree.b(f"w/p/d{n}"), 0o777) == 0) + (
                    sys("renameat2", AT_FDCWD, tree.b("w/p/h"), AT_FDCWD, tree.b(f"w/p/stolen{n}"), 0) == 0
                )
                at("unlinkat", tree.b("w/p/h"), 0)
                sys("truncate", tree.b("w/p/h"), 0)
                sys("linkat", AT_FDCWD, tree.b("w/ok"), AT_FDCWD, tree.b(f"w/p/l{n}.{i}"), 0)
                at("unlinkat", tree.b(f"w/p/l{n}.{i}"), 0)
                at("unlinkat", tree.b(f"w/p/d{n}"), AT_REMOVEDIR)

        def swapper() -> None:
            sys("symlinkat", b"../out", AT_FDCWD, tree.b("w/link"))
            sys("renameat2", AT_FDCWD, tree.b("w/real"), AT_FDCWD, tree.b("w/p"), 0)
            while not stop.is_set():
                sys("renameat2", AT_FDCWD, tree.b("w/p"), AT_FDCWD, tree.b("w/link"), EXCHANGE)

        threads = [threading.Thread(target=worker, args=(n,)) for n in range(4)]
        flip = threading.Thread(target=swapper)
        flip.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        flip.join()
        return sum(worked)

    out = tree.root / "out"
    got, events = inside(tree, body, *MUTATE)
    assert sorted(p.name for p in out.iterdir()) == ["empty", "h"]
    assert (out / "h").read_text() == "contents of out/h\n"
    assert got > 0
    assert any(v.decision == 0 and v.target.startswith(str(out)) for v in events), "the race was never hit"


def test_a_directory_put_in_a_files_place_is_judged_as_one(tree: Tree) -> None:
    """w/x flips between a file and a directory with a file `key` while w/x is renamed to w/d2, below which `key` is
    denied: the directory must never arrive there."""
    at_root = str(tree.root)
    policy = e.make_policy(
        read=(f"{at_root}/**",), write=(f"{at_root}/w/**",), deny=(f"{at_root}/w/d2/key", f"{at_root}/w/dir/none")
    )
    (tree.root / "w/dir").mkdir()
    (tree.root / "w/dir/key").write_text("mine")
    (tree.root / "w/x").write_text("file")
    os.rename(tree.root / "w/dir", tree.root / "w/y")

    def body() -> list[int]:
        stop = threading.Event()
        seen = [0, 0]

        def swapper() -> None:
            while not stop.is_set():
                sys("renameat2", AT_FDCWD, tree.b("w/x"), AT_FDCWD, tree.b("w/y"), EXCHANGE)

        flip = threading.Thread(target=swapper)
        flip.start()
        for i in range(50 * ROUNDS):
            if i >= ROUNDS and seen[0]:
                break
            if sys("renameat2", AT_FDCWD, tree.b("w/x"), AT_FDCWD, tree.b("w/d2"), NOREPLACE) == 0:
                seen[os.path.isdir(tree.root / "w/d2")] += 1
                sys("renameat2", AT_FDCWD, tree.b("w/d2"), AT_FDCWD, tree.b("w/x"), NOREPLACE)
        stop.set()
        flip.join()
        return seen

    got, _ = inside(tree, body, *MUTATE, policy=policy)
    assert got[1] == 0
    assert got[0] > 0


def test_names_in_a_removed_directory(tmp_path: Path) -> None:
    def body(t: Tree) -> list[int]:
        os.chdir(t.root / "w/sub")
        os.rmdir(t.root / "w/sub")
        return [
            at("mkdirat", b"x", 0o777),
            sys("renameat2", AT_FDCWD, t.b("w/ok"), AT_FDCWD, b"x", 0),
            sys("linkat", AT_FDCWD, t.b("w/ok"), AT_FDCWD, b"x", 0),
            sys("symlinkat", b"ok", AT_FDCWD, b"x"),
        ]

    twin, real = Tree(tmp_path / "bare"), Tree(tmp_path / "boxx")
    assert calls.bare(lambda: body(twin)) == [ENOENT] * 4
    assert inside(real, lambda: body(real), *MUTATE)[0] == [ENOENT] * 4
