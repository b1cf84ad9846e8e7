"""What stands between the agent and the network dies or stands still: nothing goes round it, and the log says so."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from akbox.conformance import services as kit
from akbox.conformance.engine import akbox_command, as_user, environment, policy_text, uid_of, verify
from akbox.conformance.world import World, Worlds
from akbox.kernel.ops import Op

BREAK = Path(__file__).with_name("broken_server.py")

# Looks the name up anew and connects, for ever, as does a child of it; tells the other side which port it comes from,
# and says what became of it. A second hand goes on saying that time passes, whatever becomes of the others.
AGENT = """
import os, socket, sys, time
name, port, asks = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "asks"
if os.fork() == 0:
    while True:
        os.write(1, b"tick\\n")
        time.sleep(0.05)
os.fork()
address = socket.gethostbyname(name)
while True:
    try:
        s = socket.create_connection((socket.gethostbyname(name) if asks else address, port), 10)
        s.sendall(b"%d" % s.getsockname()[1])
        os.write(1, b"made\\n" if s.recv(100) else b"cut\\n")
        s.close()
    except OSError as error:
        os.write(1, b"%s\\n" % str(error).encode())
"""


class Witness(socketserver.BaseRequestHandler):
    """Notes which port a connection comes from, and which the agent says that it comes from."""

    def handle(self) -> None:
        told = self.request.recv(100)
        cast("Listener", self.server).seen.append((str(self.client_address[1]), told.decode()))
        self.request.sendall(b"seen")


class Listener(socketserver.ThreadingTCPServer):
    request_queue_size = 128
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Witness)
        self.seen: list[tuple[str, str]] = []


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def names() -> Iterator[kit.Services]:
    with kit.Services() as services:
        yield services


@contextlib.contextmanager
def agent(
    worlds: Worlds, names: kit.Services, port: int, relay: bool, held_by: Sequence[str]
) -> Iterator[tuple[World, subprocess.Popen[str]]]:
    """One that has reached the port by its name. `held_by`: a command that takes a policy and the agent's command."""
    rules: dict[str, object] = {
        "net.connect": [f"dns:listed.test:{port}"],
        "net.private": ["listed.test"],
        "net.sni": "enforce" if relay else "off",
    }
    pipe = subprocess.PIPE
    with worlds.lend(uid_of("user")) as world:
        world.services = names
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, rules))
        program = ["/usr/bin/python3", "-I", "-c", AGENT, "listed.test", str(port), "keeps" if relay else "asks"]
        argv = [*as_user(world.uid), *held_by, str(file), *program]
        with subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, env=environment(world), cwd=world.W, text=True
        ) as run:
            try:
                until(run, "made")
                yield world, run
            finally:
                run.kill()


def until(run: subprocess.Popen[str], word: str, times: int = 1) -> list[str]:
    """What the agent says up to the `times`-th such line."""
    assert run.stdout is not None
    said: list[str] = []
    for line in run.stdout:
        said.append(line.strip())
        times -= said[-1] == word
        if times == 0:
            return said
    raise AssertionError(f"it ended: {said}\n{run.stderr.read() if run.stderr else ''}")


def log_of(world: World) -> Path:
    (log,) = world.STATE.glob("akbox/runs/*/audit.jsonl")
    return log


BROKEN = {
    "relay": "the relay failed: OSError(22,",
    "dns": "the DNS server failed: OSError(22,",
    "query": "internal error in the DNS server: RuntimeError('broken by a test')",
}


@pytest.mark.parametrize("which", BROKEN)
def test_a_server_that_breaks_ends_the_run(worlds: Worlds, names: kit.Services, listener: Listener, which: str) -> None:
    """The run ends with 125 and the reason in the log; meanwhile nothing goes round the server."""
    relay = which == "relay"
    port = listener.server_address[1]
    with agent(worlds, names, port, relay, [sys.executable, str(BREAK), which]) as (world, run):
        _, err = run.communicate("break\n", timeout=60)
        assert err.startswith(f"125 {BROKEN[which]}"), err
        verify(world, log_of(world))
        end = json.loads(log_of(world).read_text().splitlines()[-1])
        assert end["op"] == Op.LIFECYCLE, end
        assert BROKEN[which] in str(end), end
    assert listener.seen, "the control: it was reached"
    direct = [told for came_from, told in listener.seen if came_from == told]
    assert bool(direct) is not relay, listener.seen


@pytest.mark.parametrize(
    ("relay", "interposer"), [(True, "auto"), (False, "auto"), (True, "ptrace")], ids=["relay", "dns", "relay-ptrace"]
)
def test_nothing_goes_out_past_a_stopped_or_killed_akbox(
    worlds: Worlds, names: kit.Services, listener: Listener, relay: bool, interposer: str
) -> None:
    port = listener.server_address[1]
    command = [*akbox_command(), "run", "--interposer", interposer, "-p"]
    with agent(worlds, names, port, relay, command) as (world, run):
        os.kill(run.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, run.pid, os.WSTOPPED | os.WNOWAIT)
        until(run, "tick", 5)  # what was under way has arrived
        names.clear()
        before = len(listener.seen)
        assert until(run, "tick", 20).count("made") == 0
        assert len(listener.seen) == before
        assert names.heard("DNS") == []
        os.kill(run.pid, signal.SIGCONT)
        until(run, "made")
        os.kill(run.pid, signal.SIGKILL)
        run.communicate(timeout=60)  # the end of its output: no process of the agent's is left
        names.clear()
        after = len(listener.seen)
        assert names.heard("DNS") == []
        assert len(listener.seen) == after
        verify(world, log_of(world))
