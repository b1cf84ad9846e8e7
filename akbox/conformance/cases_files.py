"""Files: reading, writing, names and links under the kit's policy (cases.md, F01-F46 and what it lacked)."""

from __future__ import annotations

import os
from pathlib import Path

from akbox.conformance.engine import Result
from akbox.conformance.model import Case, Check, Control, Entry, Expect, call, deny, ok, py, refused, require, sh
from akbox.conformance.world import MARK, World

ROOT_ONLY = Control("root")
NO_LINK = ("EACCES", "EPERM", "EXDEV")
NO_NODES = "device and socket nodes are never made, whatever may be written"
GOT_SECRET = Control(stdout=MARK)


def absent(name: str) -> Check:
    def check(world: World, result: Result) -> None:
        path = world.fill(name)
        require(not os.path.lexists(path), f"{path} exists\n{result}")

    return check


def present(name: str, text: str | None = None) -> Check:
    def check(world: World, result: Result) -> None:
        path = world.fill(name)
        require(os.path.lexists(path), f"{path} does not exist\n{result}")
        if text is not None:
            require(Path(path).read_text() == text, str(result))

    return check


READING = [
    Case("F01", "read a granted file", ("cat", "{R}/a"), ok("alpha\n", Entry("fs.open", "{R}/a", "allow"))),
    Case("F02", "read a host file", ("cat", "{H}"), deny("fs.open", "{H}"), GOT_SECRET),
    Case("F05-denied", "read a file denied inside W", ("cat", "{S}"), deny("fs.open", "{S}"), GOT_SECRET),
    Case("F05-neighbour", "read its neighbour", ("cat", "{W}/ok"), ok("ok\n")),
    Case("F15", "through a new symlink", sh("ln -s {S} {W}/l; cat {W}/l"), deny("fs.open", "{S}"), GOT_SECRET),
    Case("F16", "through an old symlink", ("cat", "{W}/to-secret"), deny("fs.open", "{S}"), GOT_SECRET),
    Case("F17", "through three symlinks", ("cat", "{W}/chain1"), deny("fs.open", "{S}"), GOT_SECRET),
    Case("F18-open", "open(2) itself", call("open", "{S}", "0"), deny("fs.open", "{S}"), GOT_SECRET),
    Case("F18-openat", "openat with garbage", call("openat", "{S}", "0"), deny("fs.open", "{S}"), GOT_SECRET),
    Case("F18-openat2", "openat2", call("openat2", "{S}", "0"), deny("fs.open", "{S}"), GOT_SECRET),
    Case("F18-neighbour", "openat2 of a neighbour", call("openat2", "{W}/ok", "0"), ok("ok\n")),
    Case("F22", "symlink to a host file", sh("ln -s {H} {W}/l; cat {W}/l"), deny("fs.open", "{H}"), GOT_SECRET),
    Case("F27", "/proc/self/root", ("cat", "/proc/self/root{H}"), deny("fs.open", "{H}"), GOT_SECRET),
    Case("F28", "another's root", ("cat", "/proc/{HP}/root{H}"), deny("fs.open"), GOT_SECRET),
    Case("F28-init", "init's root", ("cat", "/proc/1/root{H}"), deny("fs.open"), Control("namespace", stdout=MARK)),
    Case(
        "F30", "/proc/self/cwd", ("cat", "/proc/self/cwd/../home/.ssh/id_test"), deny("fs.open", "{H}"), GOT_SECRET
    ),
    Case(
        "F31",
        "below an O_PATH descriptor of /",
        py("import os; f = os.open('/', os.O_PATH); print(os.read(os.open('{H}'[1:], os.O_RDONLY, dir_fd=f), 99))"),
        deny("fs.open", "{H}"),
        GOT_SECRET,
    ),
    Case(
        "F31-home",
        "below an O_PATH descriptor of a directory that is not granted",
        call("open_below", "{HOME}", ".ssh/id_test"),
        deny("fs.open", "{H}"),
        GOT_SECRET,
    ),
    Case("F32-slashes", "//", ("cat", "/{R}//a"), ok("alpha\n", Entry("fs.open", "{R}/a", "allow"))),
    Case("F32-dot", "/./", ("cat", "{R}/./a"), ok("alpha\n", Entry("fs.open", "{R}/a", "allow"))),
    Case("F32-dotdot", "/../", ("cat", "{R}/../r/a"), ok("alpha\n", Entry("fs.open", "{R}/a", "allow"))),
    Case("F32-denied", "/../ to S", ("cat", "{W}/d/.././/secret"), deny("fs.open", "{S}"), GOT_SECRET),
    Case(
        "F33",
        "open_by_handle_at",
        call("handle", "{H}", "open"),
        refused(304),
        Control("root", stdout=MARK),
    ),
    Case("F63", "from inside the denied directory", sh("cd {HOME}/.ssh && cat id_test"), deny("fs.open"), GOT_SECRET),
    Case(
        "F64",
        "an O_PATH descriptor opened again through /proc/self/fd",
        call("reopen", "{H}", str(os.O_PATH), "/proc/self/fd", "0"),
        deny("fs.open", "{H}"),
        GOT_SECRET,
    ),
    Case(
        "F64-devfd",
        "and through /dev/fd",
        call("reopen", "{S}", str(os.O_PATH), "/dev/fd", "0"),
        deny("fs.open", "{S}"),
        GOT_SECRET,
    ),
    Case(
        "F65",
        "a symlink below a directory deeper than PATH_MAX",
        py(
            "import os\nos.chdir('{W}')\nfor i in range(50):\n os.mkdir('d' * 100); os.chdir('d' * 100)\n"
            "open('fine', 'w').write('deep'); print(open('fine').read())\n"
            "os.symlink('{H}', 'l'); print(open('l').read())"
        ),
        Expect(errnos=("EACCES", "ENAMETOOLONG")),
        GOT_SECRET,
        check=lambda world, result: prune(world),
        after_control=lambda world, result: prune(world),
    ),
    Case("F70", "list a directory that is not granted", ("ls", "{T}"), deny("fs.open", "{T}"),
         Control(stdout="target")),
    Case("F70-deny", "or that is denied inside a granted one", ("ls", "{W}/d"), deny("fs.open", "{W}/d"),
         Control(stdout="secret"), policy={"fs.deny": ["{W}/d/**"]}),
    Case("F70-exact", "a rule on one directory lets it be listed", ("ls", "/"),
         ok("usr", Entry("fs.open", "/", "allow")), policy={"fs.read": ["/"]}),
    Case("F70-below", "and nothing below it", sh("ls / && ls {T}"), deny("fs.open", "{T}"), Control(stdout="target"),
         policy={"fs.read": ["/"]}),
    Case("F70-made", "a granted directory that is new", sh("mkdir {W}/n && echo > {W}/n/x && ls {W}/n"), ok("x")),
    Case("F70-swap", "one that becomes a link",
         sh("mkdir {W}/n && ls {W}/n && rmdir {W}/n && ln -s {T} {W}/n && ls {W}/n/"),
         deny("fs.open", "{T}"), Control(stdout="target")),
    Case(
        "F66",
        "names that are not UTF-8, or hold a newline",
        py("import os\nfor n in (b'a\\nb', b'\\xff\\xfe', b'\"\\\\'):\n"
           " open(b'{W}/' + n, 'wb').close(); os.stat(b'{W}/' + n)"),
        ok(),
    ),
]  # fmt: skip

