"""The two doors of the authority calls (design 02, 03): one rule for what a caller gets back.

The raw numbers arrive as ptrace stops (tracer.py), the prctl door as upcalls of the enforcer (upcalls.py). Both hand
the request's bytes to `Doors.serve` and deliver the `Answer`. Who calls is the task that trapped, never a field of the
request.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from threading import Lock

from msgspec import Struct

from akbox.kernel.effect import AgentId
from akbox.kernel.kernel import Kernel
from akbox.kernel.ops import Op

FIRST, LAST = 1024, 1044
FETCH = 1
MAX_REQUEST = 1 << 20
_MAX_KEPT = 1024
_WAITING = frozenset((Op.CALL, Op.SPAWN, Op.RECV, Op.INFERENCE))


class Answer(Struct, frozen=True):
    """`value`: the call's return value, the reply's length or -errno. `body`: goes to the caller's buffer, cut to
    it."""

    value: int
    body: bytes = b""


class Doors:
    """Serves the authority calls of one run. Any thread may call `serve`."""

    def __init__(self, kernel: Kernel, agent_id: AgentId | None = None) -> None:
        self._kernel = kernel
        self._lock = Lock()
        self.agent_id = kernel.root if agent_id is None else agent_id
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # tid -> a reply that did not fit

    @staticmethod
    def may_wait(nr: int) -> bool:
        """May this call take long (a person, a model, a message, a new process)? Then not on a thread that serves
        others."""
        return nr in _WAITING

    def serve(self, tid: int, tgid: int, nr: int, request: bytes, capacity: int, flags: int) -> Answer:
        """`request` is what the caller's req/req_len named (already at most MAX_REQUEST bytes); `capacity` its
        resp_cap."""
        if not FIRST <= nr <= LAST:
            return Answer(-errno.ENOSYS)
        if flags == FETCH:
            return self._fetch(tid, capacity)
        if flags:
            return Answer(-errno.EINVAL)
        reply = self._kernel.call(self.agent_id, nr, request, pid=tgid)
        if reply.errno:
            return Answer(-reply.errno, reply.body)
        return self._fit(tid, reply.body, capacity)

    def _fit(self, tid: int, body: bytes, capacity: int) -> Answer:
        if len(body) <= capacity:
            return Answer(len(body), body)
        with self._lock:
            self._kept[tid] = body
            self._kept.move_to_end(tid)
            if len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        return Answer(-errno.EMSGSIZE)

    def _fetch(self, tid: int, capacity: int) -> Answer:
        with self._lock:
            body = self._kept.pop(tid, None)
        return Answer(-errno.ENOENT) if body is None else self._fit(tid, body, capacity)
