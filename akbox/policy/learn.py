"""From what a run did to the narrowest policy that would have allowed it, written as a person would write it.

Names that the program chose by chance, and those of files that were gone again at the end, would be others the next
time: there the directory is meant, and so it is where many files lie side by side (akbox/policy/places.py). Addresses
and hosts are not widened, programs only where the run made them. What could not be stated is in `left_out`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from akbox.policy.compiled import CompiledPolicy, Verdict
from akbox.policy.effects import (
    CALL_INFERENCE,
    CALL_SPAWN,
    CALL_TOOL,
    HOSTCALL,
    INFER,
    NET_BIND,
    NET_CONNECT,
    NET_DNS,
    NET_LISTEN,
    NET_SEND,
    TOOL,
    WASM,
)
from akbox.policy.matcher import ALLOW, EXEC, READ, WRITE
from akbox.policy.model import Env, Fs, Net, Policy, Spawn, Tools, Wasm
from akbox.policy.places import Place, Places, Seen
from akbox.policy.rules import compose
from akbox.policy.suggest import exact_pattern

FS_UNLINK, FS_RENAME, FS_MKDIR = 0x101, 0x102, 0x103
SIDE_BY_SIDE = 4  # more names than this in one directory become `*`
BESIDE = 3  # this many directories side by side become `**`
EPHEMERAL = range(32768, 61000)  # net.ipv4.ip_local_port_range as kernels have it
KEPT_PROFILES = ("base", "repositories")  # those that refuse; what the others grant is stated by what was seen

_SECTIONS = ((READ, "read"), (WRITE, "write"), (EXEC, "exec"))
_EVERYWHERE = ("ip:0.0.0.0/0:*", "ip:[::]/0:*", "udp+ip:0.0.0.0/0:*", "udp+ip:[::]/0:*")


class Learned(Struct, frozen=True):
    """notes: by (section, list, pattern), who used it and how often. left_out: what has no line, and why."""

    policy: Policy
    notes: dict[tuple[str, str, str], str]
    left_out: tuple[str, ...]


def widened(policy: Policy) -> Policy:
    """The policy for a recording: everything is allowed but what this one (with its profiles) denies or protects."""
    return replace(
        policy,
        fs=replace(policy.fs, read=("/**",), write=("/**",), exec=("/**",)),
        net=replace(
            policy.net,
            dns=("*",),
            connect=("dns:*:*", "udp+dns:*:*", *_EVERYWHERE),
            bind=_EVERYWHERE,
            listen=_EVERYWHERE[:2],
            unix=("/**",),
            private=("*",),
        ),
        tools=replace(policy.tools, allow=("*",)),
        wasm=replace(policy.wasm, modules=("*",), hostcalls=("*",)),
        infer=replace(policy.infer, models=("*",)),
        spawn=replace(policy.spawn, allow=("/**",)),
    )


def kept(policy: Policy) -> Policy:
    """What a learned policy starts from: all that the recording's policy refuses, sets and limits, and no grant."""
    parts = compose(policy)
    names = tuple(name for name in KEPT_PROFILES if any(origin == f"profile {name}" for origin, _ in parts))
    own = policy.env
    others = [part.env for origin, part in parts[1:] if origin.removeprefix("profile ") not in names]
    return replace(
        policy,
        profiles=names,
        fs=Fs(exec=(), deny=policy.fs.deny, protect=policy.fs.protect, metadata=policy.fs.metadata),
        net=Net(deny=policy.net.deny, sni=policy.net.sni),
        tools=Tools(deny=policy.tools.deny, mcp=policy.tools.mcp),
        wasm=Wasm(signed_by=policy.wasm.signed_by),
        infer=replace(policy.infer, models=()),
        spawn=Spawn(deny=policy.spawn.deny, max_agents=policy.spawn.max_agents),
        env=Env(
            passed=tuple(dict.fromkeys((*own.passed, *(name for env in others for name in env.passed)))),
            set={**{k: v for env in reversed(others) for k, v in env.set.items()}, **own.set},
        ),
        source=None,
    )


def learn(
    seen: Sequence[Seen], start: Policy, compiled: CompiledPolicy, judge: Callable[[Policy], CompiledPolicy]
) -> Learned:
    """start: kept() of the recording's policy; compiled: that, as the run would have it; judge: compiles another one
    the same way. Raises PolicyError when what was learned has more rules than a policy may have."""
    wanted = [one for one in map(_by_address, seen) if not _granted(compiled, one)]
    places = Places(compiled, wanted)
    found = {name: {places.pattern(place): place for place in places.of(bit)} for bit, name in _SECTIONS}
    lists: dict[tuple[str, str], dict[str, None]] = {}
    for one in wanted:
        for section, name, pattern in _lines(one):
            lists.setdefault((section, name), {})[pattern] = None
    names = lists.get(("net", "dns"), {})
    for pattern in lists.get(("net", "connect"), ()):  # what may be connected to may be looked up
        names.pop(pattern.partition("dns:")[2].rpartition(":")[0], None)
    for name in ("read", "write"):
        found[name]["${tmp}/**"] = Place(compiled.context.tmp, "/**")
    policy = _with(start, found, lists)
    after = judge(policy)
    moved = {path for one in wanted if one.target2 and not _granted(after, one) for path in one.paths(WRITE)}
    if moved:  # a rename keeps the rights of what it moves: what may be written at both ends has to be readable at both
        found["read"] |= {text: place for text, place in found["write"].items() if any(map(place.covers, moved))}
        policy = _with(start, found, lists)
        after = judge(policy)
    return Learned(policy, _notes(found, wanted), tuple(dict.fromkeys(_refused(after, wanted))))


