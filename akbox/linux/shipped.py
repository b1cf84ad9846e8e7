"""The shipped policies, read and checked once per installation: their TOML takes longer than the agent's start.

They are kept together in the state directory (remembered.py), by what the policy files and the code that reads them
are: the place, size, inode and change time of each, of which the last cannot be set by anybody.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import msgspec

from akbox._native import sha256
from akbox.linux.remembered import recall, remember
from akbox.policy import presets
from akbox.policy.model import Policy
from akbox.resources import data_path

_kept: set[str] = set()  # what the file of this process's state directory has


def recall_shipped(state_dir: Path) -> None:
    """Gives `presets` what an earlier process has read. Nothing kept, or nothing that fits: they are read when asked
    for."""
    if _kept:
        return
    data = recall(_place(state_dir))
    if data is None:
        return
    try:
        policies = msgspec.msgpack.decode(data, type=dict[str, Policy])
    except msgspec.DecodeError:
        return  # another layout under the same name: as if it were absent
    presets.preload(policies)
    _kept.update(policies)


def remember_shipped(state_dir: Path) -> None:
    """Keeps what has been read by now, if that is more than was kept."""
    policies = presets.loaded()
    if policies.keys() - _kept:
        remember(_place(state_dir), msgspec.msgpack.encode(policies))
        _kept.update(policies)


def _place(state_dir: Path) -> Path:
    return state_dir / "policies" / installation()


@cache
def installation() -> str:
    """All files in the folders of the policies and of the code; a change in any of them is another name."""
    folders = (
        data_path("policies"),
        data_path("policies/profiles"),
        Path(presets.__file__).parent,
        Path(__file__).parent,
    )
    lines = []
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith((".toml", ".py")):
                    info = entry.stat()
                    lines.append(f"{entry.path}\0{info.st_size}\0{info.st_ino}\0{info.st_ctime_ns}")
    lines.append(msgspec.__version__)
    return sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hex()
