"""Where the files that ship beside the code are: the shipped policies and the agent SDK.

In a wheel they lie in `akbox/_data/`; in a checkout (also an editable install) they are the repository's own folders.
Both have the same shape, so callers name them as the repository does. Nothing here reads or imports what it finds.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_path(name: str) -> Path:
    """The absolute path of a shipped file or folder, e.g. `data_path("policies")`, `data_path("sdk/python")`.

    Raises FileNotFoundError when the installation is incomplete; never falls back to another place on the disk.
    """
    packaged = _PACKAGE / "_data"
    root = packaged if packaged.is_dir() else _PACKAGE.parent
    path = root / name
    if not path.exists():
        raise FileNotFoundError(f"akbox is installed without {name!r} (looked for {path}): install it again")
    return path
