"""What the filter traps has a handler: the table here and the tables in native/call_*.c are one list."""

import re
from pathlib import Path

import pytest

from akbox.linux.syscalls import FilterPlan, calls, decisions

NATIVE = Path(__file__).parents[2] / "native"
# Served wherever they come from, but only trapped by a stricter filter than today's.
UNUSED = {"pidfd_open", "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler"}


def handlers() -> set[str]:
    text = "\n".join(path.read_text() for path in NATIVE.glob("call_*.c"))
    return set(re.findall(r"\{\s*SYS_(\w+)\s*,", text))


def trapped(arch: str) -> set[str]:
    plans = (FilterPlan(arch), FilterPlan(arch, strict_metadata=True, signals_scoped=False, landlock=False, names=True))
    return {d.name for plan in plans for d in decisions(plan).values() if not d.always and not d.errno}


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_every_trapped_call_has_a_handler(arch: str) -> None:
    assert trapped(arch) - handlers() == set()
    assert len(trapped(arch)) > 50


def test_every_handler_is_reached() -> None:
    assert handlers() - trapped("x86_64") - trapped("aarch64") - UNUSED == set()
    assert handlers() <= calls().keys()
