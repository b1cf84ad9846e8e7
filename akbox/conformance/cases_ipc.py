"""Unix sockets, signals, and memory that is shared by name (I01-I16)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from akbox.conformance.engine import Result
from akbox.conformance.model import Case, Entry, Expect, call, deny, ok, py, refused, require, sh, turns
from akbox.conformance.services import services_of
from akbox.conformance.world import World

Prepare = Callable[[World], None]
SHM = "/dev/shm/akbox-kit-{HP}"


def listener(place: str) -> Prepare:
    """A host program's socket that listens there."""

    def prepare(world: World) -> None:
        services_of(world).listen_at(Path(world.fill(place)), world.uid)

    return prepare


def called(place: str, expected: bool) -> Callable[[World, Result], None]:
    def check(world: World, result: Result) -> None:
        services = services_of(world)
        s = services.abstract if place == "{AH}" else services.paths[world.fill(place)]
        require(services.called(s) is expected, f"{place} was {'not ' if expected else ''}reached\n{result}")

    return check


def peer(id: str, title: str, place: str, target: str | None = None, **more: Any) -> Case:
    """A host program's socket that must not be reached; outside it is."""
    return Case(
        id,
        title,
        call("unix", target or place),
        deny("net.connect", f"unix:{place}"),
        prepare=listener(place),
        check=called(place, False),
        after_control=called(place, True),
        **more,
    )


def link(world: World) -> None:
    listener("{R}/live")(world)
    (world.W / "link").symlink_to(world.R / "live")


def shared_memory(world: World) -> None:
    path = Path(world.fill(SHM))
    path.write_text("HOST-SECRET in /dev/shm\n")
    os.chown(path, world.uid, world.uid)


def no_shared_memory(world: World, result: Result) -> None:
    del result
    Path(world.fill(SHM)).unlink()


def host_lives(world: World, result: Result) -> None:
    os.kill(world.hp, 0)
    del result


AUTHORITY = (
    "docker.sock",
    "podman.sock",
    "containerd.sock",
    "S.gpg-agent",
    "agent.123",
    "dbus-session",
    "openssh_agent",
)
WIDE: dict[str, object] = {"net.unix": ["{W}/**"]}

TABLE = [
    peer("I01", "a socket that may only be read", "{R}/live"),
    peer("I01-outside", "one that may not even be read", "{T}/live"),
    Case(
        "I02",
        "one that may be written",
        call("unix", "{W}/live"),
        ok(),
        prepare=listener("{W}/live"),
        check=called("{W}/live", True),
    ),
    Case(
        "I02-rule",
        "one that net.unix names",
        call("unix", "{R}/live"),
        ok(),
        prepare=listener("{R}/live"),
        check=called("{R}/live", True),
        policy={"net.unix": ["{R}/live"]},
    ),
    Case(
        "I03",
        "by a symbolic link in W",
        call("unix", "{W}/link"),
        deny("net.connect", "unix:{R}/live"),
        prepare=link,
        check=called("{R}/live", False),
        after_control=called("{R}/live", True),
    ),
    Case(
        "I05",
        "an abstract socket of the host",
        call("unix", "{AH}"),
        Expect(errnos=("EPERM",), entry=Entry("net.connect", "unix:{AH}")),
        check=called("{AH}", False),
        after_control=called("{AH}", True),
    ),
    Case(
        "I05-own",
        "and one of the run's own",
        py(
            "import socket, os\ns = socket.socket(socket.AF_UNIX); s.bind('\\0kit-own-%d' % os.getpid()); s.listen()\n"
            "c = socket.socket(socket.AF_UNIX); c.connect('\\0kit-own-%d' % os.getpid()); print('made')"
        ),
        ok("made"),
    ),
    Case(
        "I07", "socketpair", py("import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))"), ok("b'x'")
    ),
    Case(
        "I07-path",
        "a socket of one's own, by path",
        py(
            "import socket\ns = socket.socket(socket.AF_UNIX); s.bind('{W}/own'); s.listen()\n"
            "c = socket.socket(socket.AF_UNIX); c.connect('{W}/own'); print('made')"
        ),
        ok("made"),
    ),
    *(
        peer(f"I09-{name}", f"{name}, where everything around it is granted", f"{{W}}/{name}", policy=WIDE)
        for name in AUTHORITY
    ),
    Case(
        "I09-exact",
        "granted by its exact path",
        call("unix", "{W}/docker.sock"),
        ok(),
        prepare=listener("{W}/docker.sock"),
        check=called("{W}/docker.sock", True),
        policy={"net.unix": ["{W}/docker.sock"]},
    ),
    Case("I10", "kill(HP, 0)", call("kill", "{HP}", "0"), Expect(errnos=("EPERM", "ESRCH"))),
    Case("I10-parent", "kill the parent", sh("kill -9 $PPID; echo alive"), ok("alive"), control=None),
    Case(
        "I10-all",
        "kill(-1) reaches only the run",
        py("import os; os.kill(-1, 9)"),
        ok(),
        control=None,
        check=host_lives,
    ),
    *(
        Case(f"I12-{name}", name, call("number", str(nr), *arguments.split()), refused(nr))
        for name, nr, arguments in (
            ("shmget", 29, "0 4096 0x3b6 0 0 0"),
            ("semget", 64, "0 1 0x3b6 0 0 0"),
            ("msgget", 68, "0 0x3b6 0 0 0 0"),
        )
    ),
    Case(
        "I13",
        "shared memory of another program",
        ("cat", SHM),
        deny("fs.open", SHM),
        prepare=shared_memory,
        check=no_shared_memory,
        after_control=no_shared_memory,
    ),
    Case(
        "I14",
        "a message queue",
        py(
            "import ctypes; l = ctypes.CDLL(None, use_errno=True)\n"
            "q = l.syscall(240, b'kit', 0x42, 0o600, 0)\n"
            "print('errno=EPERM' if q < 0 and ctypes.get_errno() == 1 else q)"
        ),
        ok("errno=EPERM", Entry(nr=240)),
        control=None,
    ),
    Case("I16", "a key in a shared keyring", call("add_key"), refused(248)),
]

CASES = turns(TABLE, ("I01", "I03", "I05"))
