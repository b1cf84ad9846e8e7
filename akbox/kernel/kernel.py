"""The Authority Kernel of one run: decides, logs, serves the authority calls. Pure Python; knows no target.

A target turns what it sees into an Effect (`authorize`), hands over what its compiled matcher decided (`record`), and
passes the agent's own calls on (`call`). All three end in the log before the agent can see the outcome.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from akbox.kernel.audit import AuditError, AuditLog
from akbox.kernel.budget import NAMES, Ledger, limits_of
from akbox.kernel.codes import CallError, Code
from akbox.kernel.digest import sha256
from akbox.kernel.effect import AgentId, Decision, Denial, Effect, Reply
from akbox.kernel.entry import Draft, trace_id
from akbox.kernel.event_lines import DENIED_AT
from akbox.kernel.events import ALLOW, NEED_NAMES, Event, EventError, pack_event
from akbox.kernel.ops import Op, op_name
from akbox.kernel.refusals import Refusals
from akbox.store.base import Store

if TYPE_CHECKING:  # the calls' machinery is imported with the first call: most runs make none
    from akbox.kernel.heap import Heap
    from akbox.kernel.pipeline import Context, ReplayWindow
    from akbox.policy.compile import CompiledPolicy

__all__ = ["AgentId", "AuditError", "Decision", "Denial", "Effect", "Kernel", "Reply"]

_EACCES, _EPERM = 13, 1
_HISTORY = 60
_HISTORY_EVERY_NS = 1_000_000_000


class Kernel:
    """One run's kernel. Thread-safe. An AuditError from any method means: end the run, answer nothing.

    `root` is the 16-byte id of the first agent; `budgets` its ledger; `pre_query`, when set, brings events that are
    still in the ring here, so that an agent's question about its own past is answered from all of it.
    """

    def __init__(
        self,
        policy: CompiledPolicy,
        *,
        run_id: bytes,
        store: Store,
        log: AuditLog,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.policy = policy
        self.run_id = run_id
        self.store = store
        self.log = log
        self.clock_ns = clock_ns
        self.root: AgentId = os.urandom(16)
        self.budgets = Ledger(limits_of(policy.budgets))
        self.refusals = Refusals(policy)
        self.tools: tuple[dict[str, Any], ...] = ()
        self.pre_query: Callable[[], None] | None = None
        self._started_ns = time.monotonic_ns()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._ledgers: dict[AgentId, Ledger] = {self.root: self.budgets}
        self._windows: dict[AgentId, ReplayWindow] = {}
        self._history: dict[AgentId, deque[dict[str, Any]]] = {}
        self._snapshot_ns: dict[AgentId, int] = {}
        self._closed = False
        log.set_rules(policy.rule_texts)

    # ---- the three ways in ------------------------------------------------------------------------------------------

    def authorize(self, subject: AgentId, effect: Effect) -> Decision:
        """Decides about one effect and logs the decision, allow or deny."""
        decision = self.decide(subject, effect)
        req: dict[str, Any] = {"need": NEED_NAMES[effect.need & 7]}
        if effect.target2 is not None:
            req["target2"] = effect.target2
        if effect.detail is not None:
            req["detail"] = effect.detail
        if decision.missing_cap:
            req["missing"] = decision.missing_cap
        now = self.clock_ns()
        receipt = self.log.append(
            Draft(
                ts_ns=now, agent=subject, op=effect.op, name=op_name(effect.op), target=effect.target,
                decision="allow" if decision.allowed else "deny", stage=None if decision.allowed else DENIED_AT,
                rule=decision.rule, pid=effect.pid, req=req, res={"errno": decision.errno},
            )
        )  # fmt: skip
        if not decision.allowed:
            self._note(subject, op_name(effect.op), effect.target, decision, now, receipt.trace_id)
        return _with_trace(decision, receipt.trace_id)

    def decide(self, subject: AgentId, effect: Effect) -> Decision:
        """What `authorize` would say, without an entry. The trace id is empty."""
        self.ledger(subject)  # an agent of this run
        verdict = self.policy.decide(effect.op, effect.target, need=effect.need, target2=effect.target2)
        rule = None if verdict.rule is None else str(verdict.rule)
        if verdict.decision == ALLOW:
            return Decision(allowed=True, reason=f"allowed by {rule}" if rule else "the agent's own", rule=rule)
        asks = verdict.decision != 0
        if asks:
            reason = f"waits for approval ({rule}), and nobody can be asked"
        else:
            reason = f"refused by {rule}" if rule else "no rule allows it"
        return Decision(
            allowed=False, reason=reason, rule=rule, code=Code.APPROVAL_REQUIRED if asks else Code.POLICY_DENY,
            errno=_EACCES if effect.op < Op.SIGNAL else _EPERM, missing_cap=verdict.missing_cap,
            suggested_fix=verdict.suggested_fix,
        )  # fmt: skip

    def record(self, subject: AgentId, events: bytes | Sequence[Event]) -> None:
        """Logs decisions that were taken in C: whole ring records, or events. On return they are in the log (or, merged
        with equal ones, counted on disk), so that the ring may forget them. b"" writes merged ones whose second is
        over."""
        records = events if isinstance(events, bytes) else b"".join(map(pack_event, events))
        if not records:
            self.log.tick(subject)
            return
        try:
            refused = self.log.append_records(records, subject)
        except EventError as error:
            raise AuditError(f"the event ring is damaged: {error}") from error
        for event, seq in refused:
            self.refusals.note_event(subject, event, None if seq is None else trace_id(self.run_id, seq))

    def call(self, subject: AgentId, nr: int, request: bytes, *, pid: int = 0) -> Reply:
        """Serves an authority call (design 02): the ten stages. `nr` is the call's number, `request` its JSON."""
        from akbox.kernel.pipeline import Context, run

        self.ledger(subject)
        reply = run(Context(self, subject, nr, request, pid))
        self._take_snapshot(subject)
        return reply

    # ---- the life of a run ------------------------------------------------------------------------------------------

    def start(self, info: Mapping[str, Any]) -> None:
        """The run's first entry: what `info` says (command, …), the policy's hash and akbox's version."""
        from akbox import __version__

        digest = sha256(self.policy.to_json()).hex()
        self._lifecycle("start", {"akbox": __version__, "policy_hash": digest, **info}, {})

    def finish(self, info: Mapping[str, Any]) -> None:
        """The run's last entry: exit_code, reason and what else `info` says."""
        self.flush_events()
        self._lifecycle("finish", {}, dict(info))

    def budget_exceeded(self, name: str) -> None:
        """The target ends the run because of this limit; the entry is on disk when this returns."""
        values = self.budget(name)
        self._lifecycle(f"budget:{name}", {"limit": values["limit"]}, {"used": values["used"]}, denied_at="BUDGET")

    def limit_exceeded(self, name: str, limit: int, used: int | None) -> None:
        """The same for a resource limit, which is no budget: `limits.memory`."""
        self._lifecycle(f"limit:{name}", {"limit": limit}, {"used": used}, denied_at="BUDGET")

    def close(self) -> None:
        """Writes what is merged, makes the last checkpoint and closes the log and the store. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            if self.store.used:
                self.store.save_budgets(self.root, self.budgets.snapshot())
            self.store.close()
        finally:
            self.log.close(self.root)

    # ---- questions ------------------------------------------------------------------------------------------------

    def denials(self) -> list[Denial]:
        """Each distinct refusal of the run once, in the order of their first time."""
        return self.refusals.all()

    def summary(self) -> dict[str, Any]:
        """The run as data: entries, head hash, budgets and refusals."""
        seq, this_hash = self.log.head()
        return {
            "run_id": self.run_id.hex(),
            "entries": seq,
            "head": this_hash.hex(),
            "elapsed_ms": self.elapsed_ms(),
            "budgets": {name: self.budget(name) for name in NAMES},
            "denials": len(self.refusals.all()) + self.refusals.others,
        }

    def budget(self, name: str) -> dict[str, Any]:
        """One budget of the root agent, as BUDGET_STATUS says it."""
        from akbox.kernel.calls.budget import one_budget

        return one_budget(self, self.root, name)

    @cached_property
    def heap(self) -> Heap:
        """The typed heap."""
        from akbox.kernel.heap import Heap

        return Heap(self.policy.policy.heap.types)

    def ledger(self, subject: AgentId) -> Ledger:
        """The agent's ledger. Raises KeyError for an id that is no agent of this run."""
        return self._ledgers[subject]

    def agents(self) -> list[dict[str, Any]]:
        return [{"id": self.root.hex(), "name": "root", "parent": None, "state": "running"}]

    def elapsed_ms(self) -> int:
        """Wall time since the kernel was made, by a clock that nobody can set."""
        return (time.monotonic_ns() - self._started_ns) // 1_000_000

    def flush_events(self) -> None:
        """Brings everything decided so far into the log."""
        if self.pre_query is not None:
            self.pre_query()
        self.log.tick(self.root, everything=True)

    def replay_window(self, subject: AgentId) -> ReplayWindow:
        from akbox.kernel.pipeline import ReplayWindow

        with self._lock:
            return self._windows.setdefault(subject, ReplayWindow())

    def budget_history(self, subject: AgentId) -> list[dict[str, Any]]:
        """Up to 60 snapshots of what was used, a second or more apart, the present one last."""
        self._take_snapshot(subject, now=True)
        with self._lock:
            return list(self._history[subject])

    def note_call_refusal(self, ctx: Context, error: CallError) -> None:
        """An authority call was refused (not: went wrong): for the report and LAST_ERROR."""
        decision = Decision(
            allowed=False, reason=error.message, rule=ctx.rule, code=error.code, errno=error.code.errno,
            missing_cap=error.missing_cap, suggested_fix=error.suggested_fix,
        )  # fmt: skip
        self._note(ctx.subject, op_name(ctx.nr), ctx.target, decision, self.clock_ns(), ctx.trace_id)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _note(self, subject: AgentId, op: str, target: str, decision: Decision, now: int, trace: str) -> None:
        denial = Denial(
            op=op, target=target, count=1, rule=decision.rule, missing_cap=decision.missing_cap,
            suggested_fix=decision.suggested_fix, errno=decision.errno, first_ts_ns=now, last_ts_ns=now, trace_id=trace,
            message=decision.reason, code=decision.code or Code.POLICY_DENY,
        )  # fmt: skip
        self.refusals.note(subject, denial)

    def _lifecycle(self, what: str, req: dict[str, Any], res: dict[str, Any], denied_at: str | None = None) -> None:
        receipt = self.log.append(
            Draft(
                ts_ns=self.clock_ns(), agent=self.root, op=Op.LIFECYCLE, name=op_name(Op.LIFECYCLE),
                target=f"run:{what}", decision="deny" if denied_at else "allow", stage=denied_at, req=req, res=res,
            )
        )  # fmt: skip
        if what != "start":  # nothing has happened yet that a crash could hide
            self.log.wait_durable(receipt.seq)

    def _take_snapshot(self, subject: AgentId, *, now: bool = False) -> None:
        clock = time.monotonic_ns()
        with self._lock:
            if not now and clock - self._snapshot_ns.get(subject, -_HISTORY_EVERY_NS) < _HISTORY_EVERY_NS:
                return
            self._snapshot_ns[subject] = clock
            history = self._history.setdefault(subject, deque(maxlen=_HISTORY))
            used = self._ledgers[subject].snapshot() | {"wall_time_ms": self.elapsed_ms()}
            history.append({"timestamp_ms": self.clock_ns() // 1_000_000, **used})


def _with_trace(decision: Decision, trace: str) -> Decision:
    import msgspec

    return msgspec.structs.replace(decision, trace_id=trace)
