"""The policies that ship with akbox: presets by name for `-p`, and profiles that policies include."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

from akbox.policy.model import Policy
from akbox.resources import data_path


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.toml"))


@functools.cache
def _profile_names() -> tuple[str, ...]:
    return tuple(_names(data_path("policies/profiles")))


def profile_names() -> list[str]:
    """Names that `profiles` may hold."""
    return list(_profile_names())


def preset_names() -> list[str]:
    """Names that `-p` takes beside a file."""
    return _names(data_path("policies"))


def preset_path(name: str) -> Path | None:
    """The file of a preset, None when there is no such preset. A name with a slash or a dot is a file, never a
    preset."""
    return _path("policies", name)


def profile_path(name: str) -> Path | None:
    """The file of a profile, None when there is no such profile."""
    return _path("policies/profiles", name)


def _path(folder: str, name: str) -> Path | None:
    path = data_path(folder) / f"{name}.toml"
    return path if re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) and path.is_file() else None


# By "preset NAME" and "profile NAME": they are part of the installation, so each is read once.
_loaded: dict[str, Policy] = {}


def load_preset(name: str) -> Policy:
    """Load a preset, once per process, as profiles. Raises KeyError for an unknown name."""
    return _loaded.get(f"preset {name}") or _load(f"preset {name}", name, preset_path(name))


def load_profile(name: str) -> Policy:
    """Load a profile, once per process. Raises KeyError for an unknown name."""
    return _loaded.get(f"profile {name}") or _load(f"profile {name}", name, profile_path(name))


def loaded() -> dict[str, Policy]:
    """What has been loaded by now, by kind and name."""
    return dict(_loaded)


def preload(policies: Mapping[str, Policy]) -> None:
    """Takes what another process's loaded() gave, for these very files."""
    for key, policy in policies.items():
        _loaded.setdefault(key, policy)


def _load(key: str, name: str, path: Path | None) -> Policy:
    from akbox.policy.load import load  # load.py checks profile names with this module

    if path is None:
        raise KeyError(name)
    return _loaded.setdefault(key, load(path))


def summary(path: Path) -> str:
    """The first comment line of a shipped policy: who it is for."""
    first = path.read_text("utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
