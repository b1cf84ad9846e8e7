"""What a second policy newly allows or refuses, with an example of each.

Both policies are asked about examples made from the patterns that only one of them has: the pattern itself, names that
fit its wildcards, where it meets the directories of every other pattern, both ends of its ports and networks and what
is just outside them. What no pattern is about is compared as it stands. An example is proof of a difference; that none
was found is not a proof of equality.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from itertools import product, takewhile
from typing import Any

import msgspec
from msgspec import Struct

from akbox.policy.compiled import CompiledPolicy
from akbox.policy.explain import EFFECTS, WORDS
from akbox.policy.matcher import ALLOW, ASK, DENY
from akbox.policy.netpatterns import Endpoint, HostPattern, Network, parse_endpoint, parse_host
from akbox.policy.patterns import DIGITS, GLOB, LITERAL, STAR, Segment, match_segment
from akbox.policy.rules import Rule

FILLER = "zq"  # a name that no policy means
_FILES = ("fs.read", "fs.write", "fs.exec")
_ENDPOINTS = ("net.connect", "net.bind", "net.listen", "net.deny")
_PREFIX = {"tools": "tool", "wasm": "wasm", "infer": "model"}
_ORDER = {DENY: 0, ASK: 1, ALLOW: 2}


class Change(Struct, frozen=True, order=True):
    """kind: "wider", "narrower" or "other". effect: "fs.read", or the key of a value. target: an example, or the value
    before. after: the verdict or value now; rule: which rule says so, or said so before."""

    kind: str
    effect: str
    target: str
    before: str
    after: str
    rule: str


def diff(one: CompiledPolicy, two: CompiledPolicy) -> list[Change]:
    """Changes from `one` to `two`, the wider first; for each pair of rules one example."""
    found: dict[tuple[str, str, str, str], Change] = {}
    for effect, target in _examples(one, two):
        op, need = EFFECTS[effect]
        if one.decision(op, target, need=need) != two.decision(op, target, need=need):
            before, after = (policy.decide(op, target, need=need) for policy in (one, two))
            kind = "wider" if _ORDER[after.decision] > _ORDER[before.decision] else "narrower"
            old, new = (str(verdict.rule) if verdict.rule else "" for verdict in (before, after))
            change = Change(kind, effect, target, WORDS[before.decision], WORDS[after.decision], new or old)
            found.setdefault((kind, effect, old, new), change)
    order = {"wider": 0, "narrower": 1, "other": 2}
    return sorted([*found.values(), *_values(one, two)], key=lambda c: (order[c.kind], c.effect, c.target))


# ---- examples --------------------------------------------------------------------------------------------------------


def _examples(one: CompiledPolicy, two: CompiledPolicy) -> Iterator[tuple[str, str]]:
    news = _changed(one, two)
    asks = any(rule.ask for policy in (one, two) for rule in policy.rules)
    for path in _unique(_all_paths(news, one, two)):
        if asks or one.rights(path) != two.rights(path):
            yield from ((effect, path) for effect in _FILES)
    for rule, segments in news:
        if rule.section.startswith("spawn") or rule.section == "net.unix":
            effect = "spawn" if rule.section.startswith("spawn") else "net.unix"
            yield from ((effect, f"unix:{path}" if effect == "net.unix" else path) for path in _filled(segments or ()))
        elif rule.section in ("net.dns", "net.private"):
            yield from (("net.dns", host) for host in _hosts(parse_host(rule.pattern)))
        elif rule.section.partition(".")[0] in _PREFIX:
            effect, start = rule.section.partition(".")[0], rule.pattern.rstrip("*")
            yield from ((effect, f"{_PREFIX[effect]}:{name}") for name in (start or FILLER, start + FILLER))
    if any(rule.section in _ENDPOINTS for rule, _ in news):
        yield from _endpoints(one, two)


def _changed(one: CompiledPolicy, two: CompiledPolicy) -> list[tuple[Rule, tuple[Segment, ...] | None]]:
    """The rules, with their meaning here, that only one of the two has."""
    rules = [
        {(r.section, r.pattern, r.ask, r.need, policy.segments.get(i)): r for i, r in enumerate(policy.rules)}
        for policy in (one, two)
    ]
    return [(own[key], key[4]) for own, other in (rules, rules[::-1]) for key in own if key not in other]


def _unique(items: Iterable[Any]) -> Iterable[Any]:
    return dict.fromkeys(items)


def _endpoints(*policies: CompiledPolicy) -> Iterator[tuple[str, str]]:
    texts = _unique(r.pattern for policy in policies for r in policy.rules if r.section in _ENDPOINTS)
    ends = [parse_endpoint(text) for text in texts]
    ports = sorted({p for e in ends for p in (e.low - 1, e.low, e.high, e.high + 1) if 0 <= p <= 65535})
    for where in _unique(where for end in ends for where in _wheres(end)):
        for port, udp in product(ports, ("", "udp+")):
            for effect in ("net.connect", *(() if where.startswith("dns:") else ("net.bind", "net.listen"))):
                yield effect, f"{udp}{where}:{port}"


def _all_paths(news: Sequence[tuple[Rule, tuple[Segment, ...] | None]], *policies: CompiledPolicy) -> Iterator[str]:
    """Of each pattern that changed by itself, and where it and another one's directory meet."""
    changed = [segments for _, segments in news if segments is not None]
    patterns = list(_unique(segments for policy in policies for segments in policy.segments.values()))
    bases = list(_unique(_base(segments) for segments in patterns))
    for segments in changed:
        yield from _filled(segments)
        yield from (path for base in bases for path in _aligned(segments, base))
    for base in _unique(_base(segments) for segments in changed):
        yield from (path for segments in patterns for path in _aligned(segments, base))


