"""`akbox audit prove` and `akbox audit key`: what a stranger needs to check an entry without the log."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from akbox.cli.audit import CHECKPOINTS, audit, log_of, run_argument, state_option
from akbox.cli.output import EXIT_USAGE, Failure, emit_json
from akbox.rundir import state_root


@audit.command()
@click.argument("what", nargs=-1, metavar="SEQ [RUN|FILE]")
@click.option("--checkpoint", metavar="FILE", help="Against this checkpoint instead of the run's last.")
@click.option("--since", metavar="FILE", help="Instead of an entry: that the log of this older checkpoint is a prefix.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@state_option
def prove(
    what: tuple[str, ...], checkpoint: str | None, since: str | None, as_json: bool, state_dir: str | None
) -> int:
    """Print a proof that entry SEQ is in the log, to check with a checkpoint and the public key alone.

    It is a C2SP tlog-proof with the entry's line in it. With --since: that the log has only grown since an older
    checkpoint (RFC 6962 consistency), as JSON.
    """
    import msgspec

    from akbox.kernel.prove import ProofError, points_of, prove_entry, prove_prefix

    seq, run = _what(what, since is None)
    log = log_of(run, state_dir)
    try:
        points = points_of(Path(checkpoint) if checkpoint else log.with_name(CHECKPOINTS))
        if since is not None:
            old = points_of(Path(since))
            if not old or not points:
                raise ProofError("there are no two checkpoints")
            emit_json(msgspec.to_builtins(prove_prefix(log, old[-1], points[-1])))
            return 0
        found = prove_entry(log, seq, points)
    except ProofError as error:
        raise Failure(f"cannot prove: {error}") from error
    except OSError as error:
        raise Failure(f"cannot read {error.filename or log}: {error.strerror}") from error
    if as_json:
        emit_json(msgspec.to_builtins(found))
    else:
        sys.stdout.write(found.text())
    return 0


def _what(words: tuple[str, ...], an_entry: bool) -> tuple[int, str]:
    """The entry's number (0 with --since) and the run. Raises Failure."""
    number = words[0] if an_entry and words else "0"
    rest = words[1:] if an_entry else words
    if (an_entry and not words) or len(rest) > 1 or not number.isdecimal():
        raise Failure("say which entry, by its number, or --since FILE; then the run", exit_code=EXIT_USAGE)
    return int(number), rest[0] if rest else "last"


@audit.command()
@run_argument
@click.option("--verifier", is_flag=True, help="As tools for signed notes want it: name+id+base64, for this run.")
@state_option
def key(run: str, verifier: bool, state_dir: str | None) -> int:
    """Print the public key that your runs are signed with. Keep it where this host cannot change it."""
    from akbox.kernel.checkpoint import verifier_key
    from akbox.kernel.signing import PUBLIC_NAME

    path = state_root(state_dir) / "keys" / PUBLIC_NAME
    try:
        public = path.read_text("ascii").strip()
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}", fix="it is made by the first `akbox run`") from error
    print(verifier_key(log_of(run, state_dir).parent.name, public) if verifier else public)
    return 0
