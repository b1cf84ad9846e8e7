"""What comes after `--`, policies that are wrong, hosts that lack a layer (T07, A01, A04)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from akbox.conformance.engine import USERS, Result, akbox_command, execute, logs, policy_text, run_inside, uid_of
from akbox.conformance.world import World, Worlds

ANY_USER = pytest.mark.parametrize("user", USERS)
SHOW = ("/usr/bin/python3", "-I", "-c", "import sys, json; print(json.dumps(sys.argv[1:]))")

ARGUMENTS = [
    ("dashes", ["-p", "--read", "/", "--", "-q"]),
    ("spaces", ["a b", "  ", ""]),
    ("quotes", ['"', "'", "`id`", "$(id)", "\\"]),
    ("newlines", ["a\nb", "\t", "\r"]),
    ("unicode", ["é", "日本"]),
    ("options", ["--version", "--help"]),
]


@ANY_USER
@pytest.mark.parametrize("words", [row[1] for row in ARGUMENTS], ids=[row[0] for row in ARGUMENTS])
def test_t07_arguments_arrive_unchanged(worlds: Worlds, user: str, words: list[str]) -> None:
    with worlds.lend(uid_of(user)) as world:
        result = run_inside(world, (*SHOW, *words))
        assert result.exit == 0, str(result)
        assert json.loads(result.stdout) == words


@ANY_USER
def test_t07_command_is_not_a_shell_line(worlds: Worlds, user: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        result = run_inside(world, ("echo x; id",))
        assert result.exit == 127, str(result)


@ANY_USER
def test_t07_nul_is_refused(worlds: Worlds, user: str) -> None:
    """It cannot be passed to a program; the library must refuse it rather than cut the argument there."""
    script = (
        "import akbox\n"
        "try: akbox.Sandbox().run(['echo', 'a\\0b'])\n"
        "except (ValueError, akbox.CannotRun) as e: print('refused')"
    )
    with worlds.lend(uid_of(user)) as world:
        result = execute([sys.executable, "-c", script], world, uid=world.uid)
        assert result.stdout == "refused\n", str(result)


@ANY_USER
def test_t07_no_command(worlds: Worlds, user: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        result = execute([*akbox_command(), "run", "-p", "default", "--"], world, uid=world.uid)
        assert result.exit == 2, str(result)


# (id, policy, line that the message must name, what it must say)
WRONG = [
    ("unknown-key", 'version = "1.0"\n[fs]\nraed = ["/a"]\n', 3, "read"),
    ("unknown-section", 'version = "1.0"\n[sf]\nread = ["/a"]\n', 2, "sf"),
    ("no-version", '[fs]\nread = ["/a"]\n', 1, "version"),
    ("bad-version", 'version = "9"\n', 1, "version"),
    ("wrong-type", 'version = "1.0"\n[fs]\nread = "/a"\n', 3, "read"),
    ("bad-cidr", 'version = "1.0"\n[net]\nconnect = [\n  "ip:10.0.0.0/33:80",\n]\n', 4, "33"),
    ("bad-port", 'version = "1.0"\n[net]\nconnect = ["ip:10.0.0.1:70000"]\n', 3, "70000"),
    ("url-as-host", 'version = "1.0"\n[net]\ndns = ["https://example.com/"]\n', 3, "URL"),
    ("star-com", 'version = "1.0"\n[net]\ndns = ["*.com"]\n', 3, "*.com"),
    ("relative-dotdot", 'version = "1.0"\n[fs]\nread = ["/a/../b"]\n', 3, ".."),
    ("negative-budget", 'version = "1.0"\n[budgets]\ntokens = -1\n', 3, "tokens"),
    ("unknown-profile", 'version = "1.0"\nprofiles = ["pyhton"]\n', 2, "pyhton"),
    ("duplicate-key", 'version = "1.0"\n[fs]\nread = ["/a"]\nread = ["/b"]\n', 4, "once"),
    ("duplicate-rule", 'version = "1.0"\n[fs]\nread = ["/a", "/a"]\n', 3, "/a"),
    ("not-toml", 'version = "1.0"\n[fs\n', 2, ""),
    ("unknown-variable", 'version = "1.0"\n[fs]\nread = ["${hoome}/x"]\n', 3, "hoome"),
]


@ANY_USER
@pytest.mark.parametrize(("text", "line", "word"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a01_a_wrong_policy_runs_nothing(worlds: Worlds, user: str, text: str, line: int, word: str) -> None:
    """`run` cannot run it (125) and says file, line and what is wrong; `policy check` says the same and exits 1."""
    with worlds.lend(uid_of(user)) as world:
        file = world.base / "wrong.toml"
        file.write_text(text)
        ran = execute(
            [*akbox_command(), "run", "-p", str(file), "--", "touch", str(world.W / "ran")], world, uid=world.uid
        )
        checked = execute([*akbox_command(), "policy", "check", str(file)], world, uid=world.uid)
        assert not (world.W / "ran").exists(), f"a wrong policy was used\n{ran}"
        assert ran.exit == 125, str(ran)
        assert checked.exit == 1, str(checked)
        for result in (ran, checked):
            said = result.stdout + result.stderr
            assert f"{file}:{line}:" in said, f"line {line} is not named\n{result}"
            assert word in said, str(result)


@ANY_USER
def test_a01_json_too(worlds: Worlds, user: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        file = world.base / "wrong.json"
        file.write_text('{\n "version": "1.0",\n "fs": {"read": ["/a"],\n  "wriet": ["/b"]}\n}\n')
        result = execute([*akbox_command(), "policy", "check", str(file)], world, uid=world.uid)
        assert result.exit == 1, str(result)
        assert f"{file}:4:" in result.stdout + result.stderr, str(result)
        assert "write" in result.stdout + result.stderr, f"no suggestion\n{result}"


def lacking(world: World, features: list[str], *options: str, command: tuple[str, ...] = ("echo", "ran")) -> Result:
    file = world.base / "policy.toml"
    file.write_text(policy_text(world, {}))
    wrapper = [sys.executable, str(Path(__file__).with_name("lacking.py")), *features, "--"]
    inner = [*akbox_command(), "run", "-p", str(file), *options, "--", *map(world.fill, command)]
    return execute([*wrapper, *inner], world, uid=world.uid)


@ANY_USER
def test_a04_no_landlock_is_refused(worlds: Worlds, user: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        result = lacking(world, ["landlock"])
        assert result.exit == 125, str(result)
        assert "landlock" in result.stderr.lower(), str(result)
        assert "ran" not in result.stdout


@ANY_USER
def test_a04_unless_it_is_waived_by_name(worlds: Worlds, user: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        result = lacking(world, ["landlock"], "--allow-degraded", "landlock")
        assert result.exit == 0, str(result)
        assert result.stdout == "ran\n"
        denied = lacking(world, ["landlock"], "--allow-degraded", "landlock", command=("cat", "{H}"))
        assert denied.exit != 0, f"the other fence does not hold alone\n{denied}"
        assert "HOST-SECRET" not in denied.stdout
        entries = [json.loads(line) for line in logs(world)[-1].read_text().splitlines()]
        assert any("landlock" in json.dumps(entry) for entry in entries), "the log does not say what was waived"


@ANY_USER
def test_a04_waiving_something_else_does_not_help(worlds: Worlds, user: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        result = lacking(world, ["landlock"], "--allow-degraded", "no-such-layer")
        assert result.exit in (2, 125), str(result)
        assert "ran" not in result.stdout


@ANY_USER
def test_a04_ptrace_stands_in_for_the_listener(worlds: Worlds, user: str) -> None:
    """Under `auto` the listener may be absent and the policy still holds; asked for by name it is an error."""
    with worlds.lend(uid_of(user)) as world:
        fine = lacking(world, ["listener"])
        assert fine.exit == 0, str(fine)
        denied = lacking(world, ["listener"], command=("cat", "{S}"))
        assert denied.exit == 1, str(denied)
        assert "HOST-SECRET" not in denied.stdout
        named = lacking(world, ["listener"], "--interposer", "notify")
        assert named.exit == 125, str(named)


@ANY_USER
@pytest.mark.parametrize("interposer", ["auto", "notify", "ptrace"])
def test_a04_nothing_stands_in_for_ptrace(worlds: Worlds, user: str, interposer: str) -> None:
    """What an exec became and the end of the tree are the tracer's to see: no tracer, no run, and that is said."""
    with worlds.lend(uid_of(user)) as world:
        result = lacking(world, ["ptrace"], "--interposer", interposer)
        assert result.exit == 125, str(result)
        assert "ran" not in result.stdout
        assert "no ptrace" in result.stderr


@ANY_USER
def test_a04_neither_is_refused(worlds: Worlds, user: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        result = lacking(world, ["listener", "ptrace"])
        assert result.exit == 125, str(result)
        assert "ran" not in result.stdout
