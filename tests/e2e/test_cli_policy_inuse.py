"""An agent cannot widen its next run: the policy file it runs under is not its to change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AKBOX = [sys.executable, "-c", "import sys; from akbox.cli.main import main; sys.exit(main())"]
POLICY = 'version = "1.0"\nprofiles = ["base", "workdir"]\n'

WAYS = {
    "append": "echo 'fs.read = [\"/\"]' >> my.toml",
    "truncate": ": > my.toml",
    "remove": "rm -f my.toml",
    "rename over it": "echo > n && mv -f n my.toml",
    "rename away": "mv my.toml other.toml",
    "mode": "chmod 777 my.toml",
    "hard link": "ln my.toml other.toml",
    "through a link": "ln -s my.toml l && echo >> l",
    "turn the link": "ln -sfn /dev/null link.toml",
    "remove the link": "rm -f link.toml",
    "move the directory": "cd .. && mv work work2",
}


@pytest.mark.parametrize("way", WAYS)
def test_the_policy_in_use_stays_as_it_is(tmp_path: Path, way: str) -> None:
    work = tmp_path / "home" / "work"
    work.mkdir(parents=True)
    (work / "my.toml").write_text(POLICY + f'fs.write = ["{tmp_path}/home/**"]\n')
    (work / "link.toml").symlink_to("my.toml")
    before = _state(work)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "user"), "PYTHONPATH": str(ROOT)}
    env["XDG_STATE_HOME"] = str(tmp_path / "state")
    script = f"touch control && ( {WAYS[way]} )"
    argv = [*AKBOX, "run", "-p", "link.toml", "--", "sh", "-c", script]
    done = subprocess.run(argv, cwd=work, env=env, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0, way
    assert (work / "control").exists(), done.stderr  # the directory itself may be written
    assert _state(work) == before
    assert b"the policy of this run" in done.stderr or way == "move the directory"


def _state(work: Path) -> tuple[str, int, int, str]:
    info = (work / "my.toml").stat()
    return (work / "my.toml").read_text(), info.st_mode, info.st_nlink, str((work / "link.toml").readlink())
