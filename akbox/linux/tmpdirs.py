"""The private temporary directory of a run, under a name that a later run takes again.

`${tmp}` is part of a policy's meaning, so what was compiled for one run fits the next one only if that has the same
directory (compiling.py). Only names are the same: each directory is made by its run and is gone after it. The names are
random and kept in the state directory, so nobody else can tell them beforehand; whoever takes one all the same, as
anybody may in a directory for all, costs the run time and nothing else: it has another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from akbox.linux.errors import CannotRun
from akbox.linux.remembered import recall, remember

_MAX_FREE = 64
_STEADY = 8  # names that all processes of a user try first; more runs at once have others
_TRIES = 100

_lock = threading.Lock()
_free: list[str] = []  # guarded by _lock; the name that was used last is the next one taken


def make(state: Path) -> Path:
    """A new, empty directory of ours (0700) in the user's temporary directory. Raises CannotRun."""
    base = _base()
    for name in islice(_names(base, state), _TRIES):
        try:
            os.mkdir(name, 0o700)
        except FileExistsError:  # somebody else has made it meanwhile: that name is theirs
            continue
        except OSError as error:
            raise _problem(base, error.strerror or str(error)) from error
        return Path(name)
    raise _problem(base, "every name that was tried is taken")


def remove(path: Path) -> None:
    """Removes a directory of make() with all that is in it; to be called once for each. What cannot be removed stays,
    and its name is not used again."""
    try:
        os.rmdir(path)
    except FileNotFoundError:  # the agent may remove it; then the name may be somebody else's by now
        return
    except OSError:
        import shutil  # most runs leave nothing behind: this import costs more than their clean-up

        shutil.rmtree(path, ignore_errors=True)
        if os.path.lexists(path):
            return
    with _lock:
        if len(_free) < _MAX_FREE:
            _free.append(str(path))


def _names(base: str, state: Path) -> Iterator[str]:
    """What a directory may be called, the names that were used before first."""
    free = _take(base)
    if free is not None:
        yield free
    word = _word(state)
    for n in range(_STEADY):
        yield os.path.join(base, f"akbox-{word}-{n}")
    while True:
        yield os.path.join(base, f"akbox-{os.urandom(6).hex()}")


def _word(state: Path) -> str:
    """What this user's steady names have in common: made once, random, known to who can read the state directory."""
    path = state / "names" / "tmpdir"
    known = recall(path)
    if known is None:
        known = os.urandom(8).hex().encode()
        remember(path, known)
    return known.decode()


def _problem(base: str, reason: str) -> CannotRun:
    return CannotRun(f"no directory can be made in {base}: {reason}", "set TMPDIR to a directory you can write")


def _take(base: str) -> str | None:
    with _lock:
        for n in reversed(range(len(_free))):
            if os.path.dirname(_free[n]) == base:
                return _free.pop(n)
    return None


def _base() -> str:
    """$TMPDIR, or /tmp. `tempfile` would also try to write there, and takes 2 ms to import."""
    named = os.environ.get("TMPDIR", "")
    return os.path.realpath(named if os.path.isabs(named) and os.path.isdir(named) else "/tmp")
