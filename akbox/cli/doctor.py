"""`akbox doctor`: what this host can hold, tried and not guessed, and what to do where something is missing."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from akbox import __version__
from akbox.cli.output import EXIT_FAILED, Failure, emit_json

if TYPE_CHECKING:
    from akbox.linux.layers import Layer


@click.command(short_help="Try what this host can hold.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> int:
    """Try, in a throw-away child, everything that a run builds on.

    Exit 0 only if the default policy can be held on this host.
    """
    from akbox.linux.errors import CannotRun
    from akbox.linux.hostcheck import check_host
    from akbox.linux.probe import HostReport, ProbeError, probe

    try:
        report: HostReport = probe()
    except ProbeError as error:
        raise Failure(f"nothing could be tried: {error}", fix="run it where processes can be started") from error
    problem = ""
    try:
        check_host("auto", (), None)
    except CannotRun as error:
        problem = error.message
    lacking = [layer.name for layer in report.missing_for_default]
    holds = not problem and not lacking
    if as_json:
        layers = [{"layer": x.name, "works": x.works, "detail": x.detail, "remedy": x.remedy} for x in report.layers]
        emit_json(
            {
                "akbox": __version__,
                "kernel": report.kernel,
                "landlock_abi": report.landlock_abi,
                "layers": layers,
                "default_policy_holds": holds,
                "problem": problem or None,
            }
        )
        return 0 if holds else EXIT_FAILED
    _print_table(report.layers)
    where = f"Linux {report.kernel}, {platform.machine()}, Python {platform.python_version()}, akbox {__version__}"
    if holds:
        print(f"\nThe default policy can be held here ({where}).")
        return 0
    print(f"\nThe default policy cannot be held here ({where}): {problem or 'no ' + ', '.join(lacking)}")
    return EXIT_FAILED


def _print_table(layers: Iterable[Layer]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("layer", "works", "why", "what to do"):
        table.add_column(title, overflow="fold")
    for layer in layers:
        works = Text("yes", "green") if layer.works else Text("no", "red")
        table.add_row(layer.name, works, Text(layer.detail), Text(layer.remedy))
    # A pipe has no width: lines are as long as they are, for grep.
    Console(width=None if sys.stdout.isatty() else 400, highlight=False).print(table)
