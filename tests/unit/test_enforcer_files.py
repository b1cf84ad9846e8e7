"""Opens under the enforcer: what may be opened, by which spelling, and with which errno the rest is refused."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from enforcer_run import EXECVE, EXECVEAT, OPENAT, OPENAT2, OPENS, Event, call, errno_of, make_policy, read_text, run

from akbox import _native

AT_FDCWD = -100
NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT, CACHED = 1, 2, 4, 8, 16, 32


@dataclass(frozen=True)
class World:
    """R may be read, W written (and read), W/secret is denied, H is nobody's."""

    base: Path

    @property
    def R(self) -> Path:
        return self.base / "R"

    @property
    def W(self) -> Path:
        return self.base / "W"

    @property
    def H(self) -> Path:
        return self.base / "H"

    def run(self, body: Callable[[], object], **more: tuple[str, ...]) -> Any:
        return self.run_events(body, **more)[0]

    def run_events(self, body: Callable[[], object], **more: tuple[str, ...]) -> tuple[Any, list[Event]]:
        read = (f"{self.R}/**", f"{self.W}/**", "/proc/self/**", "/proc/*", "/dev/*", *more.pop("read", ()))
        write = (f"{self.W}/**", "/dev/null", "/dev/full", *more.pop("write", ()))
        policy = make_policy(read=read, write=write, deny=(f"{self.W}/secret",), **more)
        return run(body, policy, trapped=(*OPENS, EXECVE, EXECVEAT))


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.R.mkdir()
    world.W.mkdir()
    (world.R / "a").write_text("readable")
    (world.R / "sub").mkdir()
    (world.R / "sub/b").write_text("below")
    (world.W / "ok").write_text("writable")
    (world.W / "secret").write_text("SECRET")
    world.H.write_text("HOST")
    return world


def openat2(
    path: str | Path, flags: int, resolve: int = 0, mode: int = 0, dirfd: int = AT_FDCWD, size: int = 24
) -> int:
    how = struct.pack("<QQQ", flags, mode, resolve).ljust(size, b"\0")
    return call(OPENAT2, dirfd & (2**64 - 1), os.fsencode(path), how, size)


def name(result: int) -> str:
    return errno.errorcode[-result] if result < 0 else "ok"


# ---- what may be opened ----------------------------------------------------------------------------------------------


def test_reading_and_writing_follow_the_policy(world: World) -> None:
    def body() -> object:
        return {
            "read R": read_text(world.R / "a"),
            "read H": read_text(world.H),
            "read secret": read_text(world.W / "secret"),
            "write new": errno_of(lambda: (world.W / "n").write_text("x")),
            "write R": errno_of(lambda: (world.R / "n").write_text("x")),
            "append R": errno_of(lambda: open(world.R / "a", "a")),
            "read-write R": errno_of(lambda: os.open(world.R / "a", os.O_RDWR)),
            "truncate R": errno_of(lambda: os.open(world.R / "a", os.O_RDONLY | os.O_TRUNC)),
            "create in R": errno_of(lambda: os.open(world.R / "n", os.O_RDONLY | os.O_CREAT)),
            "create that exists": errno_of(lambda: os.open(world.R / "a", os.O_RDONLY | os.O_CREAT)),
            "absent": read_text(world.R / "none"),
            "list R": errno_of(lambda: os.listdir(world.R)),
        }

    assert world.run(body) == {
        "read R": "readable",
        "read H": "EACCES",
        "read secret": "EACCES",
        "write new": "ok",
        "write R": "EACCES",
        "append R": "EACCES",
        "read-write R": "EACCES",
        "truncate R": "EACCES",
        "create in R": "EACCES",
        "create that exists": "ok",
        "absent": "ENOENT",
        "list R": "ok",
    }
    assert (world.W / "n").read_text() == "x"
    assert (world.R / "a").read_text() == "readable"
    assert not (world.R / "n").exists()


