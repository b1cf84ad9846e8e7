"""The limits of one run: who holds each, what is watched while it runs, and what the result says of them.

| limit | held by | at the limit |
| --- | --- | --- |
| `limits.memory` | a cgroup of the run (cgroup.py), else measured (footprint.py) | SIGKILL to all, exit code 137 |
| `limits.pids` | the tracer (native/tracer.c) | EAGAIN |
| `limits.open_files`, `.file_size` | setrlimit(2), hard too: the run cannot raise it | EMFILE, SIGXFSZ or EFBIG |
| `limits.core`, `limits.stack` | the same | no core file, SIGSEGV |
| `limits.io_bytes`, `budgets.wall_time_ms`, `.cpu_ns` | the watchdog | SIGTERM, SIGKILL after 5 s, exit code 124 |

Each is of an agent and of all it has started, directly or not: what child agents use counts for everybody above them,
and none of them has more than its parent (plan.py).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from akbox import _native
from akbox.linux.watchdog import Counter, Gauge

if TYPE_CHECKING:
    from akbox.kernel.agents import Agent
    from akbox.kernel.kernel import Kernel
    from akbox.linux.cgroup import Cgroup
    from akbox.linux.footprint import Footprint
    from akbox.linux.plan import LaunchPlan

MEMORY = "limit memory"
FILE_SIZE = "limit file_size"
IO_BYTES = "limit io_bytes"
WRITE = 2
_FILL_BYTES_S = 4 << 30  # how fast a tree can take memory: one look in this time at least
_PAUSES_S = (0.02, 0.25)


class MeasuredMemory:
    """limits.memory where there is no cgroup."""

    reason = MEMORY
    patient = False

    def __init__(self, limit: int, footprint: Footprint) -> None:
        self._limit = limit
        self._footprint = footprint
        self._pause_s = _PAUSES_S[0]
        self.peak = 0  # as far as it was looked at, and an upper bound while that is below the limit

    def passed(self) -> bool:
        """As seldom as the limit's distance lets it be, and never more than a tenth of the time."""
        began = time.monotonic()
        held = self._footprint.bound()
        if held > self._limit:
            held = self._footprint.exact()
        self.peak = max(self.peak, held)
        took_s = time.monotonic() - began
        least, most = _PAUSES_S
        self._pause_s = max(10 * took_s, least, min(most, (self._limit - held) / _FILL_BYTES_S))
        return held > self._limit

    def pause_s(self) -> float:
        return self._pause_s


class IoCount:
    """What all tasks of one tracer read and wrote. Thread-safe: whoever is above looks, too."""

    def __init__(self, tracer: _native.Tracer) -> None:
        self._tracer = tracer
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._seen = 0  # at the last look
        self._lost = 0  # of tasks that left no trace: killed, or ended by another thread's exec

    def total(self) -> int:
        with self._lock:
            sum_now = self._tracer.io_bytes()
            if sum_now is not None:
                self._lost += max(0, self._seen - sum_now)
                self._seen = sum_now
            return self._seen + self._lost


class IoBytes:
    """limits.io_bytes."""

    reason = IO_BYTES
    patient = True

    def __init__(self, limit: int, total: Callable[[], int]) -> None:
        self._limit = limit
        self._total = total
        self.total = 0

    def passed(self) -> bool:
        self.total = self._total()
        return self.total >= self._limit

    def pause_s(self) -> float:
        return 0.05


