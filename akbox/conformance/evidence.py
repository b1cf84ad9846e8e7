"""What a run left behind, judged: does its log verify by two implementations, and does `policy explain` say the same?

Both verifiers are loaded, not started: a process for each would be half of the kit's time.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from akbox.conformance.model import require
from akbox.resources import data_path

NEEDS = ("read", "write", "exec")
PRIVATE_TMP = re.compile(r"(/.*?/akbox-[0-9a-f]+-[0-9]+)(/|$)")


def verify_log(log: Path) -> None:
    """Both verifiers must accept a log and its checkpoints: akbox's own, and scripts/verify-log, which shares no code
    with it. Raises Failed."""
    from akbox.kernel.verify import verify

    points = log.with_name("checkpoints")
    found = verify(log, points if points.is_file() else None)
    require(found.ok, f"akbox refuses the log {log} at entry {found.first_bad_seq}: {found.reason}")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = independent_verifier()([str(log), *([str(points)] if points.is_file() else [])])
    require(code == 0, f"scripts/verify-log refuses the log {log}: {said.getvalue()}")


@functools.cache
def independent_verifier() -> Callable[[list[str]], int]:
    loader = SourceFileLoader("akbox_verify_log", str(data_path("scripts/verify-log")))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    main: Callable[[list[str]], int] = module.main
    return main


def disagreements(
    policy: str, command: Sequence[str], entries: Sequence[Mapping[str, Any]], *, cwd: Path, home: Path, state: Path
) -> list[str]:
    """Decisions in a log that `akbox policy explain` would have put otherwise, in words (conformance case A11).

    `policy`: a file or the name of a preset; `cwd`, `home` and `state` are those of the run, which may have been
    another user's. Decisions that no policy makes (a call refused by number, a signal, a device node) are left out.
    """
    from akbox.cli.choose import load_named
    from akbox.linux.errors import CannotRun
    from akbox.linux.runtime import Needs, runtime_needs
    from akbox.policy.compile import compile_policy
    from akbox.policy.explain import explain
    from akbox.policy.inuse import policy_names
    from akbox.policy.linked import with_links
    from akbox.policy.rules import Context, compose, states_names

    chosen = load_named(policy).policy
    names = states_names(compose(chosen))
    try:
        needs = runtime_needs(command, str(cwd), {"PATH": os.defpath}, chosen.runtime, names=names)
    except CannotRun:  # there is no such program: nothing was granted for it
        needs = Needs("", "/usr", ())
    context = Context(
        workdir=str(cwd),
        home=str(home),
        tmp=_tmpdir(entries),
        prefix=needs.prefix,
        state_dirs=(str(state),),
        policy_files=policy_names(chosen),
        runtime_grants=needs.grants,
    )
    compiled = compile_policy(chosen, with_links(chosen, context))
    wrong = []
    for entry in entries:
        needs_of = [need for need in str(entry["req"].get("need", "")).split("+") if need in NEEDS]
        targets = [str(path) for path in (entry["target"], entry["req"].get("target2")) if str(path).startswith("/")]
        found = [explain(compiled, f"fs.{need}", target) for target in targets for need in needs_of]
        allowed = all(one.decision == "allowed" for one in found)
        if found and allowed != (entry["decision"] == "allow"):
            said = "; ".join(str(one).replace("\n", "") for one in found)
            wrong.append(
                f"{entry['name']} {entry['target']} was {entry['decision']} ({entry['rule']}), explain: {said}"
            )
    return wrong


def _tmpdir(entries: Sequence[Mapping[str, Any]]) -> str:
    """The run's private directory, if it used it: its name is not in the policy."""
    found = (PRIVATE_TMP.match(str(entry["target"])) for entry in entries)
    return next((match[1] for match in found if match), "/tmp/akbox-RUN")
