"""A harness for the enforcer's tests: a forked child under a real seccomp filter, served by a real Enforcer.

The child holds no capabilities, as an agent does, so that the notify threads, which give theirs up, may read its
memory. There is no Landlock and no tracer here: what these tests see refused was refused by the enforcer alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pickle
import platform
import struct
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akbox import _native
from akbox.policy.compile import Context, compile_policy
from akbox.policy.load import parse

LIBC = ctypes.CDLL(None, use_errno=True)
ARM = platform.machine() == "aarch64"
ARCH = 0xC00000B7 if ARM else 0xC000003E
SECCOMP, CAPSET, PIDFD_GETFD = (277, 91, 438) if ARM else (317, 126, 438)
OPENAT, OPENAT2, EXECVE, EXECVEAT, PRCTL = (56, 437, 221, 281, 167) if ARM else (257, 437, 59, 322, 157)
OPENS = (OPENAT, OPENAT2) if ARM else (2, 85, OPENAT, OPENAT2)
DOOR = 0x414B0000
NEW_LISTENER, WAIT_KILLABLE_RECV = 8, 32
RING_BYTES = 1 << 20
EVENT = struct.Struct("<IHBBQiiiiIIQHH12x")


@dataclass(frozen=True)
class Event:
    """One record of native/ring.h."""

    op: int
    decision: int
    need: int
    tgid: int
    tid: int
    nr: int
    error: int
    rule: int
    missing: int
    arg: int
    target: str
    target2: str


def parse_events(data: bytes) -> Iterator[Event]:
    """The events of what Ring.read() returned."""
    at = 0
    while at < len(data):
        size, op, decision, need, _, tgid, tid, nr, error, rule, missing, arg, n, n2 = EVENT.unpack_from(data, at)
        texts = data[at + EVENT.size : at + EVENT.size + n + n2]
        yield Event(
            op, decision, need, tgid, tid, nr, error, rule, missing, arg, os.fsdecode(texts[:n]), os.fsdecode(texts[n:])
        )
        at += size


class ChildFailed(Exception):
    """The child raised; the text is its traceback."""


def call(nr: int, *args: int | bytes | ctypes.Array[Any]) -> int:
    """A raw system call: its result, or -errno."""
    words = [ctypes.c_void_p(a) if isinstance(a, int) else a for a in args]
    LIBC.syscall.restype = ctypes.c_long
    result = LIBC.syscall(ctypes.c_long(nr), *words)
    return int(result) if result >= 0 else -ctypes.get_errno()


def errno_of(action: Callable[[], object]) -> str:
    """The name of the errno an action fails with, "ok" when it does not."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def read_text(path: str | Path) -> str:
    """The file's text or, when it cannot be opened or read, the name of the errno."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _filter(trapped: tuple[int, ...], door: bool) -> bytes:
    """USER_NOTIF for the numbers in `trapped` and, with `door`, for prctl options 0x414bXXXX; the rest is allowed."""
    code: list[tuple[int, int, int, int]] = [(0x20, 0, 0, 4), (0x15, 1, 0, ARCH), (0x06, 0, 0, 0), (0x20, 0, 0, 0)]
    for nr in trapped:
        code += [(0x15, 0, 1, nr), (0x06, 0, 0, 0x7FC00000)]
    if door:
        code += [
            (0x15, 0, 4, PRCTL),
            (0x20, 0, 0, 16),
            (0x54, 0, 0, 0xFFFF0000),
            (0x15, 0, 1, DOOR),
            (0x06, 0, 0, 0x7FC00000),
        ]
    code += [(0x06, 0, 0, 0x7FFF0000)]
    return b"".join(struct.pack("<HBBI", *i) for i in code)


def _confine(trapped: tuple[int, ...], door: bool) -> int:
    """In the child: no capabilities, no_new_privs, the filter. Returns the listener."""
    header = struct.pack("<Ii", 0x20080522, 0)
    if call(CAPSET, header, bytes(24)) < 0 or LIBC.prctl(38, 1, 0, 0, 0) != 0 or LIBC.prctl(4, 1, 0, 0, 0) != 0:
        raise OSError("capset or prctl")
    program = _filter(trapped, door)
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("<H6xQ", len(program) // 8, ctypes.addressof(buffer))
    listener = call(SECCOMP, 1, NEW_LISTENER | WAIT_KILLABLE_RECV, fprog)
    if listener < 0:
        raise OSError(-listener, "seccomp")
    return listener


class Run:
    """A child that has its filter and waits to be let go; use launch()."""

    def __init__(self, enforcer: _native.Enforcer, ring: _native.Ring, pid: int, go: int, result: int) -> None:
        self.enforcer, self.ring, self.pid = enforcer, ring, pid
        self._go, self._result = go, result
        self._status: int | None = None

    def start(self) -> None:
        """Lets the child run its body."""
        os.write(self._go, b"g")

    def starve(self, cpu: int) -> None:
        """The enforcer's threads run on this CPU only, and only when nothing else wants to: before start()."""
        threads = [int(t.name) for t in Path("/proc/self/task").iterdir() if (t / "comm").read_text() == "ak-notify\n"]
        assert threads
        for tid in threads:
            os.sched_setaffinity(tid, {cpu})
            os.sched_setscheduler(tid, os.SCHED_IDLE, os.sched_param(0))

    def result(self) -> Any:
        """What the body returned. Raises ChildFailed when it raised or the child died."""
        with open(self._result, "rb", closefd=False) as pipe:
            data = pipe.read()
        self.wait()
        if not data:
            raise ChildFailed(f"no result, status {self._status}")
        ok, value = pickle.loads(data)
        if not ok:
            raise ChildFailed(value)
        return value

    def wait(self) -> int:
        """The child's exit code, -n for signal n."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def events(self) -> list[Event]:
        """Everything that was recorded since the last call of this."""
        found: list[Event] = []
        while data := self.ring.read(1 << 16):
            found += parse_events(data)
            self.ring.consume(len(data))
        return found


def compiled(policy: str, workdir: str) -> _native.Policy:
    """The matcher of a policy written in TOML. The child is this interpreter, which may read its own files."""
    context = Context(workdir=workdir, home="/nonexistent", tmp="/nonexistent/tmp", prefix=sys.prefix)
    return _native.Policy(compile_policy(parse(policy, syntax="toml", name="test"), context).blob)


def make_policy(
    *, read: tuple[str, ...] = (), write: tuple[str, ...] = (), deny: tuple[str, ...] = (), **more: tuple[str, ...]
) -> str:
    """A policy with these [fs] patterns, plus what CPython itself reads."""
    libraries = ("/usr/**", "/lib/**", "/lib64/**", "/etc/**", f"{sys.prefix}/**", f"{sys.base_prefix}/**")
    lists = {"read": tuple(dict.fromkeys(libraries + read)), "write": write, "deny": deny, **more}
    lines = [f"{key} = [{', '.join(repr(p) for p in value)}]" for key, value in lists.items()]
    return 'version = "1.0"\nruntime = "none"\n[fs]\n' + "\n".join(lines) + "\n"


@contextlib.contextmanager
def launch(
    body: Callable[[], object],
    policy: str,
    *,
    workdir: str = "/",
    trapped: tuple[int, ...] = OPENS,
    door: bool = False,
    flags: int = _native.FLAG_EXEC_CONTINUE,
    refusals: bytes = b"",
    threads: int = 2,
    ring_bytes: int = RING_BYTES,
) -> Iterator[Run]:
    """Forks a child that will run `body` under the filter once start() is called, with an Enforcer that serves it. On
    exit the child is killed, the enforcer stopped and the ring closed."""
    matcher = compiled(policy, workdir)
    go_r, go_w = os.pipe()
    up_r, up_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(body, trapped, door, go_r, up_w, (go_w, up_r))
    os.close(go_r)
    os.close(up_w)
    with tempfile.TemporaryFile() as file:
        ring = _native.Ring(file.fileno(), ring_bytes, bytes(16))
        enforcer = _native.Enforcer(matcher, ring, main_pid=pid, tracer_tid=0, flags=flags, refusals=refusals)
        run = Run(enforcer, ring, pid, go_w, up_r)
        try:
            number = os.read(up_r, 16)
            pidfd = os.pidfd_open(pid)
            listener = call(PIDFD_GETFD, pidfd, int(number), 0)
            os.close(pidfd)
            assert listener >= 0, os.strerror(-listener)
            enforcer.start(listener, threads)
            os.write(go_w, b"c")  # the child may close its copy now
            yield run
        finally:
            if run._status is None:
                os.kill(pid, 9)
                run.wait()
            ring.shut()
            enforcer.stop()
            ring.close()
            os.close(go_w)
            os.close(up_r)


def _child(
    body: Callable[[], object], trapped: tuple[int, ...], door: bool, go: int, up: int, close: tuple[int, ...]
) -> None:
    try:
        for fd in close:
            os.close(fd)
        listener = _confine(trapped, door)
        os.write(up, b"%-16d" % listener)
        os.read(go, 1)
        os.close(listener)
        os.read(go, 1)
        try:
            result: tuple[bool, object] = (True, body())
        except BaseException:
            result = (False, traceback.format_exc())
        with open(up, "wb", closefd=False) as pipe:
            pipe.write(pickle.dumps(result))
    finally:
        os._exit(0)


def run(body: Callable[[], object], policy: str, **options: Any) -> tuple[Any, list[Event]]:
    """Launch, start, and collect: (what the body returned, the events)."""
    with launch(body, policy, **options) as child:
        events: list[Event] = []
        done = threading.Event()

        def drain() -> None:
            while not done.is_set():
                if child.ring.wait(20):
                    events.extend(child.events())

        reader = threading.Thread(target=drain)
        reader.start()
        try:
            child.start()
            value = child.result()
        finally:
            done.set()
            reader.join()
        return value, events + child.events()