class RunLimits:
    """Made with the run, before its first process."""

    def __init__(
        self,
        plan: LaunchPlan,
        kernel: Kernel,
        agent: Agent,
        tracer: _native.Tracer,
        cpu_used_ns: Callable[[], int],
        *,
        above: RunLimits | None,
        below: Callable[[], list[RunLimits]],
        detached: bool,
    ) -> None:
        """cpu_used_ns: of the agent and all below it. above: of the agent that started this one, which it may outlive
        when it is detached. below: of the living ones whose next above it is."""
        self._limits = plan.resources
        self._above, self._below, self._detached = above, below, detached
        self._left: list[Cgroup] = []  # of agents below, with detached ones still in it
        self._count = None if self._limits.io_bytes is None else IoCount(tracer)
        self._ended_io_bytes = 0  # of child agents; written by their threads, guarded by _lock
        self._lock = threading.Lock()
        self._kernel = kernel
        self._agent = agent
        self._cpu_used_ns = cpu_used_ns
        self._cgroup: Cgroup | None = None
        self._memory: MeasuredMemory | None = None
        self._io = None if self._limits.io_bytes is None else IoBytes(self._limits.io_bytes, self.io_bytes)
        self._plan = plan
        self._tracer = tracer
        self._peak: int | None = None  # these two: of the cgroup, once it is gone
        self._killed = False

    def admit(self, pid: int) -> None:
        """Puts the first process, which has not begun yet, into a cgroup of its own; where there is none to be had,
        memory will be measured. Raises OSError when it can be neither."""
        limit = self._limits.memory
        if limit is None:
            return
        outer = next((at._cgroup for at in self._up() if at._cgroup is not None), None)
        if outer is not None:
            outer.admit(pid)
        if self._above is not None and limit == self._above._limits.memory and not self._detached:
            return  # it is in the count of who is above
        if outer is None and self._make_cgroup(pid, limit):
            return
        from akbox.linux.footprint import Footprint
        from akbox.policy.landlock import granted_names

        writable = [path for path, _ in granted_names(self._plan.policy, WRITE)]
        self._memory = MeasuredMemory(limit, Footprint(self.processes, writable, str(self._plan.tmpdir)))

    def _up(self) -> Iterator[RunLimits]:
        at = self._above
        while at is not None:
            yield at
            at = at._above

    def _make_cgroup(self, pid: int, limit: int) -> bool:
        from akbox.linux.cgroup import make_cgroup

        made = make_cgroup(f"akbox-{self._kernel.run_id.hex()[:8]}-{self._agent.id.hex()[:8]}", limit)
        if made is None:
            return False
        try:
            made.admit(pid)
        except OSError:
            made.remove()
            return False
        self._cgroup = made
        return True

    def processes(self) -> list[int]:
        """The agent's and those of all below it."""
        return self._tracer.tasks(True) + [pid for below in self._below() for pid in below.processes()]

    def io_bytes(self) -> int:
        """What the agent and all below it read and wrote, ended ones included."""
        own = 0 if self._count is None else self._count.total()
        return own + self._ended_io_bytes + sum(below.io_bytes() for below in self._below())

    def child_ended(self, child: RunLimits) -> None:
        """Precondition: it is not among those below any more, and those that outlive it are."""
        used = child._ended_io_bytes + (0 if child._count is None else child._count.total())
        with self._lock:
            self._ended_io_bytes += used

    def gauges(self) -> list[Gauge]:
        """What the watchdog looks at. After admit()."""
        found: list[Gauge] = []
        cpu = self._agent.ledger.limit("cpu_ns")
        if cpu is not None:
            found.append(Counter("budget cpu_ns", cpu, self._cpu_used_ns))
        if self._io is not None:
            found.append(self._io)
        if self._memory is not None:
            found.append(self._memory)
        return found

    def close(self) -> None:
        """After the last process."""
        if self._cgroup is not None:
            self._peak = self._cgroup.peak()
            self._killed = self._cgroup.killed_for_memory()
            if not self._cgroup.remove() and self._above is not None:
                self._above._left.append(self._cgroup)
        for group in self._left:
            if not group.remove() and self._above is not None:
                self._above._left.append(group)

    def ended_by_kernel(self, status: int | None) -> str | None:
        """The limit for which the kernel ended the first process, by its wait status. After close()."""
        number = None if status is None else status & 0x7F
        if self._killed and number == signal.SIGKILL:
            return MEMORY
        return FILE_SIZE if number == signal.SIGXFSZ and self._limits.file_size is not None else None

    def record(self, reason: str) -> None:
        """The entry for a limit that ends the run."""
        kind, _, name = reason.partition(" ")
        if kind == "budget":
            self._kernel.budget_exceeded(name, self._agent.id)
            return
        used = self.usage().get({"memory": "memory_peak_bytes"}.get(name, name))
        self._kernel.limit_exceeded(name, getattr(self._limits, name), used, self._agent.id)

    def usage(self) -> dict[str, int]:
        """What of the result's usage is known here."""
        found: dict[str, int] = {}
        peak = self._memory.peak if self._memory is not None else self._peak
        if peak is not None:
            found["memory_peak_bytes"] = peak
        if self._io is not None:
            self._io.passed()
            found["io_bytes"] = self._io.total
        return found
