"""`akbox audit`: does a run's log hold, what is in it, and what a crash left over."""

from __future__ import annotations

import fnmatch
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from akbox.cli.output import EXIT_FAILED, EXIT_USAGE, Failure, emit_json, note, paint, printable
from akbox.rundir import StateError, find_run, state_root

LOG = "audit.jsonl"
CHECKPOINTS = "checkpoints"
LIFECYCLE, LAST_TARGET = 0xFFFD, "run:finish"
RULES = "rules.json"
_FOLLOW_S = 0.2
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Entry = dict[str, Any]  # one line of the log; what is in it is documented in docs/audit.md

state_option = click.option("--state-dir", metavar="DIR", help="Instead of $XDG_STATE_HOME/akbox.")
run_argument = click.argument("run", required=False, default="last", metavar="[RUN|FILE]")
_FILTERS = (
    click.option("--op", metavar="GLOB", help="Only these ops (fs.open, net.*)."),
    click.option("--target", metavar="GLOB", help="Only these targets."),
    click.option("--decision", type=click.Choice(["allow", "deny", "ask"]), help="Only these decisions."),
    click.option("--agent", metavar="HEX", help="Only this agent (the first digits of its id)."),
    click.option("--since", metavar="TIME", help="2026-01-31T12:00:00Z, or 90s, 5m, 2h, 1d ago."),
    click.option("--until", metavar="TIME", help="As --since."),
)


