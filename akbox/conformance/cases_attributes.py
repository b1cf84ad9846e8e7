"""Files: what Landlock leaves open (mode, owner, times, attributes), metadata, watches, devices (F38-F49, F62)."""

from __future__ import annotations

import os
from pathlib import Path

from akbox.conformance.engine import Result
from akbox.conformance.model import AUTO, Case, Control, Entry, Expect, call, deny, ok, py, require, sh
from akbox.conformance.world import World

OLD = "user.akbox_kit_old"

# (case, attempt, what else it is given): on a read-only file each is refused, on a writable one each works.
CHANGES = [
    ("F38", "chmod", ()),
    ("F38", "fchmod", ()),
    ("F38", "fchmodat", ()),
    ("F38", "fchmodat2", ()),
    ("F39", "chown", ()),
    ("F39", "lchown", ()),
    ("F39", "fchown", ()),
    ("F39", "fchownat", ()),
    ("F40", "utimensat", ()),
    ("F40", "futimens", ()),
    ("F40", "utime", ()),
    ("F40", "utimes", ()),
    ("F40", "futimesat", ()),
    ("F41", "setxattr", ()),
    ("F41", "lsetxattr", ()),
    ("F41", "fsetxattr", ()),
    ("F41", "removexattr", (OLD,)),
    ("F41", "fremovexattr", (OLD,)),
]
# Newer or rarer ways to the same end: refused, by whatever means.
BACK_DOORS = [
    ("F41", "setxattrat", ()),
    ("F41", "removexattrat", (OLD,)),
    ("F69", "setflags", ()),
    ("F69", "fssetxattr", ()),
    ("F69", "file_setattr", ()),
]


def _with_attribute(world: World) -> None:
    os.setxattr(world.W / "ok", OLD, b"1")


REFUSED = [
    Case(f"{case}-{name}", f"{name} of a read-only file", call(name, "{R}/a", *more), deny("fs.metadata", "{R}/a"))
    for case, name, more in CHANGES
]
ALLOWED = [
    Case(
        f"{case}-{name}-W",
        f"{name} of a writable file",
        call(name, "{W}/ok", *more),
        ok(),
        prepare=_with_attribute,
        interposers=AUTO,
    )
    for case, name, more in CHANGES
]
DENIED_INSIDE = [
    Case(
        f"{case}-{name}-S",
        f"{name} of a denied file",
        call(name, "{S}", *more),
        deny(("fs.metadata", "fs.open"), "{S}"),
    )
    for case, name, more in CHANGES
    if not name.startswith(("removexattr", "fremovexattr"))
]
BY_BACK_DOORS = [
    Case(
        f"{case}-{name}",
        f"{name} of a read-only file",
        call(name, "{R}/a", *more),
        Expect(errnos=("EACCES", "EPERM", "ENOSYS", "ENOTTY")),
    )
    for case, name, more in BACK_DOORS
]

QUESTIONS = [
    ("F47", "stat", ()),
    ("F47", "newfstatat", ()),
    ("F48", "statx", ()),
    ("F48", "statfs", ()),
    ("F48", "access", ()),
    ("F48", "faccessat2", ()),
    ("F48", "getxattr", ("user.kit",)),
    ("F48", "listxattr", ()),
]
STRICT: dict[str, object] = {"fs.metadata": "strict"}
HIDDEN = ("ENOENT", "EACCES")


def _mark_attribute(world: World) -> None:
    os.setxattr(world.H, "user.kit", b"1")
    os.setxattr(world.R / "a", "user.kit", b"1")