def test_every_decision_has_an_event(world: World) -> None:
    _, events = world.run_events(lambda: (read_text(world.R / "a"), read_text(world.H)))
    seen = {e.target: e for e in events}
    allowed, denied = seen[str(world.R / "a")], seen[str(world.H)]
    assert (allowed.op, allowed.decision, allowed.need, allowed.error) == (0x100, 1, 1, 0)
    assert (denied.op, denied.decision, denied.missing, denied.error) == (0x100, 0, 1, errno.EACCES)
    assert denied.tgid == denied.tid > 0
    assert denied.arg & os.O_CLOEXEC


def test_symlinks_are_judged_by_where_they_lead(world: World) -> None:
    for link, target in {
        "l1": "secret",
        "c1": "c2",
        "c2": "c3",
        "c3": world.H,
        "good": "../R/a",
        "dir": "../R/sub",
    }.items():
        (world.W / link).symlink_to(target)
    os.symlink("loop", world.W / "loop")

    def body() -> object:
        return [read_text(world.W / n) for n in ("l1", "c1", "good", "dir/b", "dir/../a", "loop")]

    assert world.run(body) == ["EACCES", "EACCES", "readable", "below", "readable", "ELOOP"]


def test_a_dangling_symlink_creates_only_where_it_leads(world: World) -> None:
    out = world.base / "out"
    for link, target in {"bad": out, "good": "new", "chain": "good2", "good2": "sub/new2", "self": "self"}.items():
        (world.W / link).symlink_to(target)
    (world.W / "sub").mkdir()

    def body() -> object:
        write = [errno_of(lambda n=n: (world.W / n).write_text("x")) for n in ("bad", "good", "chain", "self")]
        flags = os.O_CREAT | os.O_WRONLY
        nofollow = errno_of(lambda: os.open(world.W / "bad", flags | os.O_NOFOLLOW))
        exclusive = errno_of(lambda: os.open(world.W / "bad", flags | os.O_EXCL))
        return write, nofollow, exclusive

    assert world.run(body) == (["EACCES", "ok", "ok", "ELOOP"], "ELOOP", "EEXIST")
    assert not out.exists()
    assert (world.W / "new").read_text() == "x"
    assert (world.W / "sub/new2").read_text() == "x"


def test_other_spellings_are_the_same_file(world: World) -> None:
    spellings = [f"/{world.R}//a", f"{world.R}/./sub/../a", f"{world.W}/../R/a", f"/proc/self/root{world.R}/a"]
    hidden = [
        f"/{world.H}",
        f"{world.R}/../H",
        f"/proc/self/root{world.H}",
        f"/proc/1/root{world.H}",
        f"/proc/thread-self/root{world.H}",
    ]

    def body() -> object:
        os.chdir(world.R)
        relative = [
            read_text("a"),
            read_text("./sub/b"),
            read_text("../H"),
            read_text("/proc/self/cwd/../H"),
            read_text("/proc/self/cwd/a"),
        ]
        return [read_text(p) for p in spellings], [read_text(p) for p in hidden], relative

    assert world.run(body) == (["readable"] * 4, ["EACCES"] * 5, ["readable", "below", "EACCES", "EACCES", "readable"])


def test_a_directory_descriptor_is_no_way_around(world: World) -> None:
    def body() -> object:
        root = os.open("/", os.O_PATH)
        here = os.open(world.R, os.O_PATH | os.O_DIRECTORY)
        file = os.open(world.R / "a", os.O_PATH)
        link = str(world.H).lstrip("/")
        return [
            errno_of(lambda: os.open(link, os.O_RDONLY, dir_fd=root)),
            errno_of(lambda: os.open("a", os.O_RDONLY, dir_fd=here)),
            errno_of(lambda: os.open("../H", os.O_RDONLY, dir_fd=here)),
            errno_of(lambda: os.open("a", os.O_RDONLY, dir_fd=file)),
            errno_of(lambda: os.open("a", os.O_RDONLY, dir_fd=999)),
            read_text(f"/proc/self/fd/{file}"),
            read_text(f"/dev/fd/{file}"),
            read_text(f"/proc/self/fd/{os.open(world.H, os.O_PATH)}"),
        ]

    assert world.run(body) == ["EACCES", "ok", "EACCES", "ENOTDIR", "EBADF", "readable", "readable", "EACCES"]


