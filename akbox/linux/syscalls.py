"""What happens to each system call under a plan: the table and the argument rules, joined.

filter.py compiles the answer, the enforcer gets the refusal table, reports and `doctor` get names and reasons. decide()
is the slow reference that the compiled filter is tested against.
"""

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from akbox.linux.argument_rules import FilterPlan, Match, Rule, Rules, rules_for
from akbox.linux.syscalls_table import GROUPS, Action

__all__ = [
    "ARCHES",
    "AUTHORITY_NUMBERS",
    "Arch",
    "Call",
    "Decision",
    "FilterPlan",
    "Match",
    "Outcome",
    "Rule",
    "Rules",
    "calls",
    "decide",
    "decisions",
    "falls_back",
    "name_cells",
    "name_of",
    "number_of",
    "reason_of",
    "refusals",
]


class Arch(IntEnum):
    """AUDIT_ARCH_* of <linux/audit.h>."""

    X86_64 = 0xC000_003E
    AARCH64 = 0xC000_00B7


ARCHES = {"x86_64": Arch.X86_64, "aarch64": Arch.AARCH64}
AUTHORITY_NUMBERS = range(1024, 1045)  # 1045-1100 are kept free for more and are unknown until then
_X32_BIT = 0x4000_0000


class Outcome(IntEnum):
    """What the filter does with one call."""

    ALLOW = 0  # the kernel carries it out
    SUPERVISOR = 1  # USER_NOTIF, or TRACE where there is no listener
    SIGSYS = 2  # TRAP, which the tracer sees
    RECORDED = 3  # the kernel carries it out, and the tracer looks what came of it (TRACE with data 1)


@dataclass(frozen=True, slots=True)
class Call:
    """One row of the table."""

    name: str
    x86_64: int | None
    aarch64: int | None
    action: Action
    errno: int  # of REFUSE, else 0
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """One call under one plan: allowed if `always` or if a rule holds; else refused with `errno`, 0 = a handler's.
    `recorded`: neither, see Outcome.RECORDED."""

    nr: int
    name: str
    always: bool
    rules: Rules
    errno: int
    reason: str
    recorded: bool = False


@lru_cache(maxsize=1)
def calls() -> dict[str, Call]:
    """The whole table by name."""
    table = {}
    for group in GROUPS:
        for row in group.calls.split(";"):
            if not (fields := row.split()):
                continue
            name, x86_64, aarch64 = fields
            numbers = [None if n == "-" else int(n) for n in (x86_64, aarch64)]
            table[name] = Call(name, numbers[0], numbers[1], group.action, group.errno, group.reason)
    return table


@lru_cache(maxsize=2)
def _by_number(arch: str) -> dict[int, Call]:
    numbered = ((call.x86_64 if arch == "x86_64" else call.aarch64, call) for call in calls().values())
    return {nr: call for nr, call in numbered if nr is not None}


@lru_cache(maxsize=16)
def decisions(plan: FilterPlan) -> dict[int, Decision]:
    """Number → decision, for every call that the plan's architecture has. Raises ValueError for an unknown one."""
    if plan.arch not in ARCHES:
        raise ValueError(f"no system call table for {plan.arch!r}: akbox knows {', '.join(ARCHES)}")
    result = {}
    for nr, call in _by_number(plan.arch).items():
        recorded = call.action is Action.ACCEPT and plan.accepts
        always = not recorded and (
            call.action in (Action.ALLOW, Action.ACCEPT)
            or (call.action is Action.METADATA and not plan.strict_metadata)
            or (call.action is Action.SIGNAL and plan.signals_scoped)
            or (call.action is Action.RECEIVE and not plan.names)
        )
        rules = () if always else rules_for(call.name, plan)
        result[nr] = Decision(nr, call.name, always, rules, call.errno, call.reason, recorded)
    return result


def decide(plan: FilterPlan, arch: int, nr: int, args: Sequence[int]) -> Outcome:
    """What the filter must do with this call; arch is AUDIT_ARCH_*, args are 64-bit registers. Reference, not fast."""
    nr &= 0xFFFF_FFFF
    if arch != ARCHES[plan.arch] or nr & _X32_BIT:
        return Outcome.SUPERVISOR
    if nr in AUTHORITY_NUMBERS and plan.traced:
        return Outcome.SIGSYS
    decision = decisions(plan).get(nr)
    if decision is None:
        return Outcome.SUPERVISOR
    if decision.recorded:
        return Outcome.RECORDED
    matched = any(all(args[m.arg] & m.mask == m.value for m in rule) for rule in decision.rules)
    return Outcome.ALLOW if decision.always or matched else Outcome.SUPERVISOR


def refusals(plan: FilterPlan) -> bytes:
    """The refusal table for `_native.Enforcer`: packed (u32 nr, u32 errno). Numbers not in it and without a handler are
    answered ENOSYS."""
    return b"".join(struct.pack("=II", d.nr, d.errno) for d in decisions(plan).values() if d.errno)


def name_cells(arch: str) -> bytes:
    """Every call's name in a cell of 32 bytes at its number, for the enforcer's entries about refused calls."""
    numbered = _by_number(arch)
    return b"".join(
        (numbered[nr].name.encode() if nr in numbered else b"").ljust(32, b"\0") for nr in range(max(numbered) + 1)
    )


def name_of(arch: str, nr: int) -> str:
    """The name of a number, for reports; "syscall 600" when it has none."""
    call = _by_number(arch).get(nr)
    if call is not None:
        return call.name
    return f"authority call {nr}" if nr in AUTHORITY_NUMBERS else f"syscall {nr}"


def number_of(arch: str, name: str) -> int | None:
    """The number of a name, None when the architecture does not have the call. Raises KeyError for an unknown name."""
    call = calls()[name]
    return call.x86_64 if arch == "x86_64" else call.aarch64


def falls_back(arch: str, nr: int) -> bool:
    """Is the refusal part of normal life? Programs try these calls and go on with an older one when they get ENOSYS (or
    for io_uring, which event loops try at start, EPERM), so a report to people leaves them out. The log does not."""
    call = _by_number(arch).get(nr)
    return call is not None and (call.errno == errno.ENOSYS or call.name == "io_uring_setup")


def reason_of(arch: str, nr: int) -> str:
    """Why a call is refused or trapped, as a phrase for the report and the log."""
    call = _by_number(arch).get(nr)
    if call is not None:
        return call.reason
    if nr in AUTHORITY_NUMBERS:
        return "a call to the authority kernel"
    return f"not a call that akbox knows; {errno.errorcode[errno.ENOSYS]}, as from a kernel without it"
