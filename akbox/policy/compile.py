"""Compiles a policy for one run: rules with numbers, the matchers, and one `decide()` for every kind of effect."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import msgspec

from akbox.policy import builtin, suggest
from akbox.policy.blob import serialize
from akbox.policy.check import PolicyError, Problem
from akbox.policy.effects import Target, need_of, parse_target
from akbox.policy.matcher import (
    ALLOW,
    ASK,
    DENY,
    E_ALLOW,
    E_ASK,
    E_DENY,
    E_FREE,
    E_GUARD,
    EXEC,
    NO_RULE,
    READ,
    UNIX,
    WRITE,
    Accept,
    Match,
    Trie,
    exec_exact,
    judge,
    move_keeps_rights,
    rights,
    visible,
)
from akbox.policy.model import DEFAULT_BUDGETS, Audit, Budgets, Env, Limits, Policy
from akbox.policy.netmatcher import BIND, CONNECT, LISTEN, TCP, UDP, NetRule, NetTable, net_table
from akbox.policy.netpatterns import HostPattern, match_host, parse_endpoint, parse_host
from akbox.policy.patterns import PatternError, Segment, match_name, parse_path, path_bytes
from akbox.policy.rules import Context, Grant, Rule, compose, policy_rules, states_exec

__all__ = ["CompiledPolicy", "Context", "Grant", "Rule", "Verdict", "compile_policy"]

S = TypeVar("S", Audit, Budgets, Limits)
FS_NEEDS = {"fs.read": READ, "fs.write": WRITE, "fs.exec": EXEC, "fs.deny": 7, "fs.protect": WRITE}
NET_OPS = {"net.connect": CONNECT, "net.bind": BIND, "net.listen": LISTEN}
NAME_DENIES = {"tools.allow": "tools.deny", "spawn.allow": "spawn.deny"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one effect. `decision` is DENY 0, ALLOW 1 or ASK 2; `rule` the rule that decided (None: no rule
    covers it); `missing_cap` the section that would have to grant it; `suggested_fix` the line to add, or why none
    helps."""

    decision: int
    rule: Rule | None = None
    missing_cap: str | None = None
    suggested_fix: str | None = None


@dataclass(frozen=True, slots=True)
class HostRule:
    """A rule on names: of net.dns (any port) or a `dns:` endpoint."""

    rule: int
    section: str
    effect: int
    host: HostPattern
    low: int
    high: int
    protocols: tuple[str, ...]


