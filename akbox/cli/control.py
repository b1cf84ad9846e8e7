"""What commands that speak with a running run have in common."""

from __future__ import annotations

import json
from typing import Any

import click

from akbox.cli.output import EXIT_USAGE, Failure
from akbox.rundir import StateError, find_run, state_root

state_option = click.option("--state-dir", metavar="DIR", help="Instead of $XDG_STATE_HOME/akbox.")


def ask_run(run: str, state_dir: str | None, request: dict[str, Any]) -> Any:
    """The result of one request to a running run. Raises Failure."""
    from akbox.linux.control import ask

    try:
        run_dir = find_run(run, state_root(state_dir))
    except StateError as error:
        raise Failure(error.message, fix=error.hint) from error
    try:
        answer = json.loads(ask(run_dir, json.dumps(request).encode()))
    except FileNotFoundError as error:
        raise Failure(f"run {run_dir.name[:8]} is not running", fix="akbox audit show says how it ended") from error
    except OSError as error:
        raise Failure(f"run {run_dir.name[:8]} does not answer: {error.strerror or error}") from error
    if not answer["ok"]:
        raise Failure(answer["error"])
    return answer["result"]


def run_option_values(rate: str | None) -> tuple[int, str | None]:
    """`10/1s` as (10, "1s"); None: (0, None). Raises Failure."""
    if rate is None:
        return 0, None
    count, slash, window = rate.partition("/")
    if not slash or not (count.isascii() and count.isdecimal()) or not window:
        raise Failure(f"--rate {rate!r} is not N/TIME", fix="write 10/1s", exit_code=EXIT_USAGE)
    return int(count), window
