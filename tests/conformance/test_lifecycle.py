"""How a run lives and ends: exit codes, pipelines, daemons, kills, nesting, descriptors (P38, P43-P46, T08).

What is a command and its answer is in the kit (cases_life.py); this needs more than one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from akbox.conformance.engine import (
    USERS,
    Result,
    akbox_command,
    as_user,
    environment,
    execute,
    policy_text,
    run_inside,
    uid_of,
    verify,
)
from akbox.conformance.model import BOTH, py, sh
from akbox.conformance.world import World, Worlds

VARIANTS = [(user, interposer) for user in USERS for interposer in BOTH]
BOTH_OF_EACH = pytest.mark.parametrize(("user", "interposer"), VARIANTS, ids=lambda word: word)
DEADLINE_S = 10
PROJECT = Path(__file__).resolve().parents[2]


def sound(world: World, result: Result, exit_code: int = 0) -> Result:
    assert result.exit == exit_code, f"exit {result.exit}, wanted {exit_code}\n{result}"
    assert result.log is not None, str(result)
    verify(world, result.log)
    return result


@BOTH_OF_EACH
def test_p38_killed_supervisor(worlds: Worlds, user: str, interposer: str) -> None:
    """The run is well under way (it says so) when its supervisor is killed; integration/test_lifecycle.py kills at any
    moment."""
    with worlds.lend(uid_of(user)) as world:
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, {}))
        script = "echo $$ >&2; while :; do cat {R}/a >/dev/null; done & while :; do cat {S}; done 2>/dev/null"
        command = [*akbox_command(), "run", "-p", str(file), "--interposer", interposer, "--", *sh(world.fill(script))]
        process = subprocess.Popen(
            [*as_user(world.uid), *command], cwd=world.W, env=environment(world), stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        agent = int(process.stderr.readline())
        session = os.getsid(agent)
        process.kill()
        process.wait()
        process.stderr.close()
        wait_until(lambda: not session_members(session), "a process of the tree is alive")
        log = next((world.STATE / "akbox" / "runs").glob("*/audit.jsonl"))
        verify(world, log)


def session_members(session: int) -> list[int]:
    members = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                members.append(int(name))
    return members


def wait_until(condition: object, message: str) -> None:
    assert callable(condition)
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, message
        time.sleep(0.01)


@BOTH_OF_EACH
def test_p44_nested_with_the_default_preset(worlds: Worlds, user: str, interposer: str) -> None:
    """Not even the state directory is in reach: that is not the reason to give."""
    code = "import sys; from akbox.cli.main import main; sys.exit(main())"
    inner = [sys.executable, "-c", code, "run", "--", "echo", "from inside"]
    options = ["--read", f"{PROJECT}/**", "--read", f"{sys.prefix}/**"]
    with worlds.lend(uid_of(user)) as world:
        result = run_inside(world, inner, interposer=interposer, preset="default", options=options)
        assert result.exit == 125, str(result)
        assert "akbox is already running above" in result.stderr, str(result)
        assert "from inside" not in result.stdout


@BOTH_OF_EACH
def test_p44_nested(worlds: Worlds, user: str, interposer: str) -> None:
    """A tracer and a listener cannot nest: the inner akbox works, or says why it does not. It never just runs the
    command unconfined, and never hangs."""
    inner = [*akbox_command(), "run", "-p", "default", "--state-dir", "{W}/state", "--", "echo", "from inside"]
    root = str(PROJECT)
    policy: dict[str, object] = {
        "fs.read": [f"{root}/**", f"{sys.prefix}/**", "/etc/**", "/proc/**", "/sys/**"],
        "fs.exec": [f"{sys.prefix}/**"],
        "env.set": {"HOME": "{W}"},
    }
    with worlds.lend(uid_of(user)) as world:
        result = run_inside(world, inner, interposer=interposer, policy=policy)
        assert result.log is not None, str(result)
        verify(world, result.log)
        if result.exit == 0:
            assert result.stdout == "from inside\n", str(result)
        else:
            assert result.exit == 125, str(result)
            assert "from inside" not in result.stdout
            assert "akbox is already running above" in result.stderr, f"it gives no reason\n{result}"
            assert "internal error" not in result.stderr, str(result)


@BOTH_OF_EACH
def test_p45_open_descriptors_are_closed(worlds: Worlds, user: str, interposer: str) -> None:
    """A host file and a connected socket, open and inheritable before the run, are not there inside."""
    with worlds.lend(uid_of(user)) as world, open(world.H) as secret:
        left, right = socket.socketpair()
        fds = (secret.fileno(), left.fileno())
        control = execute(("bash", "-c", f"cat <&{fds[0]}"), world, uid=world.uid, pass_fds=fds)
        assert "HOST-SECRET" in control.stdout
        secret.seek(0)
        script = "import os; print([n for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n)])"
        result = run_inside(world, py(script), interposer=interposer, pass_fds=fds)
        assert sound(world, result).stdout == "['0', '1', '2']\n", str(result)
        left.close()
        right.close()


@BOTH_OF_EACH
def test_p46_keep_fd(worlds: Worlds, user: str, interposer: str) -> None:
    """The one descriptor that was named stays, the others do not."""
    with worlds.lend(uid_of(user)) as world:
        read, write = os.pipe()
        other, _ = socket.socketpair()
        fds = (read, write, other.fileno())
        script = (
            f"import os; os.write({write}, b'kept')\ntry: os.fstat({other.fileno()})\nexcept OSError: print('closed')"
        )
        result = run_inside(world, py(script), interposer=interposer, pass_fds=fds, options=["--keep-fd", str(write)])
        assert sound(world, result).stdout == "closed\n", str(result)
        assert os.read(read, 9) == b"kept"
        os.close(read)
        os.close(write)
        other.close()


@BOTH_OF_EACH
def test_f47_given_descriptors_can_be_looked_at(worlds: Worlds, user: str, interposer: str) -> None:
    """Under strict metadata a standard stream may be a file whose name does not exist for the agent."""
    with worlds.lend(uid_of(user)) as world:
        world.write(world.T / "plain", "given\n")
        strict: dict[str, object] = {"fs.metadata": "strict"}
        with open(world.T / "plain") as given:
            result = run_inside(world, ("cat",), interposer=interposer, policy=strict, stdin=given.fileno())
        assert sound(world, result).stdout == "given\n", str(result)


STDIN = [("null", "0"), ("pipe", "5"), ("closed", "closed"), ("file", "6")]


@BOTH_OF_EACH
@pytest.mark.parametrize(("kind", "wanted"), STDIN, ids=[row[0] for row in STDIN])
def test_t08_standard_input(worlds: Worlds, user: str, interposer: str, kind: str, wanted: str) -> None:
    script = "import os\ntry: print(len(os.read(0, 99)))\nexcept OSError: print('closed')"
    with worlds.lend(uid_of(user)) as world:
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, {}))
        akbox = " ".join(akbox_command())
        redirect = {"null": "</dev/null", "pipe": "", "closed": "<&-", "file": f"<{world.R}/a"}[kind]
        feed = "printf 12345 | " if kind == "pipe" else ""
        line = f'{feed}{akbox} run -p {file} --interposer {interposer} -- /usr/bin/python3 -I -c "{script}" {redirect}'
        result = execute(("sh", "-c", line), world, uid=world.uid)
        assert result.exit == 0, str(result)
        # A closed standard input may be shown as closed or as empty.
        assert result.stdout.strip() in ({"closed", "0"} if kind == "closed" else {wanted}), str(result)


@pytest.mark.parametrize("user", USERS)
def test_p43_multi_threaded_host_under_a_runtime_filter(worlds: Worlds, user: str) -> None:
    """A container runtime's default filter answers clone3 with ENOSYS, and unknown numbers too; the host program that
    starts the run has many threads."""
    script = Path(__file__).with_name("runtime_host.py")
    with worlds.lend(uid_of(user)) as world:
        result = execute([sys.executable, str(script)], world, uid=world.uid, timeout_s=60)
        assert result.exit == 0, str(result)
        assert result.stdout == "4 runs: ['from a thread']\n", str(result)


@pytest.mark.parametrize("user", USERS)
def test_sockets_under_a_runtime_filter_are_refused_with_an_entry(worlds: Worlds, user: str) -> None:
    """Without pidfd_getfd there is no way to the agent's socket: what a rule allows is refused too, and logged."""
    script = Path(__file__).with_name("runtime_host.py")
    with worlds.lend(uid_of(user)) as world:
        result = execute([sys.executable, str(script), "sockets"], world, uid=world.uid, timeout_s=60)
        assert result.exit == 0, str(result)
        assert result.stdout == "1 ['host:pidfd_getfd']\n", str(result)
