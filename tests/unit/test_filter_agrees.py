"""The compiled filter does exactly what the table says, for every call, with garbage where the kernel does not look."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from akbox.linux.filter import RET_ALLOW, RET_RECORD, RET_TRACE, RET_TRAP, RET_USER_NOTIF, compile_filter
from akbox.linux.syscalls import ARCHES, Decision, FilterPlan, Outcome, Rule, decide, decisions
from tests.unit.bpf import run

PLANS = [
    FilterPlan(arch, strict, reads, listings, traced, notify, landlock, signals, accepts=not reads)
    for arch in ARCHES
    for strict, reads, listings, traced, notify, landlock, signals in (
        (False, False, False, True, True, True, True),
        (False, False, True, True, True, True, True),
        (True, False, True, True, True, True, True),
        (False, True, False, True, False, True, True),
        (False, False, False, False, True, False, False),
        (True, False, False, True, False, True, False),
    )
]
IDS = [f"{p.arch}-{i % 6}" for i, p in enumerate(PLANS)]
REGISTER = st.integers(0, 2**64 - 1)


def expected(plan: FilterPlan, arch: int, nr: int, args: list[int]) -> int:
    supervisor = RET_USER_NOTIF if plan.notify else RET_TRACE
    return {
        Outcome.ALLOW: RET_ALLOW,
        Outcome.SUPERVISOR: supervisor,
        Outcome.SIGSYS: RET_TRAP,
        Outcome.RECORDED: RET_RECORD,
    }[decide(plan, arch, nr, args)]


def near(rule: Rule, rng: random.Random) -> list[list[int]]:
    """Registers that satisfy the rule with garbage in every bit it does not look at, and each one-bit miss of it."""
    hit = [rng.getrandbits(64) for _ in range(6)]
    for arg, mask, value in rule:
        hit[arg] = hit[arg] & ~mask | value
    misses = []
    for (arg, mask, _), bit in itertools.product(rule, range(64)):
        if mask >> bit & 1:
            miss = list(hit)
            miss[arg] ^= 1 << bit
            misses.append(miss)
    return [hit, *misses]


@pytest.mark.parametrize("plan", PLANS, ids=IDS)
def test_every_number_and_every_rule(plan: FilterPlan) -> None:
    program, arch, rng = compile_filter(plan), ARCHES[plan.arch], random.Random(plan.arch)
    for nr in (*range(480), *range(500, 560), *range(1000, 1110), 0x3FFF_FFFF, 0x4000_0000, 0x4000_003B, 2**32 - 1):
        decision = decisions(plan).get(nr)
        samples = [[0] * 6, [2**64 - 1] * 6, [rng.getrandbits(64) for _ in range(6)]]
        for rule in decision.rules if decision else ():
            samples += near(rule, rng)
        for args in samples:
            assert run(program, nr, arch, args) == expected(plan, arch, nr, args), (nr, decision, args)


@pytest.mark.parametrize("plan", PLANS[:2], ids=IDS[:2])
@settings(max_examples=300, deadline=None)
@given(nr=st.one_of(st.integers(0, 1110), st.integers(0, 2**32 - 1)), args=st.lists(REGISTER, min_size=6, max_size=6))
def test_any_number_any_registers(plan: FilterPlan, nr: int, args: list[int]) -> None:
    arch = ARCHES[plan.arch]
    assert run(compile_filter(plan), nr, arch, args) == expected(plan, arch, nr, args)


@pytest.mark.parametrize("plan", PLANS, ids=IDS)
@pytest.mark.parametrize("arch", [0x4000_0003, 0x4000_0028, 0x4000_003E, 0, 2**32 - 1])
def test_other_architectures_reach_the_supervisor(plan: FilterPlan, arch: int) -> None:
    supervisor = RET_USER_NOTIF if plan.notify else RET_TRACE
    program = compile_filter(plan)
    assert {run(program, nr, arch, [0] * 6) for nr in range(1110)} == {supervisor}


def kernel_views(decision: Decision) -> list[int]:
    return sorted({m.arg for rule in decision.rules for m in rule if m.mask != 2**64 - 1})


@pytest.mark.parametrize("plan", PLANS, ids=IDS)
def test_garbage_in_the_upper_half_changes_nothing(plan: FilterPlan) -> None:
    rng, arch, seen = random.Random(7), ARCHES[plan.arch], 0
    for decision in decisions(plan).values():
        ints = kernel_views(decision)
        for rule in decision.rules:
            clean = [0] * 6
            for arg, _, value in rule:
                clean[arg] = value
            dirty = [a | rng.getrandbits(32) << 32 if i in ints else a for i, a in enumerate(clean)]
            assert decide(plan, arch, decision.nr, clean) is Outcome.ALLOW
            assert run(compile_filter(plan), decision.nr, arch, dirty) == RET_ALLOW, (decision.name, dirty)
            seen += 1
    assert seen > 50
