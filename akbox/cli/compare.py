"""`akbox policy diff` and `akbox policy test`: a policy against another one, and against what it is meant to say."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from akbox.cli.choose import load_named, policy_failure
from akbox.cli.output import EXIT_FAILED, EXIT_USAGE, Failure, columns, emit_json, note, paint

if TYPE_CHECKING:
    from akbox.policy.compiled import CompiledPolicy

_SIGNS = {"wider": ("+", "red"), "narrower": ("-", "green"), "other": ("~", "yellow")}
_EXPECTED = {"allow": "allowed", "deny": "denied", "ask": "waits for approval"}


def print_diff(one: str, two: str, as_json: bool, state_dir: str | None) -> int:
    """Prints the changes; exit 0 when there is none, else 1. Raises Failure."""
    import msgspec

    from akbox.policy.diff import diff

    changes = diff(_compiled(one, state_dir), _compiled(two, state_dir))
    if as_json:
        emit_json(msgspec.to_builtins(changes))
        return EXIT_FAILED if changes else 0
    rows = [(c.effect, c.target if c.rule else "", f"{c.before} → {c.after}", c.rule) for c in changes]
    for change, line in zip(changes, columns(rows), strict=True):
        sign, colour = _SIGNS[change.kind]
        print(paint(f"{sign} {line}", colour, sys.stdout))
    wider = sum(change.kind == "wider" for change in changes)
    note(
        f"{two} allows more in {wider} of {len(changes)} differences from {one}"
        if changes
        else f"{one} and {two} say the same"
    )
    return EXIT_FAILED if changes else 0


def run_cases(file: str, cases: str, as_json: bool, state_dir: str | None) -> int:
    """Prints the cases that fail; exit 0 when none does, else 1. Raises Failure."""
    from akbox.policy.explain import explain_at
    from akbox.policy.patterns import PatternError

    compiled, cwd = _compiled(file, state_dir), os.path.realpath(os.getcwd())
    results = []
    for number, (expected, effect, target) in _cases(cases):
        place = os.path.expanduser(target) if target.startswith("~") else target
        try:
            found = explain_at(compiled, effect, place, cwd)
        except PatternError as error:
            raise Failure(f"{cases}:{number}: {error.message}", fix=error.hint, exit_code=EXIT_USAGE) from error
        ok = found.decision == _EXPECTED[expected]
        results.append(
            {
                "line": number,
                "ok": ok,
                "effect": effect,
                "target": target,
                "decision": found.decision,
                "rule": found.rule,
            }
        )
        if not ok and not as_json:
            print(
                f"{cases}:{number}: {effect} {target} is {found.decision}" + (f" by {found.rule}" if found.rule else "")
            )
    failed = sum(not result["ok"] for result in results)
    if as_json:
        emit_json(results)
    elif not results:
        raise Failure(f"{cases} has no case", exit_code=EXIT_USAGE)
    else:
        print(f"policy test: {len(results) - failed} of {len(results)} cases hold ({file})")
    return EXIT_FAILED if failed else 0


def _cases(file: str) -> list[tuple[int, tuple[str, str, str]]]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"cannot read {file}: {error}", exit_code=EXIT_USAGE) from error
    found = []
    for number, line in enumerate(lines, 1):
        words = line.split(maxsplit=2)
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 3 or words[0] not in _EXPECTED:
            fix = "write: allow|deny|ask EFFECT TARGET, for example: deny fs.write ~/.bashrc"
            raise Failure(f"{file}:{number}: {line.strip()!r} is no case", fix=fix, exit_code=EXIT_USAGE)
        found.append((number, (words[0], words[1], words[2])))
    return found


def _compiled(name: str, state_dir: str | None) -> CompiledPolicy:
    from akbox.policy.check import PolicyError
    from akbox.policy.explain import compile_here

    try:
        return compile_here(load_named(name).policy, os.path.realpath(os.getcwd()), state_dir=state_dir)
    except PolicyError as error:
        raise policy_failure(error) from error
