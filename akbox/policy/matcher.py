"""The matcher in Python: a trie over path segments, walked as an automaton. Twin of native/policy.c.

A node is "what was read so far of some patterns". From a node and a name: at most one literal child, the children of
globs that match, and the child of `*`. A `**` is a child that is entered without reading anything and then stays live
until the path ends. Every pattern shares the nodes of its common start with others, so the live set is small whatever
the number of rules. Both matchers refuse a path that makes more than LIVE_MAX nodes live: the C one has no memory to
allocate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct, field

from akbox.policy.patterns import ANY, DIGITS, LITERAL, STAR, Segment, match_glob

READ, WRITE, EXEC = 1, 2, 4
NEEDS = (READ, WRITE, EXEC)
DENY, ALLOW, ASK = 0, 1, 2  # enum ak_decision of native/policy.h

# Effects of an accepted pattern. GUARD: only exact rules count here. FREE: lifts a guard.
E_ALLOW, E_ASK, E_DENY, E_GUARD, E_FREE = range(5)
FS, UNIX = 0, 1
NO_RULE = -1
LIVE_MAX = 512

# One bit per list of patterns, as the move check compares them: fs allow, ask and deny per need, fs guard and free,
# then unix.
LISTS_FS_ALLOW, LISTS_FS_ASK, LISTS_FS_DENY, LISTS_FS_GUARD, LISTS_UNIX = 0, 3, 6, 9, 11
LIST_COUNT = 16


class Accept(Struct, frozen=True):
    """What a path that a pattern matches gets: `exact` only for wildcard-free rules that a policy states."""

    rule: int
    effect: int
    needs: int
    exact: bool
    domain: int = FS

    def lists(self) -> int:
        """The lists of the move check that this belongs to, as bits."""
        if self.domain == UNIX:
            return 1 << (LISTS_UNIX + self.effect)
        if self.effect in (E_GUARD, E_FREE):
            return 1 << (LISTS_FS_GUARD + self.effect - E_GUARD)
        first = (LISTS_FS_ALLOW, LISTS_FS_ASK, LISTS_FS_DENY)[self.effect]
        return self.needs << first


class Node(Struct, eq=False):
    """One state. `at` and `below` are list bits: accepted here, accepted here or further down."""

    literals: dict[bytes, Node] = field(default_factory=dict)
    globs: dict[bytes, Node] = field(default_factory=dict)
    any: Node | None = None
    digits: Node | None = None
    star: Node | None = None
    accepts: list[Accept] = field(default_factory=list)
    at: int = 0
    below: int = 0

    def children(self) -> Iterator[Node]:
        """All nodes one segment (or one `**`) further."""
        yield from self.literals.values()
        yield from self.globs.values()
        for child in (self.any, self.digits, self.star):
            if child is not None:
                yield child


class Trie:
    """All path patterns of a policy."""

    def __init__(self) -> None:
        self.root = Node()

    def add(self, segments: Iterable[Segment], accept: Accept) -> None:
        """Add one pattern; `**` never follows `**` (parse_path sees to it, expansion puts only literals before)."""
        node = self.root
        for kind, raw in segments:
            node = _child(node, kind, raw)
        node.accepts.append(accept)

    def finish(self) -> None:
        """Fill in `at` and `below`; call once, after the last add()."""
        order = [self.root]
        for node in order:
            order.extend(node.children())
        for node in reversed(order):
            for accept in node.accepts:
                node.at |= accept.lists()
            node.below = node.at
            for child in node.children():
                node.below |= child.below


def _child(node: Node, kind: int, raw: bytes) -> Node:
    if kind == LITERAL:
        return node.literals.setdefault(raw, Node())
    if kind == STAR:
        node.star = node.star or Node()
        return node.star
    if kind == ANY:
        node.any = node.any or Node()
        return node.any
    if kind == DIGITS:
        node.digits = node.digits or Node()
        return node.digits
    return node.globs.setdefault(raw, Node())


class Live(Struct):
    """The nodes that are live after a path: `loops` are `**` nodes, which once live stay so. `over`: too many,
    refuse."""

    plain: list[Node]
    loops: list[Node]
    over: bool = False

    def nodes(self) -> Iterator[Node]:
        yield from self.loops
        yield from self.plain


def walk(root: Node, path: bytes) -> Live:
    """Read a canonical path."""
    live = Live([], [])
    _enter(live, live.plain, root)
    for name in path.split(b"/"):
        if name:
            _step(live, name)
    return live


def _step(live: Live, name: bytes) -> None:
    plain: list[Node] = []
    for node in [*live.loops, *live.plain]:
        child = node.literals.get(name)
        if child is not None:
            _enter(live, plain, child)
        if node.any is not None:
            _enter(live, plain, node.any)
        if node.digits is not None and name.isdigit():
            _enter(live, plain, node.digits)
        for pattern, target in node.globs.items():
            if match_glob(pattern, name):
                _enter(live, plain, target)
    live.plain = plain


def _enter(live: Live, plain: list[Node], node: Node) -> None:
    if len(plain) == LIVE_MAX:
        live.over = True
        return
    plain.append(node)
    star = node.star
    if star is not None and not any(star is other for other in live.loops):
        if len(live.loops) == LIVE_MAX:
            live.over = True
        else:
            live.loops.append(star)


class Found:
    """The best rule per effect and need of everything that a path matched: the one with the lowest index."""

    def __init__(self, live: Live, domain: int) -> None:
        self.wide: dict[tuple[int, int], int] = {}
        self.exact: dict[tuple[int, int], int] = {}
        guard, free = NO_RULE, False
        for node in live.nodes():
            for a in node.accepts:
                if a.domain != domain:
                    continue
                if a.effect == E_GUARD:
                    guard = a.rule if guard == NO_RULE else min(guard, a.rule)
                elif a.effect == E_FREE:
                    free = True
                else:
                    self._add(a)
        self.guard = NO_RULE if free else guard

    def _add(self, a: Accept) -> None:
        for need in NEEDS:
            if a.needs & need:
                for table in (self.wide, self.exact) if a.exact else (self.wide,):
                    table[a.effect, need] = min(table.get((a.effect, need), a.rule), a.rule)

    def rule(self, effect: int, need: int) -> int:
        """NO_RULE when nothing matched; where a guard stands only exact rules allow or ask."""
        table = self.exact if self.guard != NO_RULE and effect != E_DENY else self.wide
        return table.get((effect, need), NO_RULE)


class Match(Struct, frozen=True):
    """struct ak_verdict: the decision, the deciding rule's index (NO_RULE: none), the needs that no rule gave."""

    decision: int
    rule: int
    missing: int


