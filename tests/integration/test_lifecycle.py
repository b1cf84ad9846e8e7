"""The supervisor is killed at moments nobody chose: no process of the tree outlives it, and the log verifies (P38).

AKBOX_KILL_ROUNDS changes how often (per user and interposer).
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from akbox.conformance.engine import USERS, akbox_command, execute, logs, policy_text, uid_of, verify
from akbox.conformance.model import BOTH
from akbox.conformance.world import Worlds

ROUNDS = int(os.environ.get("AKBOX_KILL_ROUNDS", "15"))
REAPER = Path(__file__).with_name("reap.py")
LATEST_S, DEADLINE_S = 0.6, 10
# Opens, refusals, new processes, threads' worth of shells in other sessions: something is always under way.
LOAD = (
    "for n in 1 2 3; do (while :; do cat {W}/ok {S}; echo x > {W}/n$RANDOM; done) & done; "
    "setsid sh -c 'while :; do sleep 0.01; done' & (setsid sleep 600 &) ; while :; do ls {W} > /dev/null; done"
)


@pytest.mark.parametrize("interposer", BOTH)
@pytest.mark.parametrize("user", USERS)
def test_killed_at_random_moments(worlds: Worlds, user: str, interposer: str) -> None:
    choose = random.Random(f"{user} {interposer}")
    verified = 0
    with worlds.lend(uid_of(user)) as world:
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, {}))
        inner = [*akbox_command(), "run", "-q", "-p", str(file), "--interposer", interposer]
        inner += ["--", "sh", "-c", world.fill(LOAD)]
        for _ in range(ROUNDS):
            delay_s = choose.uniform(0, LATEST_S)
            before = set(logs(world))
            result = execute(
                [sys.executable, str(REAPER), f"{delay_s:.4f}", str(DEADLINE_S), *inner], world, uid=world.uid
            )
            assert result.stdout == "survivors 0\n", f"killed after {delay_s:.4f} s\n{result}"
            for log in set(logs(world)) - before:
                verify(world, log)
                verified += 1
        assert verified > 0, "every kill came before there was a log: this shows nothing"
