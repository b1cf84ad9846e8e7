"""Which project policies the user has trusted: by place and exact content, in the state directory.

A project's own `akbox.toml` decides what an agent in that project may do, and the agent may have written it. So a
policy that is found rather than named counts only after the user has said so for these bytes in this place.
"""

from __future__ import annotations

import os
from pathlib import Path

from akbox.kernel.digest import sha256
from akbox.rundir import state_root

NAMES = ("akbox.toml", "akbox.json")


def digest(path: Path, content: bytes) -> str:
    """What is trusted: SHA-256 of the real path, a NUL and the content, in hex."""
    return sha256(os.fsencode(path) + b"\0" + content).hex()


def is_trusted(path: Path, content: bytes, root: Path) -> bool:
    """Whether the user has trusted this content at this (real) path."""
    return (root / "trust" / digest(path, content)).is_file()


def trust(path: Path, content: bytes, root: Path | None = None) -> Path:
    """Remembers the content as trusted; returns the record. Raises StateError, OSError."""
    folder = (state_root() if root is None else root) / "trust"
    folder.mkdir(mode=0o700, exist_ok=True)
    record = folder / digest(path, content)
    fd = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(os.fsencode(path) + b"\n")
    return record


def discover(start: Path) -> Path | None:
    """The nearest `akbox.toml` or `akbox.json` in `start` or above it, by its real path; None when there is none.

    Raises ValueError when a directory holds both: nobody could say which one counts.
    """
    for folder in (start, *start.parents):
        found = [folder / name for name in NAMES if os.path.lexists(folder / name)]
        if len(found) > 1:
            raise ValueError(f"{folder} holds both {NAMES[0]} and {NAMES[1]}")
        if found:
            return Path(os.path.realpath(found[0]))
    return None
