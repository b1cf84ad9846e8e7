"""What the tests of the enforcer's call families share: raw calls by name, a bare twin of a run, a small tree of files.

A *twin* test runs one body twice, bare and under the enforcer, each on a tree of its own, and compares what it returns:
where the policy allows a call, nothing about it may differ, errnos included.
"""

from __future__ import annotations

import os
import pickle
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import enforcer_run as e

from akbox.linux.syscalls_table import GROUPS

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = 0x100, 0x200, 0x400, 0x1000
GARBAGE = 0xDEAD_BEEF << 32
NR = {
    name: int(numbers[1 if e.ARM else 0])
    for group in GROUPS
    for name, *numbers in (entry.split() for entry in group.calls.replace("\n", " ").split(";") if entry.strip())
    if numbers[1 if e.ARM else 0] != "-"
}


def sys(name: str, *args: int | bytes | Any) -> int:
    """A raw call by name; -errno when it fails."""
    return e.call(NR[name], *args)


def dirty(value: int) -> int:
    """The int as a register whose upper half holds garbage."""
    return (value & 0xFFFF_FFFF) | GARBAGE


def numbers(*names: str) -> tuple[int, ...]:
    """The numbers of those calls that this architecture has."""
    return tuple(NR[name] for name in names if name in NR)


def bare(body: Callable[[], Any]) -> Any:
    """What body returns in a forked child without capabilities and without any filter."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            assert e.call(e.CAPSET, struct.pack("<Ii", 0x20080522, 0), bytes(24)) == 0
            result = (True, body())
        except BaseException:
            result = (False, traceback.format_exc())
        with open(write, "wb") as pipe:
            pipe.write(pickle.dumps(result))
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        ok, value = pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    if not ok:
        raise e.ChildFailed(value)
    return value


class Tree:
    """w/ may be written, r/ read, out/ neither; w/secret and w/d/key are denied. All of it exists on the host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("w/sub", "w/d", "w/plain", "r", "out/empty"):
            (root / name).mkdir(parents=True)
        for name in ("w/ok", "w/secret", "w/d/key", "w/plain/x", "r/a", "out/h"):
            (root / name).write_text(f"contents of {name}\n")

    def b(self, name: str) -> bytes:
        """A path in the tree as bytes for a raw call, spelt as it is (pathlib would drop dots and slashes)."""
        return os.fsencode(f"{self.root}/{name}" if name[:1] not in ("", "/") else name)

    def policy(self, **more: tuple[str, ...]) -> str:
        """The policy that the class promises."""
        at = str(self.root)
        deny = (f"{at}/w/secret", f"{at}/w/d/key", f"{at}/w/new-secret")
        return e.make_policy(read=(f"{at}/r/**", f"{at}/w/**"), write=(f"{at}/w/**",), deny=deny, **more)

    def state(self) -> dict[str, tuple[int, int, int, bytes]]:
        """Every entry with what a call could change: mode, size, mtime, contents."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            st = path.lstat()
            data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[str(path.relative_to(self.root))] = (st.st_mode, st.st_size, st.st_mtime_ns, data)
        return found


@contextmanager
def unchanged(tree: Tree) -> Iterator[None]:
    """Nothing in the tree is different afterwards."""
    before = tree.state()
    yield
    assert tree.state() == before


def inside(tree: Tree, body: Callable[[], Any], *names: str, **options: Any) -> tuple[Any, list[e.Event]]:
    """Body under the enforcer, with these calls trapped and the tree's own policy: (result, events)."""
    policy = options.pop("policy", None) or tree.policy()
    return e.run(body, policy, trapped=numbers(*names), **options)