def test_a_name_that_ends_in_deleted_is_judged_as_it_is(world: World) -> None:
    (world.W / "secret (deleted)").write_text("harmless")
    (world.base / "R (deleted)").mkdir()
    (world.base / "R (deleted)" / "x").write_text("no")

    def body() -> object:
        return read_text(world.W / "secret (deleted)"), read_text(world.base / "R (deleted)" / "x")

    assert world.run(body) == ("harmless", "EACCES")


def test_a_removed_link_to_a_denied_file_stays_denied(world: World) -> None:
    """F07 from the other side: the object's last name is the denied one, and " (deleted)" is not part of it."""
    os.link(world.W / "secret", world.W / "alias")

    def body() -> object:
        fd = os.open(world.W / "secret", os.O_PATH)
        os.unlink(world.W / "secret")
        return read_text(f"/proc/self/fd/{fd}")

    assert world.run(body) == "EACCES"


def test_under_strict_metadata_hidden_names_do_not_exist(world: World) -> None:
    (world.base / "hidden").mkdir()
    (world.base / "hidden/file").write_text("x")
    (world.W / "link").symlink_to(world.base / "hidden/file/x")

    def body() -> object:
        hidden = [world.H, world.base / "hidden/file", world.base / "hidden/none", f"{world.H}/x", world.W / "link"]
        return [
            [read_text(p) for p in hidden],
            [errno_of(lambda p=p: os.open(p, os.O_CREAT | os.O_WRONLY)) for p in hidden],
            [errno_of(lambda p=p: os.open(p, os.O_PATH)) for p in hidden],
            [errno_of(lambda p=p: os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY)) for p in hidden[:4]],
            [read_text(world.R / "a"), read_text(world.R / "a/x"), read_text(world.R / "none")],
        ]

    policy = make_policy(read=(f"{world.R}/**",), write=(f"{world.W}/**",))
    seen, _ = run(body, policy, flags=_native.FLAG_STRICT_METADATA)
    assert seen[:4] == [["ENOENT"] * 5, ["ENOENT"] * 5, ["ENOENT"] * 5, ["ENOENT"] * 4]
    assert seen[4] == ["readable", "ENOTDIR", "ENOENT"]


# ---- errors are the kernel's -----------------------------------------------------------------------------------------


def test_errors_are_those_of_a_bare_run(world: World) -> None:
    (world.W / "file").write_text("")
    (world.W / "d").mkdir()
    (world.W / "link").symlink_to("file")
    os.mknod(world.W / "sock", stat.S_IFSOCK | 0o600)
    long_name, long_path = "n" * 256, "/x" * 2048

    def body() -> object:
        w, flags = str(world.W), os.O_RDONLY
        tries: list[tuple[object, int]] = [
            (f"{w}/file/x", flags),
            (f"{w}/file/", flags),
            (f"{w}/d/", flags),
            (f"{w}/none/x", flags),
            ("", flags),
            (f"{w}/{long_name}", flags),
            (long_path, flags),
            (f"{w}/d", os.O_WRONLY),
            (f"{w}/d", os.O_CREAT),
            (f"{w}/none/", os.O_CREAT | os.O_WRONLY),
            (f"{w}/d/.", os.O_CREAT),
            (f"{w}/..", os.O_CREAT | os.O_WRONLY),
            (f"{w}/file", os.O_DIRECTORY),
            (f"{w}/link", os.O_NOFOLLOW),
            (f"{w}/link", os.O_NOFOLLOW | os.O_DIRECTORY),
            (f"{w}/file", os.O_CREAT | os.O_EXCL),
            (f"{w}/sock", os.O_RDWR),
            (f"{w}/file", os.O_CREAT | os.O_DIRECTORY),
            (f"{w}/none", os.O_CREAT | os.O_DIRECTORY),
            (f"{w}/d", os.O_TMPFILE),
            (f"{w}/file", os.O_TMPFILE | os.O_RDWR),
            (f"{w}/file", os.O_PATH | os.O_CREAT),
            (f"{w}/link/", flags),
            (f"{w}/file", 3),
        ]
        return [name(call(OPENAT, AT_FDCWD & (2**64 - 1), os.fsencode(p), f, 0o600)) for p, f in tries]  # type: ignore[arg-type]

    assert world.run(body) == body()


