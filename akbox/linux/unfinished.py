"""Runs whose akbox was killed: each leaves a mark while it lives, and what is marked and not alive is completed when
the next run starts (recover.py). A log too long to be verified in the time of a start is left to `akbox audit recover`.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from akbox.kernel.logfiles import LOG_NAME
from akbox.rundir import RUN_ID

DIRECTORY = "live"
_SMALL_BYTES = 4 << 20
_STARTING_S = 60.0  # between a run's mark and its log


def mark(state: Path, run_id: str) -> None:
    """The run's log may be unfinished from now on. Raises OSError."""
    folder = state / DIRECTORY
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(folder / run_id, flags, 0o600)
    except FileNotFoundError:
        folder.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(folder / run_id, flags, 0o600)
    os.close(fd)


def unmark(state: Path, run_id: str) -> None:
    """The run's log is complete, or there is nothing to complete it with."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(state / DIRECTORY / run_id)


def recover_unfinished(state: Path) -> None:
    """Completes the logs of runs that were killed. What cannot be (damaged, too long, no space) stays as it is, with
    its ring: `akbox audit recover` and `verify` say what is the matter. Never an obstacle to the run that starts."""
    try:
        names = os.listdir(state / DIRECTORY)
    except OSError:
        return
    for name in filter(RUN_ID.fullmatch, names):
        _recover(state, name)


def _has_a_log(directory: Path) -> bool:
    """Or a ring. A power cut before the first sync leaves neither, though the mark and the directory may be there."""
    return any((directory / name).exists() for name in (LOG_NAME, "ring")) or any(directory.glob("audit-*.jsonl"))


def _recover(state: Path, run_id: str) -> None:
    from akbox.kernel.audit import AuditError
    from akbox.kernel.logfiles import log_files
    from akbox.kernel.recover import recover
    from akbox.kernel.signing import Signer, SigningKeyError

    directory = state / "runs" / run_id
    try:
        if not _has_a_log(directory):
            if time.time() - (state / DIRECTORY / run_id).stat().st_mtime > _STARTING_S:
                unmark(state, run_id)
            return
        if sum(file.stat().st_size for file in log_files(directory) if file.exists()) > _SMALL_BYTES:
            return
        recover(directory, signer=Signer.of_user(state / "keys"))
    except FileNotFoundError:
        pass  # it was removed
    except (AuditError, SigningKeyError, OSError):
        return  # alive (its log is locked), or as above
    unmark(state, run_id)