def _base(segments: tuple[Segment, ...]) -> tuple[bytes, ...]:
    """The names before the first wildcard."""
    return tuple(raw for _, raw in takewhile(lambda segment: segment[0] == LITERAL, segments))


def _aligned(segments: tuple[Segment, ...], base: tuple[bytes, ...]) -> Iterator[str]:
    """Paths that fit the pattern and begin with the base."""
    for names, rest in _over(segments, base):
        yield from _filled((*((LITERAL, name) for name in names), *rest))


def _over(
    segments: tuple[Segment, ...], base: tuple[bytes, ...], before: tuple[bytes, ...] = ()
) -> Iterator[tuple[tuple[bytes, ...], tuple[Segment, ...]]]:
    """Each way the pattern can take the whole base: the base, and what of the pattern is left."""
    if not base:
        yield before, segments
    elif segments:
        (kind, raw), name = segments[0], base[0]
        if kind == STAR:
            yield from _over(segments, base[1:], (*before, name))
            yield from _over(segments[1:], base, before)
        elif match_segment((kind, raw), name):
            yield from _over(segments[1:], base[1:], (*before, name))


def _filled(segments: tuple[Segment, ...]) -> Iterator[str]:
    """Paths that fit: each `**` as nothing, one and two names, each `*` in a name as nothing and as some letters."""
    choices: list[list[tuple[str, ...]]] = []
    for kind, raw in segments:
        text = raw.decode("utf-8", "surrogateescape")
        if kind == LITERAL:
            choices.append([(text,)])
        elif kind == STAR:
            choices.append([(), (FILLER,), (FILLER, FILLER)])
        elif kind == GLOB:
            choices.append([(text.replace("*", fill).replace("?", "q"),) for fill in ("", FILLER)])
        else:
            choices.append([("1",) if kind == DIGITS else (FILLER,)])
    for names in product(*choices):
        flat = [name for group in names for name in group]
        if all(flat):
            yield "/" + "/".join(flat)


def _hosts(pattern: HostPattern) -> list[str]:
    if not pattern.wild:
        return [pattern.name, f"{FILLER}.{pattern.name}"]
    name = pattern.name or "example"
    return [name, f"{FILLER}.{name}", f"{FILLER}.{FILLER}.{name}"]


def _wheres(end: Endpoint) -> Iterator[str]:
    if end.host is not None:
        yield from (f"dns:{host}" for host in _hosts(end.host))
    if end.network is not None:
        for address in _edges(end.network):
            yield f"ip:[{address}]" if address.version == 6 else f"ip:{address}"


def _edges(network: Network) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Both ends of a network, and the addresses beside it."""
    kind = type(network.network_address)
    first, last = int(network.network_address), int(network.broadcast_address)
    for number in (first - 1, first, last, last + 1):
        if 0 <= number < 1 << network.max_prefixlen:
            yield kind(number)


# ---- values ----------------------------------------------------------------------------------------------------------

_TIGHTEST = {
    "fs.metadata": "strict",
    "net.sni": "enforce",
    "runtime": "none",
    "audit.level": "full",
    "infer.detect": "block",
}
_SMALLER_IS_NARROWER = ("budgets", "limits")


def _values(one: CompiledPolicy, two: CompiledPolicy) -> Iterator[Change]:
    before, after = _flat(one), _flat(two)
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old != new:
            yield Change(_kind(key, old, new), key, _word(old), _word(old), _word(new), "")


def _kind(key: str, old: object, new: object) -> str:
    section = key.partition(".")[0]
    if section in _SMALLER_IS_NARROWER or key in ("infer.max_tokens", "spawn.max_agents"):  # absent: not limited
        if old is None or new is None:
            return "narrower" if old is None else "wider"
        return "wider" if _number(new) > _number(old) else "narrower"
    if key.startswith(("env.pass", "secrets", "net.private", "infer.upstreams")):
        return "wider" if old is None else "narrower" if new is None else "other"
    tightest = {
        "fs.metadata": "strict",
        "net.sni": "enforce",
        "runtime": "none",
        "audit.level": "full",
        "infer.detect": "block",
    }
    if key in tightest:
        return "narrower" if new == tightest[key] else "wider" if old == tightest[key] else "other"
    return "other"


def _number(value: object) -> float:
    assert isinstance(value, (int, float))
    return value


def _word(value: object) -> str:
    return "-" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _flat(policy: CompiledPolicy) -> dict[str, Any]:
    """What no pattern is about, by key."""
    plain: dict[str, Any] = msgspec.to_builtins(policy.infer)
    plain.pop("models", None)
    out: dict[str, Any] = {
        "fs.metadata": policy.fs_metadata,
        "runtime": policy.runtime,
        "net.sni": "enforce" if policy.sni_enforced else "off",
        "spawn.max_agents": _least(part.spawn.max_agents for _, part in policy.parts),
        **{f"net.private {name}": True for _, part in policy.parts for name in part.net.private},
        **{f"budgets.{name}": value for name, value in policy.budgets.items()},
        **{f"limits.{name}": value for name, value in msgspec.to_builtins(policy.limits).items()},
        **{f"env.pass {name}": True for name in policy.env.passed},
        **{f"env.set {name}": value for name, value in policy.env.set.items()},
        **{f"secrets.{name}": msgspec.to_builtins(secret) for name, secret in policy.secrets.items()},
        **{f"heap.types.{name}": kind for _, part in policy.parts for name, kind in part.heap.types.items()},
        **{f"audit.{name}": value for name, value in msgspec.to_builtins(policy.audit).items()},
    }
    for name, value in plain.items():
        if isinstance(value, dict):
            out |= {f"infer.{name}.{key}": item for key, item in value.items()}
        else:
            out[f"infer.{name}"] = value
    return out


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