def test_bad_pointers_fault(world: World) -> None:
    def body() -> object:
        return [name(call(OPENAT, AT_FDCWD & (2**64 - 1), p, 0)) for p in (0, 8, 2**47 - 1, 2**63)]

    assert world.run(body) == ["EFAULT"] * 4


def test_a_path_at_the_end_of_a_page_is_read(world: World) -> None:
    import ctypes
    import mmap

    def body() -> object:
        area = mmap.mmap(-1, 3 * 4096)
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        libc = ctypes.CDLL(None)
        libc.mprotect(ctypes.c_void_p(address + 8192), 4096, 0)
        path = os.fsencode(world.R / "a") + b"\0"
        results = []
        for end in (8192, 4096 + len(path) // 2):  # up against the unreadable page; across a page border
            area[end - len(path) : end] = path
            results.append(name(call(OPENAT, AT_FDCWD & (2**64 - 1), address + end - len(path), 0)))
        area[8192 - 4 : 8192] = b"/tmp"  # no NUL before the unreadable page
        return [*results, name(call(OPENAT, AT_FDCWD & (2**64 - 1), address + 8192 - 4, 0))]

    assert world.run(body) == ["ok", "ok", "EFAULT"]


def test_garbage_in_the_upper_half_of_int_arguments_changes_nothing(world: World) -> None:
    def body() -> object:
        junk = 0x5EED << 32
        fd = call(OPENAT, (AT_FDCWD & 0xFFFFFFFF) | junk, os.fsencode(world.R / "a"), os.O_RDONLY | junk, junk)
        bad = call(OPENAT, (AT_FDCWD & 0xFFFFFFFF) | junk, os.fsencode(world.H), os.O_RDONLY | junk, junk)
        return name(fd), name(bad)

    assert world.run(body) == ("ok", "EACCES")


# ---- openat2 ---------------------------------------------------------------------------------------------------------


def test_openat2_is_judged_and_its_flags_are_kept(world: World) -> None:
    (world.R / "abs").symlink_to(world.R / "a")
    (world.R / "up").symlink_to("../R/a")
    (world.R / "magic").symlink_to("/proc/self/exe")

    def body() -> object:
        here = os.open(world.R, os.O_PATH)
        tries = [
            openat2(world.R / "a", 0),
            openat2(world.H, 0),
            openat2(world.R / "abs", 0, NO_SYMLINKS),
            openat2("abs", 0, BENEATH, dirfd=here),
            openat2("up", 0, BENEATH, dirfd=here),
            openat2("a", 0, BENEATH, dirfd=here),
            openat2("/a", 0, BENEATH, dirfd=here),
            openat2("/a", 0, IN_ROOT, dirfd=here),
            openat2("../../a", 0, IN_ROOT, dirfd=here),
            openat2("magic", 0, NO_MAGICLINKS, dirfd=here),
            openat2("magic", 0, dirfd=here),
            openat2("/proc/self/comm", 0, NO_XDEV),
            openat2(world.R / "a", 0, 64),
            openat2(world.R / "a", 1 << 40),
            openat2(world.R / "a", 0, mode=0o600),
            openat2(world.R / "a", 0, size=16),
            openat2(world.R / "a", 0, size=4097),
            openat2(world.R / "a", 0, size=64),
            openat2(world.R / "a", 0, BENEATH | IN_ROOT),
            openat2(world.R / "a", os.O_CREAT, mode=0o10000),
        ]
        return [name(fd) for fd in tries]

    inside, outside = world.run(body), body()
    assert inside[1] == "EACCES"
    assert outside[1] == "ok"
    assert inside[2:] == outside[2:]
    assert inside[0] == "ok"


def test_openat2_refuses_what_it_does_not_know_in_a_longer_struct(world: World) -> None:
    def body() -> object:
        how = struct.pack("<QQQ", 0, 0, 0) + b"\0" * 8 + b"\1" + b"\0" * 7
        return name(call(OPENAT2, AT_FDCWD & (2**64 - 1), os.fsencode(world.R / "a"), how, len(how)))

    assert world.run(body) == body() == "E2BIG"


# ---- creating --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000, 0o027])
def test_new_files_have_the_agents_umask(world: World, mask: int) -> None:
    def body() -> None:
        os.umask(mask)
        os.close(os.open(world.W / "new", os.O_CREAT | os.O_WRONLY, 0o4777))

    before = os.umask(0o077)
    try:
        world.run(body)
    finally:
        assert os.umask(before) == 0o077  # ours was not touched
    assert stat.S_IMODE((world.W / "new").stat().st_mode) == 0o4777 & ~mask


def test_unnamed_files(world: World) -> None:
    def body() -> object:
        os.umask(0o027)
        fd = os.open(world.W, os.O_TMPFILE | os.O_RDWR, 0o666)
        os.write(fd, b"x")
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        return (
            stat.S_IMODE(os.fstat(fd).st_mode),
            os.read(again, 9),
            errno_of(lambda: os.open(world.R, os.O_TMPFILE | os.O_RDWR)),
            errno_of(lambda: os.open(f"/proc/self/fd/{again}", os.O_RDWR)),
        )

    assert world.run(body) == (0o640, b"x", "EACCES", "EACCES")


def test_a_new_descriptor_has_the_flags_it_was_asked_for(world: World) -> None:
    import fcntl

    def body() -> object:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_DSYNC
        found = []
        for path in (world.W / "ok", world.W / "new"):
            fd = call(OPENAT, AT_FDCWD & (2**64 - 1), os.fsencode(path), flags, 0o600)
            found.append((fcntl.fcntl(fd, fcntl.F_GETFL) & ~0o100000, fcntl.fcntl(fd, fcntl.F_GETFD)))
        fd = call(OPENAT, AT_FDCWD & (2**64 - 1), os.fsencode(world.R / "a"), os.O_CLOEXEC)
        return found, fcntl.fcntl(fd, fcntl.F_GETFD)

    expected = (os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_DSYNC, 0)
    assert world.run(body) == ([expected, expected], 1)


def test_the_agents_own_limit_is_the_agents_error(world: World) -> None:
    import resource

    def body() -> object:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))  # above what pytest itself holds
        kept: list[int] = []
        while (result := call(OPENAT, AT_FDCWD & (2**64 - 1), os.fsencode(world.R / "a"), 0)) >= 0:
            kept.append(result)
        return name(result), max(kept)

    assert world.run(body) == ("EMFILE", 199)


