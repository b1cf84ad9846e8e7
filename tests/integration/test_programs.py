"""Real programs under the shipped presets: the same output and the same files as without akbox, and nothing refused."""

from __future__ import annotations

import re
import shutil

import pytest

from akbox.conformance.engine import USERS, Result, execute, run_inside, uid_of, verify
from akbox.conformance.world import World, Worlds

from .programs import FALLBACKS, PROGRAMS, Program, contents

PARAMETERS = [
    (program, user, interposer) for program in PROGRAMS for user in USERS for interposer in program.interposers
]
TIMES = re.compile(r"\d+\.\d+s\b|in \d+\.\d+s")


def label(parameter: tuple[Program, str, str]) -> str:
    return f"{parameter[0].id}-{parameter[1]}-{parameter[2]}"


def fresh(world: World, program: Program) -> None:
    """The same working directory, by the same name, for each of the two runs."""
    shutil.rmtree(world.W)
    world.W.mkdir()
    program.prepare(world.W)
    world.give()


def shown(result: Result) -> str:
    return TIMES.sub("TIME", result.stdout)


def left(world: World, program: Program) -> dict[str, object]:
    return {name: contents(world.W / name) for name in program.leaves}


@pytest.mark.parametrize("parameter", PARAMETERS, ids=label)
def test_program(worlds: Worlds, parameter: tuple[Program, str, str]) -> None:
    program, user, interposer = parameter
    with worlds.lend(uid_of(user)) as world:
        fresh(world, program)
        bare = execute(program.command, world, uid=world.uid, timeout_s=program.timeout_s)
        left_bare = left(world, program)
        fresh(world, program)
        inside = run_inside(
            world, program.command, preset=program.preset, interposer=interposer, timeout_s=program.timeout_s
        )
        assert bare.exit == program.exit, str(bare)
        assert inside.exit == bare.exit, f"{inside}\n--- bare\n{bare}"
        assert shown(inside) == shown(bare), f"{inside}\n--- bare\n{bare}"
        assert left(world, program) == left_bare
        assert all(files for files in left_bare.values()), "a file that should be compared is not there"
        denials = inside.report["denials"]
        known = (*FALLBACKS, *program.refused)
        assert isinstance(denials, list)
        matters = [
            d for d in denials if not any(d["op"] == op and d["target"].startswith(start) for op, start in known)
        ]
        assert matters == [], str(inside)
        assert inside.log is not None
        verify(world, inside.log)