def filter_options(command: Callable[..., int]) -> Callable[..., int]:
    """Gives a command the options that choose entries; `wanted_by` makes the test of them."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@click.group(short_help="Verify, show, prove and export the logs of runs.")
def audit() -> None:
    """The logs of runs. RUN is `last`, or the first four or more digits of a run id; a FILE has a slash or a dot."""


@audit.command()
@run_argument
@click.option("--checkpoint", "anchored", multiple=True, metavar="FILE", help="One that was kept elsewhere.")
@click.option("--key", metavar="HEX", help="The public key that must have signed the checkpoints.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@state_option
def verify(run: str, anchored: tuple[str, ...], key: str | None, as_json: bool, state_dir: str | None) -> int:
    """Check a log's chain from its first entry, and against its checkpoints. Exit 0: it holds; 1: it does not, and
    where.

    A checkpoint that was kept elsewhere (`akbox run --anchor`) shows, beside every change, a tail that was cut off and
    a log that was written anew with another key.
    """
    from akbox.kernel.verify import verify as verify_log

    log = log_of(run, state_dir)
    own = log.with_name(CHECKPOINTS)
    points = own if log.name == LOG and own.is_file() else None
    expected = key if key is not None or anchored else _own_key(run, state_dir)
    try:
        found = verify_log(log, points, anchored=anchored, public_key=expected)
    except OSError as error:
        raise Failure(f"cannot read {error.filename or log}: {error.strerror}") from error
    if as_json:
        fields = {name: getattr(found, name) for name in found.__struct_fields__}
        emit_json({"log": str(log), "checkpoint_file": str(points) if points else None, **fields})
    elif found.ok:
        signed = f", {found.checkpoints} checkpoints" if points or anchored else ""
        print(f"audit verify: {paint('ok', 'green', sys.stdout)} ({found.entries} entries{signed}, {log})")
        if found.key and expected is None and not anchored:
            note(f"signed with the key {found.key}; whose that is you must know from elsewhere: --key HEX")
    else:
        where = f" at entry {found.first_bad_seq}" if found.first_bad_seq is not None else ""
        print(f"audit verify: {paint('FAILED', 'red', sys.stdout)}{where}: {printable(found.reason or '')} ({log})")
        if found.torn_tail:
            note(f"the last {found.torn_tail} bytes were never finished, as after a crash: akbox audit recover {run}")
    return 0 if found.ok else EXIT_FAILED


@audit.command()
@run_argument
@filter_options
@click.option("-n", "--tail", type=click.IntRange(1), metavar="N", help="Only the last N of them.")
@click.option("--follow", is_flag=True, help="Go on with what is written until the run ends.")
@click.option("--json", "as_json", is_flag=True, help="The lines of the log as they are.")
@state_option
def show(run: str, tail: int | None, follow: bool, as_json: bool, state_dir: str | None, **filters: str | None) -> int:
    """Print the entries of a log. It is not verified: that is `akbox audit verify`."""
    log = log_of(run, state_dir)
    wanted = wanted_by(filters)
    lines: Iterator[str] = (line for line, entry in read_entries(log, follow) if wanted(entry))
    if tail is not None and not follow:
        import collections

        lines = iter(collections.deque(lines, maxlen=tail))
    try:
        for line in lines:
            sys.stdout.write(line if as_json else _pretty(json.loads(line)))
            if follow:
                sys.stdout.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise Failure(f"cannot read {log}: {error.strerror}") from error
    return 0


@audit.command()
@run_argument
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@state_option
def recover(run: str, as_json: bool, state_dir: str | None) -> int:
    """Complete the log of a run whose akbox was killed: what the event ring still holds goes into it."""
    from akbox.kernel.audit import AuditError
    from akbox.kernel.recover import recover as recover_log
    from akbox.kernel.signing import Signer, SigningKeyError
    from akbox.linux.unfinished import unmark

    folder = log_of(run, state_dir).parent
    try:
        done = recover_log(folder, rules=_rules(folder), signer=Signer.of_user(state_root(state_dir) / "keys"))
    except (AuditError, SigningKeyError) as error:
        raise Failure(f"cannot recover: {error}") from error
    except OSError as error:
        raise Failure(f"cannot recover {folder}: {error.strerror}") from error
    unmark(state_root(state_dir), folder.name)
    if as_json:
        emit_json(
            {
                "run_dir": str(folder),
                "events": done.events,
                "pending": done.pending,
                "calls": done.calls,
                "torn_bytes": done.torn_bytes,
            }
        )
    elif done.changed:
        cut = f", cut {done.torn_bytes} bytes of a torn line" if done.torn_bytes else ""
        print(f"audit recover: added {done.events + done.pending + done.calls} entries{cut} ({folder})")
    else:
        print(f"audit recover: nothing was missing ({folder})")
    return 0


def _rules(folder: Path) -> list[str]:
    """What the rule numbers of the ring mean; without the file they stay numbers."""
    try:
        rules = json.loads((folder / RULES).read_bytes())
    except (OSError, ValueError):
        return []
    return [str(rule) for rule in rules] if isinstance(rules, list) else []


def _own_key(run: str, state_dir: str | None) -> str | None:
    """The public key that the user's own runs are signed with; None for a file, which may be anybody's."""
    if _is_file(run):
        return None
    try:
        return (state_root(state_dir) / "keys" / "audit-ed25519.pub").read_text("ascii")
    except (OSError, ValueError):
        return None


def _is_file(run: str) -> bool:
    return "/" in run or "." in run


def log_of(run: str, state_dir: str | None) -> Path:
    """The log that RUN names. Raises Failure."""
    if _is_file(run):
        path = Path(run)
        return path / LOG if path.is_dir() else path
    try:
        return find_run(run, state_root(state_dir)) / LOG
    except StateError as error:
        raise Failure(error.message, fix=error.hint) from error


def read_entries(log: Path, follow: bool) -> Iterator[tuple[str, Entry]]:
    """Whole lines of all files of a log, and what is in them. Following goes on to the run's last entry, over a
    rotation."""
    from akbox.kernel.logfiles import log_files

    files = log_files(log)
    while files:
        with open(files.pop(0), encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            pending = ""
            while True:
                rotated = follow and not files and not os.path.samestat(os.fstat(file.fileno()), os.stat(log))
                while chunk := file.readline():
                    pending += chunk
                    if pending.endswith("\n"):
                        entry = _parse(pending, log)
                        yield pending, entry
                        pending = ""
                        if follow and entry.get("target") == LAST_TARGET and entry.get("op") == LIFECYCLE:
                            return
                if rotated:  # what is read up to here is all that it ever holds
                    here = os.fstat(file.fileno())
                    names = log_files(log)
                    files = names[1 + next(n for n, name in enumerate(names) if os.path.samestat(here, name.stat())) :]
                if files or not follow:
                    break
                time.sleep(_FOLLOW_S)


def _parse(line: str, log: Path) -> Entry:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise Failure(f"{log} has a line that is no entry", fix=f"akbox audit verify {log}") from error
    if not isinstance(entry, dict):
        raise Failure(f"{log} has a line that is no entry", fix=f"akbox audit verify {log}")
    return entry


def wanted_by(filters: Mapping[str, str | None]) -> Callable[[Entry], bool]:
    """One test for all that was asked (`filter_options`). Times are compared as text: the log's are all in one form, in
    UTC. Raises Failure."""
    op, target, decision, agent = (filters[name] for name in ("op", "target", "decision", "agent"))
    since, until = _time(filters["since"]), _time(filters["until"])

    def wanted(entry: Entry) -> bool:
        return (
            (op is None or fnmatch.fnmatchcase(str(entry.get("name")), op))
            and (target is None or fnmatch.fnmatchcase(str(entry.get("target")), target))
            and (decision is None or entry.get("decision") == decision)
            and (agent is None or str(entry.get("agent")).startswith(agent.lower()))
            and (since is None or str(entry.get("ts")) >= since)
            and (until is None or str(entry.get("ts")) <= until)
        )

    return wanted


def _time(text: str | None) -> str | None:
    """A point in time as the log writes it. Raises Failure (exit 2)."""
    if text is None:
        return None
    if text[:-1].isdecimal() and text[-1] in _UNITS_S:
        moment = datetime.now(UTC) - timedelta(seconds=int(text[:-1]) * _UNITS_S[text[-1]])
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            message = f"{text!r} is not a time: use 2026-01-31T12:00:00Z or 90s, 5m, 2h, 1d"
            raise Failure(message, exit_code=EXIT_USAGE) from error
        moment = moment.astimezone(UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06d}000Z"


def _pretty(entry: Entry) -> str:
    decision = str(entry.get("decision"))
    colour = {"deny": "red", "ask": "yellow"}.get(decision, "dim")
    detail = [str(entry.get("target", ""))]
    second = entry.get("req", {}).get("target2") if isinstance(entry.get("req"), dict) else None
    if second:
        detail.append(f"→ {second}")
    if entry.get("rule"):
        detail.append(f"[{entry['rule']}]")
    if decision == "deny" and entry.get("stage"):
        detail.append(f"(refused at {entry['stage']})")
    return (
        f"{entry.get('seq', 0):>6}  {str(entry.get('ts'))[11:23]}  {paint(f'{decision:<5}', colour, sys.stdout)}  "
        f"{printable(str(entry.get('name'))):<14}  {printable(' '.join(detail))}\n"
    )