@dataclass(frozen=True)
class CompiledPolicy:
    """A policy ready to decide. `rules[i]` is rule number i of the C matcher, of events and of the log."""

    policy: Policy
    context: Context
    parts: tuple[tuple[str, Policy], ...]
    rules: tuple[Rule, ...]
    segments: dict[int, tuple[Segment, ...]] = field(repr=False)  # by rule number, for rules on paths
    accepts: tuple[tuple[Accept, tuple[Segment, ...]], ...] = field(repr=False)  # what the trie was made of
    trie: Trie = field(repr=False)
    net: NetTable = field(repr=False)
    hosts: tuple[HostRule, ...] = field(repr=False)

    @cached_property
    def blob(self) -> bytes:
        """What `_native.Policy` takes."""
        return serialize(self.trie.root, self.net, len(self.rules))

    @property
    def default_exec(self) -> bool:
        """No fs.exec anywhere: what fs.read grants outside every fs.write pattern may be executed."""
        return not states_exec(list(self.parts))

    def grants(self, section: str) -> tuple[Rule, ...]:
        """The rules of one section ("fs.read"), those of the runtime included under the sections they act in."""
        need = 0 if section in ("fs.deny", "fs.protect") else FS_NEEDS.get(section, 0)
        stated = [rule for rule in self.rules if rule.section == section and not rule.ask]
        return (*stated, *(rule for rule in self.rules if rule.section == "runtime" and rule.need & need))

    def decide(self, op: int, target: str, *, need: int = 0, target2: str | None = None) -> Verdict:
        """Decide one effect: `op` and `target` as in the log, `need` bits for files (0: what the op needs by itself),
        `target2` the other end of a rename or link. What can't be understood is refused."""
        try:
            what = parse_target(op, target)
        except PatternError as error:
            return Verdict(DENY, None, None, error.message)
        match = self._match(what, need or need_of(op), target2)
        rule = self.rules[match.rule] if match.rule != NO_RULE else None
        if match.decision != DENY:
            return Verdict(match.decision, rule)
        missing = what.section or _need_section(match.missing)
        return Verdict(DENY, rule, missing, suggest.fix(self, what, match.missing, rule, target2))

    def suggest(self, op: int, target: str, need: int = 0) -> str:
        """The exact line that would allow the effect, or the rule that forbids it."""
        return self.decide(op, target, need=need).suggested_fix or ""

    def _match(self, what: Target, need: int, target2: str | None) -> Match:
        if what.kind == "path":
            return self._match_path(what, need, target2)
        if what.kind == "unix":
            return judge(self.trie.root, WRITE, path_bytes(what.name), UNIX)
        if what.kind == "ip":
            op = NET_OPS[what.section]
            return self.net.judge(
                op, UDP if what.protocol == "udp" else TCP, ipaddress.ip_address(what.name), what.port
            )
        if what.kind == "dns":
            return self._match_host(what)
        if what.kind == "name":
            return self._match_name(what)
        if what.kind == "own":  # the agent's own heap, budget, mailbox: bounded by budgets, not by rules
            return Match(ALLOW, NO_RULE, 0)
        return Match(DENY, NO_RULE, 0)

    def _match_path(self, what: Target, need: int, target2: str | None) -> Match:
        root = self.trie.root
        source = path_bytes(what.name)
        if what.section in ("spawn.allow",):
            found = self._match_spawn(what.name)
            if found.decision == DENY:
                return found
        first = judge(root, need, source)
        if target2 is None or first.decision == DENY:
            return first
        second = judge(root, need, path_bytes(target2))
        if second.decision == DENY:
            return second
        if not move_keeps_rights(root, source, path_bytes(target2), is_dir=True):
            return Match(DENY, NO_RULE, 0)
        return second if second.decision == ASK else first

    def _match_spawn(self, path: str) -> Match:
        return self._first(what_rules(self, ("spawn.allow", "spawn.deny"), path))

    def _match_host(self, what: Target) -> Match:
        found = []
        for h in self.hosts:
            covered = h.section == what.section or h.section == "net.deny"
            if covered and (
                what.section == "net.dns" or (h.low <= what.port <= h.high and what.protocol in h.protocols)
            ):
                if h.section == "net.deny" and what.section == "net.dns" and (h.low, h.high) != (0, 65535):
                    continue  # refusing one port of a name does not make the name unknown
                if match_host(h.host, what.name):
                    found.append((h.effect, h.rule))
        return self._first(found)

    def _match_name(self, what: Target) -> Match:
        denies = NAME_DENIES.get(what.section)
        found = []
        for i, rule in enumerate(self.rules):
            section = "tools.allow" if rule.ask and rule.section == "tools" else rule.section
            if section in (what.section, denies) and match_name(rule.pattern, what.name):
                found.append((E_ASK if rule.ask else E_DENY if section == denies else E_ALLOW, i))
        return self._first(found)

    def _first(self, found: list[tuple[int, int]]) -> Match:
        for effect, decision in ((E_DENY, DENY), (E_ASK, ASK), (E_ALLOW, ALLOW)):
            numbers = [rule for has, rule in found if has == effect]
            if numbers:
                return Match(decision, min(numbers), 0)
        return Match(DENY, NO_RULE, 0)

    def rights(self, path: str) -> int:
        """Need bits that are allowed for a canonical path."""
        return rights(self.trie.root, path_bytes(path))

    def visible(self, path: str) -> bool:
        """Does the name exist under strict metadata?"""
        return visible(self.trie.root, path_bytes(path))

    def exec_exact(self, path: str) -> bool:
        """Is executing the path allowed by a wildcard-free rule that a policy states?"""
        return exec_exact(self.trie.root, path_bytes(path))

    @cached_property
    def budgets(self) -> dict[str, int | float]:
        """Limits by name; a name that is absent is not limited. `usd` is in dollars, the rest are counts."""
        stated: dict[str, int | float] = msgspec.to_builtins(_joined([part.budgets for _, part in self.parts]))
        return {**DEFAULT_BUDGETS, **stated}

    @cached_property
    def limits(self) -> Limits:
        """Resource limits; None: not limited by the policy."""
        return _joined([part.limits for _, part in self.parts])

    @cached_property
    def env(self) -> Env:
        """Variables to pass and to set, of the policy and its profiles."""
        passed = dict.fromkeys(name for _, part in self.parts for name in part.env.passed)
        values = {k: v for _, part in reversed(self.parts) for k, v in part.env.set.items()}
        for name, path in self.context.variables().items():
            values = {k: v.replace(f"${{{name}}}", path) for k, v in values.items()}
        return Env(passed=tuple(passed), set=values)

    @cached_property
    def audit(self) -> Audit:
        """Level, durability and redaction with the defaults filled in."""
        stated = _joined([part.audit for _, part in self.parts])
        redact = dict.fromkeys(word for _, part in self.parts for word in part.audit.redact)
        return Audit(stated.level or "full", stated.durability or "group", tuple(redact))

    @property
    def fs_metadata(self) -> str:
        """ "open" or "strict"; strict wins wherever it is said."""
        return "strict" if any(part.fs.metadata == "strict" for _, part in self.parts) else "open"

    @property
    def runtime(self) -> str:
        """ "auto" or "none"."""
        return next((part.runtime for _, part in self.parts if part.runtime), "auto")

    def to_json(self) -> bytes:
        """The policy with its profiles joined in, as canonical JSON: sorted keys, no defaults."""
        from akbox.policy.canonical import canonical_policy

        return canonical_policy(self)


