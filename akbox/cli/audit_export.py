"""`akbox audit export` and `akbox audit stats`."""

from __future__ import annotations

import sys

import click

from akbox.cli.audit import audit, filter_options, log_of, read_entries, run_argument, state_option, wanted_by
from akbox.cli.output import Failure, columns, emit_json

FORMATS = ("jsonl", "csv", "ocsf", "otlp")


@audit.command()
@run_argument
@click.option("--format", "kind", type=click.Choice(FORMATS), default="jsonl", help="Of the output.", show_default=True)
@filter_options
@state_option
def export(run: str, kind: str, state_dir: str | None, **filters: str | None) -> int:
    """Print a log for other tools: its lines, CSV, OCSF 1.6 events (one a line), OTLP log records (JSON)."""
    from akbox.kernel import export as exports

    log = log_of(run, state_dir)
    wanted = wanted_by(filters)
    try:
        if kind == "jsonl":  # as they are, to the byte
            for line, entry in read_entries(log, False):
                if wanted(entry):
                    sys.stdout.write(line)
            return 0
        entries = (entry for _, entry in read_entries(log, False) if wanted(entry))
        for text in exports.FORMATS[kind](entries):
            sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(f"cannot read {log}: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Failure(f"{log} has a line that is no entry", fix=f"akbox audit verify {log}") from error
    return 0


@audit.command()
@run_argument
@click.option("--top", type=click.IntRange(1, 1000), default=10, help="How many of each list.", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@filter_options
@state_option
def stats(run: str, top: int, as_json: bool, state_dir: str | None, **filters: str | None) -> int:
    """Print what a log holds, in numbers."""
    from akbox.kernel.stats import stats as count

    log = log_of(run, state_dir)
    wanted = wanted_by(filters)
    try:
        found = count((entry for _, entry in read_entries(log, False) if wanted(entry)), top)
    except OSError as error:
        raise Failure(f"cannot read {log}: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Failure(f"{log} has a line that is no entry", fix=f"akbox audit verify {log}") from error
    if as_json:
        emit_json(found)
        return 0
    decisions = ", ".join(f"{n} {name}" for name, n in found["decisions"].items())
    print(f"{found['entries']} entries ({decisions}), {found['first']} to {found['last']}")
    if found["clock_steps_back"]:
        print(f"the clock went back {found['clock_steps_back']} times")
    for title in ("ops", "rules", "most_refused", "most_allowed"):
        if found[title]:
            print(title.replace("_", " "))
            print("\n".join(columns(((str(n), key) for key, n in found[title].items()), "  ")))
    return 0
