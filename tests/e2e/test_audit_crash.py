"""What may happen to a log while a run lives: killed, no space, no place, another file in its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.audit_crash import AKBOX, ROOT, audit, crash_once

BUSY = """
import os, time
n = 0
print("ready", flush=True)
while True:
    os.close(os.open(f"f{n % 50}", os.O_CREAT | os.O_WRONLY, 0o600))
    n += 1
"""


@pytest.mark.parametrize("seed", range(4))
def test_killed_under_load(tmp_path: Path, seed: int) -> None:
    assert crash_once(tmp_path, seed)["seen"] > 0


def environment(directory: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(directory), "PYTHONPATH": str(ROOT)}


def test_a_full_disk_stops_the_run(tmp_path: Path) -> None:
    """The state directory is on a file system of 1 MiB, in a mount namespace of the test's own: the run ends with 125
    and the reason, and what is there verifies; with space again nothing that the agent did is missing."""
    work, state, small = tmp_path / "work", tmp_path / "state", tmp_path / "small"
    for folder in (work, state, small):
        folder.mkdir(mode=0o700)
    command = f"""
mount -t tmpfs -o size=1200k,mode=0700 none {small} || exit 99
cd {work}
{sys.executable} -c '{AKBOX[2]}' run --state-dir {small}/akbox -- /usr/bin/python3 -c '{BUSY}' >out 2>{tmp_path}/err
echo $? >{tmp_path}/code
cp -a {small}/akbox/. {state}
"""
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"])]
    done = subprocess.run(
        [*unshare, "sh", "-c", command],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (done, (tmp_path / "err").read_text() if (tmp_path / "err").exists() else "")
    assert (tmp_path / "code").read_text().strip() == "125"
    assert "the audit log cannot be written" in (tmp_path / "err").read_text()
    assert "No space left" in (tmp_path / "err").read_text()
    verify = json.loads(audit(state, "verify", "last", "--json", env=environment(tmp_path)))
    before = verify["entries"]
    assert before > 500
    audit(state, "recover", "last", env=environment(tmp_path))
    verify = json.loads(audit(state, "verify", "last", "--json", env=environment(tmp_path)))
    lines = [json.loads(line) for line in Path(verify["log"]).read_bytes().splitlines()]
    opens = [int(e["target"].rpartition("/f")[2]) for e in lines if e["target"].startswith(f"{work}/f")]
    assert opens == [n % 50 for n in range(len(opens))]  # every one, in order, up to where it was stopped
    assert lines[-1]["target"] == "run:recovered"
    assert verify["entries"] > before


def started(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    (tmp_path / "work").mkdir()
    argv = [*AKBOX, "run", "--state-dir", str(tmp_path / "state"), "--", "/usr/bin/python3", "-c", BUSY]
    run = subprocess.Popen(
        argv,
        cwd=tmp_path / "work",
        env=environment(tmp_path),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    (directory,) = (tmp_path / "state" / "runs").iterdir()
    return run, directory


@pytest.mark.parametrize("what", ["a symlink", "another file", "nothing"])
def test_a_log_that_is_taken_away_stops_the_run(tmp_path: Path, what: str) -> None:
    """Written on, it would be lost with the last descriptor."""
    run, directory = started(tmp_path)
    log = directory / "audit.jsonl"
    log.rename(directory / "moved")
    if what == "a symlink":
        log.symlink_to("moved")
    elif what == "another file":
        log.touch()
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 125
    assert "the audit log cannot be written" in errors
    assert ("another file has taken its place" if what != "nothing" else "No such file") in errors
    (directory / "moved").rename(log)
    audit(tmp_path / "state", "recover", "last", env=environment(tmp_path))
    audit(tmp_path / "state", "verify", "last", env=environment(tmp_path))


def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    user = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    mount = f'mount --bind {state} {state} && mount -o remount,bind,ro {state} || exit 99; exec "$@"'
    refused_with(tmp_path, state, "Read-only file system", ["unshare", "--mount", *user, "sh", "-c", mount, "sh"])


def refused_with(tmp_path: Path, state: Path, reason: str, prefix: list[str] | None = None) -> None:
    argv = [*(prefix or []), *AKBOX, "run", "--state-dir", str(state), "--", "/bin/echo", "it ran"]
    done = subprocess.run(argv, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 125, done
    assert reason in done.stderr
    assert "it ran" not in done.stdout


def test_a_run_directory_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (tmp_path / "elsewhere").mkdir()
    (state / "runs").symlink_to(tmp_path / "elsewhere")
    refused_with(tmp_path, state, "run directory")
    assert os.listdir(tmp_path / "elsewhere") == []
