"""Limits that hold although the agent makes no call: wall time, CPU time, bytes of I/O and memory (design 02, Budgets).

One thread per run that has such a limit. At a budget's end the run is stopped: SIGTERM to its processes, SIGKILL to the
whole tree after five seconds. Memory cannot wait: SIGKILL at once. The reason is recorded before the first signal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

GRACE_S = 5.0
POLL_S = 0.1


class Gauge(Protocol):
    """One limit that is looked at again and again. `reason` is what the run's result says. patient: the run is asked to
    end first."""

    reason: str
    patient: bool

    def passed(self) -> bool: ...

    def pause_s(self) -> float:
        """When to look again."""


class Counter:
    """A sum that only grows, such as CPU time: used() against a limit."""

    patient = True

    def __init__(self, reason: str, limit: int, used: Callable[[], int]) -> None:
        self.reason = reason
        self._limit = limit
        self._used = used

    def passed(self) -> bool:
        return self._used() >= self._limit

    def pause_s(self) -> float:
        return POLL_S


class Watchdog:
    """`wall_ms`: limit or None. `stop(reason, hard)` is called with hard=False and, GRACE_S later, with True; for a
    gauge that is not patient with True alone."""

    def __init__(self, *, wall_ms: int | None, gauges: Sequence[Gauge], stop: Callable[[str, bool], None]) -> None:
        self._wall_s = None if wall_ms is None else wall_ms / 1000
        self._gauges = tuple(gauges)
        self._stop = stop
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Counts from now. No thread when there is nothing to watch."""
        if self._wall_s is None and not self._gauges:
            return
        self._thread = threading.Thread(target=self._run, args=(time.monotonic(),), name="akbox-watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, started: float) -> None:
        end = None if self._wall_s is None else started + self._wall_s
        found = self._watch(self._gauges, end, "budget wall_time_ms")
        if found is None:
            return
        reason, patient = found
        if patient:
            self._stop(reason, False)
            impatient = [gauge for gauge in self._gauges if not gauge.patient]
            found = self._watch(impatient, time.monotonic() + GRACE_S, reason)
        if found is not None:
            self._stop(found[0], True)

    def _watch(self, gauges: Sequence[Gauge], end: float | None, at_end: str) -> tuple[str, bool] | None:
        """The reason why the run has to end and whether it is asked first, or None when it ended by itself."""
        due = [time.monotonic()] * len(gauges)
        while True:
            now = time.monotonic()
            if end is not None and now >= end:
                return at_end, True
            for n, gauge in enumerate(gauges):
                if now >= due[n]:
                    if gauge.passed():
                        return gauge.reason, gauge.patient
                    due[n] = time.monotonic() + gauge.pause_s()
            soonest = min([*due, *(() if end is None else (end,))])
            if self._ended.wait(max(0.0, soonest - time.monotonic())):
                return None