def what_rules(compiled: CompiledPolicy, sections: tuple[str, str], path: str) -> list[tuple[int, int]]:
    """(effect, number) of the rules on paths of two sections (allow, deny) that cover `path`; for the rarely asked
    ones."""
    found = []
    for i, rule in enumerate(compiled.rules):
        section = "spawn.allow" if rule.ask and rule.section == "spawn" else rule.section
        if section in sections:
            trie = Trie()
            trie.add(compiled.segments[i], Accept(i, E_ALLOW, READ, False))
            if judge(trie.root, READ, path_bytes(path)).decision == ALLOW:
                found.append((E_ASK if rule.ask else E_DENY if section == sections[1] else E_ALLOW, i))
    return found


def _need_section(need: int) -> str | None:
    """The section that grants the strongest of the missing needs."""
    return next((name for bit, name in ((WRITE, "fs.write"), (EXEC, "fs.exec"), (READ, "fs.read")) if need & bit), None)


def _joined(parts: list[S]) -> S:
    """Of each scalar the first one stated: the policy's own before those of its profiles."""
    joined = parts[-1]
    for part in reversed(parts[:-1]):
        stated = {name: value for name in part.__struct_fields__ if (value := getattr(part, name)) is not None}
        joined = msgspec.structs.replace(joined, **stated)
    return joined


def compile_policy(policy: Policy, context: Context) -> CompiledPolicy:
    """Compile for one run. Raises PolicyError when the policy and its profiles together pass a limit."""
    parts = compose(policy)
    rules = policy_rules(parts)
    build = _Build(context, not states_exec(parts), rules)
    for i, rule in enumerate(list(rules)):
        build.stated(i, rule)
    if next((part.runtime for _, part in parts if part.runtime), "auto") == "auto":
        for grant in context.runtime_grants:
            build.runtime(grant)
    build.always()
    build.trie.finish()
    return CompiledPolicy(
        policy,
        context,
        tuple(parts),
        tuple(build.rules),
        build.segments,
        tuple(build.accepts),
        build.trie,
        net_table(build.net),
        tuple(build.hosts),
    )


