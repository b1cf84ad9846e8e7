"""What an agent can change while it is judged: names, paths in memory, descriptors. Denied bytes must never come
back."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from enforcer_run import EXECVE, OPENAT, OPENS, call, errno_of, launch, make_policy, run

ROUNDS = 20_000
SECRET = b"HOST SECRET"
AT_FDCWD = 2**64 - 100


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "W").mkdir()
    (tmp_path / "W/ok").write_bytes(b"fine")
    (tmp_path / "H").write_bytes(SECRET)
    return tmp_path


def policy(base: Path) -> str:
    return make_policy(read=(f"{base}/W/**", "/proc/self/**"), write=(f"{base}/W/**",))


def seen_while(disturb: Callable[[], object], action: Callable[[int], bytes | int]) -> dict[bytes | int, int]:
    """What ROUNDS actions returned, and how often, while another process of the run does `disturb` all the time."""
    pid = os.fork()
    if pid == 0:
        while True:
            disturb()
    seen: dict[bytes | int, int] = {}
    try:
        for i in range(ROUNDS):
            result = action(i)
            seen[result] = seen.get(result, 0) + 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return seen


def read_all(address_or_path: int | bytes, flags: int = os.O_RDONLY) -> bytes | int:
    fd = call(OPENAT, AT_FDCWD, address_or_path, flags, 0o600)
    if fd < 0:
        return fd
    try:
        return os.read(fd, 64)
    finally:
        os.close(fd)


def check(results: dict[bytes | int, int], *expected: bytes | int) -> None:
    assert set(results) <= set(expected), results
    assert len(results) > 1, f"the race never happened: {results}"


def test_a_symlink_that_swaps(base: Path) -> None:
    """F24."""
    for name, target in {"to_ok": "ok", "to_h": "../H"}.items():
        (base / "W" / name).symlink_to(target)

    def body() -> object:
        path, names = base / "W/p", [base / "W/a", base / "W/b"]
        names[0].symlink_to("ok")
        names[1].symlink_to(base / "H")
        os.rename(names[0], path)

        return seen_while(lambda: libc_swap(names[1], path), lambda i: read_all(os.fsencode(path)))

    check(run(body, policy(base))[0], b"fine", -errno.EACCES)


def libc_swap(a: Path, b: Path) -> None:
    ctypes.CDLL(None).renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 2)


def test_a_directory_that_swaps_with_a_symlink(base: Path) -> None:
    (base / "W/d").mkdir()
    (base / "W/d/f").write_bytes(b"fine")
    (base / "outside").mkdir()
    (base / "outside/f").write_bytes(SECRET)
    (base / "W/l").symlink_to(base / "outside")

    def body() -> object:
        def action(i: int) -> bytes | int:
            if i % 2:
                return read_all(os.fsencode(base / "W/d/f"))
            return read_all(os.fsencode(base / f"W/d/new{i}"), os.O_CREAT | os.O_RDWR)  # must stay inside as well

        return seen_while(lambda: libc_swap(base / "W/d", base / "W/l"), action)

    check(run(body, policy(base))[0], b"fine", b"", -errno.EACCES)
    assert os.listdir(base / "outside") == ["f"]


def test_a_path_that_changes_in_memory(base: Path) -> None:
    """F25: the string is read once, and what was read is what is opened."""
    good, bad = os.fsencode(base / "W/ok") + b"\0", os.fsencode(base / "W/../H") + b"\0"

    def body() -> object:
        area = mmap.mmap(-1, 4096)
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))

        def flip() -> None:
            area[: len(bad)] = bad
            area[: len(good)] = good

        return seen_while(flip, lambda i: read_all(address))

    check(run(body, policy(base))[0], b"fine", -errno.EACCES, -errno.ENOENT)


def test_a_descriptor_that_changes(base: Path) -> None:
    """/dev/fd/N is believed to be held open for reading only if it is the very object that is opened then."""

    def body() -> object:
        held = os.open(base / "W/ok", os.O_RDONLY)
        secret = os.open(base / "H", os.O_PATH)
        number = 77

        def flip() -> None:
            os.dup2(secret, number)
            os.dup2(held, number)

        flip()
        stop = threading.Event()

        def loop() -> None:
            while not stop.is_set():
                flip()

        thread = threading.Thread(target=loop)  # a thread: only it has the same descriptors
        thread.start()
        seen: dict[bytes | int, int] = {}
        for _ in range(ROUNDS):
            result = read_all(b"/proc/self/fd/%d" % number)
            seen[result] = seen.get(result, 0) + 1
        stop.set()
        thread.join()
        return seen

    check(run(body, policy(base))[0], b"fine", -errno.EACCES)


def test_many_tasks_at_once_each_get_their_own_answer(base: Path) -> None:
    for i in range(8):
        (base / f"W/f{i}").write_bytes(b"%d" % i)

    def body() -> object:
        wrong: list[object] = []

        def work(i: int) -> None:
            for _ in range(500):
                if (result := read_all(os.fsencode(base / f"W/f{i}"))) != b"%d" % i:
                    wrong.append(result)
                if (result := read_all(os.fsencode(base / "H"))) != -errno.EACCES:
                    wrong.append(result)

        pids = []
        for i in range(8):
            pid = os.fork()
            if pid == 0:
                threads = [threading.Thread(target=work, args=((i + k) % 8,)) for k in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                os._exit(1 if wrong else 0)
            pids.append(pid)
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

    codes, events = run(body, policy(base))
    assert codes == [0] * 8
    assert sum(e.target == str(base / "H") for e in events) == 8 * 2 * 500


def test_a_program_that_was_just_written_can_be_run(base: Path) -> None:
    """The enforcer closes its copy of the descriptor in time, although its threads run only when nothing else wants to:
    held open for writing by anybody, a program is busy (ETXTBSY)."""
    program, cpu = Path("/bin/true").read_bytes(), min(os.sched_getaffinity(0))

    def run_what_was_written(path: Path) -> None:
        path.write_bytes(program)
        path.chmod(0o755)
        os.waitpid(os.posix_spawn(path, ["true"], {}), 0)

    def body() -> object:
        os.sched_setaffinity(0, {cpu})
        return [errno_of(lambda i=i: run_what_was_written(base / f"W/program{i}")) for i in range(50)]

    with launch(body, policy_of_programs(base), trapped=(*OPENS, EXECVE)) as child:
        child.starve(cpu)
        child.start()
        assert child.result() == ["ok"] * 50


def test_a_fifo_whose_ends_are_closed_has_no_ends(base: Path) -> None:
    """Nor has it ours: a writer that does not wait is told so (ENXIO) as soon as the reader is gone."""
    os.mkfifo(base / "W/fifo")
    cpu = min(os.sched_getaffinity(0))

    def body() -> object:
        os.sched_setaffinity(0, {cpu})
        seen = set()
        for _ in range(200):
            os.close(os.open(base / "W/fifo", os.O_RDONLY | os.O_NONBLOCK))
            seen.add(errno_of(lambda: os.close(os.open(base / "W/fifo", os.O_WRONLY | os.O_NONBLOCK))))
        return seen

    with launch(body, policy(base)) as child:
        child.starve(cpu)
        child.start()
        assert child.result() == {"ENXIO"}


def policy_of_programs(base: Path) -> str:
    here = f"{base}/W/**"
    return make_policy(read=(here,), write=(here,), exec=("/usr/**", "/lib/**", "/lib64/**", here))
