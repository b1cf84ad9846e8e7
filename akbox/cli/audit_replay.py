"""`akbox audit replay`: which decisions of a recorded run would be others under another policy."""

from __future__ import annotations

import click

from akbox.cli.audit import audit, log_of, run_argument, state_option
from akbox.cli.output import EXIT_FAILED, Failure, columns, emit_json, note
from akbox.rundir import state_root


@audit.command()
@run_argument
@click.option("-p", "--policy", "policy_name", required=True, metavar="FILE|PRESET", help="The other policy.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@state_option
def replay(run: str, policy_name: str, as_json: bool, state_dir: str | None) -> int:
    """Print which decisions of a run would be others under another policy. Exit 0: none; 1: some.

    What a program would do after a refusal nobody knows: these are the decisions of what it did.
    """
    import msgspec

    from akbox.cli.choose import load_named, policy_failure
    from akbox.linux.errors import CannotRun
    from akbox.linux.replay import ReplayError
    from akbox.linux.replay import replay as replay_run
    from akbox.policy.check import PolicyError

    folder = log_of(run, state_dir).parent
    choice = load_named(policy_name)
    try:
        found = replay_run(folder, choice.policy, state_root(state_dir))
    except ReplayError as error:
        raise Failure(f"cannot replay: {error}") from error
    except CannotRun as error:
        raise Failure(f"cannot replay: {error.message}", fix=error.hint) from error
    except PolicyError as error:
        raise policy_failure(error) from error
    except OSError as error:
        raise Failure(f"cannot read {error.filename or folder}: {error.strerror}") from error
    if as_json:
        emit_json(msgspec.to_builtins(found))
    else:
        rows = []
        for d in found.differences:
            why = d.rule or (f"fix: {d.fix}" if d.fix else "no rule allows it")
            target = f"{d.target} → {d.target2}" if d.target2 else d.target
            rows.append((str(d.seq), f"{d.recorded} → {d.replayed}", d.name, target, why))
        for line in columns(rows):
            print(line)
        note(f"{len(rows)} of {found.judged} decisions differ; {found.not_judged} entries are not a policy's to decide")
    return EXIT_FAILED if found.differences else 0
