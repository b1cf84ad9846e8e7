"""What `akbox run` says when the run is over: why it ended, and each refusal once with the line that allows it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from akbox.cli.output import paint, printable

if TYPE_CHECKING:
    from akbox.kernel.effect import Denial
    from akbox.linux.result import RunResult

_FLAGS = {"fs.read": "--read", "fs.write": "--write", "net.connect": "--connect"}
_SHOWN = 20


def print_report(result: RunResult, origin: str, verbose: bool) -> None:
    """The report on standard error; nothing at all when there is nothing to say and it was not asked for."""
    lines = list(_ending(result))
    denials = result.denials
    if denials:
        things = "1 thing was" if len(denials) == 1 else f"{len(denials)} things were"
        lines.append(f"{_mark()} {things} refused (policy: {printable(origin)})")
        for denial in denials[:_SHOWN]:
            lines += _denial_lines(denial)
        if len(denials) > _SHOWN:
            lines.append(f"  … and {len(denials) - _SHOWN} more")
        lines.append(f"  the log has them all: akbox audit show {result.run_id[:8]} --decision deny")
    if verbose:
        usage = ", ".join(f"{name} {value}" for name, value in result.usage.items())
        lines.append(f"{_mark()} run {result.run_id}, policy {printable(origin)}, {result.reason}; {usage}")
    if lines:
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()


def _mark() -> str:
    return paint("akbox:", "cyan", sys.stderr)


def _ending(result: RunResult) -> list[str]:
    if result.exit_code == 124 and result.reason.startswith("budget"):
        name = result.reason.partition(" ")[2]
        return [f"{_mark()} ended: {name or result.reason} is spent (raise it with --budget {name}=…)"]
    if result.reason in ("exited", "signalled"):
        return []
    return [f"{paint('akbox:', 'red', sys.stderr)} the run was ended: {printable(result.reason)}"]


def _denial_lines(denial: Denial) -> list[str]:
    times = f"  ({denial.count} times)" if denial.count > 1 else ""
    lines = [f"  {paint(denial.op, 'yellow', sys.stderr)} {printable(denial.target)}{times}"]
    if denial.message:
        lines.append(f"      why: {printable(denial.message)}")
    for n, fix in enumerate((denial.suggested_fix or "").splitlines()):
        lines.append(f"      {'     ' if n else 'fix: '}{printable(fix)}")
    option = _option(denial)
    if option:
        lines.append(f"      or:  akbox run {printable(option)} …")
    return lines


def _option(denial: Denial) -> str | None:
    """The flag of `akbox run` that allows it, when a missing grant is all there is to it (no deny rule in the way)."""
    flag = _FLAGS.get(denial.missing_cap or "")
    if flag is None or denial.rule is not None:
        return None
    if flag != "--connect" and not denial.target.startswith("/"):
        return None
    return f"{flag} {shlex.quote(denial.target)}"


def report_document(result: RunResult, origin: str, run_dir: str) -> dict[str, Any]:
    """The report as data: what `--json` writes."""
    return {
        "run_id": result.run_id,
        "run_dir": run_dir,
        "policy": origin,
        "exit_code": result.exit_code,
        "signal": result.signal,
        "reason": result.reason,
        "usage": result.usage,
        "denials": [
            {
                "op": d.op,
                "target": d.target,
                "count": d.count,
                "rule": d.rule,
                "missing_cap": d.missing_cap,
                "suggested_fix": d.suggested_fix,
                "message": d.message,
                "errno": d.errno,
                "first_ts_ns": d.first_ts_ns,
                "last_ts_ns": d.last_ts_ns,
                "trace_id": d.trace_id,
            }
            for d in result.denials
        ],
    }


def failure_document(message: str, hint: str, exit_code: int, origin: str) -> dict[str, Any]:
    """The same for a run that did not come to be."""
    return {
        "run_id": None,
        "run_dir": None,
        "policy": origin,
        "exit_code": exit_code,
        "signal": None,
        "reason": message,
        "hint": hint,
        "usage": {},
        "denials": [],
    }


def open_json(path: str) -> int:
    """Opens the `--json` file before the agent runs: afterwards the name may lead wherever the agent wanted it to."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


def write_json(fd: int, document: dict[str, Any]) -> None:
    """Writes the document and closes the file."""
    with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(document, file, indent=2, ensure_ascii=False)
        file.write("\n")
