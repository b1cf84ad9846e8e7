"""What a run did or was refused, out of its log, and what a policy would have to say for that: `akbox run --record` and
`akbox policy suggest`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from akbox.kernel.entry import Entry
from akbox.kernel.events import NEED_NAMES
from akbox.kernel.ops import Op
from akbox.linux.replay import begun, compiled_for, name_of
from akbox.policy.learn import Learned, kept, learn, note
from akbox.policy.load import load
from akbox.policy.model import Policy
from akbox.policy.places import Seen

_NEEDS = {name: bits for bits, name in enumerate(NEED_NAMES)}
_LINE = re.compile(r"([a-z]+\.[a-z]+) = (\[.*\])")  # as akbox/policy/suggest.py writes it
_MAKING = (Op.FS_MKDIR, Op.FS_RENAME, Op.FS_LINK)
_NAMED = (Op.TOOL_CALL, Op.WASM_RUN, Op.INFER, Op.CALL, Op.SPAWN, Op.INFERENCE)


def learned(run_dir: Path, policy: Policy, state: Path) -> Learned:
    """policy: what the recording was made inside, before it was widened. Raises ReplayError, PolicyError, CannotRun,
    OSError."""
    start, entries = begun(run_dir)
    begin = kept(policy)
    judge = partial(compiled_for, start, state=state)
    return learn(list(seen_in(entries, "allow")), begin, judge(begin), judge)


class Suggested(msgspec.Struct, frozen=True):
    """lines: by list ("fs.read") its values as TOML, each with who was refused it and how often. others: what no line
    allows, as (target, why)."""

    lines: dict[str, dict[str, str]]
    others: dict[str, str]


def suggested(run_dir: Path, state: Path) -> Suggested:
    """What the run's own policy would have to say for nothing to be refused, each target by itself. Raises as
    learned()."""
    start, entries = begun(run_dir)
    policy = compiled_for(start, load(run_dir / "policy.json"), state)
    wanted: dict[str, dict[str, list[Seen]]] = {}
    others: dict[str, str] = {}
    for one in seen_in(entries, "deny"):
        fix = (
            policy.decide(one.op, one.target, need=one.need, target2=one.target2).suggested_fix
            or "no rule can grant it"
        )
        found = [_LINE.fullmatch(text) for text in fix.splitlines()]
        if all(found):
            for line in filter(None, found):
                for value in msgspec.json.decode(line[2], type=list[str]):
                    wanted.setdefault(line[1], {}).setdefault(value, []).append(one)
        else:
            others[one.target] = fix.replace("\n", "; ")
    return Suggested(
        {key: {v: note(who) for v, who in values.items()} for key, values in sorted(wanted.items())}, others
    )


def seen_in(entries: Iterable[Entry], decision: str) -> Iterator[Seen]:
    """What was decided so, each thing once; without what no policy decides."""
    found: dict[tuple[int, str, str | None, int], Seen] = {}
    programs: dict[int, str] = {}
    for e in entries:
        if not (e.op <= Op.EXEC or e.op in _NAMED):
            continue
        target, second = name_of(e.target, e.req.get("raw")), e.req.get("target2")
        second = None if second is None else name_of(str(second), e.req.get("raw2"))
        by = programs.get(e.pid)
        if e.op == Op.EXEC and e.decision == "allow" and e.res.get("errno") == 0:
            programs[e.pid] = os.path.basename(target)
        if e.decision != decision or (second is not None and second.startswith("akbox:")):  # the run's own services
            continue
        need = _NEEDS.get(str(e.req.get("need", "")), 0)
        one = found.setdefault((e.op, target, second, need), Seen(e.op, target, second, need, count=0))
        one.count += int(e.req.get("count", 1))
        one.made = one.made or e.op in _MAKING or (e.op == Op.FS_OPEN and _creates(e))
        if by and by not in one.programs:
            one.programs = (*one.programs, by)
    yield from found.values()


def _creates(e: Entry) -> bool:
    flags = e.req.get("arg")
    return isinstance(flags, int) and bool(flags & (os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY))
