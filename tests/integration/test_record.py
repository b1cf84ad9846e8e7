"""`akbox run --record`: a real program passes under the policy that was recorded from it, and nothing else does."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

from akbox.conformance.engine import USERS, Result, akbox_command, execute, run_inside, uid_of
from akbox.conformance.world import World, Worlds

from .programs import FALLBACKS, PROGRAMS, Program, nothing, sh
from .test_programs import fresh, left, shown

# One that serves and is asked: a port of the kernel's choice, another one each time.
SERVER = """
node -e 'const s = require("http").createServer((q, r) => r.end("served\\n")).listen(0, "127.0.0.1", () =>
  require("child_process").execFile("curl", ["-s", `http://127.0.0.1:${s.address().port}/`],
    (error, out) => { process.stdout.write(error ? String(error) : out); s.close() }))'
"""
RECORDED = [p for p in PROGRAMS if p.id not in ("json.tool-readonly", "rg")]
RECORDED.append(Program("node-server", "node-agent", sh(SERVER), nothing))
BESIDE = {
    "file": ("cat {T}", "Permission denied"),
    "program": ("uname -a", "Permission denied"),
    "host": ("exec 3<>/dev/tcp/192.0.2.1/80", "Permission denied"),
}


def refused(result: Result, program: Program) -> list[object]:
    known = (*FALLBACKS, *program.refused)
    denials = result.report["denials"]
    assert isinstance(denials, list)
    return [d for d in denials if not any(d["op"] == op and d["target"].startswith(start) for op, start in known)]


def record(world: World, program: Program) -> Path:
    file = world.STATE / "recorded.toml"
    fresh(world, program)
    options = ("--record", str(file))
    done = run_inside(world, program.command, preset=program.preset, options=options, timeout_s=program.timeout_s)
    assert done.exit == program.exit, str(done)
    return file


@pytest.mark.parametrize("program", RECORDED, ids=lambda program: program.id)
def test_recorded_program_passes(worlds: Worlds, program: Program) -> None:
    with worlds.lend(uid_of(USERS[-1])) as world:
        policy = record(world, program)
        fresh(world, program)
        bare = execute(program.command, world, uid=world.uid, timeout_s=program.timeout_s)
        left_bare = left(world, program)
        fresh(world, program)
        again = run_inside(world, program.command, preset=str(policy), timeout_s=program.timeout_s)
        text = policy.read_text()
        assert again.exit == program.exit, f"{again}\n{text}"
        assert shown(again) == shown(bare), f"{again}\n{text}"
        assert left(world, program) == left_bare
        assert refused(again, program) == [], f"{again}\n{text}"


@pytest.mark.parametrize("what", BESIDE)
def test_what_was_not_recorded_is_refused(worlds: Worlds, what: str) -> None:
    """The same command, which does one thing more when it is told to."""
    command, message = BESIDE[what]
    with worlds.lend(uid_of(USERS[-1])) as world:
        shutil.copy(shutil.which("bash") or "", world.W / "sh")
        script = f"if [ -e more ]; then {command}; else echo x > made; fi"
        argv = ("bash", "-c", world.fill(script))
        file = world.STATE / "recorded.toml"
        done = run_inside(world, argv, preset="default", options=("--record", str(file)))
        assert done.exit == 0, str(done)
        assert run_inside(world, argv, preset=str(file)).exit == 0
        (world.W / "more").touch()
        again = run_inside(world, argv, preset=str(file))
        assert message in again.stderr, f"{again}\n{file.read_text()}"
        assert len(again.report["denials"]) == 1, str(again)


def test_protected_files_stay_protected_while_recording(worlds: Worlds) -> None:
    with worlds.lend(uid_of(USERS[-1])) as world:
        file = world.STATE / "recorded.toml"
        script = f"cat {world.H}; echo evil >> {world.HOME}/.bashrc; echo done"
        done = run_inside(world, ("sh", "-c", script), preset="default", options=("--record", str(file)))
        assert done.stdout == "done\n", str(done)
        assert done.stderr.count("ermission denied") == 2, str(done)
        rules = "".join(line for line in file.read_text().splitlines() if not line.startswith("#"))
        assert ".ssh" not in rules
        assert ".bashrc" not in rules


def test_a_file_that_exists_is_not_overwritten(worlds: Worlds) -> None:
    with worlds.lend(uid_of(USERS[-1])) as world:
        file = world.STATE / "recorded.toml"
        file.write_text("mine")
        done = run_inside(world, ("true",), preset="default", options=("--record", str(file)))
        assert (done.exit, file.read_text()) == (2, "mine"), str(done)


def test_a_run_that_never_began_leaves_no_file(worlds: Worlds) -> None:
    with worlds.lend(uid_of(USERS[-1])) as world:
        file = world.STATE / "recorded.toml"
        done = run_inside(world, ("no-such-program",), preset="default", options=("--record", str(file)))
        assert done.exit == 127, str(done)
        assert not file.exists()


def test_suggested_lines_allow_what_was_refused(worlds: Worlds) -> None:
    with worlds.lend(uid_of(USERS[-1])) as world:
        script = world.fill("cat {T}/file; cat {HOME}/.ssh/id_test; {T}/prog")
        world.write(world.T / "file", "far\n")
        world.write(world.T / "prog", "#!/bin/sh\necho ran\n", 0o755)
        world.give()
        first = run_inside(world, ("sh", "-c", script))
        assert first.stderr.count("ermission denied") == 3, str(first)
        state = ("--state-dir", str(world.STATE / "akbox"))
        asked = execute([*akbox_command(), "policy", "suggest", *state], world, uid=world.uid)
        assert ".ssh" not in asked.stdout, str(asked)
        lines = tomllib.loads(asked.stdout)["fs"]
        assert lines == {"exec": [world.fill("{T}/prog")], "read": [world.fill("{T}/file")]}, str(asked)
        policy: dict[str, object] = {"fs.exec": lines["exec"], "fs.read": [*lines["read"], *lines["exec"]]}
        again = run_inside(world, ("sh", "-c", script), policy=policy)
        assert again.stdout == "far\nran\n", str(again)
        assert again.stderr.count("ermission denied") == 1, str(again)
