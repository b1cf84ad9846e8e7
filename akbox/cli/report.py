"""What `akbox run` says when the run is over: why it ended, and each refusal once with the line that allows it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
from typing import TYPE_CHECKING, Any

from akbox.cli.output import paint, printable

if TYPE_CHECKING:
    from akbox.cli.choose import Choice
    from akbox.kernel.effect import Denial
    from akbox.linux.result import RunResult
    from akbox.policy.model import Policy

SYS_REFUSED = "sys.refused"

_FLAGS = {"fs.read": "--read", "fs.write": "--write", "net.connect": "--connect"}
_LINE = re.compile(r"([a-z]+\.[a-z]+) = (\[.*\])")
_SHOWN = 20


def print_report(result: RunResult, choice: Choice, verbose: bool) -> None:
    """The report on standard error; nothing at all when there is nothing to say and it was not asked for."""
    lines = list(_ending(result))
    origin = printable(choice.origin)
    denials = [denial for denial in result.denials if not _is_normal(denial)]
    if denials:
        things = "1 thing was" if len(denials) == 1 else f"{len(denials)} things were"
        lines.append(f"{_mark()} {things} refused (policy: {origin})")
        for denial in denials[:_SHOWN]:
            lines += _denial_lines(denial, choice.policy)
        if len(denials) > _SHOWN:
            lines.append(f"  … and {len(denials) - _SHOWN} more")
        lines.append(f"  the log has them all: akbox audit show {result.run_id[:8]} --decision deny")
    if verbose:
        usage = ", ".join(f"{name} {value}" for name, value in result.usage.items())
        normal = len(result.denials) - len(denials)
        tried = f"; {normal} refused that programs try and do without" if normal else ""
        lines.append(f"{_mark()} run {result.run_id}, policy {origin}, {result.reason}; {usage}{tried}")
    if lines:
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()


def _mark() -> str:
    return paint("akbox:", "cyan", sys.stderr)


def _ending(result: RunResult) -> list[str]:
    if result.exit_code == 124 and result.reason.startswith("budget"):
        name = result.reason.partition(" ")[2]
        return [f"{_mark()} ended: {name or result.reason} is spent (raise it with --budget {name}=…)"]
    if result.reason.startswith("limit "):
        return [f"{_mark()} ended: {_limit(result)}"]
    if result.reason in ("exited", "signalled"):
        return []
    return [f"{paint('akbox:', 'red', sys.stderr)} the run was ended: {printable(result.reason)}"]


def _limit(result: RunResult) -> str:
    name = result.reason.partition(" ")[2]
    peak = result.usage.get("memory_peak_bytes")
    held = f", {_size(peak)} were in use" if name == "memory" and peak else ""
    return f"limits.{name} is reached{held} (raise it with --limit {name}=…)"


def _size(count: int) -> str:
    for unit, factor in (("G", 1 << 30), ("M", 1 << 20)):
        if count >= 10 * factor:
            return f"{count // factor}{unit}"
    return f"{count >> 10}K"


def _denial_lines(denial: Denial, policy: Policy) -> list[str]:
    times = f"  ({denial.count} times)" if denial.count > 1 else ""
    why, fix = [denial.message] if denial.message else [], (denial.suggested_fix or "").splitlines()
    if denial.op == SYS_REFUSED:
        why, fix = [_call_reason(denial)], []
    elif not any(_LINE.fullmatch(text) or text.startswith("remove ") for text in fix):
        why, fix = [*why, *(text for text in fix if text not in why)], []  # words, not a line to add
    lines = [f"  {paint(denial.op, 'yellow', sys.stderr)} {printable(denial.target)}{times}"]
    if why:
        lines.append(f"      why: {printable('; '.join(why))}")
    for n, text in enumerate(fix):
        lines.append(f"      {'     ' if n else 'fix: '}{printable(text)}{printable(_place(text, policy))}")
    option = _option(fix)
    if option:
        lines.append(f"      or:  akbox run {printable(option)} …")
    return lines


def _place(text: str, policy: Policy) -> str:
    """Where the line goes when the policy has that list: TOML takes a key once."""
    found = _LINE.fullmatch(text)
    if found is None or policy.source is None:
        return ""
    section, _, name = found[1].partition(".")
    if not getattr(getattr(policy, section, None), name, None):
        return ""
    return f"   # join it with the list at {policy.source.name}:{policy.source.at((section, name))[0]}"


def _option(fix: list[str]) -> str | None:
    """The flags of `akbox run` that do what all the lines do, when there are such flags."""
    flags = []
    for text in fix:
        found = _LINE.fullmatch(text)
        if found is None or found[1] not in _FLAGS:
            return None
        for value in json.loads(found[2]):
            if value.startswith("/") and os.path.isdir(value):
                return None  # the flag means all that is in it, the line only the directory itself
            flags.append(f"{_FLAGS[found[1]]} {shlex.quote(value)}")
    return " ".join(flags) or None


def _is_normal(denial: Denial) -> bool:
    """Do programs try it, are refused, and do without? The log has these; people need not read them."""
    if denial.harmless:
        return True
    if denial.op != SYS_REFUSED:
        return False
    from akbox.linux.syscalls import falls_back

    arch, number = _call(denial)
    return number is not None and falls_back(arch, number)


def _call_reason(denial: Denial) -> str:
    from akbox.linux.syscalls import reason_of

    arch, number = _call(denial)
    kind, _, name = denial.target.partition(":")
    if kind == "limit":
        return f"the run has as many as limits.{name} allows (raise it with --limit {name}=…)"
    if kind == "host":
        return (
            f"a filter of this host (a container's?) refuses {name}, by which akbox would do it; no policy changes that"
        )
    if number is not None:
        return f"{reason_of(arch, number)}; no policy allows it"
    reason = f"option {name} of prctl(2) is not known to be harmless" if kind == "prctl" else denial.message
    return f"{reason}; no policy allows it"


def _call(denial: Denial) -> tuple[str, int | None]:
    """The architecture and the number of the call that a target such as "syscall:mount" or "syscall:600" names."""
    from akbox.linux.syscalls import number_of

    arch = os.uname().machine
    kind, _, name = denial.target.partition(":")
    if kind != "syscall":
        return arch, None
    if name.isdigit():
        return arch, int(name)
    with contextlib.suppress(KeyError):
        return arch, number_of(arch, name)
    return arch, None


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
                "falls_back": _is_normal(d),
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
