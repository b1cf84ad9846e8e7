"""The ptrace interposer: authority numbers, what an exec became, and the life of the tree.

`TraceLoop.run` is the whole life of a run's thread after the launch. Stops that need no decision never leave C
(native/tracer.c). Everything here runs on that one thread, because ptrace knows tracers by thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct, field

from akbox import _native
from akbox.kernel.ops import Op
from akbox.linux.authority import MAX_REQUEST, Answer, Doors
from akbox.linux.memory import read_memory, thread_group, write_memory

if TYPE_CHECKING:
    from akbox.linux.ptrace_calls import PtraceCalls

READ, WRITE, EXEC = 1, 2, 4
_NO_RULE = 0xFFFFFFFF
_MAX_WAITING = 256
_POLL_S = 0.002


class Waiting(Struct, eq=False):
    """A call that another thread serves; `answer` when it has."""

    tid: int
    arguments: tuple[int, ...]
    answer: Answer | None = None


class TraceLoop(Struct):
    """What the loop needs of its run. `calls` serves every trapped call under `--interposer ptrace`, else None."""

    tracer: _native.Tracer
    enforcer: _native.Enforcer
    ring: _native.Ring
    doors: Doors
    main_pid: int
    on_started: Callable[[], None]
    on_stopped: Callable[[int], None]
    on_exit: Callable[[int], None]
    on_failure: Callable[[str], None]
    calls: PtraceCalls | None = None
    execs: int = 0
    waiting: list[Waiting] = field(default_factory=list)

    def run(self) -> None:
        """Serves stops until no task of the tree is left. The end of the main process ends all others."""
        handlers: dict[int, Callable[[int, int], None]] = {
            _native.STOP_SYSCALL: self._authority,
            _native.STOP_EXEC: self._exec,
            _native.STOP_STOPPED: lambda _tid, signal: self.on_stopped(signal),
            _native.STOP_MAIN_EXIT: self._main_exit,
            _native.STOP_TOO_MANY: self._too_many,
            _native.STOP_ACCEPTED: self._accepted,
        }
        if self.calls is not None:
            handlers[_native.STOP_SECCOMP] = self.calls.serve
        while True:
            waiting = self._finish_waiting()
            block = not waiting and (self.calls is None or not self.calls.finish_pending())
            kind, tid, value = self.tracer.wait(block)
            if kind == _native.STOP_ALL_GONE:
                return
            if kind != _native.STOP_NOTHING:
                handlers[kind](tid, value)

    def _main_exit(self, _tid: int, status: int) -> None:
        self.on_exit(status)
        self.tracer.kill()

    def _too_many(self, tid: int, _child: int) -> None:
        """A process more than limits.pids: its parent gets EAGAIN (native/tracer.c); here it only gets its entry."""
        group = thread_group(tid)
        self.ring.put(Op.SYS_REFUSED, 0, 0, group, tid, -1, errno.EAGAIN, _NO_RULE, 0, b"limit:pids", b"")

    def _accepted(self, tid: int, value: int) -> None:
        """A connection has come: its entry is in the ring before the task has it."""
        try:
            self.enforcer.accepted(tid, value >> 32, value & 0x7FFF_FFFF)
        except PermissionError:  # no entry, no connection
            os.kill(tid, 9)
        self.tracer.resume(tid)

    def _exec(self, tid: int, _former: int) -> None:
        """The new image, before its first instruction: the object the kernel really loaded must be one the policy lets
        run.

        This is what makes it safe that execve itself is continued by the kernel after it was judged by name. A script's
        own text is read by its interpreter with open(), which is judged like any other.
        """
        problem = self._image_problem(tid)
        if problem is None:
            if tid == self.main_pid and not self.execs:
                self.on_started()
            self.execs += 1
            self.tracer.resume(tid)
            return
        self.ring.put(Op.EXEC, 0, EXEC, tid, tid, -1, errno.EACCES, _NO_RULE, 0, problem, b"")
        os.kill(tid, 9)
        self.tracer.resume(tid)

    def _image_problem(self, tid: int) -> bytes | None:
        """None when the image may run, else what it is, for the log."""
        link = b"/proc/%d/exe" % tid
        try:
            path = os.readlink(link)
            linked = os.stat(link).st_nlink > 0
        except OSError:
            return b"(unreadable image)"
        if not linked or not path.startswith(b"/") or not self.enforcer.may_exec(path):
            return path
        return None

    def _authority(self, tid: int, nr: int) -> None:
        """A raw call 1024-1044: everything comes from the registers; SIGSYS and its siginfo can be forged."""
        from akbox.linux.registers import Registers

        try:
            arguments = Registers.load(tid).arguments
        except OSError:  # the task was killed meanwhile: its end will be reported
            self.tracer.resume(tid)
            return
        if self.doors.may_wait(nr):
            self._serve_aside(tid, nr, arguments)
            return
        answer = self._serve(tid, nr, arguments)
        self.tracer.answer(tid, self._deliver(tid, answer, resp=arguments[3], capacity=arguments[4]))

    def _serve_aside(self, tid: int, nr: int, arguments: tuple[int, ...]) -> None:
        """The task stays stopped; another thread serves its call, and this one, which ptrace takes for the tracer,
        hands the answer over when it next looks."""
        if len(self.waiting) >= _MAX_WAITING:
            self.tracer.answer(tid, -errno.EAGAIN)
            return
        call = Waiting(tid, arguments)

        def work() -> None:
            try:
                call.answer = self._serve(tid, nr, arguments)
            except Exception as error:  # the call's edge
                self.on_failure(f"internal error in authority call {nr}: {error!r}")
                call.answer = Answer(-errno.EIO)

        self.waiting.append(call)
        threading.Thread(target=work, name="akbox-call", daemon=True).start()

    def _finish_waiting(self) -> bool:
        """Answers what was served meanwhile; sleeps a moment while some is not. False when nothing waits."""
        if not self.waiting:
            return False
        done = [c for c in self.waiting if c.answer is not None]
        if not done:
            time.sleep(_POLL_S)
            return True
        self.waiting = [c for c in self.waiting if c not in done]
        for c in done:
            assert c.answer is not None
            value = self._deliver(c.tid, c.answer, resp=c.arguments[3], capacity=c.arguments[4])
            with contextlib.suppress(ProcessLookupError):
                self.tracer.answer(c.tid, value)
        return bool(self.waiting)

    def _serve(self, tid: int, nr: int, arguments: tuple[int, ...]) -> Answer:
        agent, req, req_len, _resp, capacity, flags = arguments
        if req_len > MAX_REQUEST:
            return Answer(-errno.EINVAL)
        try:
            if agent and read_memory(tid, agent, 16) != self.doors.agent_id:
                return Answer(-errno.EPERM)
            request = read_memory(tid, req, req_len) if req_len else b""
        except OSError:
            return Answer(-errno.EFAULT)
        return self.doors.serve(tid, thread_group(tid), nr, request, capacity, flags)

    def _deliver(self, tid: int, answer: Answer, resp: int, capacity: int) -> int:
        """Writes the body (NUL-terminated when there is room); the value that the call returns."""
        body = answer.body[:capacity]
        if answer.body and len(body) < capacity:
            body += b"\0"
        if not body:
            return answer.value
        try:
            write_memory(tid, resp, body)
        except OSError:
            return -errno.EFAULT
        return answer.value
