"""A compiled policy: numbered rules, the matchers, and one `decide()` for every kind of effect. Made by compile.py."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from akbox.policy.blob import serialize
from akbox.policy.effects import Target, need_of, parse_target
from akbox.policy.matcher import (
    ALLOW,
    ASK,
    DENY,
    E_ALLOW,
    E_ASK,
    E_DENY,
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
from akbox.policy.model import DEFAULT_BUDGETS, Audit, Budgets, Env, Infer, Limits, McpServer, Policy, Secret
from akbox.policy.netmatcher import BIND, CONNECT, LISTEN, TCP, UDP, NetTable
from akbox.policy.netpatterns import HostPattern, match_host
from akbox.policy.patterns import PatternError, Segment, match_name, path_bytes
from akbox.policy.rules import Context, Rule, states_exec

S = TypeVar("S", Audit, Budgets, Limits)
FS_NEEDS = {"fs.read": READ, "fs.write": WRITE, "fs.exec": EXEC, "fs.deny": 7, "fs.protect": WRITE}
NET_OPS = {"net.connect": CONNECT, "net.bind": BIND, "net.listen": LISTEN}
RESOLVING = ("net.dns", "net.connect")  # a name that may be connected to may be looked up
NAME_DENIES = {"tools.allow": "tools.deny", "spawn.allow": "spawn.deny"}


class Verdict(Struct, frozen=True):
    """The answer for one effect. `decision` is DENY 0, ALLOW 1 or ASK 2; `rule` the rule that decided (None: no rule
    covers it); `missing_cap` the section that would have to grant it; `suggested_fix` the line to add, or why none
    helps."""

    decision: int
    rule: Rule | None = None
    missing_cap: str | None = None
    suggested_fix: str | None = None


class HostRule(Struct, frozen=True):
    """A rule on names: of net.dns (any port) or a `dns:` endpoint."""

    rule: int
    section: str
    effect: int
    host: HostPattern
    low: int
    high: int
    protocols: tuple[str, ...]


class CompiledPolicy(Struct, frozen=True, dict=True):
    """A policy ready to decide. `rules[i]` is rule number i of the C matcher, of events and of the log."""

    policy: Policy
    context: Context
    parts: tuple[tuple[str, Policy], ...]
    rules: tuple[Rule, ...]
    segments: dict[int, tuple[Segment, ...]]  # by rule number, for rules on paths
    accepts: tuple[tuple[Accept, tuple[Segment, ...]], ...]  # what the trie is made of
    net: NetTable
    hosts: tuple[HostRule, ...]
    dead: frozenset[int] = frozenset()  # rules that grant nothing any more

    def __repr__(self) -> str:
        return f"CompiledPolicy({len(self.rules)} rules)"

    @cached_property
    def trie(self) -> Trie:
        """The matcher of paths; a run whose `blob` is kept may end without it."""
        trie = Trie()
        for accept, segments in self.accepts:
            trie.add(segments, accept)
        trie.finish()
        return trie

    @cached_property
    def blob(self) -> bytes:
        """What `_native.Policy` takes."""
        return serialize(self.trie.root, self.net, len(self.rules))

    def without(self, rules: frozenset[int]) -> CompiledPolicy:
        """The policy as if these rules granted nothing; what they refuse stays refused, and numbers stay what they
        are."""
        accepts = tuple((a, s) for a, s in self.accepts if a.rule not in rules or a.effect not in (E_ALLOW, E_ASK))
        return msgspec.structs.replace(
            self,
            accepts=accepts,
            net=self.net.without(rules),
            hosts=tuple(h for h in self.hosts if h.rule not in rules or h.effect == E_DENY),
            dead=rules,
        )

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
        from akbox.policy import suggest  # most runs refuse nothing

        return Verdict(DENY, rule, missing, suggest.fix(self, what, match.missing, rule, target2))

    def decision(self, op: int, target: str, *, need: int = 0) -> int:
        """decide() without the words: DENY, ALLOW or ASK, for whoever asks often."""
        try:
            what = parse_target(op, target)
        except PatternError:
            return DENY
        return self._match(what, need or need_of(op), None).decision

    @property
    def names(self) -> bool:
        """Does any rule let a name be looked up? Then the target has to serve DNS."""
        return any(h.effect != E_DENY and h.section in RESOLVING for h in self.hosts)

    @property
    def sni_enforced(self) -> bool:
        """net.sni: TLS connections that a rule on a name allows must name an allowed host; said anywhere, it holds."""
        return any(part.net.sni == "enforce" for _, part in self.parts)

    def judge_name(self, host: str) -> Match:
        """May this canonical name be looked up? As decide() for net.dns, with the rule's number."""
        return self._match_host(Target("dns", host, "net.dns"))

    def suggest(self, op: int, target: str, need: int = 0) -> str:
        """The exact line that would allow the effect, or the rule that forbids it."""
        return self.decide(op, target, need=need).suggested_fix or ""

    def _match(self, what: Target, need: int, target2: str | None) -> Match:
        if what.kind == "path":
            return self._match_path(what, need, target2)
        if what.kind == "stat":  # names are visible unless fs.metadata is strict
            seen = self.fs_metadata == "open" or self.visible(what.name)
            return Match(ALLOW if seen else DENY, NO_RULE, 0 if seen else READ)
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
        sections = RESOLVING if what.section == "net.dns" else (what.section,)
        for h in self.hosts:
            covered = h.section in sections or h.section == "net.deny"
            if covered and (
                what.section == "net.dns" or (h.low <= what.port <= h.high and what.protocol in h.protocols)
            ):
                if h.section == "net.deny" and what.section == "net.dns" and (h.low, h.high) != (0, 65535):
                    continue  # refusing one port of a name does not make the name unknown
                if match_host(h.host, what.name):
                    found += _looked_up(h) if what.section == "net.dns" else [(h.effect, h.rule)]
        return self._first(found)

    def _match_name(self, what: Target) -> Match:
        denies = NAME_DENIES.get(what.section)
        found = []
        for i, rule in enumerate(self.rules):
            section = "tools.allow" if rule.ask and rule.section == "tools" else rule.section
            if i in self.dead and section != denies:
                continue
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

    @cached_property
    def infer(self) -> Infer:
        """Upstreams, aliases and prices of the policy and its profiles; the policy's own before theirs."""
        return joined_infer(self.parts)

    @cached_property
    def mcp(self) -> dict[str, McpServer]:
        """MCP servers of the policy and its profiles."""
        return {name: server for _, part in reversed(self.parts) for name, server in part.tools.mcp.items()}

    @cached_property
    def signed_by(self) -> tuple[str, ...] | None:
        """Who may have signed a tool that was added: keys that every part which names some has named. None: anybody,
        and nobody."""
        stated = [part.wasm.signed_by for _, part in self.parts if part.wasm.signed_by]
        return tuple(k for k in stated[0] if all(k in keys for keys in stated)) if stated else None

    @cached_property
    def secrets(self) -> dict[str, Secret]:
        """Secrets of the policy and its profiles."""
        return {name: secret for _, part in reversed(self.parts) for name, secret in part.secrets.items()}

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
        return self._canonical

    @cached_property
    def _canonical(self) -> bytes:
        from akbox.policy.canonical import canonical_policy

        return canonical_policy(self)

    @cached_property
    def rule_texts(self) -> tuple[str, ...]:
        """`str(rule)` of each rule, in order."""
        return tuple(map(str, self.rules))