# ---- its own /proc and descriptors -----------------------------------------------------------------------------------


def test_proc_self_is_the_agents(world: World) -> None:
    def body() -> object:
        status = read_text("/proc/self/status")
        thread = read_text("/proc/thread-self/status")
        other = [
            read_text(p) for p in (f"/proc/{os.getppid()}/status", f"/proc/{os.getppid()}/environ", "/proc/1/cmdline")
        ]
        by_number = read_text(f"/proc/{os.getpid()}/comm")
        child = os.fork()
        if child == 0:
            os._exit(0 if read_text(f"/proc/{os.getppid()}/comm") == by_number else 1)
        children = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return (
            f"Pid:\t{os.getpid()}\n" in status,
            f"Pid:\t{os.getpid()}\n" in thread,
            other,
            by_number.endswith("\n"),
            children,
        )

    assert world.run(body) == (True, True, ["EACCES"] * 3, True, 0)


def test_own_memory_cannot_be_written_through_proc(world: World) -> None:
    def body() -> object:
        return errno_of(lambda: os.open("/proc/self/mem", os.O_RDWR)), errno_of(
            lambda: os.open(f"/proc/self/task/{os.getpid()}/mem", os.O_WRONLY)
        )

    assert world.run(body, write=("/proc/self/**",)) == ("EACCES", "EACCES")


