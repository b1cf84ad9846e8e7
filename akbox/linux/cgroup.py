"""A control group (cgroup v2) of the run's own, where this process may make one: `limits.memory` is the kernel's then.

A group can be made below any group on the way from ours to the root of what is mounted whose members may have a memory
controller and that we may write; that is so for root, and for a user whose service manager delegates (systemd does for
its user services). No process but the run's own is moved. Where there is no such group, footprint.py measures.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

from msgspec import Struct

_REMOVE_S = 2.0
_CONTROLLER = "memory"


class Cgroup(Struct, frozen=True):
    """path: the group's directory. Empty until `admit`."""

    path: Path

    def admit(self, pid: int) -> None:
        """Moves a process in; its children are born there. Raises OSError."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def killed_for_memory(self) -> bool:
        """Has the kernel killed for the limit?"""
        return self._event("memory.events", "oom_kill") > 0

    def peak(self) -> int | None:
        """The most bytes there ever were; None before Linux 5.19."""
        try:
            return int((self.path / "memory.peak").read_text())
        except (OSError, ValueError):
            return None

    def remove(self) -> bool:
        """False: there is still a process in it. The kernel counts the last of them off a moment after its end."""
        end = time.monotonic() + _REMOVE_S
        while True:
            try:
                os.rmdir(self.path)
            except FileNotFoundError:
                return True
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    return False  # it stays: a name in the kernel, nothing else
                time.sleep(0.005)
            else:
                return True

    def _event(self, name: str, key: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            for line in (self.path / name).read_text().splitlines():
                word, _, value = line.partition(" ")
                if word == key:
                    return int(value)
        return 0


def make_cgroup(name: str, memory: int) -> Cgroup | None:
    """A group that holds `memory` bytes, swap excluded, and is killed as a whole past them. None where none can be
    made."""
    for parent in parents():
        path = parent / name
        try:
            _offer_memory(parent)
            path.mkdir(mode=0o755)
        except OSError:
            continue
        try:
            (path / "memory.max").write_text(str(memory))
            (path / "memory.oom.group").write_text("1")
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap
                (path / "memory.swap.max").write_text("0")
        except OSError:
            with contextlib.suppress(OSError):
                path.rmdir()
            continue
        return Cgroup(path)
    return None


def parents() -> list[Path]:
    """Groups in which we may make one, nearest first."""
    mount, below = _mount(), _own_path()
    if mount is None or below is None:
        return []
    root, seen_root = mount
    try:
        relative = Path(below).relative_to(seen_root)
    except ValueError:
        return []
    own = root / relative
    chain = [own, *(parent for parent in own.parents if parent == root or root in parent.parents)]
    # To move a process between two groups takes the right to write the members of a group above both (cgroups(7)).
    return [group for group in chain if os.access(group, os.W_OK) and os.access(group / "cgroup.procs", os.W_OK)]


def _offer_memory(parent: Path) -> None:
    """Lets members of `parent` have the memory controller. Raises OSError: it cannot, as in a group with processes of
    its own (EBUSY)."""
    if _CONTROLLER in (parent / "cgroup.subtree_control").read_text().split():
        return
    if _CONTROLLER not in (parent / "cgroup.controllers").read_text().split():
        raise OSError(errno.ENOENT, "no memory controller", str(parent))
    (parent / "cgroup.subtree_control").write_text(f"+{_CONTROLLER}")


def _mount() -> tuple[Path, str] | None:
    """Where cgroup v2 is mounted, and which of its groups is seen there."""
    with contextlib.suppress(OSError), open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[fields.index("-") + 1] == "cgroup2":
                return Path(fields[4]), fields[3]
    return None


def _own_path() -> str | None:
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as groups:
        for line in groups:
            if line.startswith("0::"):
                return line[3:].rstrip("\n")
    return None