METADATA = [
    *(
        Case(
            f"{case}-{name}",
            f"{name} of a host file under strict metadata",
            call(name, "{H}", *more),
            deny("fs.stat", "{H}", HIDDEN),
            policy=STRICT,
            prepare=_mark_attribute,
        )
        for case, name, more in QUESTIONS
    ),
    *(
        Case(
            f"{case}-{name}-R",
            f"{name} of a granted file under strict metadata",
            call(name, "{R}/a", *more),
            ok(),
            policy=STRICT,
            prepare=_mark_attribute,
            interposers=AUTO,
        )
        for case, name, more in QUESTIONS
    ),
    Case("F47-ls", "list its directory", ("ls", "{HOME}/.ssh"), Expect(errnos=HIDDEN), Control(stdout="id_test"),
         policy=STRICT),
    Case("F47-ls-l", "and the size", ("ls", "-l", "{H}"), Expect(errnos=HIDDEN), policy=STRICT),
    Case("F48-readlink", "readlink", call("readlink", "{T}/link"), Expect(errnos=HIDDEN), policy=STRICT,
         prepare=lambda world: (world.T / "link").symlink_to("target")),
    Case("F48-getdents", "getdents", py("import os; print(os.listdir('{T}'))"), Expect(errnos=HIDDEN),
         Control(stdout="target"), policy=STRICT),
    Case("F48-handle", "a handle by name", call("handle", "{H}", "name"), Expect(errnos=(*HIDDEN, "EPERM", "ENOSYS")),
         Control("root"), policy=STRICT),
    Case("F48-chdir", "enter its directory", call("chdir", "{HOME}/.ssh"), Expect(errnos=HIDDEN), policy=STRICT),
    Case("F47-work", "a granted tree works as ever", sh("ls -l {R} && find {W} -name ok && test -r {R}/a && cat {R}/a"),
         ok("alpha"), policy=STRICT),
    Case("F49-inotify", "watch its directory", call("inotify", "{HOME}/.ssh"),
         deny(("fs.stat", "fs.open", "fs.metadata"))),
    Case("F49-inotify-W", "watch one's own", call("inotify", "{W}"), ok()),
    Case("F49-fanotify", "fanotify", call("fanotify"), Expect(errnos=("EPERM", "EACCES", "ENOSYS"))),
]  # fmt: skip


def _untouched_full(world: World, result: Result) -> None:
    require(Path("/dev/full").is_char_device(), str(result))


PTMX: dict[str, object] = {"fs.read": ["/dev/ptmx", "/dev/pts/ptmx"], "fs.write": ["/dev/ptmx", "/dev/pts/ptmx"]}
OWN_PTY = """
import os, tty
master, slave = os.openpty()
tty.setraw(slave)
again = os.open(os.ttyname(slave), os.O_RDWR | os.O_NOCTTY)
os.write(slave, b'x'); first = os.read(master, 1)
os.write(again, b'y'); print(first, os.read(master, 1))
"""
OTHER_PTS = """
import errno, os
answers = set()
for name in (f'/dev/pts/{number}' for number in range(4096)):
    try: os.close(os.open(name, os.O_RDWR | os.O_NOCTTY)); answers.add('opened ' + name)
    except FileNotFoundError: pass
    except OSError as error: answers.add(errno.errorcode[error.errno])
print(sorted(answers))
"""

DEVICES = [
    Case("F62-null", "/dev/null", sh("echo x > /dev/null && cat /dev/null"), ok()),
    Case("F62-full", "/dev/full is full", sh("/bin/echo x > /dev/full"), Expect(errnos=("ENOSPC",)),
         Control(exit=None, errnos=("ENOSPC",)), check=_untouched_full),
    Case("F62-urandom", "/dev/urandom", sh("head -c 16 /dev/urandom | wc -c"), ok("16")),
    Case("F62-urandom-write", "is for reading", sh("echo x > /dev/urandom"), deny("fs.open", "/dev/urandom")),
    Case("F62-zero", "/dev/zero", sh("head -c 16 /dev/zero | wc -c"), ok("16")),
    Case("F62-tty-none", "/dev/tty without a terminal", sh("echo x > /dev/tty"), Expect(errnos=("ENXIO",)),
         Control(exit=None, errnos=("ENXIO",))),
    Case("F62-tty", "/dev/tty with one", sh("echo seen > /dev/tty && tty"), ok("/dev/"), control=None, terminal=True),
    Case("F62-pty", "both ends of a pseudo-terminal of its own", py(OWN_PTY), ok("b'x' b'y'"), policy=PTMX,
         beyond="the other end of a pseudo-terminal of the run's own comes with it"),
    Case("F62-pts", "and no other terminal by name", py(OTHER_PTS), ok("['EACCES']"), control=None, policy=PTMX,
         terminal=True),
    Case("F62-other", "another device", sh("cat /dev/ptmx"), Expect(errnos=("EACCES",), entry=Entry("fs.open")),
         control=None, timeout_s=20),
]  # fmt: skip

CASES = [*REFUSED, *ALLOWED, *DENIED_INSIDE, *BY_BACK_DOORS, *METADATA, *DEVICES]
