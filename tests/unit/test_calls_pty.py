"""Pseudo-terminals: a run has both ends of those it made; the host's, in the same directory, stay out of reach."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import enforcer_run as e
import pytest

import akbox

TIOCGPTN, TIOCSPTLCK, TIOCGPTPEER, TIOCSTI = 0x80045430, 0x40045431, 0x5441, 0x5412
FLAGS = os.O_RDWR | os.O_NOCTTY
GRANTED = e.make_policy(read=("/dev/ptmx", "/dev/pts/ptmx"), write=("/dev/ptmx", "/dev/pts/ptmx"))


def master() -> tuple[int, str]:
    """A new, unlocked pair: its master and the slave's name."""
    fd = os.open("/dev/ptmx", FLAGS)
    fcntl.ioctl(fd, TIOCSPTLCK, struct.pack("i", 0))
    return fd, f"/dev/pts/{struct.unpack('i', fcntl.ioctl(fd, TIOCGPTN, bytes(4)))[0]}"


def opens(name: str, flags: int = FLAGS) -> str:
    return e.errno_of(lambda: os.close(os.open(name, flags)))


def test_a_slave_of_its_own_opens_by_name() -> None:
    def body() -> list[object]:
        fd, name = master()
        slave = os.open(name, FLAGS)
        os.write(slave, b"through\n")
        seen = [os.read(fd, 100), opens(name, os.O_RDONLY | os.O_NOCTTY), opens(f"/dev/shm/../pts/{name[9:]}")]
        os.close(fd)
        os.close(slave)
        return [*seen, opens(name)]

    value, events = e.run(body, GRANTED)
    assert value[:3] == [b"through\r\n", "ok", "ok"]
    assert value[3] in ("ENOENT", "EACCES")  # EACCES: somebody else's by now
    slaves = [v for v in events if v.target.startswith("/dev/pts/") and v.decision == 1]
    assert len(slaves) == 3
    assert {v.rule for v in slaves if v.need == 3} == {v.rule for v in events if v.target.endswith("ptmx")}


def test_the_hosts_terminals_are_refused() -> None:
    ours, slave = os.openpty()
    name = os.ttyname(slave)
    assert opens(name) == "ok"
    try:
        value, events = e.run(lambda: (master()[0] > 0, opens(name), opens(name, os.O_RDONLY)), GRANTED)
    finally:
        os.close(ours)
        os.close(slave)
    assert value == (True, "EACCES", "EACCES")
    assert [(v.decision, v.error) for v in events if v.target == name] == [(0, 13)] * 2


def used_again() -> str | None:
    """What the run is told when a number that it had is the host's now; None when somebody else was given it."""
    asks, answers = os.pipe(), os.pipe()

    def body() -> str:
        fd, name = master()
        assert opens(name) == "ok"
        os.close(fd)
        os.write(asks[1], name.encode())
        os.read(answers[0], 1)
        return opens(name)

    held: list[int] = []
    with e.launch(body, GRANTED) as run:
        run.start()
        name = os.read(asks[0], 100).decode()
        while len(held) < 64 and not (held and os.ttyname(held[-1]) == name):
            held += os.openpty()
        ours = os.ttyname(held[-1]) == name
        os.write(answers[1], b"x")
        result: str = run.result()
    for fd in (*held, *asks, *answers):
        os.close(fd)
    return result if ours else None


def test_a_number_that_the_host_uses_again_is_the_hosts() -> None:
    assert next((told for told in (used_again() for _ in range(20)) if told), "never") == "EACCES"


@pytest.mark.parametrize(
    "rule", ['fs.deny = ["/dev/pts/**"]', 'fs.protect = ["/dev/pts/**"]', 'approve.effects = ["fs.write /dev/pts/**"]']
)
def test_a_rule_that_refuses_slaves_or_asks_stands(rule: str) -> None:
    before = "[fs]\n" if rule.startswith("approve") else "deny = []\n"
    policy = GRANTED.replace(before, f"{rule}\n{before}" if before == "[fs]\n" else rule.removeprefix("fs.") + "\n")
    assert e.run(lambda: opens(master()[1]), policy)[0] == "EACCES"


def test_more_pairs_than_are_remembered() -> None:
    """The oldest of those that are still held stay reachable, and new ones are again once others are gone."""

    def body() -> list[object]:
        pairs = [master() for _ in range(70)]
        first, last = opens(pairs[0][1]), opens(pairs[-1][1])
        for fd, _ in pairs:
            os.close(fd)
        return [first, last, opens(master()[1])]

    assert e.run(body, GRANTED)[0] == ["ok", "EACCES", "ok"]


# ---- in a run, with Landlock above -----------------------------------------------------------------------------------

PEER = """
import fcntl, os, struct, sys
m = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
fcntl.ioctl(m, 0x40045431, struct.pack("i", 0))
def peer(fd, flags=os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC):
    try: return fcntl.ioctl(fd, 0x5441, flags)
    except OSError as error: return -error.errno
s = peer(m)
os.write(s, b"through\\n")
print(os.read(m, 100), os.get_inheritable(s), os.get_inheritable(peer(m, os.O_RDWR)))
print(peer(s), peer(0), peer(99), peer(os.open("/dev/null", os.O_RDWR)))
try: fcntl.ioctl(s, 0x5412, b"x")
except OSError as error: print(error.errno)
os.close(m)
"""
PTY = """
import os, pty
m, s = pty.openpty(); print(os.ttyname(s).startswith("/dev/pts/"))
pid, fd = pty.fork()
if pid == 0:
    os.execvp("sh", ["sh", "-c", "test -t 0 && echo child > /dev/tty"])
print(os.read(fd, 100)); print(os.waitpid(pid, 0)[1])
"""


@pytest.fixture(params=["auto", "ptrace"])
def inside(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., akbox.RunResult]:
    sandbox = akbox.Sandbox("default", cwd=tmp_path, state_dir=tmp_path / "state", interposer=request.param)
    return lambda *argv: sandbox.run(argv)


def test_the_peer_of_a_master_that_is_held(inside: Callable[..., akbox.RunResult]) -> None:
    result = inside("/usr/bin/python3", "-I", "-c", PEER)
    assert result.stdout.decode().splitlines() == ["b'through\\r\\n' False True", "-25 -25 -9 -25", "1"], result
    assert [d.target for d in result.denials] == ["syscall:ioctl"]


def test_openpty_and_fork(inside: Callable[..., akbox.RunResult]) -> None:
    result = inside("/usr/bin/python3", "-I", "-c", PTY)
    assert result.stdout.decode().splitlines() == ["True", "b'child\\r\\n'", "0"], result
    assert not result.denials


def test_script(inside: Callable[..., akbox.RunResult]) -> None:
    result = inside("script", "-qec", "echo hi", "/dev/null")
    assert (result.exit_code, result.stdout) == (0, b"hi\r\n"), result
