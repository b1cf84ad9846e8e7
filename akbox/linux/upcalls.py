"""What the enforcer received and only the kernel can answer: authority calls of the prctl door, and effects that wait
for a person."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable

from akbox._native import Enforcer
from akbox.kernel.kernel import Kernel
from akbox.linux.authority import Answer, Doors

_WAIT_MS = 1000
_MAX_WAITING = 256  # calls on threads of their own at one time
_ASK = -1  # AK_NR_ASK: an effect that an `approve` rule covers; no number that an agent can give
_ASK_RECORD = struct.Struct("<HBxIHH")  # struct ak_ask_record of native/enforcer.h

_Upcall = tuple[int, int, int, int, bytes, int, int]


class Upcalls:
    """One thread that serves the enforcer's queue until the enforcer is stopped; what may take long is served on one of
    its own."""

    def __init__(self, enforcer: Enforcer, kernel: Kernel, doors: Doors, on_failure: Callable[[str], None]) -> None:
        self._enforcer = enforcer
        self._kernel = kernel
        self._doors = doors
        self._on_failure = on_failure
        self._waiting = threading.Semaphore(_MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="akbox-upcalls", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Precondition: the enforcer was stopped."""
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                upcall = self._enforcer.next_upcall(_WAIT_MS)
            except EOFError:
                return
            if upcall is None:
                continue
            if upcall[3] == _ASK or self._doors.may_wait(upcall[3]):
                self._serve_aside(upcall)
            else:
                self._serve(upcall)

    def _serve_aside(self, upcall: _Upcall) -> None:
        if not self._waiting.acquire(blocking=False):
            self._enforcer.reply(upcall[0], -errno.EAGAIN, b"")
            return

        def work() -> None:
            try:
                self._serve(upcall)
            finally:
                self._waiting.release()

        threading.Thread(target=work, name="akbox-call", daemon=True).start()

    def _serve(self, upcall: _Upcall) -> None:
        """The call's edge: what goes wrong in here refuses the call and ends the run."""
        cookie, tid, tgid, nr, request, capacity, flags = upcall
        try:
            if nr == _ASK:
                answer = Answer(int(self._ask(tid, request)))
            else:
                answer = self._doors.serve(tid, tgid, nr, request, capacity, flags)
        except Exception as error:
            self._on_failure(f"internal error in authority call {nr}: {error!r}")
            answer = Answer(-errno.EIO)
        self._enforcer.reply(cookie, answer.value, answer.body)

    def _ask(self, tid: int, record: bytes) -> bool:
        op, need, rule, length, length2 = _ASK_RECORD.unpack_from(record)
        names = record[_ASK_RECORD.size :]
        target, target2 = os.fsdecode(names[:length]), os.fsdecode(names[length : length + length2])
        return self._kernel.approve_trapped(
            self._doors.agent_id, op, target, need=need, target2=target2 or None, rule=rule,
            alive=lambda: os.path.exists(f"/proc/{tid}"),
        )  # fmt: skip
