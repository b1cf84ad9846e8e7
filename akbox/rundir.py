"""The state directory and the directories of single runs. What lies inside a run's directory is its owners' business.

`$XDG_STATE_HOME/akbox/runs/<run_id>/`, every level 0700 and ours: a directory that is a symbolic link, or that belongs
to or can be written by anybody else, is refused rather than used: whoever controls it controls the log and the policy.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

RUN_ID = re.compile(r"[0-9a-f]{32}")
_MIN_PREFIX = 4


class StateError(Exception):
    """The state directory cannot be used, or the run that was asked for is not in it. `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def state_root(explicit: str | os.PathLike[str] | None = None) -> Path:
    """The state directory: `explicit`, `$XDG_STATE_HOME/akbox` or `~/.local/state/akbox`; made (0700) if missing.

    A relative XDG_STATE_HOME is ignored, as the XDG base directory specification asks. Raises StateError.
    """
    if explicit is not None:
        root = Path(os.path.abspath(explicit))
    else:
        base = os.environ.get("XDG_STATE_HOME", "")
        root = Path(base if os.path.isabs(base) else os.path.expanduser("~/.local/state")) / "akbox"
        if not root.is_absolute():
            raise StateError("no home directory is known to keep akbox's state in", "set HOME or pass --state-dir")
    try:
        root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(own_directory(root, None))
    except OSError as error:
        raise StateError(
            f"the state directory {root} cannot be used: {error.strerror}",
            "set XDG_STATE_HOME, or pass --state-dir with a directory you can write",
        ) from error
    return root


def new_run_dir(run_id: str, root: Path | None = None) -> Path:
    """Makes `runs/<run_id>` (0700) under the state directory and returns it. run_id: 32 hex digits, never used before.

    Raises StateError; FileExistsError when the run id is taken.
    """
    if not RUN_ID.fullmatch(run_id):
        raise ValueError(f"not a run id: {run_id!r}")
    base = state_root() if root is None else root
    try:
        base_fd = own_directory(base, None)
        try:
            runs_fd = own_directory("runs", base_fd)
        finally:
            os.close(base_fd)
        try:
            os.mkdir(run_id, 0o700, dir_fd=runs_fd)
        finally:
            os.close(runs_fd)
    except FileExistsError:
        raise
    except OSError as error:
        raise StateError(f"cannot make a run directory in {base}: {error.strerror}", "pass --state-dir") from error
    return base / "runs" / run_id


def find_run(name: str, root: Path | None = None) -> Path:
    """The directory of a run, by its id, by the first four or more digits of it, or `last` (the one changed last).

    Raises StateError when there is none or the prefix fits more than one.
    """
    base = state_root() if root is None else root
    runs = all_runs(base)
    if name == "last":
        if not runs:
            raise StateError(f"there is no run in {base} yet", "start one with `akbox run -- COMMAND`")
        return runs[-1]
    if not re.fullmatch(rf"[0-9a-f]{{{_MIN_PREFIX},32}}", name):
        raise StateError(f"{name!r} is not a run", f"give `last`, or {_MIN_PREFIX} or more digits of a run id")
    found = [run for run in runs if run.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise StateError(
            f"{name!r} fits {len(found)} runs", "give more digits: " + ", ".join(r.name for r in found[:4])
        )
    raise StateError(f"no run {name!r} in {base}", "runs of another state directory need --state-dir")


def all_runs(root: Path) -> list[Path]:
    """Every run's directory under a state directory, the one changed last at the end; no links, no strangers."""
    found: list[tuple[int, Path]] = []
    try:
        with os.scandir(root / "runs") as entries:
            for entry in entries:
                if RUN_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    info = entry.stat(follow_symlinks=False)
                    if info.st_uid == os.geteuid():
                        found.append((info.st_mtime_ns, root / "runs" / entry.name))
    except FileNotFoundError:
        return []
    return [path for _, path in sorted(found)]


def own_directory(path: str | Path, parent: int | None) -> int:
    """Opens a directory, made if missing, that is really ours; the caller closes the descriptor."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700, dir_fd=parent)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    info = os.fstat(fd)
    if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.close(fd)
        reason = f"it belongs to uid {info.st_uid}" if info.st_uid != os.geteuid() else "others can write to it"
        raise PermissionError(1, reason, str(path))
    if info.st_mode & 0o077:
        os.fchmod(fd, 0o700)
    return fd
