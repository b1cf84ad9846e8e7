"""The prctl door's Python side: authority calls that the enforcer received and only the kernel can answer."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

from akbox._native import Enforcer
from akbox.linux.authority import Answer, Doors

_WAIT_MS = 1000


class Upcalls:
    """One thread that serves the enforcer's queue until the enforcer is stopped."""

    def __init__(self, enforcer: Enforcer, doors: Doors, on_failure: Callable[[str], None]) -> None:
        self._enforcer = enforcer
        self._doors = doors
        self._on_failure = on_failure
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
            cookie, tid, tgid, nr, request, capacity, flags = upcall
            try:
                answer = self._doors.serve(tid, tgid, nr, request, capacity, flags)
            except Exception as error:  # the connection's edge: the caller is refused and the run ends
                self._on_failure(f"internal error in authority call {nr}: {error!r}")
                answer = Answer(-errno.EIO)
            self._enforcer.reply(cookie, answer.value, answer.body)
