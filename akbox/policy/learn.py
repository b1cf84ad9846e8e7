"""From what a run did to the narrowest policy that would have allowed it, written as a person would write it.

Names that the program chose by chance, and those of files that were gone again at the end, would be others the next
time: there the directory is meant, and so it is where many files lie side by side. Never `/`, a home directory, a
system directory or one of credentials (akbox/policy/suggest.py: too_wide). Addresses and hosts are not widened,
programs only where the run made them. What could not be stated is in `left_out`, with the reason.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from akbox.policy.compiled import CompiledPolicy, Verdict
from akbox.policy.effects import (
    CALL_INFERENCE,
    CALL_SPAWN,
    CALL_TOOL,
    EXEC_OP,
    FS_FIRST,
    FS_LAST,
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
from akbox.policy.rules import compose
from akbox.policy.suggest import exact_pattern, too_wide

FS_UNLINK, FS_RENAME, FS_MKDIR = 0x101, 0x102, 0x103
SIDE_BY_SIDE = 4  # more names than this in one directory become `*`
BESIDE = 3  # this many directories side by side become `**`
EPHEMERAL = range(32768, 61000)  # net.ipv4.ip_local_port_range as kernels have it
KEPT_PROFILES = ("base", "repositories")  # those that refuse; what the others grant is stated by what was seen

_SECTIONS = ((READ, "read"), (WRITE, "write"), (EXEC, "exec"))
_EVERYWHERE = ("ip:0.0.0.0/0:*", "ip:[::]/0:*", "udp+ip:0.0.0.0/0:*", "udp+ip:[::]/0:*")
# Hex digits in pairs or in rows, a run of digits, or a tail in which upper case, lower case and digits are mixed.
_CHANCE = re.compile(
    r"^[0-9a-f]{2}$|[0-9a-f]{8,}|\d{4,}|(?:^|[._-])(?=\w*[a-z])(?=\w*[A-Z0-9])(?=\w*\d|\w*[A-Z]\w*[a-z])\w{6,}$"
)


class Seen(Struct):
    """One thing that a run did, as its log names it. need: READ 1, WRITE 2, EXEC 4; made: it gave a new name to
    something; programs: who did it, by name."""

    op: int
    target: str
    target2: str | None = None
    need: int = 0
    made: bool = False
    count: int = 1
    programs: tuple[str, ...] = ()


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
        wasm=Wasm(modules=("*",), hostcalls=("*",)),
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
        tools=Tools(deny=policy.tools.deny),
        wasm=Wasm(),
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
    files = [one for one in wanted if _is_file(one.op)]
    learner = _Learner(compiled, files)
    lists: dict[tuple[str, str], dict[str, None]] = {}
    for bit, name in _SECTIONS:
        lists["fs", name] = dict.fromkeys(learner.files([one for one in files if one.need & bit], bit))
    for one in wanted:
        for section, name, pattern in _lines(one):
            lists.setdefault((section, name), {})[pattern] = None
    for name in ("read", "write"):
        lists["fs", name]["${tmp}/**"] = None
    names = lists.get(("net", "dns"), {})
    for pattern in lists.get(("net", "connect"), ()):  # what may be connected to may be looked up
        names.pop(pattern.partition("dns:")[2].rpartition(":")[0], None)
    policy = _with(start, lists)
    after = judge(policy)
    moved = [
        p
        for one in wanted
        if one.target2 and _is_file(one.op) and not _granted(after, one)
        for p in learner.both_ends(one)
    ]
    if moved:  # a rename keeps the rights of what it moves: what may be written at both ends has to be readable at both
        lists["fs", "read"] |= dict.fromkeys(p for p in lists["fs", "write"] if learner.covers_any(p, moved))
        policy = _with(start, lists)
        after = judge(policy)
    return Learned(policy, _notes(policy, wanted, learner), tuple(dict.fromkeys(_refused(after, wanted))))


def _by_address(one: Seen) -> Seen:
    """What is on loopback is meant by its address: its names are those of this machine, whichever was asked for."""
    if one.op in _NET and one.target2 and _is_loopback(one.target2.rpartition(":")[0]):
        return replace(one, target=one.target2, target2=None)
    return one


def _decide(compiled: CompiledPolicy, one: Seen) -> Verdict:
    return compiled.decide(one.op, one.target, need=one.need, target2=one.target2 if _is_file(one.op) else None)


def _granted(compiled: CompiledPolicy, one: Seen) -> bool:
    return _decide(compiled, one).decision == ALLOW


def _is_file(op: int) -> bool:
    return FS_FIRST <= op <= FS_LAST or op == EXEC_OP


def _refused(after: CompiledPolicy, wanted: Iterable[Seen]) -> Iterator[str]:
    for one in wanted:
        verdict = _decide(after, one)
        if verdict.decision != ALLOW:
            yield f"{one.target}: {(verdict.suggested_fix or 'no rule can grant it').splitlines()[0]}"


def _with(start: Policy, lists: dict[tuple[str, str], dict[str, None]]) -> Policy:
    """The policy with these lists in it."""
    changed: dict[str, dict[str, tuple[str, ...]]] = {}
    for (section, name), patterns in lists.items():
        changed.setdefault(section, {})[name] = tuple(sorted(patterns))
    return replace(start, **{section: replace(getattr(start, section), **named) for section, named in changed.items()})


# ---- files -----------------------------------------------------------------------------------------------------------


class _Learner:
    """Paths to patterns. A pattern is a path, `path/*` or `path/**`; the last two never of a place that is too wide."""

    def __init__(self, compiled: CompiledPolicy, files: Sequence[Seen]) -> None:
        self.compiled = compiled
        context = compiled.context
        places = (("${tmp}", context.tmp), ("${workdir}", context.workdir), ("~", context.home))
        self._places = [(name, place) for name, place in places if place != "/"]
        self._trees: set[str] = set()  # directories that were made, or hold such with names by chance
        self._made = {path for one in files if one.made for path in _paths(one, WRITE)}
        gone = {one.target for one in files if one.op in (FS_UNLINK, FS_RENAME)}
        self._passing = {path for path in self._made if path in gone or _CHANCE.search(os.path.basename(path))}
        self._find_trees(files)

    def files(self, seen: Sequence[Seen], bit: int) -> list[str]:
        """The patterns that cover these for one right, as the policy writes them."""
        paths = {path for one in seen for path in _paths(one, bit)}
        if bit == EXEC:
            return sorted({self.text(self._program(path)) for path in paths})
        return [self.text(pattern) for pattern in self._collapsed(paths)]

    def both_ends(self, one: Seen) -> list[str]:
        return [one.target, one.target2 or one.target]

    def covers_any(self, pattern: str, paths: Iterable[str]) -> bool:
        return any(_covers(self.meant(pattern), path) for path in paths)

    def text(self, path: str) -> str:
        """With ${tmp}, ${workdir} or ~ in front where it lies there."""
        for name, place in self._places:
            if path == place or path.startswith(place + "/"):
                return name + exact_rest(path[len(place) :])
        return exact_rest(path)

    def meant(self, pattern: str) -> str:
        """text(), back."""
        for name, place in self._places:
            if pattern == name or pattern.startswith(name + "/"):
                return place + pattern[len(name) :]
        return pattern

    def _program(self, path: str) -> str:
        """A program that the run itself made is not there when Landlock is told of it, nor is the directory: the one
        around them is."""
        if self._in_tmp(path):
            return f"{self.compiled.context.tmp}/**"
        tree = self._tree_over(path)
        around = os.path.dirname(tree) if tree else os.path.dirname(path)
        made = tree is not None or path in self._made
        return f"{around}/**" if made and self._may_widen(around) else path

    def _in_tmp(self, path: str) -> bool:
        tmp = self.compiled.context.tmp
        return path == tmp or path.startswith(tmp + "/")

    def _find_trees(self, seen: Sequence[Seen]) -> None:
        """What is below a directory that the run itself made is its own."""
        for path in sorted({one.target for one in seen if one.op == FS_MKDIR}):
            if not self._tree_over(path):
                parent = os.path.dirname(path)
                by_chance = _CHANCE.search(os.path.basename(path)) is not None
                self._trees.add(parent if by_chance and self._may_widen(parent) else path)

    def _tree_over(self, path: str) -> str | None:
        return next((tree for tree in self._trees if path == tree or path.startswith(tree + "/")), None)

    def _may_widen(self, folder: str) -> bool:
        return not too_wide(self.compiled, folder) and folder.count("/") > 1

    def _collapsed(self, paths: set[str]) -> list[str]:
        patterns: set[str] = set()
        folders: dict[str, set[str]] = {}
        for path in paths:
            tree = self.compiled.context.tmp if self._in_tmp(path) else self._tree_over(path)
            if tree is not None:
                patterns.add(f"{tree}/**")
            else:
                folders.setdefault(os.path.dirname(path), set()).add(path)
        for folder, inside in folders.items():
            if (inside & self._passing or len(inside) > SIDE_BY_SIDE) and self._may_widen(folder):
                patterns.add(f"{folder}/*")
            else:
                patterns |= inside
        return self._joined(patterns)

    def _joined(self, patterns: set[str]) -> list[str]:
        """Directories side by side become the tree over them, again and again, and what is covered goes."""
        while True:
            beside: dict[str, set[str]] = {}
            for pattern in patterns:
                folder, _, last = pattern.rpartition("/")
                if last in ("*", "**"):
                    beside.setdefault(os.path.dirname(folder), set()).add(folder)
            wide = {
                f"{above}/**" for above, inside in beside.items() if len(inside) >= BESIDE and self._may_widen(above)
            }
            joined = {
                p for p in patterns | wide if not any(p != other and _contains(other, p) for other in patterns | wide)
            }
            if joined == patterns:
                return sorted(patterns)
            patterns = joined


def exact_rest(path: str) -> str:
    """A path, or `path/*` or `path/**` as made here, as a pattern: the wildcards of ours stay."""
    for tail in ("/**", "/*"):
        if path.endswith(tail):
            return exact_pattern(path.removesuffix(tail)) + tail
    return exact_pattern(path)


def _paths(one: Seen, bit: int) -> Iterator[str]:
    yield one.target
    if one.target2 and bit == WRITE:
        yield one.target2


def _covers(pattern: str, path: str) -> bool:
    """Of the three forms that are made here."""
    if pattern.endswith("/**"):
        return path == pattern[:-3] or path.startswith(pattern[:-2])
    if pattern.endswith("/*"):
        return os.path.dirname(path) == pattern[:-2]
    return path == pattern


def _contains(pattern: str, other: str) -> bool:
    """Does one of the three forms cover all that another covers?"""
    if other.endswith("/**"):
        return pattern.endswith("/**") and _covers(pattern, other[:-3])
    if other.endswith("/*"):
        return pattern.endswith("/**") and _covers(pattern, other[:-2])
    return _covers(pattern, other)


# ---- the network, and names ------------------------------------------------------------------------------------------

_NAMED = {
    TOOL: ("tools", "allow", "tool:"),
    CALL_TOOL: ("tools", "allow", "tool:"),
    WASM: ("wasm", "modules", "wasm:"),
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


def _notes(policy: Policy, wanted: Sequence[Seen], learner: _Learner) -> dict[tuple[str, str, str], str]:
    notes = {}
    for bit, name in _SECTIONS:
        for pattern in getattr(policy.fs, name) or ():
            meant = learner.meant(pattern)
            users = [
                one
                for one in wanted
                if _is_file(one.op) and one.need & bit and any(_covers(meant, path) for path in _paths(one, bit))
            ]
            notes["fs", name, pattern] = note(users)
    users_of: dict[tuple[str, str, str], list[Seen]] = {}
    for one in wanted:
        for line in _lines(one):
            users_of.setdefault(line, []).append(one)
    notes |= {line: note(users) for line, users in users_of.items()}
    return {line: text for line, text in notes.items() if text}


def note(users: Sequence[Seen]) -> str:
    """How often, and by which programs: what stands behind a line."""
    times = sum(one.count for one in users)
    names = list(dict.fromkeys(name for one in users for name in one.programs))
    if not times:
        return ""
    who = f", by {', '.join(names[:3])}{' …' if len(names) > 3 else ''}" if names else ""
    return f"{times} time{'s' if times > 1 else ''}{who}"