class _Build:
    """What compile_policy() fills in, rule by rule."""

    def __init__(self, context: Context, default_exec: bool, rules: list[Rule]) -> None:
        self.variables = context.variables()
        self.context = context
        self.default_exec = default_exec
        self.rules = rules
        self.segments: dict[int, tuple[Segment, ...]] = {}
        self.accepts: list[tuple[Accept, tuple[Segment, ...]]] = []
        self.trie = Trie()
        self.net: list[NetRule] = []
        self.hosts: list[HostRule] = []

    def stated(self, i: int, rule: Rule) -> None:
        try:
            if rule.section.startswith("fs."):
                self._fs(i, rule)
            elif rule.section in ("spawn", "spawn.allow", "spawn.deny"):
                self.segments[i] = parse_path(rule.pattern).expand(self.variables)
            elif rule.section == "net.unix":
                self._unix(i, rule)
            elif rule.section.startswith("net."):
                self._net(i, rule)
        except PatternError as error:  # a Policy that was built by hand instead of loaded
            name = rule.source.name if rule.source else rule.origin
            raise PolicyError([Problem(name, 1, 1, str(rule), error.message, error.hint)]) from error

    def _fs(self, i: int, rule: Rule) -> None:
        pattern = parse_path(rule.pattern)
        segments = self.segments[i] = pattern.expand(self.variables)
        need = FS_NEEDS[rule.section]
        effect = E_ASK if rule.ask else E_DENY if rule.section in ("fs.deny", "fs.protect") else E_ALLOW
        self._accept(segments, Accept(i, effect, need, pattern.exact))
        if self.default_exec and effect == E_ALLOW:
            if need == READ:
                self._accept(segments, Accept(i, E_ALLOW, EXEC, False))
            elif need == WRITE:  # what an agent may have written does not run
                self._accept(segments, Accept(i, E_DENY, EXEC, False))

    def _unix(self, i: int, rule: Rule) -> None:
        pattern = parse_path(rule.pattern.removeprefix("unix:"))
        self.segments[i] = pattern.expand(self.variables)
        self._accept(self.segments[i], Accept(i, E_ASK if rule.ask else E_ALLOW, WRITE, pattern.exact, UNIX))

    def _net(self, i: int, rule: Rule) -> None:
        effect = E_ASK if rule.ask else E_DENY if rule.section == "net.deny" else E_ALLOW
        if rule.section == "net.dns":
            self.hosts.append(HostRule(i, rule.section, effect, parse_host(rule.pattern), 0, 65535, ("tcp", "udp")))
            return
        end = parse_endpoint(rule.pattern)
        both = rule.section == "net.deny" and end.protocol == "tcp"  # a refusal is never narrower than it reads
        protocols = ("tcp", "udp") if both else (end.protocol,)
        if end.host is not None:
            self.hosts.append(HostRule(i, rule.section, effect, end.host, end.low, end.high, protocols))
        elif end.network is not None:
            ops = (CONNECT, BIND, LISTEN) if rule.section == "net.deny" else (NET_OPS[rule.section],)
            uses = tuple((op, UDP if p == "udp" else TCP) for op in ops for p in protocols)
            self.net.append(NetRule(i, effect, end.network, end.low, end.high, uses))

    def runtime(self, grant: Grant) -> None:
        """Never exact: a dynamic linker that the kernel has to load may still not be run by itself."""
        i = self._number(Rule("runtime", grant.pattern, "runtime", need=grant.need, reason=grant.reason))
        self.segments[i] = parse_path(grant.pattern).expand(self.variables)
        self._accept(self.segments[i], Accept(i, E_ALLOW, grant.need, False))

    def always(self) -> None:
        for pattern, need, reason in builtin.ALWAYS_DENIED:
            self._builtin("always denied", pattern, builtin.builtin_segments(pattern), E_DENY, need, reason)
        for path in self.context.state_dirs:
            segments = builtin.state_dir_segments(path)
            self._builtin("always denied", f"{path}/**", segments, E_DENY, builtin.ALL, "akbox's own files")
        segments = builtin.builtin_segments(builtin.GUARDED_DEVICES)
        self._builtin("exact path only", builtin.GUARDED_DEVICES, segments, E_GUARD, builtin.ALL, "a device")
        for pattern in builtin.SAFE_DEVICES:
            self._builtin("device", pattern, builtin.builtin_segments(pattern), E_FREE, builtin.ALL, "a safe device")
        for pattern, reason in builtin.AUTHORITY_SOCKETS:
            self._builtin("exact path only", pattern, builtin.builtin_segments(pattern), E_GUARD, 0, reason, UNIX)

    def _builtin(
        self,
        section: str,
        pattern: str,
        segments: tuple[Segment, ...],
        effect: int,
        need: int,
        reason: str,
        domain: int = 0,
    ) -> None:
        i = self._number(Rule(section, pattern, "builtin", need=need, reason=reason))
        self.segments[i] = segments
        self._accept(segments, Accept(i, effect, need, False, domain))

    def _accept(self, segments: tuple[Segment, ...], accept: Accept) -> None:
        self.accepts.append((accept, segments))
        self.trie.add(segments, accept)

    def _number(self, rule: Rule) -> int:
        self.rules.append(rule)
        return len(self.rules) - 1
