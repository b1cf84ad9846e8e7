"""`--interposer ptrace`: every trapped call is a seccomp stop, judged by the same enforcer as a notification.

For kernels and sandboxes without user notification. A call is carried out on behalf of the task wherever the enforcer
does so; its result, or its descriptor (inject.py), is given to the task, and the call itself is never made. Tracer
thread only, but for calls that have to wait (a FIFO's other end, a connection): those wait on a thread of their own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from msgspec import Struct

from akbox import _native
from akbox.linux.inject import Injector, TaskGone
from akbox.linux.registers import Registers

_MAX_WAITING = 256
_POLL_S = 0.002

Outcome = tuple[int, int, int, bool]


class _Waiting(Struct):
    tid: int
    outcome: Future[Outcome]


class PtraceCalls:
    """Serves STOP_SECCOMP. `finish_pending()` must be called between stops while it returns True."""

    def __init__(self, tracer: _native.Tracer, enforcer: _native.Enforcer, injector: Injector, audit_arch: int) -> None:
        self._tracer = tracer
        self._enforcer = enforcer
        self._injector = injector
        self._arch = audit_arch
        self._waiting: list[_Waiting] = []
        self._pool = ThreadPoolExecutor(_MAX_WAITING, "akbox-wait")
        self._something_done = threading.Event()

    def close(self) -> None:
        """Precondition: the enforcer was stopped, so nothing waits any more."""
        self._pool.shutdown()
        self._injector.close()

    def serve(self, tid: int, nr: int) -> None:
        try:
            arguments = Registers.load(tid).arguments
        except OSError:  # killed meanwhile: its end will be reported
            self._tracer.resume(tid)
            return
        outcome = self._enforcer.serve(tid, self._arch, nr, arguments, False)
        if outcome[0] != _native.OUTCOME_LATER:
            self._apply(tid, outcome)
        elif len(self._waiting) >= _MAX_WAITING:
            self._tracer.answer(tid, -errno.EAGAIN)
        else:
            future = self._pool.submit(self._enforcer.serve, tid, self._arch, nr, arguments, True)
            future.add_done_callback(lambda _future: self._something_done.set())
            self._waiting.append(_Waiting(tid, future))

    def finish_pending(self) -> bool:
        """Applies the outcomes of calls that waited; sleeps a moment while some still do. False when none does."""
        if not self._waiting:
            return False
        self._something_done.wait(_POLL_S)
        self._something_done.clear()
        done = [w for w in self._waiting if w.outcome.done()]
        self._waiting = [w for w in self._waiting if not w.outcome.done()]
        for call in done:
            self._apply(call.tid, call.outcome.result())
        return bool(self._waiting)

    def _apply(self, tid: int, outcome: Outcome) -> None:
        kind, value, fd, cloexec = outcome
        if kind == _native.OUTCOME_CONTINUE:
            self._tracer.resume(tid)
        elif kind == _native.OUTCOME_INSTALL_FD:
            self._install(tid, fd, cloexec)
        else:
            self._tracer.answer(tid, value)

    def _install(self, tid: int, fd: int, cloexec: bool) -> None:
        try:
            number = self._injector.give(tid, fd, cloexec)
        except TaskGone:
            return
        except OSError:  # the task's memory or registers are out of reach: no descriptor
            number = -errno.EACCES
        finally:
            os.close(fd)
        with contextlib.suppress(ProcessLookupError):
            self._tracer.answer(tid, number)
