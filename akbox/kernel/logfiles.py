"""The files of one log: `audit.jsonl`, and what was rotated out of it, `audit-<number of its first entry>.jsonl`.

The chain goes on from one file to the next: the first entry of a file has the number and the prev_hash that follow the
last entry of the file before it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

LOG_NAME = "audit.jsonl"
_ROTATED = re.compile(r"audit-(\d{12})\.jsonl")


def rotated_name(first_seq: int) -> str:
    """What a file whose first entry is `first_seq` is called once it was rotated."""
    return f"audit-{first_seq:012d}.jsonl"


def log_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files of the log in order. `path` is a run's directory or its `audit.jsonl`; any other file is a log of its
    own. Raises OSError when the directory can't be read."""
    given = Path(path)
    current = given / LOG_NAME if given.is_dir() else given
    if current.name != LOG_NAME:
        return [current]
    try:
        names = os.listdir(current.parent)
    except NotADirectoryError:
        return [current]
    older = [current.parent / name for name in sorted(filter(_ROTATED.fullmatch, names))]
    if not older:
        return [current]
    if not current.exists():
        return older
    if os.path.samefile(older[-1], current):  # killed while it was rotated: one file with both names
        older.pop()
    return [*older, current]