def judge(root: Node, need: int, path: bytes, domain: int = FS) -> Match:
    """May `path` be used with all bits of `need`? deny > approve > allow."""
    if not path.startswith(b"/") or not need or need & ~7:
        return Match(DENY, NO_RULE, need & 7)
    live = walk(root, path)
    if live.over:
        return Match(DENY, NO_RULE, need)
    found = Found(live, domain)
    denied = asked = allowed = NO_RULE
    missing = 0
    for bit in NEEDS:  # the last bit that decides names the rule: exec before write before read
        if not need & bit:
            continue
        deny, ask, allow = (found.rule(effect, bit) for effect in (E_DENY, E_ASK, E_ALLOW))
        denied = deny if deny != NO_RULE else denied
        asked = ask if ask != NO_RULE else asked
        allowed = allow if allow != NO_RULE else allowed
        if ask == NO_RULE and allow == NO_RULE:
            missing |= bit
    if denied != NO_RULE:
        return Match(DENY, denied, missing)
    if missing:
        return Match(DENY, found.guard, missing)
    return Match(ASK, asked, 0) if asked != NO_RULE else Match(ALLOW, allowed, 0)


def rights(root: Node, path: bytes) -> int:
    """The needs that judge() would allow."""
    return _sets(root, path)[0]


def _sets(root: Node, path: bytes) -> tuple[int, int, int]:
    """(allowed, to be approved, denied by a rule) needs of a path."""
    live = walk(root, path)
    if live.over or not path.startswith(b"/"):
        return 0, 0, 7
    found = Found(live, FS)
    allow = ask = deny = 0
    for bit in NEEDS:
        if found.rule(E_DENY, bit) != NO_RULE:
            deny |= bit
        elif found.rule(E_ASK, bit) != NO_RULE:
            ask |= bit
        elif found.rule(E_ALLOW, bit) != NO_RULE:
            allow |= bit
    return allow, ask, deny


def visible(root: Node, path: bytes) -> bool:
    """Strict metadata: the agent has a right on the path, or a rule grants something below it and none denies it
    whole."""
    allow, ask, deny = _sets(root, path)
    if deny == 7:
        return False
    below = 0
    for node in walk(root, path).nodes():
        below |= node.below
    return bool(allow | ask) or bool(below & (0o77 << LISTS_FS_ALLOW))


def exec_exact(root: Node, path: bytes) -> bool:
    """Is executing `path` allowed by a wildcard-free rule?"""
    if judge(root, EXEC, path).decision != ALLOW:
        return False
    return (E_ALLOW, EXEC) in Found(walk(root, path), FS).exact


def move_keeps_rights(root: Node, source: bytes, target: bytes, is_dir: bool) -> bool:
    """May the object at `source` get the name `target` without gaining a right or losing a deny?"""
    if not source.startswith(b"/") or not target.startswith(b"/"):
        return False
    allow_from, ask_from, deny_from = _sets(root, source)
    allow_to, ask_to, deny_to = _sets(root, target)
    if allow_to & ~allow_from or ask_to & ~(allow_from | ask_from) or deny_from & ~deny_to:
        return False
    return not is_dir or _trees_alike(walk(root, source), walk(root, target))


def _trees_alike(source: Live, target: Live) -> bool:
    """For everything that may lie below: no list of allows grows, no other list changes."""
    if source.over or target.over:
        return False
    for bit in (1 << i for i in range(LIST_COUNT)):
        have = {id(node) for node in source.nodes() if node.below & bit}
        want = {id(node) for node in target.nodes() if node.below & bit}
        whole_from = any(node.at & bit for node in source.loops)
        whole_to = any(node.at & bit for node in target.loops)
        if bit & (7 << LISTS_FS_ALLOW) or bit == 1 << (LISTS_UNIX + E_ALLOW):
            if not whole_from and want - have:
                return False
        elif bit & (7 << LISTS_FS_DENY):
            if not whole_to and want != have:
                return False
        elif want != have:
            return False
    return True
