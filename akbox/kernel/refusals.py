"""What was refused in a run: each distinct refusal once, for the report, and the last one of each agent, for
LAST_ERROR."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import msgspec

from akbox.kernel.codes import Code
from akbox.kernel.effect import AgentId, Denial
from akbox.kernel.event_lines import rule_text, text
from akbox.kernel.events import ALLOW, NO_RULE, Event
from akbox.kernel.ops import Op, op_name

if TYPE_CHECKING:
    from akbox.policy.compile import CompiledPolicy

MAX_DISTINCT = 4096


class Refusals:
    """Thread-safe. At most MAX_DISTINCT are told apart; `others` counts the rest, so that an agent can't fill
    memory."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._seen: dict[tuple[object, ...], Denial] = {}
        self._last: dict[AgentId, Denial] = {}
        self.others = 0

    def note(self, agent: AgentId, denial: Denial) -> None:
        """Counts one refusal; an equal one (op, target, rule, errno, missing_cap) only raises its count."""
        key = (denial.op, denial.target, denial.rule, denial.errno, denial.missing_cap)
        with self._lock:
            self._count(agent, key, denial)

    def note_event(self, agent: AgentId, event: Event, trace_id: str | None) -> None:
        """Counts a refusal that the compiled matcher took; `trace_id` None: its entry is merged into an earlier one."""
        key = (event.op, event.target, event.target2, event.rule, event.error, event.missing)
        with self._lock:
            known = self._seen.get(key)
            if known is not None:
                known.count += 1
                known.last_ts_ns = max(event.ts_ns, known.last_ts_ns)
                known.trace_id = trace_id or known.trace_id
                self._last[agent] = known
                return
        self._add_event(agent, key, event, trace_id or "")

    def last(self, agent: AgentId) -> Denial | None:
        with self._lock:
            found = self._last.get(agent)
            return None if found is None else msgspec.structs.replace(found)

    def all(self) -> list[Denial]:
        """A copy, in the order of their first time."""
        with self._lock:
            return [msgspec.structs.replace(denial) for denial in self._seen.values()]

    def _add_event(self, agent: AgentId, key: tuple[object, ...], event: Event, trace_id: str) -> None:
        """The Python matcher says what would allow it: the C one reports only the rule and the missing bits."""
        target, _ = text(event.target)
        target2 = text(event.target2)[0] if event.target2 else None
        verdict = self._policy.decide(event.op, target, need=event.missing or event.need, target2=target2)
        rule = None if event.rule == NO_RULE else rule_text(self._policy.rules, event.rule)
        denial = Denial(
            op=op_name(event.op), target=target, count=event.count, rule=rule, missing_cap=verdict.missing_cap,
            suggested_fix=verdict.suggested_fix, errno=event.error, first_ts_ns=event.ts_ns, last_ts_ns=event.ts_ns,
            trace_id=trace_id, message=_why(event, rule, verdict.decision), code=Code.POLICY_DENY,
        )  # fmt: skip
        with self._lock:
            self._count(agent, key, denial)

    def _count(self, agent: AgentId, key: tuple[object, ...], denial: Denial) -> None:
        known = self._seen.get(key)
        if known is None:
            self._last[agent] = denial
            if len(self._seen) < MAX_DISTINCT:
                self._seen[key] = denial
            else:
                self.others += denial.count
            return
        known.count += denial.count
        known.last_ts_ns = max(known.last_ts_ns, denial.last_ts_ns)
        known.trace_id = denial.trace_id or known.trace_id
        self._last[agent] = known


def _why(event: Event, rule: str | None, by_policy: int) -> str:
    if rule is not None:
        return f"refused by {rule}"
    if event.op == Op.SIGNAL:
        return "acts on a process outside the run, which no policy allows"
    # What the policy itself would allow was refused for another reason, such as making a device node.
    return "no policy allows it" if by_policy == ALLOW or event.op == Op.SYS_REFUSED else "no rule allows it"
