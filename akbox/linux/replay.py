"""What another policy would have said to a recorded run (`akbox audit replay`).

A decision is judged anew only when the run's own policy, asked again, says what was recorded: then it was the policy
that decided. The rest (what is the agent's own, what no policy can grant, authority calls, child agents with rules of
their own) is counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from akbox.kernel.entry import Entry
from akbox.kernel.events import NEED_NAMES
from akbox.kernel.logfiles import log_files
from akbox.kernel.ops import Op
from akbox.linux.plan import compile_for
from akbox.policy.compiled import CompiledPolicy
from akbox.policy.load import load
from akbox.policy.model import Policy

DECISIONS = ("deny", "allow", "ask")
_NEEDS = {name: bits for bits, name in enumerate(NEED_NAMES)}


class Difference(msgspec.Struct, frozen=True):
    """A recorded decision that would be another one. `count`: equal refusals that one entry stands for. `rule` and
    `fix`: what decides now, and what would allow it."""

    seq: int
    name: str
    target: str
    target2: str | None
    recorded: str
    replayed: str
    rule: str | None
    fix: str | None
    count: int


class Replay(msgspec.Struct):
    """What came of it: entries judged anew, those that were not, and the differences in their order."""

    judged: int = 0
    not_judged: int = 0
    differences: list[Difference] = msgspec.field(default_factory=list)


class ReplayError(Exception):
    """The run has not what a replay needs."""


def replay(run_dir: Path, policy: Policy, state: Path) -> Replay:
    """Judges the run's decisions under `policy`, in the same working directory, TMPDIR and for the same command. Raises
    ReplayError, PolicyError, CannotRun, OSError."""
    start, entries = begun(run_dir)
    before, after = (compiled_for(start, one, state) for one in (load(run_dir / "policy.json"), policy))
    out = Replay()
    for e in entries:
        was = _verdict(before, e) if e.agent == start.agent and e.op <= Op.EXEC else None
        if was is None or was[0] != e.decision:
            out.not_judged += 1
            continue
        out.judged += 1
        now = _verdict(after, e)
        assert now is not None
        if now[0] != e.decision:
            second, count = e.req.get("target2"), e.req.get("count", 1)
            out.differences.append(Difference(e.seq, e.name, e.target, second, e.decision, *now, count))
    return out


def begun(run_dir: Path) -> tuple[Entry, Iterator[Entry]]:
    """A run's first entry, which says where and what it ran, and the others in their order; not verified. Raises
    ReplayError for a line that is no entry, OSError."""
    entries = _entries(run_dir)
    start = next(entries, None)
    if start is None or start.target != "run:start" or "tmpdir" not in start.req:
        raise ReplayError(f"{run_dir} has no entry of the run's start that says where it ran")
    return start, entries


def _entries(run_dir: Path) -> Iterator[Entry]:
    decode = msgspec.json.Decoder(Entry).decode
    for path in log_files(run_dir):
        with open(path, "rb") as file:
            for line in file:
                try:
                    yield decode(line)
                except msgspec.DecodeError as error:
                    raise ReplayError(f"{path} has a line that is no entry: run `akbox audit verify`") from error


def compiled_for(start: Entry, policy: Policy, state: Path) -> CompiledPolicy:
    """A policy as the run that began so would have had it. Raises PolicyError, CannotRun."""
    argv = tuple(map(str, start.req["argv"]))
    return compile_for(policy, argv, str(start.req["cwd"]), os.environ, Path(str(start.req["tmpdir"])), state)


def _verdict(policy: CompiledPolicy, e: Entry) -> tuple[str, str | None, str | None] | None:
    """(decision, rule, fix); None for what is not the policy's."""
    need = _NEEDS.get(str(e.req.get("need", "")))
    if need is None:
        return None
    target, second = name_of(e.target, e.req.get("raw")), e.req.get("target2")
    if second is not None:
        second = name_of(str(second), e.req.get("raw2"))
    verdict = policy.decide(e.op, target, need=need, target2=second)
    rule = None if verdict.rule is None else str(verdict.rule)
    return DECISIONS[verdict.decision], rule, verdict.suggested_fix


def name_of(text: str, raw: object) -> str:
    """A target as it was: the log shows what is not UTF-8 escaped, with its bytes beside it."""
    return os.fsdecode(bytes.fromhex(raw)) if isinstance(raw, str) else text
