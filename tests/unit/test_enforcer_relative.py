"""Relative paths are judged, recorded and opened as the agent means them, wherever its directory has gone meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from enforcer_run import make_policy, read_text, run

Body = Callable[[], object]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """W may be read and written but for W/secret/**; H is nobody's."""
    for name in ("W/d/below", "W/secret", "H"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "f").write_text(name)
    (tmp_path / "W/d/f").write_text("W/d")
    return tmp_path


def inside(base: Path, body: Body) -> tuple[object, list[str]]:
    """What the body returned and the names, below `base`, that its opens are recorded under."""
    policy = make_policy(read=(f"{base}/W/**",), write=(f"{base}/W/**",), deny=(f"{base}/W/secret/**",))
    result, events = run(body, policy)
    return result, [e.target.removeprefix(f"{base}/") for e in events if e.target.startswith(f"{base}/")]


@pytest.mark.parametrize("times", [1, 3], ids=["first", "again"])
@pytest.mark.parametrize(
    ("start", "path", "text", "recorded"),
    [
        ("W/d", "f", "W/d", "W/d/f"),
        ("W/d", "./f", "W/d", "W/d/f"),
        ("W/d", "././below/f", "W/d/below", "W/d/below/f"),
        ("W/d", ".//f", "W/d", "W/d/f"),
        ("W/d", "below/../f", "W/d", "W/d/f"),
        ("W/d", "../d/f", "W/d", "W/d/f"),
        ("W", "secret/f", "EACCES", "W/secret/f"),
        ("W/d", "../secret/f", "EACCES", "W/secret/f"),
        ("W/secret", "f", "EACCES", "W/secret/f"),
        ("W", "../H/f", "EACCES", "H/f"),
        ("H", "f", "EACCES", "H/f"),
        ("H", "../W/d/f", "W/d", "W/d/f"),
    ],
)
@pytest.mark.parametrize("by", ["cwd", "descriptor"])
def test_spellings(base: Path, by: str, start: str, path: str, text: str, recorded: str, times: int) -> None:
    def body() -> object:
        directory = os.open(base / start, os.O_PATH)
        if by == "cwd":
            os.fchdir(directory)
            return [read_text(path) for _ in range(times)]
        return [read_at(directory, path) for _ in range(times)]

    assert inside(base, body) == ([text] * times, [recorded] * times)


def read_at(directory: int, path: str) -> str:
    try:
        with open(os.open(path, os.O_RDONLY, dir_fd=directory)) as file:
            return file.read()
    except PermissionError:
        return "EACCES"


def test_a_directory_that_is_renamed(base: Path) -> None:
    """To where it may not be read: an open directory is no way in. Another takes its name: it is not meant."""

    def body() -> object:
        os.chdir(base / "W/d")
        seen = [read_text("f")]
        os.rename(base / "W/d", base / "W/secret/d")
        seen.append(read_text("f"))
        os.mkdir(base / "W/d")
        (base / "W/d/f").write_text("another")
        return [*seen, read_text("f"), read_text(base / "W/d/f")]

    result, _ = inside(base, body)
    assert result == ["W/d", "EACCES", "EACCES", "another"]


def test_a_directory_that_is_removed(base: Path) -> None:
    """What its last name would mean now is not meant, nor what the kernel calls it since."""
    for name in ("W/gone", "W/gone (deleted)"):
        (base / name).mkdir()
    (base / "W/gone (deleted)/f").write_text("decoy")

    def body() -> object:
        os.chdir(base / "W/gone")
        os.rmdir(base / "W/gone")
        first = read_text("f")
        os.mkdir(base / "W/gone")
        (base / "W/gone/f").write_text("successor")
        return first, read_text("f")

    assert inside(base, body)[0] == ("ENOENT", "ENOENT")
