"""Calls that wait (FIFOs, the authority door), refusals, and how a run ends with calls under way."""

from __future__ import annotations

import errno
import os
import pty
import signal
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from enforcer_run import DOOR, OPENAT, OPENS, PRCTL, Run, call, errno_of, launch, make_policy, read_text, run

GETPRIORITY, IOPRIO = (141, 31) if os.uname().machine == "aarch64" else (140, 252)
TIMEOUT_S = 20


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    os.mkfifo(path)
    return path


def policy(fifo: Path) -> str:
    return make_policy(read=(f"{fifo.parent}/**",), write=(f"{fifo.parent}/**",))


def until(condition: Callable[[], bool]) -> None:
    """Waits for what another process is about to do."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def waiting(child: Run) -> bool:
    return child.enforcer.counters()["blocked"] > 0


def thread_names() -> list[str]:
    names = []
    for task in os.listdir("/proc/self/task"):
        try:
            names.append(Path(f"/proc/self/task/{task}/comm").read_text().strip())
        except FileNotFoundError:
            continue
    return [n for n in names if n.startswith("ak-")]


# ---- FIFOs -----------------------------------------------------------------------------------------------------------


def test_both_ends_of_a_fifo_meet(fifo: Path) -> None:
    def body() -> object:
        pid = os.fork()
        if pid == 0:
            with open(fifo, "wb") as end:
                end.write(b"through")
            os._exit(0)
        with open(fifo, "rb") as end:
            data = end.read()
        return data, os.waitpid(pid, 0)[1], errno_of(lambda: os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))

    assert run(body, policy(fifo))[0] == (b"through", 0, "ENXIO")


def test_a_silent_writer_is_a_writer(fifo: Path) -> None:
    """The reader's open returns while the writer holds its end open and has said nothing."""

    def body() -> object:
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            end = os.open(fifo, os.O_WRONLY)
            os.read(r, 1)  # until the reader is through
            os._exit(end < 0)
        end = os.open(fifo, os.O_RDONLY)
        flags = os.get_blocking(end)
        os.write(w, b"x")
        return flags, os.waitpid(pid, 0)[1], os.read(end, 1)

    assert run(body, policy(fifo))[0] == (True, 0, b"")


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
def test_a_waiting_fifo_stops_nobody_else(fifo: Path, flags: int) -> None:
    other = fifo.parent / "other"
    other.write_text("x")

    def body() -> object:
        waiter = threading.Thread(target=lambda: os.close(os.open(fifo, flags)))
        waiter.start()
        texts = {read_text(other) for _ in range(200)}
        os.close(os.open(fifo, os.O_RDWR))  # both ends at once never waits, and frees the waiter
        waiter.join(0.05)
        while waiter.is_alive():
            end = os.open(fifo, os.O_RDWR)
            waiter.join(0.05)
            os.close(end)
        return texts

    assert run(body, policy(fifo))[0] == {"x"}


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
def test_a_killed_agent_leaves_no_waiting_thread(fifo: Path, flags: int) -> None:
    with launch(lambda: os.open(fifo, flags), policy(fifo)) as child:
        child.start()
        until(lambda: waiting(child))
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        until(lambda: "ak-wait" not in thread_names())
    assert thread_names() == []


def test_stopping_ends_waiting_calls(fifo: Path) -> None:
    with launch(lambda: os.open(fifo, os.O_RDONLY), policy(fifo)) as child:
        child.start()
        until(lambda: waiting(child))
        child.enforcer.stop()
        until(lambda: thread_names() == [])  # the call has ended; its thread is on its way out


def test_no_more_than_256_calls_wait(fifo: Path) -> None:
    def body() -> object:
        results: list[int] = []
        threads = [
            threading.Thread(target=lambda: results.append(call(OPENAT, 2**64 - 100, os.fsencode(fifo), os.O_RDONLY)))
            for _ in range(260)
        ]
        for thread in threads:
            thread.daemon = True
            thread.start()
        until(lambda: len(results) == 4)
        return [errno.errorcode[-r] for r in results]

    assert run(body, policy(fifo), ring_bytes=1 << 22)[0] == ["EAGAIN"] * 4


@pytest.mark.parametrize("restart", [True, False])
def test_a_signal_interrupts_a_waiting_open(fifo: Path, restart: bool) -> None:
    """EINTR, or with SA_RESTART the handler runs and the open goes on, as without a sandbox."""

    def body() -> object:
        caught: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, frame: caught.append(number))
        signal.siginterrupt(signal.SIGUSR1, not restart)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            until(lambda: "S (sleeping)" in status(parent) or "D (disk" in status(parent))
            os.kill(parent, signal.SIGUSR1)
            until(lambda: "ShdPnd:\t0000000000000000" in status(parent))
            os.close(os.open(fifo, os.O_WRONLY if restart else os.O_RDWR))
            os._exit(0)
        result = call(OPENAT, 2**64 - 100, os.fsencode(fifo), os.O_RDONLY)
        os.waitpid(pid, 0)
        return result >= 0 or errno.errorcode[-result], len(caught)

    rules = make_policy(read=(f"{fifo.parent}/**", "/proc/self/**"), write=(f"{fifo.parent}/**",))
    assert run(body, rules)[0] == (True if restart else "EINTR", 1)


def status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


# ---- terminals -------------------------------------------------------------------------------------------------------


