"""Limits that hold although the agent makes no call: wall time and CPU time (design 02, Budgets).

One thread per run that has such a limit. At the limit the run is stopped: SIGTERM to its processes, SIGKILL to the
whole tree after five seconds. The reason is recorded before the first signal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

GRACE_S = 5.0
_CPU_POLL_S = 0.1


class Watchdog:
    """`wall_ms` and `cpu_ns`: limits or None. `stop(reason, hard)` is called with hard=False, then, GRACE_S later,
    True."""

    def __init__(
        self,
        *,
        wall_ms: int | None,
        cpu_ns: int | None,
        cpu_used_ns: Callable[[], int],
        stop: Callable[[str, bool], None],
    ) -> None:
        self._wall_s = None if wall_ms is None else wall_ms / 1000
        self._cpu_ns = cpu_ns
        self._cpu_used_ns = cpu_used_ns
        self._stop = stop
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Counts from now. No thread when there is nothing to watch."""
        if self._wall_s is None and self._cpu_ns is None:
            return
        self._thread = threading.Thread(target=self._run, args=(time.monotonic(),), name="akbox-watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, started: float) -> None:
        reason = self._watch(started)
        if reason is None:
            return
        self._stop(reason, False)
        if not self._ended.wait(GRACE_S):
            self._stop(reason, True)

    def _watch(self, started: float) -> str | None:
        """The name of the budget that is used up, or None when the run ended first."""
        while True:
            left = None if self._wall_s is None else started + self._wall_s - time.monotonic()
            if left is not None and left <= 0:
                return "wall_time_ms"
            if self._cpu_ns is not None:
                if self._cpu_used_ns() >= self._cpu_ns:
                    return "cpu_ns"
                left = _CPU_POLL_S if left is None else min(left, _CPU_POLL_S)
            if self._ended.wait(left):
                return None
