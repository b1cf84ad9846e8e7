"""`akbox audit replay` against the truth: three recorded workloads are run again under the stricter policy, and what it
listed is exactly what is refused then."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from e2e.audit_crash import AKBOX, ROOT

BASE = """version = "1.0"
[fs]
read = ["${{workdir}}/**", "/etc/hostname"]
write = [{write}]
{exec}
[net]
connect = [{connect}]
[env]
set = {{ PYTHONDONTWRITEBYTECODE = "1" }}
"""
SHELL = """
for f in a b c; do cat $f >/dev/null; echo x >out-$f.txt; echo y >>log; done
mv a moved; rm -f b; mkdir made; mkdir sub/made; cat sub/d /etc/hostname >/dev/null
for i in 1 2 3 4 5 6; do echo z >sub/again; done; true
"""
PYTHON = """
import os, pathlib, subprocess
def attempt(act, *args):
    try:
        return act(*args)
    except OSError:
        return None
for name in ("a", "b", "missing"):
    attempt(pathlib.Path(name).read_text)
for n in range(5):
    attempt(pathlib.Path(f"result-{n}").write_text, "x")
    attempt(pathlib.Path(f"sub/result-{n}").write_text, "x")
attempt(os.symlink, "a", "link"); attempt(os.link, "c", "hard"); attempt(os.rename, "b", "sub/b")
attempt(os.truncate, "c", 0); attempt(os.chmod, "c", 0o600); attempt(os.unlink, "c"); attempt(os.mkdir, "new")
attempt(subprocess.run, ["/bin/true"]); attempt(subprocess.run, ["/usr/bin/id"])
"""
NETWORK = """
import socket
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    for port in (9, 10, 11):
        with socket.socket(family) as s:
            try:
                s.connect((address, port))
            except OSError as error:
                pass
for name in ("a", "sub/d"):
    try:
        open(name).read()
    except OSError:
        pass
"""
EXEC = 'exec = ["/usr/bin/**", "/bin/**"]'
ALL = '"ip:127.0.0.1:9-11", "ip:[::1]:9-11"'
WORKLOADS = {
    "shell": (
        ["/bin/sh", "-c", SHELL],
        {"write": '"${workdir}/**", "/dev/null"', "exec": EXEC},
        {"write": '"${workdir}/sub/**", "${workdir}/log", "/dev/null"', "exec": EXEC},
    ),
    "python": (
        ["/usr/bin/python3", "-c", PYTHON],
        {"write": '"${workdir}/**"', "exec": EXEC},
        {"write": '"${workdir}/result-*"', "exec": 'exec = ["/usr/bin/true", "/bin/true"]\ndeny = ["${workdir}/b"]'},
    ),
    "network": (
        ["/usr/bin/python3", "-c", NETWORK],
        {"connect": ALL},
        {"connect": '"ip:127.0.0.1:10"', "exec": 'deny = ["${workdir}/sub/**"]'},
    ),
}


class Place:
    def __init__(self, directory: Path) -> None:
        self.directory, self.work, self.state = directory, directory / "work", directory / "state"
        self.env = {"PATH": "/usr/bin:/bin", "HOME": str(directory), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}

    def policy(self, name: str, parts: dict[str, str]) -> Path:
        path = self.directory / f"{name}.toml"
        path.write_text(BASE.format(**({"write": "", "exec": "", "connect": ""} | parts)))
        return path

    def run(self, policy: Path, argv: list[str]) -> Path:
        """Runs in a working directory made anew; returns the run's directory."""
        shutil.rmtree(self.work, ignore_errors=True)
        (self.work / "sub").mkdir(parents=True)
        for name in ("a", "b", "c", "sub/d"):
            (self.work / name).write_text("x")
        before = set((self.state / "runs").glob("*"))
        command = [*AKBOX, "run", "-q", "-p", str(policy), "--state-dir", str(self.state), "--", *argv]
        done = subprocess.run(
            command, cwd=self.work, env=self.env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode in (0, 1), done.stderr
        (made,) = set((self.state / "runs").glob("*")) - before
        return made

    def replay(self, run: Path, policy: Path) -> dict[str, object]:
        command = [*AKBOX, "audit", "replay", "--json", "-p", str(policy), "--state-dir", str(self.state), run.name]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode in (0, 1), done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        assert done.returncode == bool(found["differences"])
        return found


def refused(run: Path) -> set[tuple[str, str, str | None]]:
    entries = [json.loads(line) for line in (run / "audit.jsonl").read_bytes().splitlines()]
    return {
        (e["name"], e["target"], e["req"].get("target2"))
        for e in entries
        if e["decision"] == "deny" and e["op"] <= 0x300
    }


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_replay_lists_what_a_rerun_refuses(tmp_path: Path, name: str) -> None:
    argv, wide, narrow = WORKLOADS[name]
    place = Place(tmp_path)
    first, second = place.policy("wide", wide), place.policy("narrow", narrow)
    recorded = place.run(first, argv)
    found = place.replay(recorded, second)
    listed = {
        (d["name"], d["target"], d["target2"])
        for d in found["differences"]  # type: ignore[attr-defined]
        if (d["recorded"], d["replayed"]) == ("allow", "deny")
    }
    assert listed == refused(place.run(second, argv)) - refused(recorded), found
    assert len(listed) >= 4
    assert place.replay(recorded, first)["differences"] == []
