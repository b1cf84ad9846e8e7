"""The agents of a run, and what each of them holds because of policies: one capability per rule that grants something.

An agent's policy is a list of layers, its own first and then those of everybody above it; an effect is allowed only if
every layer allows it. A layer whose rule's capability is revoked or over decides as if the rule were not there, in here
and, by `watch`, wherever a target compiled the same rules.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from akbox.kernel.budget import Ledger
from akbox.kernel.digest import sha256
from akbox.kernel.effect import AgentId

if TYPE_CHECKING:
    from akbox.policy.compile import CompiledPolicy
    from akbox.policy.compiled import Verdict
    from akbox.policy.rules import Rule

ALLOW = 1
NOW = 1  # as a deadline: it is over
_KINDS = {  # section -> (type of capability, method, what the resource begins with)
    "fs.read": (2, "read", ""), "fs.write": (2, "write", ""), "fs.exec": (2, "exec", ""),
    "net.connect": (1, "connect", ""), "net.bind": (1, "bind", ""), "net.listen": (1, "listen", ""),
    "net.dns": (1, "dns", "host:"), "net.unix": (1, "connect", "unix:"), "tools.allow": (3, "invoke", ""),
    "wasm.modules": (3, "invoke", ""), "wasm.hostcalls": (3, "invoke", ""), "infer.models": (7, "invoke", ""),
    "spawn.allow": (5, "spawn", ""),
}  # fmt: skip
_NEEDS = ((1, "read"), (2, "write"), (4, "exec"))
HEAP, IPC = 6, 8


class Held(msgspec.Struct, frozen=True):
    """A capability that an agent holds without carrying it. `rule`: the number of the rule it stands for, or None for
    what every agent has (its own heap and mailbox)."""

    tid: str
    type: int
    resource: str
    methods: tuple[str, ...]
    section: str
    pattern: str
    origin: str
    ask: bool
    rule: int | None


class Layer:
    """One compiled policy in force for an agent and everything below it. Thread-safe."""

    def __init__(self, policy: CompiledPolicy, seed: bytes) -> None:
        self.policy = policy
        self._seed = seed
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._over: dict[int, int] = {}  # rule -> CLOCK_BOOTTIME ns from which it is over
        self._watchers: list[Callable[[int, int], None]] = []
        self._live: tuple[frozenset[int], CompiledPolicy] = (frozenset(), policy)

    def decide(self, op: int, target: str, *, need: int, target2: str | None) -> Verdict:
        return self.live().decide(op, target, need=need, target2=target2)

    def live(self) -> CompiledPolicy:
        """The policy without the rules that are over."""
        if not self._over:
            return self.policy
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        with self._lock:
            over = frozenset(rule for rule, at in self._over.items() if at <= now)
            if over != self._live[0]:
                self._live = (over, self.policy.without(over))
            return self._live[1]

    def end(self, rule: int, at_ns: int = NOW) -> None:
        """The rule grants nothing from `at_ns` (CLOCK_BOOTTIME) on; a later end than the one it has changes nothing."""
        with self._lock:
            if self._over.get(rule, at_ns + 1) <= at_ns:
                return
            self._over[rule] = at_ns
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher(rule, at_ns)

    def watch(self, ended: Callable[[int, int], None]) -> None:
        """`ended(rule, at_ns)` is called for each rule that has or gets an end."""
        with self._lock:
            self._watchers.append(ended)
            known = list(self._over.items())
        for rule, at_ns in known:
            ended(rule, at_ns)

    def over(self, rule: int) -> bool:
        at = self._over.get(rule)
        return at is not None and at <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    @cached_property
    def held(self) -> dict[str, Held]:
        """By tid, one for each granting rule, in order. A tid names, it proves nothing: it need not be secret."""
        out = {}
        for number, rule in enumerate(self.policy.rules):
            made = self._held(number, rule)
            if made is not None:
                out[made.tid] = made
        return out

    def _held(self, number: int, rule: Rule) -> Held | None:
        from akbox.policy.patterns import show

        kind = _KINDS.get(f"{rule.section}.allow" if rule.ask and rule.section in ("tools", "spawn") else rule.section)
        if rule.section == "runtime" and rule.need:
            kind = (2, "", "")
        if kind is None:
            return None
        methods = (kind[1],) if kind[1] else tuple(name for bit, name in _NEEDS if rule.need & bit)
        segments = self.policy.segments.get(number)
        pattern = rule.pattern.removeprefix(kind[2]) if segments is None else show(segments)
        return Held(
            tid=tid_of(self._seed, f"{rule} {rule.need}"), type=kind[0], resource=kind[2] + pattern, methods=methods,
            section=rule.section, pattern=rule.pattern, origin=rule.origin, ask=rule.ask, rule=number,
        )  # fmt: skip


class Agent:
    """One principal. What changes in its life is guarded by the kernel's lock."""

    def __init__(
        self, agent_id: AgentId, name: str, layer: Layer | None, ledger: Ledger, parent: Agent | None, seed: bytes
    ) -> None:
        self.id = agent_id
        self.name = name
        self.parent = parent
        self.ledger = ledger
        self.layer = layer  # None: the parent's policy as it is
        above = () if parent is None else parent.layers
        self.layers: tuple[Layer, ...] = above if layer is None else (layer, *above)
        self.state = "running"
        self.retired = False
        self.started_ns = time.monotonic_ns()
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.heap_tid = tid_of(seed, "heap")
        self.ipc_tid = tid_of(seed, "ipc")

    def forget(self) -> None:
        """It has ended for good: its policy takes no more memory."""
        assert self.parent is not None
        self.layer, self.layers = None, self.parent.layers
        self.__dict__.pop("rule_texts", None)

    @cached_property
    def rule_texts(self) -> tuple[str, ...]:
        """By the rule numbers of the agent's events: its own layer's rules, then those above."""
        return tuple(text for layer in self.layers for text in layer.policy.rule_texts)

    @property
    def alive(self) -> bool:
        return self.state == "running"

    def layer_ends(self, ended: Callable[[int, int], None]) -> None:
        """`Layer.watch` of the agent's own layer."""
        self.layers[0].watch(ended)

    def decide(self, op: int, target: str, *, need: int, target2: str | None) -> Verdict:
        """Every layer has to allow it; the first that does not, from the agent's own upwards, says why. A layer that
        asks is heard only where none refuses."""
        asks: Verdict | None = None
        allowed: Verdict | None = None
        for layer in self.layers:
            verdict = layer.decide(op, target, need=need, target2=target2)
            if verdict.decision == 0:
                return verdict
            if verdict.decision == ALLOW:
                allowed = allowed or verdict
            else:
                asks = asks or verdict
        found = asks or allowed
        assert found is not None
        return found

    def held(self) -> Iterator[Held]:
        """What it holds itself; what is above it limits it further."""
        yield Held(self.heap_tid, HEAP, "*", (), "heap", "*", "akbox", False, None)
        yield Held(self.ipc_tid, IPC, f"agent:{self.id.hex()}", (), "ipc", self.id.hex(), "akbox", False, None)
        yield from self.layers[0].held.values()

    def is_below(self, other: Agent) -> bool:
        """Is `other` the agent or above it?"""
        at: Agent | None = self
        while at is not None and at is not other:
            at = at.parent
        return at is other


def tid_of(seed: bytes, what: str) -> str:
    """The number of a held capability: the same after a restart, so that it stays revoked."""
    return sha256(seed + b"\0" + what.encode("utf-8", "surrogateescape"))[:16].hex()