def joined_infer(parts: Sequence[tuple[str, Policy]]) -> Infer:
    """`infer` of a policy and its profiles, without the models, which are rules."""
    tables: dict[str, dict[str, Any]] = {"upstreams": {}, "aliases": {}, "prices": {}}
    for name, table in tables.items():
        for _, part in parts:
            for key, value in getattr(part.infer, name).items():
                table.setdefault(key, value)
    stated = [part.infer for _, part in parts]
    most = [i.max_tokens for i in stated if i.max_tokens is not None]
    return Infer(
        max_tokens=min(most, default=None),
        log_bodies=next((i.log_bodies for i in stated if i.log_bodies is not None), None),
        detect=next((i.detect for i in stated if i.detect is not None), None),
        upstreams=tables["upstreams"],
        aliases=tables["aliases"],
        prices=tables["prices"],
    )


def what_rules(compiled: CompiledPolicy, sections: tuple[str, str], path: str) -> list[tuple[int, int]]:
    """(effect, number) of the rules on paths of two sections (allow, deny) that cover `path`; for the rarely asked
    ones."""
    found = []
    for i, rule in enumerate(compiled.rules):
        section = "spawn.allow" if rule.ask and rule.section == "spawn" else rule.section
        if i in compiled.dead and section != sections[1]:
            continue
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


def _looked_up(h: HostRule) -> list[tuple[int, int]]:
    """What a rule that covers a name says of looking it up. A connection that a person has to approve waits, its
    look-up does not. But what can be said by the labels below a wildcard would be out before anybody was asked, so for
    those a rule of its own (net.dns) has to let them be looked up."""
    if h.effect != E_ASK or h.section != "net.connect":
        return [(h.effect, h.rule)]
    return [] if h.host.wild else [(E_ALLOW, h.rule)]