WRITING = [
    Case("F03", "make a file", sh("echo x > {W}/n"), ok(), check=present("{W}/n", "x\n")),
    Case("F04", "make one in R", sh("echo x > {R}/n"), deny("fs.open", "{R}/n"), check=absent("{R}/n")),
    Case("F13", "truncate", py("import os; os.truncate('{S}', 0)"), deny("fs.truncate", "{S}")),
    Case("F13-open", "O_TRUNC", sh(": > {S}"), deny("fs.open", "{S}")),
    Case("F14", "unlink", call("unlink", "{S}"), deny("fs.unlink", "{S}")),
    Case("F14-at", "unlinkat", call("unlinkat", "{S}", "0"), deny("fs.unlink", "{S}")),
    Case("F14-rm", "rm", ("rm", "-f", "{S}"), deny("fs.unlink", "{S}")),
    Case(
        "F21",
        "make a file that a deny names and that is not there yet",
        sh("echo x > {W}/later"),
        deny("fs.open", "{W}/later"),
        policy={"fs.deny": ["{W}/later", "{W}/**/*.key"]},
        check=absent("{W}/later"),
    ),
    Case(
        "F21-rename",
        "give a file such a name",
        ("mv", "{W}/x", "{W}/new.key"),
        deny("fs.rename"),
        policy={"fs.deny": ["{W}/**/*.key"]},
        check=absent("{W}/new.key"),
    ),
    Case(
        "F21-mkdir",
        "or a directory",
        ("mkdir", "{W}/new.key"),
        deny("fs.mkdir", "{W}/new.key"),
        policy={"fs.deny": ["{W}/**/*.key"]},
        check=absent("{W}/new.key"),
    ),
    Case(
        "F23",
        "write through a symlink to an ungranted place",
        sh("ln -s {T}/out {W}/l; echo x > {W}/l"),
        deny("fs.open", "{T}/out"),
        check=absent("{T}/out"),
    ),
    Case("F34-dd", "dd", ("dd", "if={R}/a", "of={W}/b", "status=none"), ok(), check=present("{W}/b", "alpha\n")),
    Case("F34-dd-to-R", "dd into R", ("dd", "if={W}/ok", "of={R}/b", "status=none"), deny("fs.open", "{R}/b")),
    Case(
        "F34-copy",
        "sendfile, splice and copy_file_range",
        py(
            "import os\nr = lambda: os.open('{R}/a', os.O_RDONLY)\n"
            "w = os.open('{W}/b', os.O_WRONLY | os.O_CREAT, 0o600)\n"
            "n = [os.sendfile(w, r(), 0, 6), os.copy_file_range(r(), w, 6)]\np = os.pipe()\n"
            "n.append(os.splice(r(), p[1], 6)); n.append(os.splice(p[0], w, 6)); print(n)"
        ),
        ok("[6, 6, 6, 6]"),
        check=present("{W}/b", "alpha\n" * 3),
    ),
    Case("F37", "O_RDONLY|O_TRUNC", call("open", "{R}/a", str(os.O_TRUNC)), deny("fs.open", "{R}/a")),
    Case("F37-append", "O_APPEND", call("open", "{R}/a", str(os.O_WRONLY | os.O_APPEND)), deny("fs.open", "{R}/a")),
    Case("F37-creat", "creat", call("creat", "{R}/new"), deny("fs.open", "{R}/new"), check=absent("{R}/new")),
    Case(
        "F37-excl",
        "O_CREAT|O_EXCL",
        call("openat2", "{R}/new", str(os.O_CREAT | os.O_EXCL | os.O_RDWR)),
        Expect(errnos=("EACCES", "EINVAL"), entry=Entry("fs.open", "{R}/new")),
        control=None,
        check=absent("{R}/new"),
    ),
    Case("F37-tmpfile", "O_TMPFILE in R", call("open", "{R}", str(os.O_TMPFILE | os.O_RDWR)), deny("fs.open")),
    Case("F37-tmpfile-W", "O_TMPFILE in W", call("open", "{W}", str(os.O_TMPFILE | os.O_RDWR)), ok()),
    Case(
        "F46",
        "a shared writable mapping",
        py("import mmap, os; mmap.mmap(os.open('{R}/a', os.O_RDWR), 6)[0:1] = b'A'"),
        deny("fs.open", "{R}/a"),
    ),
    Case(
        "F67",
        "a read-only descriptor opened again for writing",
        call("reopen", "{R}/a", "0", "/proc/self/fd", str(os.O_WRONLY)),
        deny("fs.open", "{R}/a"),
    ),
    Case("F68", "a directory in R", call("mkdirat", "{R}/new"), deny("fs.mkdir", "{R}/new")),
    Case("F68-rmdir", "rmdir of one with a denied file", call("unlinkat", "{R}/e", str(0x200)), deny("fs.rmdir"),
         prepare=lambda world: empty_directory(world)),
    Case("F68-symlink", "a symlink in R", call("symlinkat", "a", "{R}/new"), deny("fs.link", "{R}/new")),
]  # fmt: skip

