"""Hosts that lack something: older Landlock, none, no listener, no ptrace, no cgroup. What holds, what is refused, and
that `doctor` says so (A04; test_cli.py has the runs that are refused)."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from akbox.conformance.engine import (
    USERS,
    Result,
    akbox_command,
    execute,
    logs,
    policy_text,
    run_outside,
    uid_of,
    verify,
)
from akbox.conformance.model import py
from akbox.conformance.world import World, Worlds

ABIS = (1, 2, 3, 4, 5, 6)
HERE = Path(__file__).parent
# Each attempt prints its name and what came of it. All of them work outside.
ATTEMPTS = """
import fcntl, json, os, signal, socket
found = {}
def attempt(name, body):
    try:
        body()
        found[name] = "done"
    except OSError as error:
        found[name] = errno_name(error.errno)
def errno_name(number):
    import errno
    return errno.errorcode[number]
def connect(family, address):
    with socket.socket(family) as s: s.connect(address)
attempt("read", lambda: open("{H}").read())
attempt("truncate", lambda: os.truncate("{T}/target", 9))
attempt("truncate-denied", lambda: os.truncate("{S}", 9))
attempt("write-open", lambda: open("{T}/target", "r+").truncate(9))
attempt("rename-out", lambda: os.rename("{W}/x", "{T}/x"))
attempt("link-in", lambda: os.link("{H}", "{W}/linked"))
attempt("kill", lambda: os.kill({HP}, 0))
attempt("pidfd", lambda: signal.pidfd_send_signal(os.pidfd_open({HP}), 0))
attempt("owner", lambda: fcntl.fcntl(socket.socket(), fcntl.F_SETOWN, {HP}))
attempt("abstract", lambda: connect(socket.AF_UNIX, bytes.fromhex("ABSTRACT")))
attempt("tcp", lambda: connect(socket.AF_INET, ("127.0.0.1", PORT)))
attempt("bind", lambda: socket.socket().bind(("127.0.0.1", 0)))
attempt("own-rename", lambda: (os.makedirs("{W}/n", exist_ok=True), os.rename("{W}/ok", "{W}/n/ok")))
attempt("own-truncate", lambda: os.truncate("{W}/n/ok", 1))
attempt("own-child", lambda: os.kill(os.getpid(), 0))
print(json.dumps(found))
"""
OWN = {"own-rename": "done", "own-truncate": "done", "own-child": "done"}


def attempts(worlds: Worlds, abi: int | None, interposer: str, user: str) -> tuple[dict[str, str], Result]:
    """abi None: outside."""
    with worlds.lend(uid_of(user)) as world, socket.socket(socket.AF_UNIX) as host, socket.socket() as tcp:
        host.bind("\0akbox-kit-{}-{}".format(*world.base.parts[-2:]))
        host.listen()
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        name = host.getsockname()
        script = ATTEMPTS.replace("ABSTRACT", name.hex()).replace("PORT", str(tcp.getsockname()[1]))
        if abi is None:
            result = run_outside(world, py(script), "user")
        else:
            world.remember()
            result = masked(world, abi, interposer, py(script))
            assert world.changed(()) == []
        assert result.exit == 0, str(result)
        found: dict[str, str] = json.loads(result.stdout)
        return found, result


def masked(world: World, abi: int, interposer: str, command: tuple[str, ...]) -> Result:
    file = world.base / "policy.toml"
    file.write_text(policy_text(world, {}))
    line = [sys.executable, str(HERE / "masked.py"), str(abi), "run", "-q", "-p", str(file), "--interposer", interposer]
    result = execute([*line, "--", *map(world.fill, command)], world, uid=world.uid)
    for log in logs(world):
        verify(world, log)
    return result


def test_control(worlds: Worlds) -> None:
    found, _ = attempts(worlds, None, "", "user")
    assert set(found.values()) == {"done"}, found


@pytest.mark.parametrize("interposer", ["auto", "ptrace"])
@pytest.mark.parametrize("abi", ABIS)
def test_older_landlock(worlds: Worlds, abi: int, interposer: str) -> None:
    """What an ABI does not cover the enforcer holds alone; what it covers it still does."""
    found, result = attempts(worlds, abi, interposer, USERS[-1])
    assert {name: found.pop(name) for name in OWN} == OWN, str(result)
    if abi >= 6:  # a descriptor may have any owner there, and the signal does not reach it: test_protection.py
        assert found.pop("owner") == "done"
    allowed = {name: value for name, value in found.items() if value not in ("EACCES", "EPERM", "EXDEV")}
    assert allowed == {}, f"under ABI {abi}: {allowed}"


@pytest.mark.parametrize("abi", ABIS)
def test_doctor_names_what_an_abi_lacks(worlds: Worlds, abi: int) -> None:
    names = ("refer", "truncate", "net", "ioctl-dev", "scope")
    since = {f"landlock-{name}": first for first, name in enumerate(names, start=2)}
    with worlds.lend(uid_of("user")) as world:
        command = [sys.executable, str(HERE / "masked.py"), str(abi), "doctor", "--json"]
        result = execute(command, world, uid=world.uid)
        said = json.loads(result.stdout)
        assert said["landlock_abi"] == abi
        lacking = {layer["layer"] for layer in said["layers"] if not layer["works"]}
        assert lacking & since.keys() == {name for name, first in since.items() if abi < first}
        for layer in said["layers"]:
            assert layer["works"] or layer["remedy"], layer


# what is missing → (doctor's exit code, the layers it must show as missing)
WITHOUT = [
    (("landlock",), 1, {"landlock", "landlock-scope"}),
    (("listener",), 0, {"listener", "listener-addfd", "listener-continue"}),
    (("ptrace",), 1, {"ptrace", "trap", "trace"}),
    (("listener", "landlock"), 1, {"listener", "landlock"}),
]


@pytest.mark.parametrize(("features", "code", "layers"), WITHOUT, ids=["+".join(row[0]) for row in WITHOUT])
def test_doctor_tries(worlds: Worlds, features: tuple[str, ...], code: int, layers: set[str]) -> None:
    """Nothing is believed of a version: the layer is found missing because it was tried."""
    with worlds.lend(uid_of("user")) as world:
        wrapper = [sys.executable, str(HERE / "lacking.py"), *features, "--"]
        result = execute([*wrapper, *akbox_command(), "doctor", "--json"], world, uid=world.uid)
        assert result.exit == code, str(result)
        said = json.loads(result.stdout)
        lacking = {layer["layer"] for layer in said["layers"] if not layer["works"]}
        assert layers <= lacking, lacking
        assert said["default_policy_holds"] is (code == 0)
        if code:
            assert any(name in said["problem"] for name in layers), said["problem"]


def test_a_refusal_names_the_flag_that_waives(worlds: Worlds) -> None:
    with worlds.lend(uid_of("user")) as world:
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, {}))
        wrapper = [sys.executable, str(HERE / "lacking.py"), "landlock", "--"]
        refused = execute([*wrapper, *akbox_command(), "run", "-p", str(file), "--", "true"], world, uid=world.uid)
        assert refused.exit == 125, str(refused)
        assert "--allow-degraded landlock" in refused.stderr, str(refused)


def test_a_memory_limit_needs_no_cgroup(worlds: Worlds) -> None:
    """Where no group can be made doctor says so, and the limit holds all the same, by measuring (L01)."""
    with worlds.lend(uid_of("user")) as world:
        said = json.loads(execute([*akbox_command(), "doctor", "--json"], world, uid=world.uid).stdout)
        layer = next(layer for layer in said["layers"] if layer["layer"] == "cgroup")
        assert layer["detail"]
        assert layer["works"] or "measured" in layer["detail"]
        assert said["default_policy_holds"] is True
