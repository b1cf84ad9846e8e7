"""Effects that wait for a person: the requests of a run, and one decision for each.

Whoever wants an effect waits in `ask` on its own thread; a person answers by `decide` (the control socket, the
terminal). The deadline, the end of the run and a caller that is gone deny. Equal requests that wait at the same time
are one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from akbox.kernel.codes import CallError, Code

MAX_WAITING = 1000
_POLL_S = 0.2


class Request(msgspec.Struct, kw_only=True):
    """One question. `state`: waiting, approved, denied, or timed out."""

    id: int
    agent: str
    agent_name: str
    op: str
    target: str
    target2: str | None
    need: str
    rule: str
    asked_ns: int
    deadline_ns: int
    state: str = "waiting"
    by: str = ""
    waiters: int = 0

    def key(self) -> tuple[object, ...]:
        return self.agent, self.op, self.target, self.target2, self.need, self.rule


class Approvals:
    """Thread-safe. `timeout_ms`: how long a request waits. `told(request)` is called, without a lock, for each new
    one."""

    def __init__(self, timeout_ms: int, clock_ns: Callable[[], int], told: Callable[[Request], None]) -> None:
        self._timeout_ms = timeout_ms
        self._clock_ns = clock_ns
        self._told = told
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._requests: dict[int, Request] = {}
        self._always: set[tuple[object, ...]] = set()
        self._closed = False

    def ask(self, make: Callable[[int, int, int], Request], alive: Callable[[], bool] = lambda: True) -> Request:
        """Waits for the decision. `make(id, asked_ns, deadline_ns)` is the request; `alive` says whether anybody still
        waits for the answer."""
        now = self._clock_ns()
        with self._changed:
            made = make(len(self._requests) + 1, now, now + self._timeout_ms * 1_000_000)
            if made.key() in self._always:
                made.state, made.by = "approved", "always"
                return made
            request = next((r for r in self._requests.values() if r.state == "waiting" and r.key() == made.key()), made)
            is_new = request is made
            if self._closed or sum(r.state == "waiting" for r in self._requests.values()) >= MAX_WAITING:
                made.state, made.by = "denied", "the run ends" if self._closed else "too many requests wait"
                return made
            self._requests[request.id] = request
            request.waiters += 1
        if is_new:
            self._told(request)
        return self._wait(request, alive)

    def _wait(self, request: Request, alive: Callable[[], bool]) -> Request:
        deadline = time.monotonic() + self._timeout_ms / 1000
        with self._changed:
            while request.state == "waiting" and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    request.state, request.by = "timed out", "nobody answered in time"
                    self._changed.notify_all()
                    break
                self._changed.wait(min(left, _POLL_S))
                if request.state == "waiting" and not alive():
                    break
            request.waiters -= 1
            if request.state == "waiting" and (self._closed or request.waiters == 0):
                request.state, request.by = "denied", "the run ends" if self._closed else "the caller is gone"
            return request

    def decide(self, number: int, allow: bool, by: str, *, always: bool = False) -> Request:
        """The one decision. Raises CallError: NOT_FOUND, or CONFLICT when it was decided before."""
        with self._changed:
            request = self._requests.get(number)
            if request is None:
                raise CallError(Code.NOT_FOUND, f"there is no request {number}")
            if request.state != "waiting":
                raise CallError(Code.CONFLICT, f"request {number} is {request.state} already")
            request.state, request.by = "approved" if allow else "denied", by
            if allow and always:
                self._always.add(request.key())
            self._changed.notify_all()
            return request

    def get(self, number: int) -> Request | None:
        with self._changed:
            return self._requests.get(number)

    def all(self, agent: str | None = None) -> list[dict[str, Any]]:
        """Every request so far, in order; of one agent."""
        with self._changed:
            found = [r for r in self._requests.values() if agent in (None, r.agent)]
            return [msgspec.to_builtins(r) for r in found]

    def close(self) -> None:
        """Denies whatever waits, and what comes later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
