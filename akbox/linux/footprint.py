"""How much memory a tree of processes holds, measured from /proc: what `limits.memory` is held by without a cgroup.

Counted once however many processes share it: anonymous memory, swap, and memory files (memfd, shared mappings, files on
a tmpfs that a process has open or mapped, or that were made where the policy lets the run write). Not counted: the page
cache of disk files, which the kernel takes back when it needs it, and the kernel's own memory.

exact() walks page tables. bound() is a few microseconds for each process and never less than what exact() would say,
but for what other programs of the machine give back meanwhile; so exact() is only asked when the bound is not enough.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator

_PAGE = os.sysconf("SC_PAGE_SIZE")
_BLOCK = 512  # st_blocks, stat(2)
_KB = 1024
_MEMORY_FS = ("tmpfs", "devtmpfs", "ramfs")
_MAX_FILES = 20_000  # of a directory tree that is looked through

FileId = tuple[int, int]  # st_dev, st_ino


class Footprint:
    """processes(): the numbers of the tree's processes. writable: trees where the run may write; of what of them is on
    a tmpfs, files of our user that appear after this object was made count, whoever made them. own: the run's private
    directory, all of whose files count. Raises OSError without /proc."""

    def __init__(self, processes: Callable[[], list[int]], writable: Iterable[str], own: str) -> None:
        self._processes = processes
        mounts = _memory_mounts()
        self._devices = frozenset(mounts.values())
        self._own = own if _device(own) in self._devices else None
        self._shared = [path for path in _on_mounts(writable, mounts) if path != own]
        self._known = {file for path in self._shared for file, _ in self._files(path)}  # made by others
        self._unmapped = 0  # of memory files, at the last exact(): what no resident set shows
        self._shmem_then = _shmem()

    def bound(self) -> int:
        """Bytes; at most what is held (see above)."""
        resident = sum(_resident(pid) for pid in self._processes())
        return resident + self._unmapped + max(0, _shmem() - self._shmem_then)

    def exact(self) -> int:
        """Bytes that are held now."""
        shmem = _shmem()
        pids = self._processes()
        private, mapped_total = 0, 0
        for pid in pids:
            anonymous, mapped = _rollup(pid)
            private += anonymous
            mapped_total += mapped
        held = self._held_files(pids)
        total = sum(held.values())
        if mapped_total and held:  # a memory file that is both open and mapped is one
            mapped_files: dict[FileId, int] = {}
            for pid in pids:
                for file, size in _mapped_files(pid, self._devices):
                    mapped_files[file] = mapped_files.get(file, 0) + size
            shared = sum(max(held.get(file, 0), mapped_files.get(file, 0)) for file in held.keys() | mapped_files)
        else:
            shared = total + mapped_total
        self._unmapped, self._shmem_then = total, shmem
        return private + shared

    def _held_files(self, pids: list[int]) -> dict[FileId, int]:
        """Memory files that are open in the tree, or that it left where it may write, and their sizes."""
        held: dict[FileId, int] = {}
        for pid in pids:
            for info in _open_files(pid):
                if info.st_dev in self._devices and stat.S_ISREG(info.st_mode):
                    held[info.st_dev, info.st_ino] = info.st_blocks * _BLOCK
        for path in self._shared:
            held |= {file: size for file, size in self._files(path) if file not in self._known}
        if self._own is not None:
            held |= dict(self._files(self._own))
        return held

    def _files(self, top: str) -> Iterator[tuple[FileId, int]]:
        """Our user's files below `top`, on the same file system."""
        todo, seen = [top], 0
        while todo and seen < _MAX_FILES:
            try:
                with os.scandir(todo.pop()) as entries:
                    for entry in entries:
                        seen += 1
                        info = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(info.st_mode) and info.st_dev in self._devices:
                            todo.append(entry.path)
                        elif stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid():
                            yield (info.st_dev, info.st_ino), info.st_blocks * _BLOCK
            except OSError:  # it went meanwhile, or is not ours to list: nothing of the run is in it
                continue


def _memory_mounts() -> dict[str, int]:
    """Where each tmpfs is mounted → its st_dev; under "" the kernel's own, of memfds and shared anonymous mappings."""
    fd = os.memfd_create("akbox", os.MFD_CLOEXEC)
    try:
        mounts = {"": os.fstat(fd).st_dev}
    finally:
        os.close(fd)
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            fields = line.split()
            if fields[fields.index("-") + 1] in _MEMORY_FS:
                major, minor = fields[2].split(":")
                mounts[fields[4]] = os.makedev(int(major), int(minor))
    return mounts


def _on_mounts(trees: Iterable[str], mounts: Iterable[str]) -> list[str]:
    """What of the trees lies on the mounts: the deeper of the two, where one holds the other."""
    found = []
    for tree in trees:
        for mount in mounts:
            if mount and (tree == mount or tree.startswith(mount.rstrip("/") + "/")):
                found.append(tree)
            elif mount and mount.startswith(tree.rstrip("/") + "/"):
                found.append(mount)
    return list(dict.fromkeys(found))


def _device(path: str) -> int:
    try:
        return os.stat(path).st_dev
    except OSError:
        return -1


def _shmem() -> int:
    """The machine's memory files. Raises OSError without /proc, where nothing could be measured."""
    with open("/proc/meminfo", "rb") as file:
        return _value(file.read(), b"\nShmem:")


def _value(text: bytes, key: bytes) -> int:
    """Bytes of the "key: N kB" line, 0 when there is none."""
    at = text.find(key)
    return int(text[at + len(key) : text.index(b"kB", at)]) * _KB if at >= 0 else 0


def _read(pid: int, name: str) -> bytes:
    """b"" for a process that is gone, or is a zombie."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _resident(pid: int) -> int:
    fields = _read(pid, "statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def _rollup(pid: int) -> tuple[int, int]:
    """(anonymous memory, swap and huge pages, mapped memory files), each page divided by how many map it."""
    text = _read(pid, "smaps_rollup")
    own = (b"\nPss_Anon:", b"\nSwapPss:", b"\nPrivate_Hugetlb:", b"\nShared_Hugetlb:")
    return sum(_value(text, key) for key in own), _value(text, b"\nPss_Shmem:")


def _mapped_files(pid: int, devices: frozenset[int]) -> Iterator[tuple[FileId, int]]:
    """Memory files that are mapped, from /proc/PID/smaps: "address perms offset major:minor inode path", then keys."""
    file: FileId | None = None
    for line in _read(pid, "smaps").splitlines():
        if line.startswith(b"Pss:"):
            if file is not None:
                yield file, int(line.split()[1]) * _KB
        elif not line[:1].isupper():
            fields = line.split(None, 5)
            major, minor = fields[3].split(b":")
            device = os.makedev(int(major, 16), int(minor, 16))
            file = (device, int(fields[4])) if device in devices else None


def _open_files(pid: int) -> Iterator[os.stat_result]:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                try:
                    yield os.stat(entry.path)
                except OSError:  # closed meanwhile
                    continue
    except (FileNotFoundError, ProcessLookupError):
        return
