"""From policies, profiles, the runtime's needs and what is always refused to one flat list of rules.

A rule's place in the list is its number everywhere: in the matchers, in events, in the log. Rules of the policy come
first, in the order of the schema, so that of several rules that cover something the one people wrote themselves is
named.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from akbox.policy.check import PolicyError, Problem, split_effect
from akbox.policy.model import RULES_MAX, Policy
from akbox.policy.presets import load_profile
from akbox.policy.source import Path, Source


class Grant(Struct, frozen=True):
    """What the launched command itself needs to start: a path pattern, need bits (READ 1, WRITE 2, EXEC 4), and why."""

    pattern: str
    need: int
    reason: str


class Context(Struct, frozen=True):
    """What a policy's variables stand for in one run (absolute paths), and what it adds to every policy."""

    workdir: str
    home: str
    tmp: str
    prefix: str
    state_dirs: tuple[str, ...] = ()
    runtime_grants: tuple[Grant, ...] = ()
    policy_files: tuple[str, ...] = ()  # as policy_names() gives them
    protected: tuple[str, ...] = ()  # as protected_links() gives them
    channel: str = ""  # the socket at which the kernel itself listens for this agent
    secret_files: tuple[str, ...] = ()  # where secrets are kept: nothing in them is the agent's
    gateway: str = ""  # the run's own model gateway, "127.0.0.1:PORT", or "" for none
    gateway_socket: str = ""  # the same at a unix socket

    def variables(self) -> dict[str, str]:
        """By the names that `${…}` takes."""
        return {"workdir": self.workdir, "home": self.home, "tmp": self.tmp, "prefix": self.prefix}


class Rule(Struct, frozen=True):
    """One rule: its section ("fs.read"), pattern as written, and where it comes from ("policy", "profile python",
    "runtime", "builtin"). `ask`: it waits for approval. `need`: for runtime and builtin rules, the bits it is about."""

    section: str
    pattern: str
    origin: str = "policy"
    ask: bool = False
    need: int = 0
    reason: str = ""
    source: Source | None = None
    path: Path = ()

    def __str__(self) -> str:
        return ("approve " if self.ask else "") + f"{self.section} {self.pattern}"

    @property
    def where(self) -> str:
        """`file:line`, or "" for rules that no file states."""
        return f"{self.source.name}:{self.source.at(self.path)[0]}" if self.source else ""


# The lists of the schema whose items are rules, in the order of rule numbers.
RULE_LISTS: tuple[tuple[str, str], ...] = (
    *(("fs", name) for name in ("read", "write", "exec", "deny", "protect")),
    *(("net", name) for name in ("dns", "connect", "bind", "listen", "unix", "deny", "private")),
    ("tools", "allow"),
    ("tools", "deny"),
    ("wasm", "modules"),
    ("wasm", "hostcalls"),
    ("infer", "models"),
    ("spawn", "allow"),
    ("spawn", "deny"),
)


def compose(policy: Policy) -> list[tuple[str, Policy]]:
    """The policy and every profile it names, directly or through another, each once; with their origins."""
    parts = [("policy", policy)]
    waiting = list(policy.profiles)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop(0)
        if name not in seen:
            seen.add(name)
            profile = load_profile(name)
            parts.append((f"profile {name}", profile))
            waiting += profile.profiles
    return parts


def policy_rules(parts: list[tuple[str, Policy]]) -> list[Rule]:
    """All rules that files state, without repeats. Raises PolicyError past RULES_MAX."""
    rules: dict[tuple[str, str, bool], Rule] = {}
    for origin, part in parts:
        for rule in _stated(origin, part):
            rules.setdefault((rule.section, rule.pattern, rule.ask), rule)
    if len(rules) > RULES_MAX:
        source = parts[0][1].source
        message = f"{len(rules)} rules with its profiles: at most {RULES_MAX} are allowed"
        raise PolicyError([Problem(source.name if source else "policy", 1, 1, "", message, "use * or ** to join them")])
    return list(rules.values())


def _stated(origin: str, part: Policy) -> Iterator[Rule]:
    for section, name in RULE_LISTS:
        for i, pattern in enumerate(getattr(getattr(part, section), name) or ()):
            yield Rule(f"{section}.{name}", pattern, origin, source=part.source, path=(section, name, i))
    for i, effect in enumerate(part.approve.effects):
        section, pattern = split_effect(effect)
        yield Rule(section, pattern, origin, ask=True, source=part.source, path=("approve", "effects", i))


def states_names(parts: list[tuple[str, Policy]]) -> bool:
    """Whether any part lets names be looked up: CompiledPolicy.names, before there is one."""
    return any(
        part.net.dns
        or any(text.startswith(("dns:", "udp+dns:")) for text in part.net.connect)
        or any(effect.startswith("net.dns") or "dns:" in effect for effect in part.approve.effects)
        for _, part in parts
    )


def states_exec(parts: list[tuple[str, Policy]]) -> bool:
    """Whether any part has an fs.exec list, an empty one included: then fs.read no longer implies anything about
    exec."""
    return any(part.fs.exec is not None for _, part in parts)
