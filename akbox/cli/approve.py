"""`akbox approve`: what waits for a person, and the answer."""

from __future__ import annotations

import click

from akbox.cli.control import ask_run, state_option
from akbox.cli.output import EXIT_USAGE, Failure, columns, emit_json, printable


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("number", required=False, type=click.IntRange(1), metavar="[ID]")
@click.option("--deny", is_flag=True, help="Refuse it.")
@click.option("--always", is_flag=True, help="Approve equal requests of this run from now on, too.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@state_option
def approve(run: str, number: int | None, deny: bool, always: bool, as_json: bool, state_dir: str | None) -> int:
    """Answer a request of a running run; without ID, list what waits. An `approve` rule of the policy makes the agent
    wait here."""
    if deny and always:
        raise Failure("--deny and --always exclude each other", exit_code=EXIT_USAGE)
    if number is None:
        return _list(ask_run(run, state_dir, {"cmd": "approve.list"})["requests"], as_json)
    request = {"cmd": "approve.decide", "id": number, "allow": not deny, "always": always}
    done = ask_run(run, state_dir, request)["request"]
    if as_json:
        emit_json(done)
    else:
        print(f"{done['state']}: {printable(done['op'])} {printable(done['target'])}")
    return 0


def _list(requests: list[dict[str, object]], as_json: bool) -> int:
    if as_json:
        emit_json(requests)
        return 0
    waiting = [r for r in requests if r["state"] == "waiting"]
    rows = [(str(r["id"]), str(r["agent_name"]), str(r["op"]), str(r["target"])) for r in waiting]
    for line in columns([("ID", "AGENT", "OP", "TARGET"), *rows]) if rows else ["nothing waits"]:
        print(line)
    return 0
