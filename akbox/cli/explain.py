"""`akbox policy explain`: what a policy comes to here, or what it says to one effect, by the engine that enforces."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from akbox.cli.choose import DEFAULT_PRESET, choose, load_named, policy_failure
from akbox.cli.output import EXIT_FAILED, EXIT_USAGE, Failure, columns, emit_json

if TYPE_CHECKING:
    from akbox.policy.compile import CompiledPolicy
    from akbox.policy.model import Policy


def explain_policy(
    file: str | None, op: str | None, target: str | None, command: str | None, as_json: bool, state_dir: str | None
) -> int:
    """Prints the explanation; exit 0, or 1 when the one effect asked about is not allowed."""
    cwd = Path(os.path.realpath(os.getcwd()))
    choice = load_named(file) if file else choose(None, cwd, state_dir)
    compiled = _compile(choice.policy, cwd, command, state_dir)
    if op is not None and target is not None:
        return _one_effect(compiled, op, target, cwd, as_json)
    calls = _filter_plan(compiled)
    if as_json:
        from akbox.policy.explain import describe

        emit_json({"policy": choice.origin, **describe(compiled), "filter": calls})
        return 0
    from akbox.policy.explain import as_text

    print(f"{choice.origin}, in {cwd}" + (f", for {command}" if command else ""))
    if not command and choice.policy.runtime != "none" and choice.origin != f"preset {DEFAULT_PRESET}":
        print("(what a command itself needs to start is granted as well: add --command COMMAND to see it)")
    print(as_text(compiled), end="")
    print("\nSystem calls (seccomp)")
    print("\n".join(columns([(f"{len(names)}", kind, _few(names)) for kind, names in calls.items()], "  ")))
    return 0


def _compile(policy: Policy, cwd: Path, command: str | None, state_dir: str | None) -> CompiledPolicy:
    """As a run of `command` started here would."""
    from akbox.linux.errors import CannotRun
    from akbox.linux.runtime import Needs, runtime_needs
    from akbox.policy.check import PolicyError
    from akbox.policy.explain import compile_here
    from akbox.policy.rules import compose, states_names

    try:
        needs = Needs("", "/usr", ())
        if command:
            names = states_names(compose(policy))
            needs = runtime_needs([command], str(cwd), os.environ, policy.runtime, names=names)
        return compile_here(policy, str(cwd), prefix=needs.prefix, runtime_grants=needs.grants, state_dir=state_dir)
    except CannotRun as error:
        raise Failure(error.message, fix=error.hint, exit_code=error.exit_code) from error
    except PolicyError as error:
        raise policy_failure(error) from error


def _one_effect(compiled: CompiledPolicy, op: str, target: str, cwd: Path, as_json: bool) -> int:
    from akbox.policy.explain import explain_at
    from akbox.policy.patterns import PatternError

    try:
        found = explain_at(compiled, op, target, str(cwd))
    except PatternError as error:
        raise Failure(error.message, fix=error.hint, exit_code=EXIT_USAGE) from error
    if as_json:
        emit_json({name: getattr(found, name) for name in found.__struct_fields__})
    else:
        print(found)
    return 0 if found.decision == "allowed" else EXIT_FAILED


def _filter_plan(compiled: CompiledPolicy) -> dict[str, list[str]]:
    """System calls by what happens to them, on a host that has every layer."""
    from akbox.linux.argument_rules import FilterPlan
    from akbox.linux.kernel_opens import listings_hold, reads_hold
    from akbox.linux.syscalls import decisions
    from akbox.policy.landlock import landlock_plan

    landlock = landlock_plan(compiled, on_behalf=True)
    plan = FilterPlan(
        arch=platform.machine(),
        strict_metadata=compiled.fs_metadata == "strict",
        reads_in_kernel=compiled.audit.level == "writes" and reads_hold(compiled, landlock),
        listings_in_kernel=listings_hold(compiled, landlock),
        names=compiled.names,
    )
    judged, partly, refused, allowed = "judged by the supervisor", "refused for some arguments", "refused", "allowed"
    kinds: dict[str, list[str]] = {judged: [], partly: [], refused: [], allowed: []}
    for call in decisions(plan).values():
        kind = allowed if call.always else judged if not call.errno else partly if call.rules else refused
        kinds[kind].append(call.name)
    return kinds


def _few(names: list[str], shown: int = 12) -> str:
    return ", ".join(names[:shown]) + (", …" if len(names) > shown else "")
