"""Killed at moments nobody chose. The supervisor: no process of the tree lives on, and the log verifies (P38). A task
of the run, in the middle of its call: nobody else notices.

AKBOX_KILL_ROUNDS changes how often (per user and interposer).
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from akbox.conformance.engine import USERS, akbox_command, execute, logs, policy_text, run_inside, uid_of, verify
from akbox.conformance.model import BOTH
from akbox.conformance.world import Worlds

ROUNDS = int(os.environ.get("AKBOX_KILL_ROUNDS", "15"))
KILLER = Path(__file__).with_name("killer.py")
REAPER = Path(__file__).with_name("reap.py")
LATEST_S, DEADLINE_S = 0.6, 10
SLOWER = 1.5  # how much later after a round in which nothing had begun yet
# Opens, refusals, new processes, threads' worth of shells in other sessions: something is always under way.
LOAD = (
    "for n in 1 2 3; do (while :; do cat {W}/ok {S}; echo x > {W}/n$RANDOM; done) & done; "
    "setsid sh -c 'while :; do sleep 0.01; done' & (setsid sleep 600 &) ; while :; do ls {W} > /dev/null; done"
)


@pytest.mark.parametrize("interposer", BOTH)
@pytest.mark.parametrize("user", USERS)
def test_killed_at_random_moments(worlds: Worlds, user: str, interposer: str) -> None:
    choose = random.Random(f"{user} {interposer}")
    verified, latest_s = 0, LATEST_S
    with worlds.lend(uid_of(user)) as world:
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, {}))
        inner = [*akbox_command(), "run", "-q", "-p", str(file), "--interposer", interposer]
        inner += ["--", "sh", "-c", world.fill(LOAD)]
        for _ in range(ROUNDS):
            delay_s = choose.uniform(0, latest_s)
            before = set(logs(world))
            result = execute(
                [sys.executable, str(REAPER), f"{delay_s:.4f}", str(DEADLINE_S), *inner], world, uid=world.uid
            )
            assert result.stdout == "survivors 0\n", f"killed after {delay_s:.4f} s\n{result}"
            begun = set(logs(world)) - before
            for log in begun:
                verify(world, log)
            verified += len(begun)
            latest_s = latest_s if begun else latest_s * SLOWER
        assert verified > 0, "every kill came before there was a log: this shows nothing"


@pytest.mark.parametrize("calls", ["raw", "door", "opens", "execs"])
@pytest.mark.parametrize("interposer", BOTH)
@pytest.mark.parametrize("user", USERS)
def test_tasks_killed_in_their_calls(worlds: Worlds, user: str, interposer: str, calls: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        shutil.copy(KILLER, world.W)
        policy: dict[str, object] = {"budgets.tool_calls": 10_000_000}
        command = ["python3", f"{{W}}/{KILLER.name}", calls, "60"]
        result = run_inside(world, command, policy=policy, interposer=interposer)
        assert (result.exit, result.stdout) == (0, ""), str(result)
        assert result.log is not None
        verify(world, result.log)