def _by_address(one: Seen) -> Seen:
    """What is on loopback is meant by its address: its names are those of this machine, whichever was asked for."""
    if one.op in _NET and one.target2 and _is_loopback(one.target2.rpartition(":")[0]):
        return replace(one, target=one.target2, target2=None)
    return one


def _decide(compiled: CompiledPolicy, one: Seen) -> Verdict:
    return compiled.decide(one.op, one.target, need=one.need, target2=one.target2 if one.is_file else None)


def _granted(compiled: CompiledPolicy, one: Seen) -> bool:
    return _decide(compiled, one).decision == ALLOW


def _refused(after: CompiledPolicy, wanted: Iterable[Seen]) -> Iterator[str]:
    for one in wanted:
        verdict = _decide(after, one)
        if verdict.decision != ALLOW:
            yield f"{one.target}: {(verdict.suggested_fix or 'no rule can grant it').splitlines()[0]}"


def _with(start: Policy, files: Mapping[str, Iterable[str]], lists: Mapping[tuple[str, str], Iterable[str]]) -> Policy:
    """The policy with these lists in it."""
    changed: dict[str, dict[str, tuple[str, ...]]] = {
        "fs": {name: tuple(sorted(found)) for name, found in files.items()}
    }
    for (section, name), patterns in lists.items():
        changed.setdefault(section, {})[name] = tuple(sorted(patterns))
    return replace(start, **{section: replace(getattr(start, section), **named) for section, named in changed.items()})


# ---- the network, and names ------------------------------------------------------------------------------------------

_NAMED = {
    TOOL: ("tools", "allow", "tool:"),
    CALL_TOOL: ("tools", "allow", "tool:"),
    WASM: ("wasm", "modules", "wasm:"),
    HOSTCALL: ("wasm", "hostcalls", "hostcall:"),
    INFER: ("infer", "models", "model:"),
    CALL_INFERENCE: ("infer", "models", "model:"),
}
_NET = {NET_CONNECT: "connect", NET_SEND: "connect", NET_BIND: "bind", NET_LISTEN: "listen"}


def _lines(one: Seen) -> Iterator[tuple[str, str, str]]:
    """(section, list, pattern) of what is no file."""
    if one.op in _NAMED:
        section, name, prefix = _NAMED[one.op]
        yield section, name, one.target.removeprefix(prefix)
    elif one.op == CALL_SPAWN:
        yield "spawn", "allow", exact_pattern(one.target)
    elif one.op == NET_DNS:
        yield "net", "dns", one.target.removeprefix("dns:")
    elif one.op in _NET and one.target.startswith("unix:/"):
        yield "net", "unix", exact_pattern(one.target.removeprefix("unix:"))
    elif one.op in _NET and not one.target.startswith("unix:"):
        yield "net", _NET[one.op], _with_ports(one.target)
        if "dns:" in one.target and _is_private(one.target2 or ""):
            yield "net", "private", one.target.partition("dns:")[2].rpartition(":")[0]


def _with_ports(target: str) -> str:
    """A port that the kernel chose on loopback is another one the next time."""
    where, _, port = target.rpartition(":")
    if _is_loopback(where) and port.isdigit() and int(port) in EPHEMERAL:
        return f"{where}:{EPHEMERAL.start}-{EPHEMERAL.stop - 1}"
    return target


def _is_loopback(where: str) -> bool:
    address = _address(where)
    return address is not None and address.is_loopback


def _is_private(target: str) -> bool:
    address = _address(target.rpartition(":")[0])
    return address is not None and not address.is_global


def _address(where: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(where.partition("ip:")[2].strip("[]"))
    except ValueError:
        return None


# ---- notes -----------------------------------------------------------------------------------------------------------


def _notes(files: Mapping[str, Mapping[str, Place]], wanted: Sequence[Seen]) -> dict[tuple[str, str, str], str]:
    users_of: dict[tuple[str, str, str], list[Seen]] = {}
    for bit, name in _SECTIONS:
        for pattern, place in files[name].items():
            users_of["fs", name, pattern] = [one for one in wanted if any(map(place.covers, one.paths(bit)))]
    for one in wanted:
        for line in _lines(one):
            users_of.setdefault(line, []).append(one)
    return {line: note(users) for line, users in users_of.items() if users}


def note(users: Sequence[Seen]) -> str:
    """How often, and by which programs: what stands behind a line."""
    times = sum(one.count for one in users)
    names = list(dict.fromkeys(name for one in users for name in one.programs))
    who = f", by {', '.join(names[:3])}{' …' if len(names) > 3 else ''}" if names else ""
    return f"{times} time{'s' if times > 1 else ''}{who}"
