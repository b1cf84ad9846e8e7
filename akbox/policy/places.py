"""Paths that were used to the patterns that cover them, widened only where a person would (akbox/policy/learn.py).

A place is a path, all that lies in a directory, or the tree below one. Never a place that is too wide to be suggested
(akbox/policy/suggest.py). A name that looks like a pattern (a file called `*`) is a name: its wildcards become `?`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from msgspec import Struct

from akbox.policy.compiled import CompiledPolicy
from akbox.policy.effects import EXEC_OP, FS_FIRST, FS_LAST
from akbox.policy.matcher import EXEC, READ, WRITE
from akbox.policy.suggest import exact_pattern, too_wide

SIDE_BY_SIDE = 4  # more names than this in one directory become all of it
BESIDE = 3  # this many directories side by side, each read in full, become the tree over them
FS_UNLINK, FS_RENAME, FS_MKDIR = 0x101, 0x102, 0x103

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

    @property
    def is_file(self) -> bool:
        """Is it judged by fs.read, fs.write and fs.exec?"""
        return FS_FIRST <= self.op <= FS_LAST or self.op == EXEC_OP

    def paths(self, bit: int) -> Iterator[str]:
        """The paths that one right was needed for."""
        if self.is_file and self.need & bit:
            yield self.target
            if self.target2 and bit == WRITE:
                yield self.target2


class Place(Struct, frozen=True, order=True):
    """tail: "" for the path itself, "/*" for what lies in it, "/**" for it and all below."""

    path: str
    tail: str = ""

    def covers(self, path: str) -> bool:
        if self.tail == "/**":
            return path == self.path or path.startswith(self.path + "/")
        return (os.path.dirname(path) if self.tail else path) == self.path

    def contains(self, other: Place) -> bool:
        """Does it cover all that another covers?"""
        if other.tail and self.tail != "/**":
            return self == other
        return self.covers(other.path)


class Places:
    """The places of one run."""

    def __init__(self, compiled: CompiledPolicy, seen: Sequence[Seen]) -> None:
        self._compiled = compiled
        self._seen = seen
        context = compiled.context
        variables = (("${tmp}", context.tmp), ("${workdir}", context.workdir), ("~", context.home))
        self._variables = [(name, path) for name, path in variables if path != "/"]
        self._made = {path for one in seen if one.made for path in one.paths(WRITE)}
        gone = {one.target for one in seen if one.op in (FS_UNLINK, FS_RENAME)}
        self._passing = {path for path in self._made if path in gone or _by_chance(path)}
        self._trees = [context.tmp]  # directories that the run made, or that hold such with names by chance
        self._find_trees()

    def of(self, bit: int) -> list[Place]:
        """The places that cover what one right was needed for."""
        paths = {path for one in self._seen for path in one.paths(bit)}
        if bit == EXEC:
            return sorted(set(map(self._of_program, paths)))
        places: set[Place] = set()
        folders: dict[str, set[str]] = {}
        for path in paths:
            tree = self._tree_over(path)
            if tree is not None:
                places.add(Place(tree, "/**"))
            else:
                folders.setdefault(os.path.dirname(path), set()).add(path)
        for folder, inside in folders.items():
            if (inside & self._passing or len(inside) > SIDE_BY_SIDE) and self._may_widen(folder):
                places.add(Place(folder, "/*"))
            else:
                places |= {Place(path) for path in inside}
        return self._joined(places, join=bit == READ)

    def pattern(self, place: Place) -> str:
        """As a policy writes it: with ${tmp}, ${workdir} or ~ in front where it lies there."""
        for name, path in self._variables:
            if place.path == path or place.path.startswith(path + "/"):
                return name + exact_pattern(place.path[len(path) :]) + place.tail
        return exact_pattern(place.path) + place.tail

    def _of_program(self, path: str) -> Place:
        """A program that the run itself made is not there when Landlock is told of it, nor is the directory: the one
        around them is."""
        tree = self._tree_over(path)
        if tree == self._compiled.context.tmp:
            return Place(tree, "/**")
        around = os.path.dirname(tree or path)
        made = tree is not None or path in self._made
        return Place(around, "/**") if made and self._may_widen(around) else Place(path)

    def _find_trees(self) -> None:
        for path in sorted({one.target for one in self._seen if one.op == FS_MKDIR}):
            if self._tree_over(path) is None:
                parent = os.path.dirname(path)
                self._trees.append(parent if _by_chance(path) and self._may_widen(parent) else path)

    def _tree_over(self, path: str) -> str | None:
        return next((tree for tree in self._trees if path == tree or path.startswith(tree + "/")), None)

    def _may_widen(self, folder: str) -> bool:
        return not too_wide(self._compiled, folder) and folder.count("/") > 1

    def _joined(self, places: set[Place], *, join: bool) -> list[Place]:
        """Without what others cover; join: directories side by side become the tree over them, again and again."""
        while True:
            beside: dict[str, set[str]] = {}
            for place in places:
                if join and place.tail:
                    beside.setdefault(os.path.dirname(place.path), set()).add(place.path)
            above = (path for path, inside in beside.items() if len(inside) >= BESIDE and self._may_widen(path))
            both = places | {Place(path, "/**") for path in above}
            fewer = {p for p in both if not any(p != other and other.contains(p) for other in both)}
            if fewer == places:
                return sorted(places)
            places = fewer


def _by_chance(path: str) -> bool:
    return _CHANCE.search(os.path.basename(path)) is not None