def test_dev_tty_is_the_agents_terminal(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    name = os.ttyname(slave)

    def body() -> object:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        tty = os.open("/dev/tty", os.O_RDWR)
        same = os.fstat(tty).st_rdev == os.fstat(slave).st_rdev
        os.write(tty, b"hello")
        return (
            same,
            os.get_blocking(tty),
            errno_of(lambda: os.open(name, os.O_RDWR)),
            errno_of(lambda: os.open("/dev/ptmx", os.O_RDWR)),
        )

    try:
        result = run(body, make_policy(read=("/dev/tty",), write=("/dev/tty",)))[0]
        # The slave by its own name: not granted, and not reached through a descriptor of the agent.
        assert result == (True, True, "EACCES", "EACCES")
        assert os.read(master, 5) == b"hello"
    finally:
        os.close(master)
        os.close(slave)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_refused_and_unknown_calls_are_recorded(tmp_path: Path) -> None:
    def body() -> object:
        return (
            errno.errorcode[-call(GETPRIORITY, 0, 0)],
            errno.errorcode[-call(IOPRIO, 1, 0)],
            errno.errorcode[-call(600)],
        )

    refusals = struct.pack("<II", GETPRIORITY, errno.EPERM)
    value, events = run(body, make_policy(), trapped=(GETPRIORITY, IOPRIO, 600), refusals=refusals)
    assert value == ("EPERM", "ENOSYS", "ENOSYS")
    assert [(e.op, e.decision, e.error, e.target) for e in events] == [
        (0x3FF, 0, errno.EPERM, f"syscall:{GETPRIORITY}"),
        (0x3FF, 0, errno.ENOSYS, f"syscall:{IOPRIO}"),
        (0x3FF, 0, errno.ENOSYS, "syscall:600"),
    ]


def test_after_stop_trapped_calls_fail(tmp_path: Path) -> None:
    r, w = os.pipe()
    os.set_inheritable(r, True)

    def body() -> object:
        os.read(r, 1)
        return errno_of(lambda: os.open("/etc/hostname", os.O_RDONLY))

    with launch(body, make_policy()) as child:
        child.start()
        child.enforcer.stop()
        os.write(w, b"x")
        assert child.result() == "ENOSYS"
        with pytest.raises(EOFError):
            child.enforcer.next_upcall(0)
    os.close(r)
    os.close(w)


def test_a_shut_ring_denies(tmp_path: Path) -> None:
    with launch(lambda: errno_of(lambda: os.open("/etc/hostname", os.O_RDONLY)), make_policy()) as child:
        child.ring.shut()
        child.start()
        assert child.result() == "EPERM"


# ---- the authority door ----------------------------------------------------------------------------------------------


def door(nr: int, request: bytes, reply: object, cap: int) -> int:
    return call(PRCTL, DOOR | nr, request, len(request), reply, cap)  # type: ignore[arg-type]


def answer(
    child: Run, reply: Callable[[bytes], tuple[int, bytes]], count: int
) -> list[tuple[int, int, int, bytes, int, int]]:
    seen = []
    while len(seen) < count:
        upcall = child.enforcer.next_upcall(TIMEOUT_S * 1000)
        assert upcall is not None
        cookie, tid, tgid, nr, request, cap, flags = upcall
        seen.append((tid, tgid, nr, request, cap, flags))
        value, body = reply(request)
        assert child.enforcer.reply(cookie, value, body)
    return seen


def test_a_request_goes_to_python_and_its_reply_comes_back() -> None:
    import ctypes

    def body() -> object:
        out = ctypes.create_string_buffer(b"?" * 16, 16)
        first = door(1024, b'{"ptr":1}', out, 16)
        text = out.raw
        short = ctypes.create_string_buffer(b"?" * 4, 4)
        second = door(1025 | 0x8000, b"", short, 4)
        return (
            first,
            text,
            second,
            short.raw,
            door(1024, b"x", 8, 4),
            call(PRCTL, DOOR | 1024, 8, 4, out, 16),
            call(PRCTL, DOOR | 1024, b"", 2**21, out, 16),
        )

    with launch(body, make_policy(), door=True) as child:
        child.start()
        seen = answer(child, lambda request: (len(request), b"reply!"), 3)
        value = child.result()
        pid = child.pid
    assert seen == [(pid, pid, 1024, b'{"ptr":1}', 16, 0), (pid, pid, 1025, b"", 4, 1), (pid, pid, 1024, b"x", 4, 0)]
    assert value == (9, b"reply!\0" + b"?" * 9, 0, b"repl", -errno.EFAULT, -errno.EFAULT, -errno.EINVAL)


def test_other_prctl_options_are_not_the_door() -> None:
    with launch(lambda: call(PRCTL, 3, 0, 0, 0, 0), make_policy(), door=True) as child:
        child.start()
        assert child.result() == 1  # PR_GET_DUMPABLE


def test_an_unanswered_request_ends_with_the_run() -> None:
    import ctypes

    with launch(lambda: door(1024, b"{}", ctypes.create_string_buffer(8), 8), make_policy(), door=True) as child:
        child.start()
        upcall = child.enforcer.next_upcall(TIMEOUT_S * 1000)
        assert upcall is not None
        assert child.enforcer.next_upcall(1) is None
        child.enforcer.stop()
        assert child.enforcer.reply(upcall[0], 0, b"late") is False
        assert child.result() == -errno.ENOSYS


def test_a_reply_to_a_killed_agent_says_so() -> None:
    import ctypes

    with launch(lambda: door(1024, b"{}", ctypes.create_string_buffer(8), 8), make_policy(), door=True) as child:
        child.start()
        upcall = child.enforcer.next_upcall(TIMEOUT_S * 1000)
        assert upcall is not None
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert child.enforcer.reply(upcall[0], 0, b"late") is False


def test_an_enforcer_holds_its_ring_open() -> None:
    with launch(lambda: None, make_policy(), trapped=OPENS) as child, pytest.raises(RuntimeError, match="not stopped"):
        child.ring.close()
