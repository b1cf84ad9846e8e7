"""Limits that take more than a command to see: the host beside a fork bomb, floods of output, daemons at the end of
time (L05, L07, L10). The other cases are in akbox/conformance/cases_limits.py and cases_life.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from akbox.conformance.cases_life import state
from akbox.conformance.engine import (
    USERS,
    akbox_command,
    as_user,
    environment,
    execute,
    policy_text,
    run_inside,
    uid_of,
    verify,
)
from akbox.conformance.model import BOTH, py
from akbox.conformance.world import Worlds

DAEMON = (
    "import os, time\nr, w = os.pipe()\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n"
    "  os.write(w, str(os.getpid()).encode()); time.sleep(600)\n os._exit(0)\n"
    "print(os.read(r, 20).decode(), flush=True); time.sleep(9)"
)


@pytest.mark.parametrize("interposer", BOTH)
@pytest.mark.parametrize("user", USERS)
def test_l07_wall_time(worlds: Worlds, user: str, interposer: str) -> None:
    """124 in time, and no process is left, in whatever session."""
    with worlds.lend(uid_of(user)) as world:
        result = run_inside(world, py(DAEMON), interposer=interposer, policy={"budgets.wall_time_ms": 1000})
        assert result.exit == 124, str(result)
        assert result.report["reason"] == "budget wall_time_ms", str(result)
        usage = result.report["usage"]
        assert isinstance(usage, dict)
        assert 1000 <= usage["wall_time_ms"] < 1500, usage
        assert state(int(result.stdout)) in "ZX", f"a daemon outlived its run\n{result}"
        assert "wall_time_ms is spent" in result.stderr, str(result)
        assert result.log is not None
        verify(world, result.log)


@pytest.mark.parametrize("user", USERS)
def test_l05_fork_bomb(worlds: Worlds, user: str) -> None:
    """While it goes off the host starts programs as before, and it never has more processes than its limit."""
    bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    with worlds.lend(uid_of(user)) as world:
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, {"limits.pids": 40, "budgets.wall_time_ms": 1500}))
        command = [*akbox_command(), "run", "-q", "-p", str(file), "--", *py(bomb)]
        most, slowest = 0, 0.0
        with subprocess.Popen(
            [*as_user(world.uid), *command], cwd=world.W, env=environment(world), stderr=subprocess.DEVNULL
        ) as run:
            while run.poll() is None:
                began = time.monotonic()
                subprocess.run(["/bin/true"], check=True)
                slowest = max(slowest, time.monotonic() - began)
                most = max(most, len(below(run.pid)))
            assert run.returncode == 124
        # Each of the forty may have a child that was refused and is on its way out, without having run an instruction.
        assert 20 < most <= 81, f"{most} processes at once"
        assert slowest < 3, f"a program took {slowest:.1f} s to run"


def below(pid: int) -> set[int]:
    """The descendants of a process that live."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] not in "ZX":
                parents[int(name)] = int(fields[1])
    found: set[int] = set()
    more = {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return found


FLOOD = """
import akbox, resource
result = akbox.Sandbox("{policy}").run(["head", "-c", "1G", "/dev/zero"])
print(result.exit_code, len(result.stdout), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_l10_output_flood(worlds: Worlds) -> None:
    """A gigabyte of output: the program gets rid of all of it, 64 MiB are kept, and akbox's own memory is bounded."""
    with worlds.lend(uid_of("user")) as world:
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, {}))
        script = FLOOD.replace("{policy}", str(file))
        result = execute([sys.executable, "-c", script], world, uid=world.uid, timeout_s=120)
        exit_code, kept, most_mib = map(int, result.stdout.split())
        assert (exit_code, kept) == (0, 64 << 20), str(result)
        assert most_mib < 64 * 3 + 60, f"akbox took {most_mib} MiB"


def test_l10_output_flood_streamed(worlds: Worlds) -> None:
    """From the command line nothing is kept at all: the streams are the caller's own."""
    with worlds.lend(uid_of("user")) as world:
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, {}))
        command = [
            *as_user(world.uid),
            *akbox_command(),
            "run",
            "-q",
            "-p",
            str(file),
            "--",
            "head",
            "-c",
            "1G",
            "/dev/zero",
        ]
        with subprocess.Popen(command, cwd=world.W, env=environment(world), stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            size, status = 0, ""
            while chunk := run.stdout.read(16 << 20):
                size += len(chunk)
                status = Path(f"/proc/{run.pid}/status").read_text()
        most = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert (run.returncode, size) == (0, 1 << 30)
        assert most is not None
        assert int(most[1]) >> 10 < 60, f"akbox took {most[1]} KiB"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount control groups, here in a namespace of its own")
def test_l11_control_groups_of_the_second_version() -> None:
    """The kit's case where cgroup v2 is mounted, whatever this machine has."""
    mount = 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
    kit = [*akbox_command(), "test", "confinement", "--case", "L11-cgroup", "--case", "R09-cgroup", "--json"]
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", *kit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    outcomes = [outcome for outcome in json.loads(done.stdout)["outcomes"] if outcome["case"] == "L11-cgroup"]
    assert {outcome["user"] for outcome in outcomes} == {"outside", *USERS}
    assert {outcome["status"] for outcome in outcomes} == {"pass"}, done.stdout
