"""Python agents under the shipped presets: no refusals for byte code nobody misses, byte code where it is of use."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AKBOX = [sys.executable, "-c", "import sys; from akbox.cli.main import main; sys.exit(main())"]


class Place:
    """A working directory, and beside it a package without byte code."""

    def __init__(self, tmp_path: Path) -> None:
        self.work, self.packages = tmp_path / "work", tmp_path / "packages"
        (self.packages / "fresh").mkdir(parents=True)
        self.work.mkdir()
        (self.packages / "fresh" / "__init__.py").write_text("from fresh import more\n")
        (self.packages / "fresh" / "more.py").write_text("")
        self.env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        self.env["XDG_STATE_HOME"] = str(tmp_path / "state")

    def run(self, *args: str) -> tuple[str, str]:
        done = subprocess.run(
            [*AKBOX, "run", *args], cwd=self.work, env=self.env, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout, done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("preset", ["default", "python-agent"])
def test_packages_without_byte_code_are_no_refusals(place: Place, preset: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(place.packages)!r}); import fresh; print(sys.dont_write_bytecode)"
    flags = ("-p", preset, "--read", str(place.packages))
    assert place.run(*flags, "--", "/usr/bin/python3", "-c", code) == ("True\n", "")
    said = place.run(*flags, "--env", "PYTHONDONTWRITEBYTECODE=", "--", "/usr/bin/python3", "-c", code)
    assert said[0] == "False\n"  # what the user says holds
    assert "__pycache__" in said[1]


def test_a_virtual_environment_in_the_working_directory_keeps_its_byte_code(place: Place) -> None:
    venv.create(place.work / "v", symlinks=True, with_pip=False)
    library = next((place.work / "v" / "lib").iterdir()) / "site-packages"
    os.rename(place.packages / "fresh", library / "fresh")
    assert place.run("-p", "python-agent", "--", "v/bin/python", "-c", "import fresh") == ("", "")
    assert len(list((library / "fresh" / "__pycache__").iterdir())) == 2
