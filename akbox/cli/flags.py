"""Options as a table, and the parser of `akbox run`'s own start-up path.

Importing click takes longer than launching the agent. So `run` declares its options here once, as data: parse() reads
them in the common case, and run.py makes the click command of the same table for `--help` and everything else.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from akbox.cli.output import EXIT_USAGE, Failure, did_you_mean


class Flag(Struct, frozen=True):
    """One option. `many`: repeatable, the value is a tuple. `switch`: no value. `least`: a number, at least this."""

    name: str
    help: str
    metavar: str = ""
    short: str = ""
    key: str = ""
    many: bool = False
    switch: bool = False
    least: int | None = None
    choices: tuple[str, ...] = ()
    default: str | None = None

    @property
    def dest(self) -> str:
        """The key of its value."""
        return self.key or self.name.removeprefix("--").replace("-", "_")


Values = dict[str, object]


class UsageError(Failure):
    """Wrong usage of `akbox run`: exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(message, fix="akbox run --help", exit_code=EXIT_USAGE)


def defaults(flags: Sequence[Flag]) -> Values:
    """The values when nothing is given."""
    return {f.dest: () if f.many else False if f.switch else f.default for f in flags}


def parse(flags: Sequence[Flag], args: Sequence[str]) -> tuple[Values, list[str]]:
    """Options up to `--` or the first word that is none; the rest, to the byte. Raises UsageError."""
    by_name = {name: f for f in flags for name in (f.name, f.short) if name}
    values = defaults(flags)
    given: dict[str, list[object]] = {}
    n = 0
    while n < len(args):
        arg = args[n]
        n += 1
        if arg == "--":
            break
        if not arg.startswith("-") or arg == "-":
            n -= 1
            break
        name, value = _split(arg)
        flag = by_name.get(name)
        if flag is None:
            raise UsageError(f"there is no option {name}{did_you_mean(name, [f.name for f in flags])}")
        if flag.switch:
            if value is not None:
                raise UsageError(f"{name} takes no value")
            values[flag.dest] = True
            continue
        if value is None:
            if n == len(args):
                raise UsageError(f"{name} needs a value: {name} {flag.metavar}")
            value = args[n]
            n += 1
        given.setdefault(flag.dest, []).append(_convert(flag, value))
    for flag in flags:
        if flag.dest in given:
            values[flag.dest] = tuple(given[flag.dest]) if flag.many else given[flag.dest][-1]
    return values, list(args[n:])


def _split(arg: str) -> tuple[str, str | None]:
    """`--name=value`, `-nvalue`, or a name alone."""
    if arg.startswith("--"):
        name, equals, value = arg.partition("=")
        return name, value if equals else None
    return arg[:2], arg[2:] or None


def _convert(flag: Flag, value: str) -> object:
    if flag.choices and value not in flag.choices:
        raise UsageError(f"{flag.name} {value!r} is not one of {', '.join(flag.choices)}")
    if flag.least is None:
        return value
    if not (value.isascii() and value.isdecimal() and int(value) >= flag.least):
        raise UsageError(f"{flag.name} {value!r} is not a number of {flag.least} or more")
    return int(value)