def test_standard_streams_can_be_opened_by_name(world: World) -> None:
    """Held open already, so nothing is gained: no rule is needed, but only for the access that is held."""
    log = world.base / "log"
    log.write_text("")
    fd = os.open(log, os.O_WRONLY)
    os.set_inheritable(fd, True)

    def body() -> object:
        r, w = os.pipe()
        return [
            errno_of(lambda p=p, f=f: os.open(p, f))
            for p, f in [
                (f"/dev/fd/{fd}", os.O_WRONLY),
                (f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND),
                (f"/dev/fd/{fd}", os.O_RDONLY),
                (f"/dev/fd/{fd}", os.O_RDWR),
                (f"/dev/fd/{w}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
                (f"/dev/fd/{r}", os.O_RDONLY),
                (f"/dev/fd/{r}", os.O_RDWR),
                ("/dev/fd/99", os.O_RDONLY),
            ]
        ]

    try:
        assert world.run(body) == ["ok", "ok", "EACCES", "EACCES", "ok", "ok", "EACCES", "ENOENT"]
    finally:
        os.close(fd)
    # The same without an inherited descriptor needs a rule:
    assert world.run(lambda: errno_of(lambda: os.open(log, os.O_WRONLY))) == "EACCES"


def test_devices(world: World) -> None:
    def body() -> object:
        os.setsid()
        return [
            errno_of(lambda: os.open("/dev/null", os.O_RDWR)),
            errno_of(lambda: os.open("/dev/full", os.O_WRONLY)),
            errno_of(lambda: os.open("/dev/urandom", os.O_RDONLY)),
            errno_of(lambda: os.open("/dev/urandom", os.O_WRONLY)),
            errno_of(lambda: os.open("/dev/tty", os.O_RDONLY)),
        ]

    assert world.run(body) == ["ok", "ok", "ok", "EACCES", "ENXIO"]


# ---- executing -------------------------------------------------------------------------------------------------------


def test_exec_is_judged_with_the_interpreter(world: World) -> None:
    scripts = {
        "good": "#!/usr/bin/env true\n",
        "bad": f"#!{world.W}/interp\n",
        "interp": "#!/usr/bin/true\n",
        "plain": "data",
    }
    for file, text in scripts.items():
        (world.W / file).write_text(text)
        (world.W / file).chmod(0o755)
    (world.W / "noexec").write_text("#!/usr/bin/true\n")
    (world.W / "self").write_text(f"#!{world.W}/self\n")
    (world.W / "self").chmod(0o755)

    def try_exec(path: str) -> str:
        pid = os.fork()
        if pid == 0:
            try:
                os.execv(path, [path])
            except OSError as error:
                os._exit(error.errno or 255)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return errno.errorcode[status] if status else "ok"

    def body() -> object:
        names = ("good", "bad", "noexec", "none", "plain", "self")
        return [try_exec("/usr/bin/true"), try_exec("/usr/bin/id"), *(try_exec(f"{world.W}/{n}") for n in names)]

    executables = (
        "/usr/bin/true",
        "/usr/bin/env",
        str(world.W / "good"),
        str(world.W / "bad"),
        str(world.W / "plain"),
        str(world.W / "self"),
        str(world.W / "noexec"),
    )
    seen, events = world.run_events(body, exec=executables)
    assert seen == ["ok", "EACCES", "ok", "EACCES", "EACCES", "ENOENT", "ENOEXEC", "ELOOP"]
    refused = [e.target for e in events if e.op == 0x300 and e.decision == 0]
    assert "/usr/bin/id" in refused
    assert str(world.W / "interp") in refused
    assert str(world.W / "none") not in refused


def test_memfds_and_dynamic_linkers_are_not_run(world: World) -> None:
    linker = os.path.realpath(
        "/lib64/ld-linux-x86-64.so.2"
        if sys.maxsize and os.uname().machine == "x86_64"
        else "/lib/ld-linux-aarch64.so.1"
    )

    def body() -> object:
        memfd = os.memfd_create("x")
        os.write(memfd, Path("/usr/bin/true").read_bytes())
        argv = (0).to_bytes(8, "little")
        return name(call(EXECVEAT, memfd, b"", argv, argv, 0x1000)), errno_of(
            lambda: os.execv(linker, [linker, "/usr/bin/true"])
        )

    assert world.run(body, exec=("/usr/**", "/lib/**")) == ("EACCES", "EACCES")
