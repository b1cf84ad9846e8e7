"""SCM_RIGHTS: a host program that the agent may reach cannot hand it a descriptor; processes of the run can."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from akbox.conformance.engine import USERS, execute, run_inside, uid_of
from akbox.conformance.model import BOTH
from akbox.conformance.world import World, Worlds

SO_PASSRIGHTS = 83  # Linux 6.16
BOTH_OF_EACH = pytest.mark.parametrize(("user", "interposer"), [(user, by) for user in USERS for by in BOTH])
CLIENT = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
if sys.argv[2] == "before":
    s.setsockopt(1, 83, 1)
s.connect(sys.argv[1])
if sys.argv[2] == "after":
    try: s.setsockopt(1, 83, 1)
    except OSError as error: print("setsockopt", error.errno)
if sys.argv[2] == "again":
    try: s.connect(sys.argv[1])
    except OSError as error: print("connect", error.errno)
s.sendall(b"x")
message, fds, _, _ = socket.recv_fds(s, 10, 1)
print(message.decode(), [os.read(fd, 20).decode() for fd in fds])
"""
OWN = """
import os, socket, sys
path = os.environ["TMPDIR"] + "/own"
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
if os.fork() == 0:
    c, _ = server.accept()
    socket.send_fds(c, [b"own"], [os.open(sys.argv[1], os.O_RDONLY)])
    os._exit(0)
s = socket.socket(socket.AF_UNIX)
s.connect(path)
message, fds, _, _ = socket.recv_fds(s, 10, 1)
print(message.decode(), [os.read(fd, 20).decode() for fd in fds])
"""


@contextlib.contextmanager
def host_program(path: Path, handed: Path) -> Iterator[list[int]]:
    """Gives each client a descriptor of a file, or the message "none"; what sending it came to."""
    errors: list[int] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o777)
        server.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    client.recv(1)
                    fd = os.open(handed, os.O_RDONLY)
                    try:
                        socket.send_fds(client, [b"given"], [fd])
                    except OSError as error:
                        errors.append(error.errno or 0)
                        client.sendall(b"none")
                    os.close(fd)
                    client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield errors
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def knows_the_option() -> bool:
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS)
        except OSError:
            return False
    return True


def place(world: World) -> tuple[Path, Path]:
    secret = world.T / "handed"
    world.write(secret, "secret")
    world.give()
    return world.R / "host.sock", secret


@pytest.mark.skipif(not knows_the_option(), reason="Linux before 6.16 cannot refuse them: SECURITY.md")
@pytest.mark.parametrize("how", ["plain", "before", "after", "again"])
@BOTH_OF_EACH
def test_a_host_program_cannot_hand_descriptors_over(worlds: Worlds, user: str, interposer: str, how: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        path, secret = place(world)
        with host_program(path, secret) as errors:
            command = ["/usr/bin/python3", "-c", CLIENT, str(path), how]
            outside = execute(command, world, uid=world.uid)
            assert outside.stdout.endswith("given ['secret']\n"), str(outside)
            assert errors == []
            inside = run_inside(world, command, interposer=interposer, policy={"net.unix": [str(path)]})
            if how == "before":
                assert "PermissionError" in inside.stderr, str(inside)
                return
            said = {"after": "setsockopt 1\n", "again": "connect 106\n"}.get(how, "")
            assert inside.stdout == f"{said}none []\n", str(inside)
            assert errors == [1]


@BOTH_OF_EACH
def test_processes_of_a_run_can(worlds: Worlds, user: str, interposer: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        _, _ = place(world)
        policy: dict[str, object] = {"fs.read": ["${tmp}/**"], "fs.write": ["${tmp}/**"]}
        inside = run_inside(world, ["/usr/bin/python3", "-c", OWN, "{R}/a"], interposer=interposer, policy=policy)
        assert inside.stdout == "own ['alpha\\n']\n", str(inside)
