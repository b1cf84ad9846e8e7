"""Compiles a policy for one run: every rule gets its number and goes into the tables that decide."""

from __future__ import annotations

from akbox.policy import builtin
from akbox.policy.check import PolicyError, Problem
from akbox.policy.compiled import FS_NEEDS, NET_OPS, CompiledPolicy, HostRule, Verdict
from akbox.policy.matcher import (
    E_ALLOW,
    E_ASK,
    E_DENY,
    E_FREE,
    E_GUARD,
    EXEC,
    READ,
    UNIX,
    WRITE,
    Accept,
)
from akbox.policy.model import Policy
from akbox.policy.netmatcher import BIND, CONNECT, LISTEN, TCP, UDP, NetRule, net_table
from akbox.policy.netpatterns import parse_endpoint, parse_host
from akbox.policy.patterns import STAR, PatternError, Segment, literal_segments, parse_path
from akbox.policy.rules import Context, Grant, Rule, compose, policy_rules, states_exec

__all__ = ["CompiledPolicy", "Context", "Grant", "Rule", "Verdict", "compile_policy"]

GRANTING = frozenset(("fs.read", "fs.write", "fs.exec", "spawn", "spawn.allow", "net.unix"))


def compile_policy(policy: Policy, context: Context) -> CompiledPolicy:
    """Compile for one run. Raises PolicyError when the policy and its profiles together pass a limit."""
    parts = compose(policy)
    rules = policy_rules(parts)
    _check_variables(rules, context)
    build = _Build(context, not states_exec(parts), rules)
    for i, rule in enumerate(list(rules)):
        build.stated(i, rule)
    if next((part.runtime for _, part in parts if part.runtime), "auto") == "auto":
        for grant in context.runtime_grants:
            build.runtime(grant)
    build.always()
    if context.gateway:  # last: whatever has a number without it has the same number with it
        build.gateway(context.gateway)
    return CompiledPolicy(
        policy,
        context,
        tuple(parts),
        tuple(build.rules),
        build.segments,
        tuple(build.accepts),
        net_table(build.net),
        tuple(build.hosts),
    )


def _check_variables(rules: list[Rule], context: Context) -> None:
    """A variable that stands for a directory around the home directories would turn a narrow rule into all of them."""
    home = context.home.rstrip("/") + "/"
    problems = []
    for rule in rules:
        base = parse_path(rule.pattern.removeprefix("unix:")).base if rule.section in GRANTING else ""
        if base not in ("workdir", "tmp", "prefix"):
            continue
        path = context.variables()[base]
        whole = home.startswith(path.rstrip("/") + "/") and (base == "prefix" or path != context.home)
        if whole:
            line, column = rule.source.at(rule.path) if rule.source else (1, 1)
            name = rule.source.name if rule.source else rule.origin
            message = f"${{{base}}} is {path} here, which holds the home directory"
            hint = "start akbox in a directory of the project" if base == "workdir" else "write the path that is meant"
            problems.append(Problem(name, line, column, str(rule), message, hint))
    if problems:
        raise PolicyError(problems)


class _Build:
    """What compile_policy() fills in, rule by rule."""

    def __init__(self, context: Context, default_exec: bool, rules: list[Rule]) -> None:
        self.variables = context.variables()
        self.context = context
        self.default_exec = default_exec
        self.rules = rules
        self.segments: dict[int, tuple[Segment, ...]] = {}
        self.accepts: list[tuple[Accept, tuple[Segment, ...]]] = []
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
        if rule.section in ("net.dns", "net.private"):
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

    def gateway(self, endpoint: str) -> None:
        """The one address that a policy with upstreams implies; net.deny wins over it as over any grant."""
        rule = Rule("net.connect", f"ip:{endpoint}", "gateway", reason="the run's model gateway")
        self._net(self._number(rule), rule)

    def always(self) -> None:
        for pattern, need, reason in builtin.ALWAYS_DENIED:
            self._builtin("always denied", pattern, builtin.builtin_segments(pattern), E_DENY, need, reason)
        for path in self.context.state_dirs:
            segments = builtin.state_dir_segments(path)
            self._builtin("always denied", f"{path}/**", segments, E_DENY, builtin.ALL, "akbox's own files")
            self._accept(segments, Accept(len(self.rules) - 1, E_DENY, WRITE, False, UNIX))  # nor its sockets
        for section, path, reason in (
            ("channel", self.context.channel, "the kernel's own socket"),
            ("gateway", self.context.gateway_socket, "the run's model gateway"),
        ):
            if path:
                segments = literal_segments(path)
                self._builtin(section, path, segments, E_ALLOW, 0, reason)
                self._accept(segments, Accept(len(self.rules) - 1, E_ALLOW, WRITE, True, UNIX))
        for path in self.context.policy_files:
            reason = "the policy of this run: an agent must not be able to widen its next one"
            self._builtin("always denied", path, literal_segments(path), E_DENY, WRITE, reason)
        for path in self.context.secret_files:
            self._builtin("always denied", path, literal_segments(path), E_DENY, builtin.ALL, "a secret of this policy")
        for path in self.context.protected:
            below = path.endswith("/**")
            segments = literal_segments(path[:-3] if below else path) + (((STAR, b""),) if below else ())
            self._builtin("always denied", path, segments, E_DENY, WRITE, "a protected name leads to it")
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

    def _number(self, rule: Rule) -> int:
        self.rules.append(rule)
        return len(self.rules) - 1