NAMES = [
    Case("F07", "hard link", sh("ln {S} {W}/l && cat {W}/l"), deny("fs.link"), GOT_SECRET, check=absent("{W}/l")),
    Case("F09", "move", ("mv", "{S}", "{W}/z"), deny("fs.rename"), check=absent("{W}/z")),
    Case("F10-rename", "rename", call("rename", "{S}", "{W}/z"), deny("fs.rename")),
    Case("F10-renameat", "renameat", call("renameat", "{S}", "{W}/z"), deny("fs.rename")),
    Case("F10-renameat2", "renameat2", call("renameat2", "{S}", "{W}/z", "1"), deny("fs.rename")),
    Case("F10-exchange", "RENAME_EXCHANGE", call("renameat2", "{W}/x", "{S}", "2"), deny("fs.rename")),
    Case("F11", "rename onto", ("mv", "-f", "{W}/x", "{S}"), deny("fs.rename"), check=present("{W}/x")),
    Case(
        "F19",
        "rename an ancestor",
        sh("mv {W}/d {W}/e; cat {W}/e/secret"),
        Expect(errnos=("EACCES", "EPERM", "EXDEV"), entry=Entry("fs.rename")),
        GOT_SECRET,
        check=absent("{W}/e"),
        beyond="what is denied is the move of a directory that holds something denied",
    ),
    Case("F19-neighbour", "rename a plain directory", sh("mkdir {W}/p && mv {W}/p {W}/q"), ok(),
         check=present("{W}/q")),
    Case(
        "F36",
        "hard link of a read-only file into W",
        ("ln", "{R}/a", "{W}/l"),
        deny("fs.link", errnos=NO_LINK),
        check=absent("{W}/l"),
    ),
    Case("F36-link", "link", call("link", "{R}/a", "{W}/l"), deny("fs.link", errnos=NO_LINK)),
    Case("F36-linkat", "linkat", call("linkat", "{R}/a", "{W}/l"), deny("fs.link", errnos=NO_LINK)),
    Case(
        "F36-fd",
        "a name for a descriptor",
        call("link_fd", "{R}/a", "{W}/l"),
        deny("fs.link", errnos=NO_LINK),
        check=absent("{W}/l"),
    ),
    Case("F36-move", "move a read-only file into W", ("mv", "{R}/a", "{W}/a"), deny("fs.rename"),
         check=absent("{W}/a")),
    Case("F43-char", "a character device", call("mknodat", "{W}/n", "c", "0", "0"),
         deny("fs.open", errnos=("EPERM", "EACCES")), check=absent("{W}/n"),
         beyond=NO_NODES),
    Case("F43-char-mknod", "by mknod", call("mknod", "{W}/n", "c", "0", "0"),
         deny("fs.open", errnos=("EPERM", "EACCES")), check=absent("{W}/n"),
         beyond=NO_NODES),
    Case("F43-block", "a block device", call("mknodat", "{W}/n", "b", "7", "0"),
         deny("fs.open", errnos=("EPERM", "EACCES")), ROOT_ONLY, check=absent("{W}/n"), beyond=NO_NODES),
    Case("F43-socket", "a socket node", call("mknodat", "{W}/n", "s", "0", "0"),
         deny("fs.open", errnos=("EPERM", "EACCES")), check=absent("{W}/n"),
         beyond=NO_NODES),
    Case("F44", "a FIFO", call("mknodat", "{W}/n", "p", "0", "0"), ok(), check=present("{W}/n")),
    Case(
        "F44-open",
        "opening one waits for the other end, and only the opener waits",
        py(
            "import os, threading\nos.mkfifo('{W}/f')\nread = []\n"
            "t = threading.Thread(target=lambda: read.append(open('{W}/f').read()))\nt.start()\n"
            "for i in range(200): open('{W}/ok').close()\n"
            "with open('{W}/f', 'w') as f: f.write('through')\nt.join(); print(read)"
        ),
        ok("['through']"),
    ),
    Case(
        "F44-kill",
        "who waits for the other end for ever can be killed",
        sh("mkfifo {W}/f; timeout -s KILL 0.3 cat {W}/f; test $? -eq 137"),
        ok(),
    ),
    Case(
        "F44-eintr",
        "and interrupted by a signal handler",
        py(
            "import os, signal\nos.mkfifo('{W}/f')\nclass Rang(Exception): pass\ndef ring(*a): raise Rang\n"
            "signal.signal(signal.SIGALRM, ring); signal.setitimer(signal.ITIMER_REAL, 0.2)\n"
            "try: open('{W}/f')\nexcept Rang: print('rang')"
        ),
        ok("rang"),
        interposers=("auto",),
    ),
]  # fmt: skip

EXECUTION = [
    Case("F06", "run a denied program", sh("{S}"), Expect(exit=126, errnos=("EACCES",), entry=Entry("exec", "{S}")),
         Control(stdout="ran"), policy={"fs.exec": ["{W}/**"]}),
    Case("F06-neighbour", "run its neighbour", ("{W}/script",), ok("ran"), policy={"fs.exec": ["{W}/**"]}),
    Case("F06-shell", "read it as a script", ("/bin/sh", "{S}"), deny("fs.open", "{S}"), Control(stdout="ran")),
]  # fmt: skip


def prune(world: World) -> None:
    """The deep tree is renamed level by level: shutil.rmtree cannot enter it at once."""
    deep = world.W / ("d" * 100)
    count = 0
    while deep.exists():
        inner = deep / ("d" * 100)
        if inner.exists():
            inner.rename(world.W / f"up-{count}")
        deep.rename(world.W / f"level-{count}")
        deep = world.W / f"up-{count}"
        count += 1


def empty_directory(world: World) -> None:
    (world.R / "e").mkdir()
    os.chown(world.R / "e", world.uid, world.uid)


CASES = [*READING, *WRITING, *NAMES, *EXECUTION]
