"""What a run leaves in its directory is what docs/audit.md says, whole, and nobody else's to read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
AKBOX = [sys.executable, "-c", "import sys; from akbox.cli.main import main; sys.exit(main())"]
ALWAYS = {"policy.json", "rules.json", "audit.jsonl", "checkpoints", "ring"}
FILES_SECTION = (ROOT / "docs" / "audit.md").read_text().partition("## Files beside the log")[2].partition("\n## ")[0]
DOCUMENTED = set(re.findall(r"^\| `([a-z.]+)` \|", FILES_SECTION, re.MULTILINE))
USES_THE_HEAP = "import authority_nanos as a; k = a.AuthorityKernel(); k.alloc('counter', b'{}')"


class Place:
    """A working directory, and the directory of the one run that is made in it."""

    def __init__(self, tmp_path: Path) -> None:
        self.work, self.state = tmp_path / "work", tmp_path / "state"
        self.work.mkdir()
        self.env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def akbox(self, *args: str) -> list[str]:
        return [*AKBOX, *args[:1], *(("--state-dir", str(self.state)) if args[0] == "run" else ()), *args[1:]]

    def run(self, *args: str) -> int:
        done = subprocess.run(
            self.akbox("run", "-q", *args), cwd=self.work, env=self.env, capture_output=True, timeout=60, check=False
        )
        return done.returncode

    @property
    def directory(self) -> Path:
        (found,) = (self.state / "runs").iterdir()
        return found

    def files(self) -> set[str]:
        return {path.name for path in self.directory.iterdir()}

    def json(self, name: str) -> Any:  # Any: JSON
        return json.loads((self.directory / name).read_bytes())

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "audit.jsonl").read_bytes().splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_files_are_those_of_the_documentation(place: Place) -> None:
    assert {*ALWAYS, "summary.json", "kernel.db", "pending"} == DOCUMENTED
    assert place.run("--", "sh", "-c", "for i in 1 2 3 4 5; do cat /etc/shadow; done; exit 3") == 3
    assert place.files() == {*ALWAYS, "summary.json"}
    for path in place.directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    summary, entries = place.json("summary.json"), place.entries()
    assert (summary["run_id"], summary["exit_code"], summary["reason"]) == (place.directory.name, 3, "exited")
    assert (summary["entries"], summary["head"]) == (entries[-1]["seq"], entries[-1]["this_hash"])
    assert [(d["target"], d["count"]) for d in summary["denials"]] == [("/etc/shadow", 5)]
    assert summary["usage"].keys() == {"wall_time_ms", "cpu_ns"}
    digest = hashlib.sha256((place.directory / "policy.json").read_bytes()).hexdigest()
    assert entries[0]["req"]["policy_hash"] == digest
    assert "fs.deny /etc/shadow*" in place.json("rules.json")


def test_the_store_is_there_when_it_was_used(place: Place) -> None:
    assert place.run("-p", "python-agent", "--", "/usr/bin/python3", "-c", USES_THE_HEAP) == 0
    assert place.files() == {*ALWAYS, "summary.json", "kernel.db"}


def test_a_launch_that_fails_has_a_log_and_a_summary(place: Place) -> None:
    (place.work / "script").write_text("#!/no/such/interpreter\n")
    (place.work / "script").chmod(0o755)
    assert place.run("--", "./script") == 127
    assert place.files() == {*ALWAYS, "summary.json"}
    assert place.json("summary.json")["exit_code"] == place.entries()[-1]["res"]["exit_code"] == 127


def test_a_command_that_is_not_there_leaves_no_directory(place: Place) -> None:
    assert place.run("--", "no-such-command") == 127
    assert not list((place.state / "runs").iterdir() if (place.state / "runs").exists() else [])


def test_a_crash_leaves_what_recover_needs(place: Place) -> None:
    argv = place.akbox("run", "--", "sh", "-c", "cat /etc/shadow; echo ready; exec sleep 600")
    supervisor = subprocess.Popen(
        argv, cwd=place.work, env=place.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline() == b"ready\n"
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()
    assert supervisor.stdout.read() == b""  # the agent is gone, too
    assert "summary.json" not in place.files()
    recover = [*AKBOX, "audit", "recover", "--state-dir", str(place.state), "last"]
    done = subprocess.run(recover, env=place.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    denied = [e for e in place.entries() if e["decision"] == "deny"]
    assert [(e["target"], e["rule"]) for e in denied] == [("/etc/shadow", "fs.deny /etc/shadow*")]
