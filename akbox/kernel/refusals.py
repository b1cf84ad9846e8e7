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
    from akbox.kernel.agents import Agent

MAX_DISTINCT = 4096


class _Refusal(msgspec.Struct):
    """`event` is what the denial comes from as long as nobody has asked what would have allowed it."""

    denial: Denial
    event: Event | None = None
    agent: Agent | None = None


class Refusals:
    """Thread-safe. At most MAX_DISTINCT are told apart; `others` counts the rest, so that an agent can't fill
    memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[tuple[object, ...], _Refusal] = {}
        self._last: dict[AgentId, _Refusal] = {}
        self.others = 0

    def note(self, agent: AgentId, denial: Denial) -> None:
        """Counts one refusal; an equal one (op, target, rule, errno, missing_cap) only raises its count."""
        key = (denial.op, denial.target, denial.rule, denial.errno, denial.missing_cap)
        with self._lock:
            self._count(agent, key, _Refusal(denial))

    def note_event(self, who: Agent, event: Event, trace_id: str | None) -> None:
        """Counts a refusal that the compiled matcher took; `trace_id` None: its entry is merged into an earlier one."""
        agent = who.id
        key = (who.layers[0], event.op, event.target, event.target2, event.rule, event.error, event.missing)
        with self._lock:
            known = self._seen.get(key)
            if known is not None:
                denial = known.denial
                denial.count += 1
                denial.last_ts_ns = max(event.ts_ns, denial.last_ts_ns)
                denial.trace_id = trace_id or denial.trace_id
                self._last[agent] = known
            else:
                self._count(agent, key, _Refusal(self._denial(who, event, trace_id or ""), event, who))

    def last(self, agent: AgentId) -> Denial | None:
        with self._lock:
            found = self._last.get(agent)
            return None if found is None else self._judged(found)

    def all(self) -> list[Denial]:
        """A copy, in the order of their first time."""
        with self._lock:
            return [self._judged(refusal) for refusal in self._seen.values()]

    def _denial(self, who: Agent, event: Event, trace_id: str) -> Denial:
        rule = None if event.rule == NO_RULE else rule_text(who.rule_texts, event.rule)
        return Denial(
            op=op_name(event.op), target=text(event.target)[0], count=event.count, rule=rule, missing_cap=None,
            suggested_fix=None, errno=event.error, first_ts_ns=event.ts_ns, last_ts_ns=event.ts_ns, trace_id=trace_id,
            message="", code=Code.POLICY_DENY,
        )  # fmt: skip

    def _judged(self, refusal: _Refusal) -> Denial:
        """A copy. The Python matcher says what would allow it (the C one reports only the rule and the missing bits),
        when somebody asks: an agent that is refused one thing after the other shall not wait for that."""
        denial, event = refusal.denial, refusal.event
        if event is not None:
            target2 = text(event.target2)[0] if event.target2 else None
            need = event.missing or event.need
            agent = refusal.agent
            assert agent is not None
            network = 0x200 <= event.op < 0x300  # there the second name is no second target
            verdict = agent.decide(event.op, denial.target, need=need, target2=None if network else target2)
            denial.harmless = event.op == Op.NET_CONNECT and _asks_the_way(agent, denial.target)
            special = _in_network_words(denial.target, target2 or "") if network else None
            if special is not None:
                denial.message, denial.missing_cap, denial.suggested_fix = special
            else:
                denial.missing_cap, denial.suggested_fix = verdict.missing_cap, verdict.suggested_fix
                reason = verdict.rule.reason if verdict.rule is not None and denial.rule else ""
                denial.message = _why(event, denial.rule, verdict.decision) + (f" ({reason})" if reason else "")
            refusal.event = None
        return msgspec.structs.replace(denial)

    def _count(self, agent: AgentId, key: tuple[object, ...], refusal: _Refusal) -> None:
        known = self._seen.get(key)
        if known is None:
            self._last[agent] = refusal
            if len(self._seen) < MAX_DISTINCT:
                self._seen[key] = refusal
            else:
                self.others += refusal.denial.count
            return
        denial, again = known.denial, refusal.denial
        denial.count += again.count
        denial.last_ts_ns = max(denial.last_ts_ns, again.last_ts_ns)
        denial.trace_id = again.trace_id or denial.trace_id
        self._last[agent] = known


def _in_network_words(target: str, meant: str) -> tuple[str, str | None, str | None] | None:
    from akbox.kernel.network_words import explain_refusal  # most runs refuse no connection

    return explain_refusal(target, meant)


def _asks_the_way(agent: Agent, target: str) -> bool:
    """Resolvers connect a UDP socket to each address of a name, sending nothing, to see which is nearest: to the port
    that is wanted, to 0 or to 9 (RFC 6724; glibc, Go). Refused, they go on."""
    twin = target.removeprefix("udp+")
    if not target.startswith("udp+dns:"):
        return False
    return twin.endswith((":0", ":9")) or agent.decide(Op.NET_CONNECT, twin, need=0, target2=None).decision == ALLOW


def _why(event: Event, rule: str | None, by_policy: int) -> str:
    if rule is not None:
        return f"refused by {rule}"
    if event.op == Op.SIGNAL:
        return "acts on a process outside the run, which no policy allows"
    # What the policy itself would allow was refused for another reason, such as making a device node.
    return "no policy allows it" if by_policy == ALLOW or event.op == Op.SYS_REFUSED else "no rule allows it"
