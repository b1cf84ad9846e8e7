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

import msgspec

from akbox.kernel.audit import AuditError, AuditLog
from akbox.kernel.budget import LASTING, NAMES, Ledger, limits_of
from akbox.kernel.codes import CallError, Code
from akbox.kernel.digest import sha256
from akbox.kernel.doorbell import Doorbell
from akbox.kernel.effect import AgentId, Decision, Denial, Effect, Reply
from akbox.kernel.entry import Draft, trace_id
from akbox.kernel.events import ALLOW, NEED_NAMES, Event, EventError, pack_event
from akbox.kernel.ops import Op, op_name
from akbox.kernel.redact import stored_policy
from akbox.kernel.refusals import Refusals
from akbox.kernel.taint import TAINT_UNTRUSTED
from akbox.kernel.tree import AgentTree
from akbox.store.base import Store, StoreError

if TYPE_CHECKING:  # the calls' machinery is imported with the first call: most runs make none
    from akbox.kernel.agents import Agent, Layer
    from akbox.kernel.approvals import Approvals, Request
    from akbox.kernel.calls.inference import InferenceArgs
    from akbox.kernel.calls.spawn import SpawnArgs
    from akbox.kernel.calls.tool import Tools
    from akbox.kernel.capabilities import Capabilities
    from akbox.kernel.capability import Token
    from akbox.kernel.heap import Heap
    from akbox.kernel.pipeline import Context
    from akbox.kernel.replay import ReplayWindow
    from akbox.policy.compile import CompiledPolicy

__all__ = ["AgentId", "AuditError", "Decision", "Denial", "Effect", "Kernel", "Reply"]

