"""Small files in the state directory that only save time: what they hold can be worked out again at any moment.

The state directory is the user's own (0700) and always denied to agents. A file that is not ours alone to write, or is
not whole, counts as absent; one that cannot be written costs time and nothing else.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from akbox._native import sha256  # OpenSSL's takes milliseconds to load

_DIGEST_BYTES = 32
_BYTES_MAX = 1 << 22


def recall(path: Path) -> bytes | None:
    """What remember() wrote there, or None."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if info.st_uid != os.geteuid() or info.st_mode & 0o077 or info.st_size > _BYTES_MAX:
            return None
        content = file.read(_BYTES_MAX)
    data = content[_DIGEST_BYTES:]
    return data if sha256(data) == content[:_DIGEST_BYTES] else None


def remember(path: Path, data: bytes, *, most: int = 64) -> None:
    """Whole or not at all: a new file (0600), renamed over the old one. Makes the directory it is in, and removes the
    oldest files there when they would be more than `most`."""
    if len(data) > _BYTES_MAX - _DIGEST_BYTES:
        return
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _make_room(path.parent, most)
        fresh = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(sha256(data) + data)
            os.rename(fresh, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(fresh)
            raise


def _make_room(folder: Path, most: int) -> None:
    """For one more file."""
    with os.scandir(folder) as entries:
        names = [entry.path for entry in entries]
    if len(names) >= most:
        names.sort(key=lambda name: os.lstat(name).st_mtime_ns)
        for name in names[: len(names) - most + 1]:
            os.unlink(name)
