"""What a conformance case is: data only. `engine.py` runs cases, `world.py` makes what they work on.

Words in braces in commands, policies and targets are places of the case's world: `{W}` writable, `{R}` read-only,
`{S}` denied inside W, `{H}` a host file that is not granted, `{T}` an ungranted directory, `{HP}` a host process, `{K}`
the helpers. A command is run without a shell; `sh()` and `py()` write the usual two.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from akbox.conformance.engine import Result
    from akbox.conformance.world import World


class Failed(AssertionError):
    """A case did not hold. The message says which and shows what the command said."""


def require(condition: object, message: str) -> None:
    """An assertion that `python -O` keeps. Raises Failed."""
    if not condition:
        raise Failed(message)


AUTO = ("auto",)
BOTH = ("auto", "ptrace")
DENIED = ("EACCES", "EPERM")


@dataclass(frozen=True)
class Entry:
    """A log entry that must be there. `op`: its name, or one of several; `target`: a pattern (fnmatch); `nr`: the
    number of the system call. None = any."""

    op: str | tuple[str, ...] | None = None
    target: str | None = None
    decision: str = "deny"
    nr: int | None = None


@dataclass(frozen=True)
class Expect:
    """What the command does inside. `exit` None: any but 0. `errnos`: one is named or spelled out in the output."""

    exit: int | tuple[int, ...] | None = None
    errnos: tuple[str, ...] = ()
    stdout: str | None = None
    entry: Entry | None = None


@dataclass(frozen=True)
class Control:
    """The same command outside. `how`: "user" (an unprivileged user), "namespace" (as that user, in a throw-away user,
    mount and pid namespace of which it is root), "root" (a call that changes nothing; only when the kit runs as root).
    `exit`, `errnos`: what the kernel by itself answers, which must differ from what a sandbox answers."""

    how: str = "user"
    exit: int | tuple[int, ...] | None = 0
    errnos: tuple[str, ...] = ()
    stdout: str | None = None


Check = Callable[["World", "Result"], None]


@dataclass(frozen=True)
class Case:
    id: str
    title: str
    command: tuple[str, ...]
    expect: Expect
    control: Control | None = Control()
    policy: dict[str, object] = field(default_factory=dict)  # added to the kit's policy: lists are extended
    preset: str | None = None  # instead of the kit's policy; the working directory is W
    prepare: Callable[[World], object] | None = None  # on the host, before
    check: Check | None = None  # on the host, after the run inside
    after_control: Check | None = None  # on the host, after the run outside
    interposers: tuple[str, ...] = BOTH
    users: tuple[str, ...] = ("root", "user")
    needs_root: bool = False  # what it prepares only root can make; not part of a kit run by somebody else
    changes: tuple[str, ...] = ()  # guarded places that the case may change after all
    beyond: str = ""  # why enforcement refuses or allows what explain, asked about the path alone, says otherwise
    programs: tuple[str, ...] = ()  # beyond a minimal system's: where one is absent the case cannot be run
    starts: bool = True  # False: akbox refuses to start it, so that there may be no log
    network: bool = False  # needs listeners and a DNS server (services.py)
    terminal: bool = False  # standard input is a terminal of its own
    timeout_s: float = 30

    @property
    def refuses(self) -> bool:
        """Whether the command must fail inside."""
        return not exit_fits(0, self.expect.exit)


def exit_fits(got: int, wanted: int | tuple[int, ...] | None) -> bool:
    if wanted is None:
        return got != 0
    return got in wanted if isinstance(wanted, tuple) else got == wanted


def turns(cases: list[Case], whole: tuple[str, ...] = ()) -> list[Case]:
    """For long tables of network cases: each in one of the four ways to run it, in turn; those named in `whole` in all
    four."""
    ways = (("user", "auto"), ("root", "ptrace"), ("user", "ptrace"), ("root", "auto"))
    taken = []
    for n, case in enumerate(cases):
        user, interposer = ways[n % 4]
        if case.id not in whole:
            users = (user,) if os.geteuid() == 0 else ("user",)
            case = replace(case, users=users, interposers=(interposer,))
        outer = case.command[0]
        programs = case.programs or (() if outer.startswith(("/", "{")) else (outer,))
        taken.append(replace(case, network=True, programs=programs))
    return taken


def sh(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def py(script: str) -> tuple[str, ...]:
    return ("/usr/bin/python3", "-I", "-c", script)


def call(*words: str) -> tuple[str, ...]:
    """helper/try_call.c: one system call, and the kernel's answer."""
    return ("{K}/try_call", *words)


def ok(stdout: str | None = None, entry: Entry | None = None) -> Expect:
    return Expect(exit=0, stdout=stdout, entry=entry)


def refused(nr: int, errnos: tuple[str, ...] = ("EPERM",)) -> Expect:
    """A call of the refusal table: no target to judge, but an entry with its number."""
    return Expect(errnos=errnos, entry=Entry(nr=nr))


def deny(op: str | tuple[str, ...], target: str | None = None, errnos: tuple[str, ...] = ("EACCES",)) -> Expect:
    return Expect(errnos=errnos, entry=Entry(op, target))
