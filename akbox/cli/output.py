"""How the command line speaks: failures with what, why and fix; colour only for people; JSON for programs.

Standard output carries what was asked for, standard error everything else. Nothing here is imported by the kernel.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import IO

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANNOT = 125


class Failure(Exception):
    """A command cannot do what was asked. `lines` are details (one problem each), `fix` the next thing to do."""

    def __init__(self, message: str, *, lines: Iterable[str] = (), fix: str = "", exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.lines = tuple(lines)
        self.fix = fix
        self.exit_code = exit_code


def fail(failure: Failure) -> None:
    """Prints a failure on standard error."""
    print(f"{paint('akbox:', 'red', sys.stderr)} {printable(failure.message)}", file=sys.stderr)
    for line in failure.lines:
        print(f"  {printable(line)}", file=sys.stderr)
    if failure.fix:
        print(f"  {paint('fix:', 'cyan', sys.stderr)} {printable(failure.fix)}", file=sys.stderr)


def note(text: str) -> None:
    """One line on standard error."""
    print(f"{paint('akbox:', 'cyan', sys.stderr)} {printable(text)}", file=sys.stderr)


def emit_json(value: object) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


_COLOURS = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2"}


def paint(text: str, colour: str, stream: IO[str]) -> str:
    """The text in a colour, when the stream is a terminal and NO_COLOR is not set (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def printable(text: str) -> str:
    """Text of an agent made safe for a terminal: a file name must not move the cursor or recolour our report."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8 (surrogateescape)
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def columns(rows: Iterable[tuple[str, ...]], indent: str = "") -> list[str]:
    """Rows as aligned lines, two spaces between the columns; the last column is as long as it is."""
    table = [tuple(printable(cell) for cell in row) for row in rows]
    if not table:
        return []
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]) - 1)]
    return [
        indent + "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in table
    ]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)` or nothing."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f' (did you mean "{near[0]}"?)' if near else ""


def key_values(pairs: Iterable[str], option: str) -> Mapping[str, str]:
    """`K=V` arguments of a repeatable option. Raises Failure (exit 2) for one without `=`."""
    result: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise Failure(f"{option} {pair!r} is not NAME=VALUE", exit_code=EXIT_USAGE)
        result[key] = value
    return result
