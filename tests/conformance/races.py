"""Path races (F24, F25 and their relatives): one thread changes what a name means while another uses it.

`python -m conformance.races --rounds 100000` (in tests/) runs all of them as every user under every interposer and
prints what helper/races.c counted; exit 1 when one leaked. The test run does the same with fewer rounds.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from akbox.conformance.engine import USERS, Result, run_inside, run_outside, uid_of, verify
from akbox.conformance.model import BOTH
from akbox.conformance.world import MARK, World, Worlds, build_helpers

COUNTS = re.compile(r"rounds (\d+) good (\d+) refused (\d+) leaked (\d+)")
TRIES = 20  # how often a race that nobody won is run again
EXEC_SHARE = 50  # an exec race starts a process per round: one round for so many of the others


@dataclass(frozen=True)
class Race:
    id: str
    title: str
    mode: str
    a: str
    b: str
    prepare: Callable[[World], None]
    policy: dict[str, object] = field(default_factory=dict)


def _nothing(world: World) -> None:
    pass


def _link(target: str) -> Callable[[World], None]:
    return lambda world: (world.W / "other").symlink_to(world.fill(target))


def _directory(target: str) -> Callable[[World], None]:
    def make(world: World) -> None:
        (world.W / "dir").mkdir()
        (world.W / "dir" / "target").write_text("ok\n")
        (world.W / "other").symlink_to(world.fill(target))
        for name in ("dir", "dir/target"):
            os.chown(world.W / name, world.uid, world.uid)

    return make


def _parents(world: World) -> None:
    """W/dir/secret may be read, W/other/secret not; sub, some directories deep, moves between the two."""
    (world.W / "dir" / "sub" / "/".join("d" * 64)).mkdir(parents=True)
    (world.W / "other").mkdir()
    (world.W / "dir" / "secret").write_text("ok\n")
    (world.W / "other" / "secret").write_text(f"{MARK}\n")
    for folder, folders, files in os.walk(world.W):
        for name in (*folders, *files):
            os.lchown(os.path.join(folder, name), world.uid, world.uid)


RACES = [
    Race("F24-host", "a file and a symlink to a host file are exchanged", "swap", "{W}/ok", "{W}/other", _link("{H}")),
    Race("F24-inside", "and one to a file denied inside W", "swap", "{W}/ok", "{W}/other", _link("{S}")),
    Race("F24-create", "a directory and a symlink to one out of bounds", "create", "{W}/dir", "{W}/other",
         _directory("{T}")),
    Race("F24-cwd", "the working directory changes", "cwd", "{W}/dir", "{T}", _directory("{T}")),
    Race("F24-dirfd", "the directory behind a descriptor changes", "dirfd", "{W}/dir", "{T}", _directory("{T}")),
    Race("F25-host", "the path string changes to a host file's", "memory", "{W}/ok", "{H}", _nothing),
    Race("F25-inside", "and to that of a file denied inside W", "memory", "{W}/ok", "{S}", _nothing),
    Race("F25-kernel", "the path of a file that the kernel opens itself changes", "memory", "{R}/a", "{H}", _nothing),
    Race("F25-exec", "the path of a program changes", "exec", "/usr/bin/true", "{W}/denied", _nothing),
    Race("F25-shared", "by another process, in memory that is shared", "shared", "{W}/ok", "{H}", _nothing),
    Race("F25-vm", "by a process that has all of this one's memory", "vm", "{W}/ok", "{S}", _nothing),
    Race("F25-mutate", "the path of a file that is changed", "mutate", "{W}/ok", "{T}/target", _nothing),
    Race("F25-how", "the flags of openat2, of a file that may be read", "how", "{R}/a", "{R}/a", _nothing),
    Race("F26-parent", "a directory moves while a name goes up from it", "parent", "{W}/dir", "{W}/other", _parents,
         policy={"fs.deny": ["{W}/other/secret"]}),
    Race("F26-procfd", "the descriptor behind a name in /proc changes", "procfd", "{W}/ok", "{H}", _nothing),
    Race("F26-shebang", "a script that may be run changes its interpreter", "shebang", "{W}/script", "{W}/denied",
         _nothing, policy={"fs.exec": ["{W}/script"]}),
]  # fmt: skip


def rounds_of(race: Race, rounds: int) -> int:
    return max(1, rounds // EXEC_SHARE) if race.mode in ("exec", "shebang") else rounds


def prepare(world: World, race: Race) -> None:
    race.prepare(world)
    denied = world.W / "denied"
    denied.write_bytes((world.helpers / "seven").read_bytes())
    denied.chmod(0o755)
    for path in world.W.iterdir():
        os.lchown(path, world.uid, world.uid)
    world.remember()


def counts(result: Result) -> tuple[int, int, int, int]:
    found = COUNTS.search(result.stdout)
    assert found is not None, f"the helper did not finish\n{result}"
    rounds, good, refused, leaked = (int(number) for number in found.groups())
    return rounds, good, refused, leaked


def run_race(worlds: Worlds, race: Race, user: str, interposer: str, rounds: int) -> tuple[int, int, int, int]:
    """(rounds, good, refused, leaked) inside. AssertionError for a leak, a changed host or a log that is not sound, and
    when nothing was allowed however often it was run: that would show nothing."""
    for _ in range(TRIES):
        done = _run_once(worlds, race, user, interposer, rounds)
        if done[1] > 0:
            return done
    raise AssertionError(f"{race.id}: nothing was allowed in {TRIES} runs")


def _run_once(worlds: Worlds, race: Race, user: str, interposer: str, rounds: int) -> tuple[int, int, int, int]:
    with worlds.lend(uid_of(user)) as world:
        prepare(world, race)
        count = rounds_of(race, rounds)
        command = ("{K}/races", race.mode, str(count), race.a, race.b)
        policy: dict[str, object] = {"budgets.wall_time_ms": 3_600_000, **race.policy}
        result = run_inside(world, command, interposer=interposer, policy=policy, timeout_s=3600)
        assert MARK not in result.stdout, str(result)
        done = counts(result)
        assert result.exit == 0, f"it leaked\n{result}"
        assert done[3] == 0, f"it leaked\n{result}"
        assert done[0] == count, str(result)
        assert not list(world.T.glob("made-*")), f"files were made out of bounds\n{result}"
        assert world.changed(()) == []
        assert result.log is not None
        verify(world, result.log)
        return done


def check_race_control(worlds: Worlds, race: Race) -> None:
    """Outside the same race reaches what it must not."""
    for _ in range(TRIES):
        with worlds.lend(uid_of("user")) as world:
            prepare(world, race)
            rounds = str(rounds_of(race, 20_000))
            result = run_outside(world, ("{K}/races", race.mode, rounds, race.a, race.b), "user")
            if counts(result)[3] > 0 or list(world.T.glob("made-*")):
                return
    raise AssertionError(f"the race is never won, so it tests nothing\n{result}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--only", default="", help="ids that start with this")
    parser.add_argument("--interposer", choices=BOTH, default=None)
    parser.add_argument("--user", choices=USERS, default=None)
    options = parser.parse_args()
    worlds = Worlds()
    failed = 0
    try:
        build_helpers(worlds.helpers)
        for race in (race for race in RACES if race.id.startswith(options.only)):
            for user in USERS if options.user is None else (options.user,):
                for interposer in BOTH if options.interposer is None else (options.interposer,):
                    began = time.monotonic()
                    name = f"{race.id}-{user}-{interposer}"
                    try:
                        rounds, good, refused, leaked = run_race(worlds, race, user, interposer, options.rounds)
                        outcome = f"rounds {rounds} good {good} refused {refused} leaked {leaked}"
                    except AssertionError as error:
                        failed += 1
                        outcome = f"FAILED {error}"
                    print(f"{name}: {outcome} ({time.monotonic() - began:.1f} s)", flush=True)
    finally:
        worlds.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
