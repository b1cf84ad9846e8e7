"""`akbox cap`: capabilities of a running run, and tokens."""

from __future__ import annotations

import time
from typing import Any

import click

from akbox.cli.control import ask_run, run_option_values, state_option
from akbox.cli.output import EXIT_USAGE, Failure, columns, emit_json

run_argument = click.argument("run", metavar="RUN")
json_option = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@click.group(short_help="Mint, inspect, narrow and revoke capabilities.")
def cap() -> None:
    """What a run's agents hold, and tokens that narrow it. RUN is `last` or the first digits of a run id; it must be
    running for mint, revoke and list."""


@cap.command(name="list")
@run_argument
@click.option("--agent", default="root", metavar="NAME|ID", help="Whose.")
@json_option
@state_option
def list_(run: str, agent: str, as_json: bool, state_dir: str | None) -> int:
    """What an agent holds: one capability for each rule that grants something."""
    held = ask_run(run, state_dir, {"cmd": "cap.held", "agent": agent})["capabilities"]
    if as_json:
        emit_json(held)
        return 0
    rows = [(h["tid"], h["state"], h["type"], ",".join(h["methods"]) or "all", h["resource"]) for h in held]
    for line in columns([("TID", "STATE", "TYPE", "METHODS", "RESOURCE"), *rows]):
        print(line)
    return 0


@cap.command()
@run_argument
@click.option("--type", "kind", required=True, metavar="TYPE", help="fs, net, tool, inference, heap, ipc, spawn, ….")
@click.option("--resource", required=True, metavar="PATTERN", help="As in a policy, without variables.")
@click.option("--method", "methods", multiple=True, metavar="M", help="Only these. Repeatable.")
@click.option("--ttl", metavar="TIME", help="90s, 5m, 2h; default: as long as the run.")
@click.option("--rate", metavar="N/TIME", help="At most N uses in any TIME (10/1s).")
@json_option
@state_option
def mint(
    run: str, kind: str, resource: str, methods: tuple[str, ...], ttl: str | None, rate: str | None, as_json: bool,
    state_dir: str | None,
) -> int:  # fmt: skip
    """Make a token. It never widens what a policy grants: a call that carries it needs both."""
    limit, window = run_option_values(rate)
    made = ask_run(
        run, state_dir,
        {"cmd": "cap.mint", "type": kind, "resource": resource, "methods": methods, "ttl_ms": millis(ttl),
         "rate_limit": limit, "rate_window_ms": millis(window)},
    )  # fmt: skip
    if as_json:
        emit_json(made)
    else:
        print(made["token"])
    return 0


@cap.command()
@click.argument("token")
@click.option("--run", metavar="RUN", help="Also ask this running run whether it is good.")
@state_option
def inspect(token: str, run: str | None, state_dir: str | None) -> int:
    """Show what a token says. Without --run nothing of it is checked: only the run has the key."""
    if run is not None:
        emit_json(ask_run(run, state_dir, {"cmd": "cap.inspect", "cap": token}))
        return 0
    from akbox.kernel.calls.cap import describe
    from akbox.kernel.capability import decode

    emit_json(_local(lambda: describe(decode(token))))
    return 0


@cap.command()
@click.argument("token")
@click.option("--resource", metavar="PATTERN", help="Only this part.")
@click.option("--method", "methods", multiple=True, metavar="M", help="Only these. Repeatable.")
@click.option("--ttl", metavar="TIME", help="Until then.")
@click.option("--rate", metavar="N/TIME", help="At most N uses in any TIME.")
@click.option("--agent", metavar="HEX", help="Only for the agent with this id.")
def derive(
    token: str, resource: str | None, methods: tuple[str, ...], ttl: str | None, rate: str | None, agent: str | None
) -> int:
    """Narrow a token, without the run: what is printed can do at most what the token can."""
    from akbox.kernel.capability import Caveat, new_tid
    from akbox.kernel.capability import derive as narrow

    limit, window = run_option_values(rate)
    end = millis(ttl)
    caveat = Caveat(
        tid=new_tid(), resource=resource, methods=methods or None, agent=agent, rate_limit=limit,
        rate_window_ms=millis(window), expires_ms=time.time_ns() // 1_000_000 + end if end else None,
    )  # fmt: skip
    print(_local(lambda: narrow(token, caveat)))
    return 0


@cap.command()
@run_argument
@click.argument("what", metavar="TID|TOKEN|run")
@click.option("--reason", default="", metavar="TEXT", help="For the log and whoever is refused.")
@click.option("--after", metavar="TIME", help="Not now but then (for what `list` shows).")
@state_option
def revoke(run: str, what: str, reason: str, after: str | None, state_dir: str | None) -> int:
    """End a capability and everything that was derived from it; `run` ends all. Ordinary system calls obey from the
    next one on; what is open stays open."""
    done = ask_run(run, state_dir, {"cmd": "cap.revoke", "cap": what, "reason": reason, "after_ms": millis(after)})
    print(f"{'revoked' if done['revoked'] else 'was revoked before'}: {done['tid']}")
    return 0


def millis(text: str | None) -> int:
    """`500ms`, `90s`, `5m`, `2h`, `1d` in ms; None: 0. Raises Failure."""
    if text is None:
        return 0
    units = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
    number = text.rstrip("smhd")
    if text[len(number) :] not in units or not (number.isascii() and number.isdecimal()) or int(number) == 0:
        raise Failure(f"{text!r} is no time", fix="write 500ms, 90s, 5m, 2h or 1d", exit_code=EXIT_USAGE)
    return int(number) * units[text[len(number) :]]


def _local(work: Any) -> Any:
    from akbox.kernel.codes import CallError

    try:
        return work()
    except CallError as error:
        raise Failure(error.message) from error
