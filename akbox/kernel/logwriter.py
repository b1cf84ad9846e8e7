"""The file that a log is being written to: locked, in its place, rotated. What is in it is audit.py's business."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from akbox.kernel.logfiles import rotated_name

PAGE_BYTES = 4096


class AuditError(Exception):
    """The log can't be written (or opened): the run must stop. `errno` is the system's reason, or 0."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.errno = code


class LogWriter:
    """Appends to `path`, made (0600) if it is missing; an exclusive flock holds other writers off. Not thread-safe.

    Raises AuditError when it is no plain file of ours, or another writer has it; OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = open_locked(path)
        info = os.fstat(self._fd)
        self._identity = (info.st_dev, info.st_ino)
        self.size = info.st_size
        self.first_seq = 1  # of this file; set by whoever reads it

    def write(self, data: bytes) -> None:
        """Appends all of `data`, or raises OSError; then `cut` takes away what was written of it. A file that is not in
        its place any more (removed, replaced) is an error: nobody would find what is written to it."""
        self._in_place()
        for piece in whole_lines(data, self.size):
            done = 0
            while done < len(piece):
                count = os.write(self._fd, piece[done:])
                if count <= 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                done += count
        self.size += len(data)

    def cut(self) -> None:
        os.ftruncate(self._fd, self.size)

    def dup(self) -> int:
        """A descriptor to sync what was written so far; the caller closes it."""
        return os.dup(self._fd)

    def rotate(self, next_seq: int) -> None:
        """Puts the file, on disk to its last byte, beside under the name of its first entry, and goes on in a new one.
        `path` names a locked log at any moment; a crash in between leaves two names for one file, see open_locked."""
        self._in_place()
        os.fdatasync(self._fd)
        fresh = self.path.with_name(f".{self.path.name}.new")
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.link(self.path, self.path.with_name(rotated_name(self.first_seq)))
            os.rename(fresh, self.path)
            sync_directory(self.path.parent)
        except OSError:
            os.close(fd)
            raise
        os.close(self._fd)
        info = os.fstat(fd)
        self._fd, self._identity = fd, (info.st_dev, info.st_ino)
        self.size, self.first_seq = 0, next_seq

    def close(self) -> None:
        os.close(self._fd)

    def _in_place(self) -> None:
        info = os.stat(self.path, follow_symlinks=False)
        if (info.st_dev, info.st_ino) != self._identity:
            raise OSError(errno.ESTALE, "another file has taken its place")


def whole_lines(data: bytes, offset: int) -> Iterator[memoryview]:
    """The lines of `data`, which will begin at `offset` of the file, in pieces for one write(2) each. A killed writer
    stops between two pages (generic_perform_write() of mm/filemap.c looks for a fatal signal there), so that a line
    could be torn in any write that goes past the end of a page: only lines that lie there do, each by itself."""
    view, at = memoryview(data), 0
    while at < len(data):
        page_end = at + PAGE_BYTES - (offset + at) % PAGE_BYTES
        end = len(data) if page_end >= len(data) else data.rfind(b"\n", at, page_end) + 1
        if end <= at:
            end = data.find(b"\n", at) + 1 or len(data)
        yield view[at:end]
        at = end


def open_locked(path: Path) -> int:
    """A locked descriptor of the log that `path` names. Raises AuditError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise AuditError(f"{path}: {error.strerror}", error.errno or 0) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
                _check_plain(path, fd)
                return fd
            os.close(fd)  # it was rotated between open and lock
        except OSError as error:
            os.close(fd)
            reason = "a run is writing it" if error.errno == errno.EWOULDBLOCK else error.strerror
            raise AuditError(f"{path}: {reason}", error.errno or 0) from error
        except AuditError:
            os.close(fd)
            raise


def sync_directory(path: Path) -> None:
    """The names in a directory, on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_plain(path: Path, fd: int) -> None:
    info = os.fstat(fd)
    if info.st_nlink == 2 and stat.S_ISREG(info.st_mode):
        _finish_rotation(path, info)
        info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_nlink != 1:
        raise AuditError(f"{path} is not a plain file of ours", errno.EPERM)
    os.fchmod(fd, 0o600)


def _finish_rotation(path: Path, info: os.stat_result) -> None:
    """A writer was killed while it rotated: the file has both of its names, and is the current one still."""
    for other in path.parent.glob("audit-*.jsonl"):
        if os.path.samestat(info, os.stat(other, follow_symlinks=False)):
            other.unlink()