_EACCES, _EPERM = 13, 1
_HISTORY = 60
MAX_KEYS = 256
TYPE_TYPE, MAX_TYPES = "$type", 1000  # heap objects of this type are types: {name, schema}, of the root agent
APPROVE_TIMEOUT_MS = 300_000
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
        root: bytes | None = None,
    ) -> None:
        self.policy = policy
        self.run_id = run_id
        self.store = store
        self.log = log
        self.clock_ns = clock_ns
        self.root: AgentId = os.urandom(16) if root is None else root
        self.budgets = Ledger(limits_of(policy.budgets))
        self.capabilities_in_use = False  # has anything been minted or revoked? Most runs never do
        self.refusals = Refusals()
        self.tools: Tools | None = None  # the target's
        self.pre_query: Callable[[], None] | None = None
        self.earlier_ms = 0  # wall time of an earlier supervisor of this run
        self.infer: Callable[[AgentId, InferenceArgs], dict[str, Any]] | None = None  # the target's model gateway
        self._started_ns = time.monotonic_ns()
        self.tree = AgentTree(self, self.root, self.budgets)
        self.doorbell = Doorbell()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._windows: dict[AgentId, ReplayWindow] = {}
        self._history: dict[AgentId, deque[dict[str, Any]]] = {}
        self._snapshot_ns: dict[AgentId, int] = {}
        self._breakdown: dict[AgentId, dict[str, dict[str, int]]] = {}
        self._closed = False
        self.approvals: Approvals | None = None  # None: nobody can be asked
        self.answer: dict[str, Any] | None = None
        self.over_budget: Callable[[Agent, str], None] = lambda _agent, _name: None  # the target's: ends the agent
        self.spawner: Callable[[Agent, SpawnArgs], dict[str, Any]] | None = None  # the target's
        self.halt: Callable[[str], None] = lambda _why: None  # the target's: ends the run with exit code 125
        log.set_rules(policy.rule_texts)

    # ---- the three ways in ------------------------------------------------------------------------------------------

    def authorize(self, subject: AgentId, effect: Effect) -> Decision:
        """Decides about one effect and logs the decision, allow or deny."""
        from akbox.kernel.pipeline import Context, judge

        return judge(Context.of_effect(self, subject, effect))

    def refuse(self, subject: AgentId, effect: Effect, error: CallError) -> Decision:
        """Logs an effect that whoever was to carry it out refused for a reason that no rule states."""
        from akbox.kernel.pipeline import Context, refused

        return refused(Context.of_effect(self, subject, effect), error)

    def decide(self, subject: AgentId, effect: Effect) -> Decision:
        """What `authorize` would say, without an entry. The trace id is empty."""
        verdict = self.agent(subject).decide(effect.op, effect.target, need=effect.need, target2=effect.target2)
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

    def ask(
        self, agent: Agent, effect: Effect, decision: Decision, alive: Callable[[], bool] = lambda: True
    ) -> Decision:
        """What becomes of an effect that an `approve` rule covers: waits for a person, when there can be one. `alive`:
        does anybody still wait for the answer?"""
        if self.approvals is None:
            return decision
        request = self.approvals.ask(lambda n, now, end: self._request(n, now, end, agent, effect, decision), alive)
        self._lifecycle(
            f"approval:{request.id}:{request.state}", {"effect": request.op, "on": request.target}, {"by": request.by},
            denied_at=None if request.state == "approved" else "POLICY", agent=agent.id,
        )  # fmt: skip
        reason = f"{request.state} by {request.by} ({decision.rule})"
        if request.state == "approved":
            return Decision(allowed=True, reason=reason, rule=decision.rule)
        return msgspec.structs.replace(decision, reason=reason)

    def _request(
        self, number: int, now_ns: int, end_ns: int, agent: Agent, effect: Effect, decision: Decision
    ) -> Request:
        from akbox.kernel.approvals import Request

        return Request(
            id=number, agent=agent.id.hex(), agent_name=agent.name, op=op_name(effect.op), target=effect.target,
            target2=effect.target2, need=NEED_NAMES[effect.need & 7], rule=decision.rule or "", asked_ns=now_ns,
            deadline_ns=end_ns,
        )  # fmt: skip

    def enable_approvals(self, told: Callable[[Request], None]) -> None:
        """From now on effects that need a person's word wait for it; `told` hears of each request."""
        from akbox.kernel.approvals import Approvals

        stated = [p.approve.timeout_ms for _, p in self.policy.parts if p.approve.timeout_ms is not None]
        self.approvals = Approvals(stated[0] if stated else APPROVE_TIMEOUT_MS, self.clock_ns, told)

    @property
    def asks(self) -> bool:
        """Has the policy rules that wait for a person?"""
        return any(rule.ask for rule in self.policy.rules)

    def approve_trapped(
        self,
        subject: AgentId,
        op: int,
        target: str,
        *,
        need: int,
        target2: str | None,
        rule: int,
        alive: Callable[[], bool],
    ) -> bool:
        """For the target: may a trapped call that the compiled matcher leaves to a person go on? The entry of the call
        itself is the matcher's."""
        agent = self.agent(subject)
        rule_text = agent.rule_texts[rule] if rule < len(agent.rule_texts) else ""
        decision = Decision(
            allowed=False, reason=f"waits for approval ({rule_text}), and nobody can be asked", rule=rule_text,
            code=Code.APPROVAL_REQUIRED,
        )  # fmt: skip
        effect = Effect(op=Op(op), target=target, need=need, target2=target2)
        return self.ask(agent, effect, decision, alive).allowed

    def set_answer(self, agent: Agent, content: Any, taint: int) -> None:
        """What the agent answered (RESPOND); the root agent's is the run's."""
        if agent.parent is None:
            self.answer = {"content": content, "taint": taint}

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
            self.refusals.note_event(self.agent(subject), event, None if seq is None else trace_id(self.run_id, seq))

    def call(self, subject: AgentId, nr: int, request: bytes, *, pid: int = 0, tool: str = "") -> Reply:
        """Serves an authority call (design 02): the ten stages. `nr` is the call's number, `request` its JSON; `tool`
        the tool of the agent's that makes it."""
        from akbox.kernel.pipeline import Context, run

        self.ledger(subject)
        reply = run(Context(self, subject, nr, request, pid, tool))
        self._take_snapshot(subject)
        return reply

    # ---- the life of a run ------------------------------------------------------------------------------------------

    def start(self, info: Mapping[str, Any]) -> None:
        """The run's first entry: what `info` says (command, …), the policy's hash and akbox's version."""
        from akbox import __version__

        digest = sha256(stored_policy(self.policy)).hex()
        self._lifecycle("start", {"akbox": __version__, "policy_hash": digest, **info}, {})

    def resume(self, info: Mapping[str, Any], *, wall_ms: int, cpu_ns: int) -> None:
        """Instead of `start`, for a run that is continued: takes up its heap, mailbox, ledgers and revocations;
        `wall_ms` and `cpu_ns` are what it has used. Raises StoreError."""
        root = self.agent(self.root)
        with self.store.transaction() as tx:
            tx.adopt(self.root, taint=TAINT_UNTRUSTED)  # child agents have ended with their supervisor
        used = {k: v for k, v in self.store.load_budgets(self.root).items() if k in LASTING or k == "cpu_ns"}
        objects, size = self.store.held(self.root)
        used |= {"heap_objects": objects, "heap_bytes": size, "cpu_ns": max(used.get("cpu_ns", 0), cpu_ns)}
        self.budgets.restore(used)
        self.earlier_ms = wall_ms
        self._started_ns -= wall_ms * 1_000_000
        root.started_ns -= wall_ms * 1_000_000
        self.caps.load()
        for layer in root.layers:
            for held in layer.held.values():
                if held.rule is not None and self.caps.revoked(held.tid) is not None:
                    layer.end(held.rule)
        for item in self.store.objects(self.root, type=TYPE_TYPE, after=0, limit=MAX_TYPES):
            self.heap.register(item.value)
        digest = sha256(stored_policy(self.policy)).hex()
        earlier = {"earlier_wall_ms": wall_ms, "earlier_cpu_ns": cpu_ns}
        self._lifecycle("resume", {"policy_hash": digest, **earlier, **info}, {})

    def finish(self, info: Mapping[str, Any]) -> None:
        """The run's last entry: exit_code, reason and what else `info` says."""
        self.flush_events()
        self._lifecycle("finish", {}, dict(info))

    def budget_exceeded(self, name: str, agent: AgentId | None = None) -> None:
        """The target ends the run (or this agent) because of a limit; the entry is on disk when this returns."""
        from akbox.kernel.calls.budget import one_budget

        values = one_budget(self, agent or self.root, name)
        self._lifecycle(
            f"budget:{name}", {"limit": values["limit"]}, {"used": values["used"]}, denied_at="BUDGET", agent=agent
        )

    def note_agent(self, agent: Agent, what: str, req: dict[str, Any], res: dict[str, Any]) -> None:
        """An entry about the life of an agent ("start", "end"); on disk when this returns."""
        self._lifecycle(f"agent:{agent.id.hex()}:{what}", req | {"agent_name": agent.name}, res, agent=agent.id)

    def note(self, what: str, req: dict[str, Any], res: dict[str, Any]) -> None:
        """An entry about what belongs to the run and is no agent of it (a mounted server); on disk when this
        returns."""
        self._lifecycle(what, req, res)

    def limit_exceeded(self, name: str, limit: int, used: int | None, agent: AgentId | None = None) -> None:
        """The same for a resource limit, which is no budget: `limits.memory`."""
        self._lifecycle(f"limit:{name}", {"limit": limit}, {"used": used}, denied_at="BUDGET", agent=agent)

    def close(self) -> None:
        """Writes what is merged, makes the last checkpoint and closes the log and the store. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.doorbell.close()
        if self.approvals is not None:
            self.approvals.close()
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
        return self.tree.get(subject).ledger

    def agent(self, subject: AgentId) -> Agent:
        """Raises KeyError for an id that is no agent of this run."""
        return self.tree.get(subject)

    @cached_property
    def caps(self) -> Capabilities:
        """What is minted and revoked."""
        from akbox.kernel.capabilities import Capabilities

        made = Capabilities(self.run_id, self.store, lambda: self.clock_ns() // 1_000_000)
        self.capabilities_in_use = True
        return made

    def revoke(self, tid: str, why: str, *, by: AgentId | None = None, after_ms: int = 0) -> bool:
        """Ends a capability and all that comes from it: held ones for system calls too, from the next call on. "run"
        ends every capability of the run. `after_ms`: only later (for held ones of rules). The entry is on disk first.
        False: it was over before. Raises CallError for a tid that cannot be ended later."""
        found = None if tid == "run" else self._rule_of(tid)
        if after_ms and found is None:
            raise CallError(Code.SCHEMA_INVALID, "after_ms: only what an agent holds by a rule can end later")
        if after_ms == 0 and tid != "run" and self.caps.revoked(tid) is not None:
            return False
        self.flush_events()  # what was decided before stands before it
        receipt = self.log.append(
            Draft(
                ts_ns=self.clock_ns(), agent=by or self.root, op=Op.REVOCATION, name=op_name(Op.REVOCATION),
                target=f"cap:{tid}", decision="allow", rule=None if found is None else found[2],
                req={"reason": why, "after_ms": after_ms}, res={},
            )
        )  # fmt: skip
        self.log.wait_durable(receipt.seq)
        if after_ms and found is not None:
            found[0].end(found[1], time.clock_gettime_ns(time.CLOCK_BOOTTIME) + after_ms * 1_000_000)
            return True
        if tid == "run":
            self.caps.revoke_run(why)
            for layer in self.tree.layers():
                for held in layer.held.values():
                    layer.end(held.rule or 0)
            return True
        self.caps.revoke(tid, why)
        if found is not None:
            found[0].end(found[1])
        return True

    def note_mint(self, token: Token) -> None:
        """An entry for a token that was made outside an agent's call."""
        capability = token.capability
        self.log.append(
            Draft(
                ts_ns=self.clock_ns(), agent=self.root, op=Op.CAP, name=op_name(Op.CAP), target=f"cap:{token.tids[-1]}",
                decision="allow", res={},
                req={"type": capability.type, "resource": capability.resource, "methods": list(capability.methods),
                     "ttl_ms": capability.ttl_ms},
            )
        )  # fmt: skip

    def _rule_of(self, tid: str) -> tuple[Layer, int, str] | None:
        """(layer, rule, its text) of a held capability that stands for a rule."""
        for layer in self.tree.layers():
            held = layer.held.get(tid)
            if held is not None and held.rule is not None:
                return layer, held.rule, str(layer.policy.rules[held.rule])
        return None

    def elapsed_ms(self) -> int:
        """Wall time since the kernel was made, by a clock that nobody can set."""
        return (time.monotonic_ns() - self._started_ns) // 1_000_000

    def flush_events(self) -> None:
        """Brings everything decided so far into the log."""
        if self.pre_query is not None:
            self.pre_query()
        self.log.tick(self.root, everything=True)

    def replay_window(self, subject: AgentId) -> ReplayWindow:
        from akbox.kernel.replay import ReplayWindow

        with self._lock:
            return self._windows.setdefault(subject, ReplayWindow())

    def keep_budgets(self, agent: Agent) -> None:
        """What an agent has used and set aside, durably, and everybody above it. Raises CallError(LOG_FULL)."""
        try:
            at: Agent | None = agent
            while at is not None:
                self.store.save_budgets(at.id, at.ledger.committed())
                at = at.parent
        except StoreError as error:
            raise CallError(Code.LOG_FULL, f"the store failed: {error}") from error

    def break_down(self, agent: Agent, key: str, amounts: Mapping[str, int]) -> None:
        """Adds to what the agent's budgets were used for. At most MAX_KEYS keys; the rest is "other"."""
        with self._lock:
            table = self._breakdown.setdefault(agent.id, {})
            row = table.setdefault(key if key in table or len(table) < MAX_KEYS else "other", {"calls": 0})
            row["calls"] += 1
            for name, amount in amounts.items():
                row[name] = row.get(name, 0) + amount

    def budget_breakdown(self, subject: AgentId) -> dict[str, dict[str, int]]:
        """{call or tool: {calls, budget: amount, …}}."""
        with self._lock:
            return {key: dict(row) for key, row in self._breakdown.get(subject, {}).items()}

    def charge(self, subject: AgentId, name: str, amount: int) -> bool:
        """Counts what a target measured (bytes, CPU). At the limit the agent is ended, although it makes no call; then
        this is False."""
        agent = self.agent(subject)
        fine = agent.ledger.charge(name, amount)
        self.break_down(agent, f"measured:{name}", {name: amount})
        if not fine:
            self.over_budget(agent, name)
        return fine

    def budget_history(self, subject: AgentId) -> list[dict[str, Any]]:
        """Up to 60 snapshots of what was used, a second or more apart, the present one last."""
        self._take_snapshot(subject, now=True)
        with self._lock:
            return list(self._history[subject])

    def note_refusal(self, ctx: Context, error: CallError) -> None:
        """Something was refused (not: went wrong): for the report and LAST_ERROR."""
        denial = Denial(
            op=op_name(ctx.nr), target=ctx.target, count=1, rule=ctx.rule, missing_cap=error.missing_cap,
            suggested_fix=error.suggested_fix, errno=ctx.errno, first_ts_ns=ctx.ts_ns, last_ts_ns=ctx.ts_ns,
            trace_id=ctx.trace_id, message=error.message, code=error.code,
        )  # fmt: skip
        self.refusals.note(ctx.subject, denial)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _lifecycle(
        self,
        what: str,
        req: dict[str, Any],
        res: dict[str, Any],
        denied_at: str | None = None,
        agent: AgentId | None = None,
    ) -> None:
        receipt = self.log.append(
            Draft(
                ts_ns=self.clock_ns(), agent=agent or self.root, op=Op.LIFECYCLE,
                name=op_name(Op.LIFECYCLE), target=f"run:{what}",
                decision="deny" if denied_at else "allow", stage=denied_at, req=req, res=res,
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
            used = self.tree.get(subject).ledger.snapshot() | {"wall_time_ms": self.elapsed_ms()}
            history.append({"timestamp_ms": self.clock_ns() // 1_000_000, **used})
