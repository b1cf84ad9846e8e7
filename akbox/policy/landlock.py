"""What Landlock shall enforce of a policy: paths and rights as data. No system calls, no descriptors; see
akbox/linux/ruleset.py.

Landlock knows trees and single files, and only grants. A pattern of another shape is widened to the deepest directory
that it names without a wildcard, and a refusal inside a tree cannot be expressed. Such rules are marked inexact, with
the reason: what they cover has to be trapped, Landlock is then only the second fence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property

from msgspec import Struct

from akbox.policy.compiled import CompiledPolicy
from akbox.policy.matcher import ALLOW, E_ALLOW, E_ASK, E_DENY, E_GUARD, EXEC, FS, NEEDS, READ, WRITE, Accept, judge
from akbox.policy.patterns import LITERAL, STAR, Segment, match_segment, show

# LANDLOCK_ACCESS_FS_* of linux/landlock.h: name to (bit, the ABI that knows it).
ACCESS_FS: dict[str, tuple[int, int]] = {
    "EXECUTE": (1 << 0, 1),
    "WRITE_FILE": (1 << 1, 1),
    "READ_FILE": (1 << 2, 1),
    "READ_DIR": (1 << 3, 1),
    "REMOVE_DIR": (1 << 4, 1),
    "REMOVE_FILE": (1 << 5, 1),
    "MAKE_CHAR": (1 << 6, 1),
    "MAKE_DIR": (1 << 7, 1),
    "MAKE_REG": (1 << 8, 1),
    "MAKE_SOCK": (1 << 9, 1),
    "MAKE_FIFO": (1 << 10, 1),
    "MAKE_BLOCK": (1 << 11, 1),
    "MAKE_SYM": (1 << 12, 1),
    "REFER": (1 << 13, 2),
    "TRUNCATE": (1 << 14, 3),
    "IOCTL_DEV": (1 << 15, 5),
}

# What a need means when the agent makes the calls itself. Device and socket nodes are never created, so their rights
# are never granted; REFER lets a rename cross directories, which Landlock checks by itself for both ends.
RIGHTS: dict[int, tuple[str, ...]] = {
    READ: ("READ_FILE", "READ_DIR"),
    WRITE: (
        *("WRITE_FILE", "TRUNCATE", "MAKE_REG", "MAKE_DIR", "MAKE_SYM", "MAKE_FIFO"),
        *("REMOVE_FILE", "REMOVE_DIR", "REFER"),
    ),
    EXEC: ("EXECUTE", "READ_FILE"),
}
# And when the supervisor opens and changes files on the agent's behalf: only what the agent's own calls still do.
RIGHTS_ON_BEHALF: dict[int, tuple[str, ...]] = {READ: ("READ_DIR",), WRITE: (), EXEC: ("EXECUTE", "READ_FILE")}
FILE_RIGHTS = ("EXECUTE", "WRITE_FILE", "READ_FILE", "TRUNCATE", "IOCTL_DEV")  # what a rule on a file may hold


class PathGrant(Struct, frozen=True):
    """Rights (names of ACCESS_FS) on one path. `tree`: on everything below a directory. Not `tree`: on one file; when
    the path turns out to be a directory the grant must be left out, for Landlock would hand it down to everything
    below. `rules`: the numbers of the rules it comes from."""

    path: str
    rights: tuple[str, ...]
    tree: bool
    rules: tuple[int, ...]

    def bits(self, abi: int) -> int:
        """The access mask for a kernel with this Landlock ABI."""
        return rights_bits(self.rights, abi)


class LandlockPlan(Struct, frozen=True, dict=True):
    """`paths`: what to grant. `inexact`: (rule number, need) to the reason why Landlock holds that rule only
    roughly."""

    paths: tuple[PathGrant, ...]
    covered: tuple[tuple[int, int], ...]  # every (rule number, need) that is granted at all
    inexact: dict[tuple[int, int], str]

    @cached_property
    def exact(self) -> dict[int, bool]:
        """By rule number: does Landlock alone enforce exactly this rule?"""
        rough = {rule for rule, _ in self.inexact}
        return {rule: rule not in rough for rule, _ in self.covered}

    def kernel_reads(self, rights: Callable[[str], int], skipped: Collection[str]) -> frozenset[int]:
        """Rules whose read-only opens the kernel may carry out itself, because Landlock enforces exactly the same.

        Trees that are granted (not `skipped`), hold no refusal, and whose root the agent cannot replace. `rights`: the
        need bits that the policy gives on a path. Empty when Landlock lets any file be read that the policy does not,
        as a program that may be executed but not read: a name that changes during the call could lead there.
        """
        exact = self._exact_trees(skipped)
        if self._reads_more(exact, rights, skipped):
            return frozenset()
        return frozenset(r for base, rules in exact.items() if not rights(base) & WRITE for r in rules)

    def reads_exactly(self, rights: Callable[[str], int]) -> bool:
        """Does Landlock let exactly those files be read that the policy does? (It lets be read what may be run.)"""
        return self.exact_for(READ) and not self._reads_more(self._exact_trees(()), rights, ())

    def _exact_trees(self, skipped: Collection[str]) -> dict[str, list[int]]:
        """By root: the rules that grant reading of exactly this tree."""
        covered = set(self.covered)
        exact: dict[str, list[int]] = {}
        for grant in self.paths:
            rules = [r for r in grant.rules if (r, READ) in covered and (r, READ) not in self.inexact]
            if rules and grant.tree and grant.path not in skipped:
                exact[grant.path] = rules
        return exact

    def _reads_more(self, exact: Collection[str], rights: Callable[[str], int], skipped: Collection[str]) -> bool:
        return any(
            (grant.tree or not rights(grant.path) & READ) and not any(_is_below(grant.path, base) for base in exact)
            for grant in self.paths
            if "READ_FILE" in grant.rights and grant.path not in skipped
        )

    def exact_for(self, need: int) -> bool:
        """Is every rule for this need exact? Then calls that only need it may go untrapped."""
        return not any(bit & need for _, bit in self.inexact)


def _is_below(path: str, base: str) -> bool:
    return base == "/" or path == base or path.startswith(base + "/")


def rights_bits(rights: tuple[str, ...], abi: int) -> int:
    """Rights by name as a mask, without those that the ABI does not know."""
    return sum(bit for bit, since in (ACCESS_FS[name] for name in rights) if since <= abi)


def handled_bits(abi: int) -> int:
    """Everything this ABI can restrict: what is handled and not granted is refused."""
    return rights_bits(tuple(ACCESS_FS), abi)


def landlock_plan(compiled: CompiledPolicy, *, on_behalf: bool, reads_in_kernel: bool = False) -> LandlockPlan:
    """The plan for one run. `on_behalf`: the supervisor makes the opens and changes, else the agent itself.
    `reads_in_kernel`: but for read-only opens, which are the agent's own (only when `exact_for(READ)`)."""
    table = dict(RIGHTS_ON_BEHALF if on_behalf else RIGHTS)
    if reads_in_kernel:
        table[READ] = RIGHTS[READ]
    rights: dict[tuple[str, bool], set[str]] = {}
    sources: dict[tuple[str, bool], set[int]] = {}
    covered: list[tuple[int, int]] = []
    inexact: dict[tuple[int, int], str] = {}
    refusals = [(a, s) for a, s in compiled.accepts if a.domain == FS and a.effect in (E_DENY, E_ASK, E_GUARD)]
    for accept, segments in compiled.accepts:
        if accept.domain != FS or accept.effect not in (E_ALLOW, E_ASK):
            continue
        base, tree, shape = _shape(segments)
        for need in NEEDS:
            if accept.needs & need:
                key = (accept.rule, need)
                covered.append(key)
                reason = shape or _refused_inside(compiled, refusals, accept, need, segments)
                if reason:
                    inexact[key] = reason
                names = {name for name in table[need] if tree or name in FILE_RIGHTS}
                if need == READ and tree and not reason:
                    names.add("READ_FILE")  # exactly what the policy says: see kernel_reads()
                if base.startswith("/dev/") and not tree and not on_behalf:
                    names.add("IOCTL_DEV")
                if names:
                    rights.setdefault((base, tree), set()).update(names)
                    sources.setdefault((base, tree), set()).add(accept.rule)
    paths = tuple(
        PathGrant(
            base, tuple(n for n in ACCESS_FS if n in rights[base, tree]), tree, tuple(sorted(sources[base, tree]))
        )
        for base, tree in sorted(rights)
    )
    return LandlockPlan(paths, tuple(covered), inexact)


