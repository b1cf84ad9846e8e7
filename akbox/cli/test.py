"""`akbox test`: what akbox promises, tried on this machine with the installed akbox."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from akbox import __version__
from akbox.cli.output import EXIT_FAILED, EXIT_USAGE, Failure, emit_json, note, paint

if TYPE_CHECKING:
    from akbox.conformance.model import Case
    from akbox.conformance.runner import Outcome
    from akbox.conformance.world import Worlds

COLOURS = {"pass": "green", "fail": "red", "removed": "yellow"}


@click.group(short_help="Try on this machine what akbox promises.")
def test() -> None:
    """Try on this machine what akbox promises, with the installed akbox."""


USER = click.Choice(["all", "root", "user"])
INTERPOSER = click.Choice(["all", "auto", "ptrace"])


@test.command()
@click.option("--case", "patterns", metavar="GLOB", multiple=True, help="Only these cases (F18, 'P1*'). Repeatable.")
@click.option("--user", type=USER, default="all", help="Root runs them as uid 65534, too.")
@click.option("--interposer", type=INTERPOSER, default="all", help="How calls are trapped.")
@click.option("--no-controls", is_flag=True, help="Only inside: not what works outside.")
@click.option("--jobs", type=click.IntRange(1), help="At a time; as many as there are CPUs.")
@click.option("--list", "only_list", is_flag=True, help="Say which cases there are, and run none.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, every outcome.")
def confinement(
    patterns: tuple[str, ...],
    user: str,
    interposer: str,
    no_controls: bool,
    jobs: int | None,
    only_list: bool,
    as_json: bool,
) -> int:
    """Run the conformance kit: what must be refused is tried outside, then inside, where it must fail and leave its
    entry in the log; and what must work, works.

    Exit 0: every case holds. A case is `removed` where this host refuses the attempt by itself.
    """
    from akbox.conformance.suite import chosen

    cases = chosen(patterns)
    if not cases:
        raise Failure(f"there is no case {' or '.join(patterns)}", fix="see --list", exit_code=EXIT_USAGE)
    if only_list:
        return _list(cases, as_json)
    outcomes = list(_run(cases, user, interposer, jobs, outside=not no_controls, quiet=as_json))
    failed = sum(outcome.status == "fail" for outcome in outcomes)
    if as_json:
        emit_json(
            {
                "akbox": __version__,
                "cases": len(cases),
                "counts": Counter(outcome.status for outcome in outcomes),
                "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
            }
        )
    else:
        _print_summary(cases, outcomes)
    return EXIT_FAILED if failed else 0


def _list(cases: list[Case], as_json: bool) -> int:
    if as_json:
        emit_json([{"case": case.id, "title": case.title} for case in cases])
    else:
        width = max(len(case.id) for case in cases)
        print("\n".join(f"{case.id:{width}}  {case.title}" for case in cases))
    return 0


def _run(
    cases: list[Case], user: str, interposer: str, jobs: int | None, *, outside: bool, quiet: bool
) -> Iterator[Outcome]:
    from akbox.conformance.engine import USERS
    from akbox.conformance.runner import count_work, run_kit

    users = USERS if user == "all" else (user,)
    if not set(users) <= set(USERS):
        raise Failure(f"--user {user}: only root can run the kit as root", exit_code=EXIT_USAGE)
    interposers = ("auto", "ptrace") if interposer == "all" else (interposer,)
    total = count_work(cases, users, interposers, outside)
    with _worlds(users) as worlds:
        at_a_time = jobs or len(os.sched_getaffinity(0))
        running = run_kit(worlds, cases, users, interposers, at_a_time, outside)
        for number, outcome in enumerate(running, 1):
            if not quiet:
                _show(number, total, outcome)
            yield outcome


def _worlds(users: tuple[str, ...]) -> Worlds:
    from akbox.conformance.engine import unreachable
    from akbox.conformance.world import KitError, Worlds, build_helpers

    worlds = Worlds()
    try:
        build_helpers(worlds.helpers)
        problem = next((text for text in map(unreachable, users) if text), None)
    except KitError as error:
        worlds.close()
        raise Failure(error.message, fix=error.hint) from error
    if problem:
        worlds.close()
        raise Failure(problem, fix="install akbox where every user can read it, or say --user root")
    return worlds


def _show(number: int, total: int, outcome: Outcome) -> None:
    """Progress on a terminal's last line; what is not a plain pass stays."""
    moving = sys.stderr.isatty()
    if outcome.status == "fail":
        where = f"{outcome.case} as {outcome.user}" + (f", {outcome.interposer}" if outcome.interposer else "")
        start = "\r\x1b[K" if moving else ""
        print(f"{start}{paint('fail', 'red', sys.stderr)} {where}: {outcome.title}\n{outcome.detail}", file=sys.stderr)
    if moving:
        end = "\n" if number == total else ""
        print(f"\r\x1b[K{number}/{total} {outcome.case}", end=end, file=sys.stderr, flush=True)


def _print_summary(cases: list[Case], outcomes: list[Outcome]) -> None:
    inside = [outcome for outcome in outcomes if outcome.user not in ("outside", "")]
    for outcome in outcomes:
        if outcome.status == "absent":
            note(f"{outcome.case}: not run, {outcome.detail}")
    removed = [outcome for outcome in inside if outcome.status == "removed"]
    untried = [outcome for outcome in outcomes if outcome.user == "outside" and outcome.status != "pass"]
    for outcome in removed:
        note(f"{outcome.case}: this host refuses it by itself, as {outcome.user}, {outcome.interposer}")
    counts = Counter(outcome.status for outcome in inside)
    said = ", ".join(f"{count} {paint(status, COLOURS[status], sys.stdout)}" for status, count in counts.items())
    print(f"{len(cases)} cases, {len(inside)} runs inside: {said}")
    controls = sum(outcome.user == "outside" for outcome in outcomes)
    if not controls:
        return
    print(f"{controls - len(untried)} of {controls} attempts work outside")
    for outcome in untried:
        note(f"{outcome.case}: cannot be done outside either, here")
