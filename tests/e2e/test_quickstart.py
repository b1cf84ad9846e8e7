"""The first thing a newcomer does, and what the documents tell them to type."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AKBOX = [sys.executable, "-c", "import sys; from akbox.cli.main import main; sys.exit(main())"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A home of the test's own: nothing of the person who runs the tests is read or written."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TERM") if name in os.environ}
    state = {"XDG_STATE_HOME": str(home / "state"), "PYTHONPATH": str(ROOT)}
    return {**kept, "HOME": str(home), "NO_COLOR": "1", **state}


def test_quickstart_ends_with_a_log_that_verifies(env: dict[str, str]) -> None:
    env.pop("PYTHONPATH")
    done = subprocess.run([ROOT / "scripts/quickstart"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "agent: wrote report.md; payroll left out: permission denied" in done.stdout
    assert re.search(r'agent: progress is \{(?=.*"rows":72)(?=.*"step":"done")', done.stdout)
    assert re.search(
        r"akbox: 1 thing was refused \(policy: policy.toml\)\n  fs.open \S+/private/payroll.csv\n", done.stderr
    )
    assert re.search(r'fix: fs.read = \["\S+/build/quickstart/private/payroll.csv"\]', done.stderr)
    assert re.match(r"audit verify: ok \(\d+ entries, \d+ checkpoints?, ", done.stdout.splitlines()[-1])
    report = (ROOT / "build/quickstart/report.md").read_text()
    assert report.startswith("# Sales\n\n| region | revenue |")


def test_the_suggested_line_is_the_one_that_helps(env: dict[str, str], tmp_path: Path) -> None:
    """The refusal's fix, typed as it is printed, and nothing else changed: the agent gets what it asked for."""
    secret, mine = tmp_path / "other" / "secret.txt", tmp_path / "work"
    mine.mkdir()
    secret.parent.mkdir()
    secret.write_text("forty-two\n")
    first = subprocess.run(
        [*AKBOX, "run", "--", "cat", str(secret)], cwd=mine, env=env, capture_output=True, text=True, check=False
    )
    assert (first.returncode, first.stdout) == (1, "")
    option = re.search(r"or: {2}akbox run (--read \S+) …", first.stderr)
    assert option is not None, first.stderr
    second = subprocess.run(
        [*AKBOX, "run", *option[1].split(), "--", "cat", str(secret)],
        cwd=mine, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (second.returncode, second.stdout, second.stderr) == (0, "forty-two\n", "")


def documented_commands() -> list[str]:
    """Indented lines of the documents that start with `akbox`, without remarks, unless they are synopses."""
    found = []
    for name in ("README.md", "docs/policy.md", "docs/audit.md", "docs/cli.md"):
        for line in (ROOT / name).read_text().splitlines():
            command = line.split("#")[0].strip()
            if line.startswith("    akbox ") and "|" not in command and "FILE" not in command and "[" not in command:
                found.append(command)
    return found


@pytest.mark.parametrize(
    "command", [c for c in documented_commands() if c.startswith(("akbox policy", "akbox audit", "akbox doctor"))]
)
def test_documented_commands_work(command: str, env: dict[str, str], tmp_path: Path) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    wrapper = bin_dir / "akbox"
    wrapper.write_text(f"#!{sys.executable}\nimport sys\nfrom akbox.cli.main import main\nsys.exit(main())\n")
    wrapper.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    env["PATH"] = f"{bin_dir}:{env['PATH']}"
    setup = (
        "akbox policy init -o my.toml; akbox run -q -- cat /etc/shadow || true; cd $XDG_STATE_HOME/akbox;"
        "cp runs/*/checkpoints $OLDPWD/kept.checkpoint; cp keys/audit-ed25519.pub $OLDPWD"
    )
    subprocess.run(["bash", "-ec", setup], cwd=work, env=env, check=True, capture_output=True)
    if "-o my.toml" in command:
        (work / "my.toml").unlink()
    done = subprocess.run(["bash", "-ec", command], cwd=work, env=env, capture_output=True, text=True, check=False)
    refused = "explain" in command and ": denied" in done.stdout  # explain says so with exit code 1
    assert done.returncode == (1 if refused else 0), done.stdout + done.stderr
    assert done.stdout or done.stderr or " > " in command


def test_the_wheel_holds_what_a_run_needs(tmp_path: Path) -> None:
    """policies/ and the SDK lie where akbox.resources looks for them, and nothing of the workshop is in the wheel."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("akbox", "native", "policies", "sdk", "scripts", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    target = tmp_path / "lib"
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(target)],
        cwd=source, check=True, capture_output=True,
    )  # fmt: skip
    data = target / "akbox" / "_data"
    assert (data / "policies/default.toml").is_file()
    assert (data / "policies/profiles/base.toml").is_file()
    assert (data / "sdk/python/authority_nanos/__init__.py").is_file()
    assert not list(target.rglob("*.pyc"))
    code = "from akbox.resources import data_path; print(data_path('policies/default.toml'), data_path('sdk/python'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=target,
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [f"{data}/policies/default.toml", f"{data}/sdk/python"]