def granted_names(compiled: CompiledPolicy, need: int) -> list[tuple[str, bool]]:
    """(path, whether it is a tree) of each rule that grants `need`; a rule of another shape is the tree around it."""
    granting = [s for a, s in compiled.accepts if a.domain == FS and a.effect == E_ALLOW and a.needs & need]
    return [_shape(segments)[:2] for segments in granting]


def _shape(segments: tuple[Segment, ...]) -> tuple[str, bool, str]:
    """(path, whether it is a tree, why that is wider than the pattern or "")."""
    depth = next((i for i, (kind, _) in enumerate(segments) if kind != LITERAL), len(segments))
    base = show(segments[:depth])
    if segments[:2] == ((LITERAL, b"proc"), (LITERAL, b"self")):
        return base, True, "each process's own directory has another name: widened to /proc"
    if depth == len(segments):
        return base, False, ""
    if segments[depth:] == ((STAR, b""),):
        return base, True, ""
    return base, True, f"the pattern is no tree: widened to {base}"


def _refused_inside(
    compiled: CompiledPolicy,
    refusals: list[tuple[Accept, tuple[Segment, ...]]],
    accept: Accept,
    need: int,
    segments: tuple[Segment, ...],
) -> str:
    """The first refusal that may lie inside the grant, as a reason."""
    if segments[-1:] != ((STAR, b""),):
        path = show(segments)
        match = judge(compiled.trie.root, need, path.encode("utf-8", "surrogateescape"))
        return "" if match.decision == ALLOW else f"{path} itself is not simply allowed"
    names = [raw for kind, raw in segments if kind == LITERAL]
    for other, inside in refusals:
        if other.needs & need and other.rule != accept.rule and may_lie_below(names, inside):
            return f"inside it: {compiled.rules[other.rule]}"
    if accept.effect == E_ASK:
        return "it waits for approval"
    return ""


def may_lie_below(names: list[bytes], pattern: tuple[Segment, ...]) -> bool:
    """Can a pattern match the directory `names` or anything below it?"""
    for i, name in enumerate(names):
        if i == len(pattern):
            return False
        if pattern[i][0] == STAR:
            return True
        if not match_segment(pattern[i], name):
            return False
    return True
