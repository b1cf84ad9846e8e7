"""The fixture of a case: the directories, files and processes that commands work on, one set per user.

Everything lies below one directory that both users can reach; the parts belong to the user the case runs as. A guard
remembers what must not change, with contents and metadata, and says what did.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from akbox.conformance.services import Services

ORDINARY_UID = 65534
MARK = "HOST-SECRET"  # the first bytes of everything that must never be read
PLACES = re.compile(r"\{(W|R|S|H|U|T|K|D|HOME|STATE|HP|HPADDR|P1|P2|P3|DNS|AH)\}")


@dataclass
class World:
    """Paths are absolute and canonical. D is the denied directory W/d holds a denied file in (`D` = W/d/secret)."""

    base: Path
    uid: int
    helpers: Path
    hp: int = 0
    hp_address: int = 0
    guard: dict[str, object] = field(default_factory=dict)
    services: Services | None = None  # what network cases reach

    def __getattr__(self, name: str) -> Path:
        below = {"W": "w", "R": "r", "S": "w/secret", "D": "w/d/secret", "H": "home/.ssh/id_test", "U": "r/sock"}
        below |= {"T": "ungranted", "HOME": "home", "STATE": "state"}
        if name in below:
            return self.base / below[name]
        raise AttributeError(name)

    def fill(self, text: str) -> str:
        values = {"K": str(self.helpers), "HP": str(self.hp), "HPADDR": str(self.hp_address)}
        values |= self.services.places if self.services is not None else {}
        return PLACES.sub(lambda m: values.get(m[1]) or str(getattr(self, m[1])), text)

    def write(self, path: Path, text: str, mode: int = 0o644) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def give(self) -> None:
        """Hands everything below to the user the case runs as."""
        for folder, folders, files in os.walk(self.base):
            for name in (*folders, *files):
                os.lchown(os.path.join(folder, name), self.uid, self.uid)
        os.chown(self.base, self.uid, self.uid)

    def remember(self) -> None:
        self.guard = snapshot(self.guarded())

    def guarded(self) -> list[Path]:
        return [self.R, self.HOME, self.T, self.S, self.W / "d"]

    def changed(self, may_change: tuple[str, ...]) -> list[str]:
        now = snapshot(self.guarded())
        free = [self.fill(text) for text in may_change]
        return [
            f"{path}: {self.guard.get(path)} became {now.get(path)}"
            for path in sorted(self.guard.keys() | now.keys())
            if self.guard.get(path) != now.get(path) and not any(path == f or path.startswith(f + "/") for f in free)
        ]


def snapshot(roots: list[Path]) -> dict[str, object]:
    """path → (mode, owner, mtime, links, contents or link target, extended attributes) of every object below."""
    seen: dict[str, object] = {}
    todo = [str(root) for root in roots]
    while todo:
        path = todo.pop()
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            continue
        content: object = None
        kind = info.st_mode & 0o170000
        mtime_ns = info.st_mtime_ns
        if kind == 0o120000:
            content = os.readlink(path)
        elif kind == 0o040000:
            todo.extend(os.path.join(path, name) for name in os.listdir(path))
        elif kind == 0o100000:
            content = Path(path).read_bytes()
        names = os.listxattr(path, follow_symlinks=False)
        attributes = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(names))
        seen[path] = (oct(info.st_mode), info.st_uid, info.st_gid, mtime_ns, info.st_nlink, content, attributes)
    return seen


def make_world(base: Path, uid: int, helpers: Path) -> World:
    world = World(base=base, uid=uid, helpers=helpers)
    base.mkdir(mode=0o755)
    for name in ("w", "w/d", "r", "home", "home/.ssh", "ungranted", "state", "run"):
        (base / name).mkdir(mode=0o755)
    (base / "run").chmod(0o700)
    world.write(world.W / "ok", "ok\n")
    world.write(world.W / "x", "x\n")
    world.write(world.W / "script", "#!/bin/sh\necho ran\n", 0o755)
    world.write(world.S, f"#!/bin/sh\n# {MARK} in W\necho ran\n", 0o755)
    world.write(world.D, f"{MARK} below W/d\n")
    world.write(world.W / "d" / "open", "open\n")
    world.write(world.R / "a", "alpha\n")
    world.write(world.R / "f", "#!/bin/sh\necho ran\n", 0o755)
    world.write(world.H, f"{MARK} of the host\n", 0o600)
    world.write(world.T / "target", f"{MARK} ungranted\n")
    (world.W / "to-secret").symlink_to("secret")
    (world.W / "chain1").symlink_to("chain2")
    (world.W / "chain2").symlink_to(world.W / "chain3")
    (world.W / "chain3").symlink_to("secret")
    try:
        os.setxattr(world.R / "a", "user.akbox_kit_old", b"1")
    except OSError as error:
        problem = f"{base.parent} cannot hold extended attributes: {error.strerror}"
        raise KitError(problem, "set TMPDIR to a directory on another file system") from error
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(world.U))
    world.give()
    return world


class KitError(Exception):
    """The kit cannot be run here; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Worlds:
    """Makes worlds below one directory and removes them; one long-lived host process per user."""

    def __init__(self) -> None:
        # Not pytest's tmp_path: that is closed to every user but the one who runs the tests.
        self.root = Path(tempfile.mkdtemp(prefix="akbox-kit-"))
        self.root.chmod(0o755)
        self.helpers = self.root / "helpers"
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.numbers = itertools.count(1)
        self.lock = threading.Lock()

    def new(self, uid: int) -> World:
        world = make_world(self.root / str(next(self.numbers)), uid, self.helpers)
        world.hp = self.host_process(uid)
        world.hp_address = writable_mapping(world.hp)
        return world

    def host_process(self, uid: int) -> int:
        with self.lock:
            if uid not in self.processes:
                become = {"user": uid, "group": uid, "extra_groups": []} if uid != os.geteuid() else {}
                self.processes[uid] = subprocess.Popen(["/bin/sleep", "infinity"], cwd="/", **become)  # type: ignore[call-overload]
            return self.processes[uid].pid

    @contextmanager
    def lend(self, uid: int, network: bool = False) -> Iterator[World]:
        """`network`: with servers of its own, which live as long as it is lent."""
        world = self.new(uid)
        with contextlib.ExitStack() as servers:
            if network:
                from akbox.conformance.services import Services

                world.services = servers.enter_context(Services())
            yield world
        shutil.rmtree(world.base)  # kept when the test failed, until the session ends

    def __enter__(self) -> Worlds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.root)


def writable_mapping(pid: int) -> int:
    """An address of `pid` that can be read and written back."""
    mappings = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return next(int(line.split("-", 1)[0], 16) for line in mappings if " rw-p " in line)


def build_helpers(folder: Path) -> None:
    """Compiles helper/*.c: races, identity and seven alone, the rest into try_call. Raises KitError."""
    folder.mkdir(mode=0o755)
    source = Path(__file__).parent / "helper"
    alone = {"races", "identity", "seven"}
    programs = {name: [source / f"{name}.c"] for name in alone}
    programs["try_call"] = sorted(path for path in source.glob("*.c") if path.stem not in alone)
    for name, files in programs.items():
        flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
        try:
            subprocess.run(["gcc", *flags, "-o", folder / name, *files], check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise KitError("the kit's helpers need a C compiler", "apt-get install gcc libc6-dev") from error
        except subprocess.CalledProcessError as error:
            raise KitError(f"the kit's helper {name} does not compile: {error.stderr}", "see the message") from error
        (folder / name).chmod(0o755)
