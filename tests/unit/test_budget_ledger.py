"""Ledgers: what is spent never passes a limit, in any order of operations, and nothing is lost on the way."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from akbox.kernel.budget import NAMES, U64_MAX, BudgetExceeded, Ledger, Reservation, limits_of

AMOUNTS = st.integers(0, 40) | st.sampled_from([2**63, U64_MAX])


class LedgerMachine(RuleBasedStateMachine):
    """A parent with two children against a model that only adds numbers."""

    reservations: Bundle[tuple[int, Reservation]] = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.parent = Ledger({"tokens": 100, "tool_calls": 10})
        self.ledgers = [self.parent, self.parent.child({"tokens": 40}), self.parent.child({"tool_calls": 4})]
        self.spent = dict.fromkeys(("tokens", "tool_calls"), 0)  # in the whole tree
        self.held = dict.fromkeys(("tokens", "tool_calls"), 0)

    @rule(target=reservations, who=st.integers(0, 2), name=st.sampled_from(["tokens", "tool_calls"]), amount=AMOUNTS)
    def reserve(self, who: int, name: str, amount: int) -> object:
        left = self.ledgers[who].status(name).remaining
        assert left is not None
        if amount > left:
            with pytest.raises(BudgetExceeded, match=name):
                self.ledgers[who].reserve({name: amount})
            return multiple()
        made = self.ledgers[who].reserve({name: amount})
        self.held[name] += amount
        return (who, made)

    @rule(what=consumes(reservations), actual=st.none() | st.integers(0, 60))
    def settle(self, what: tuple[int, Reservation], actual: int | None) -> None:
        who, reservation = what
        used = None if actual is None else dict.fromkeys(reservation.amounts, actual)
        before = {n: self.ledgers[who].used(n) for n in self.spent}
        self.ledgers[who].settle(reservation, used)
        for name, amount in reservation.amounts.items():
            self.held[name] -= amount
            grown = self.ledgers[who].used(name) - before[name]
            assert grown <= (amount if actual is None else actual)
            assert grown >= min(amount, amount if actual is None else actual)  # what was reserved can always be spent
            self.spent[name] += grown

    @rule(what=consumes(reservations))
    def release(self, what: tuple[int, Reservation]) -> None:
        who, reservation = what
        self.ledgers[who].release(reservation)
        for name, amount in reservation.amounts.items():
            self.held[name] -= amount
        with pytest.raises(ValueError, match="before"):
            self.ledgers[who].release(reservation)

    @rule(who=st.integers(0, 2), name=st.sampled_from(["tokens", "tool_calls"]), amount=AMOUNTS)
    def charge(self, who: int, name: str, amount: int) -> None:
        before = self.ledgers[who].used(name)
        self.ledgers[who].charge(name, amount)
        self.spent[name] += self.ledgers[who].used(name) - before

    @invariant()
    def nothing_passes_a_limit(self) -> None:
        for ledger in self.ledgers:
            for name in self.spent:
                status = ledger.status(name)
                assert status.used >= 0
                assert status.reserved >= 0
                if status.limit is not None:
                    assert status.used + status.reserved <= status.limit
        for name, limit in (("tokens", 100), ("tool_calls", 10)):
            assert self.spent[name] + self.held[name] <= limit

    def teardown(self) -> None:
        for child in self.ledgers[1:]:
            if all(self.held[name] == 0 for name in self.held):
                child.close()
                child.close()
        if all(self.held[name] == 0 for name in self.held):
            for name, spent in self.spent.items():
                assert self.parent.used(name) == spent
                assert self.parent.status(name).reserved == 0


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLedgers = LedgerMachine.TestCase


def test_zero_and_absent_differ() -> None:
    ledger = Ledger({"tool_calls": 0, "tokens": None})
    with pytest.raises(BudgetExceeded):
        ledger.reserve({"tool_calls": 1})
    ledger.settle(ledger.reserve({"tokens": U64_MAX}))
    assert ledger.status("tokens").remaining is None
    with pytest.raises(BudgetExceeded):  # unlimited is still u64
        ledger.reserve({"tokens": 1})
    assert ledger.charge("tokens", 5) is False
    assert ledger.overrun("tokens") == 5


def test_all_or_nothing() -> None:
    ledger = Ledger({"tokens": 10, "tool_calls": 0})
    with pytest.raises(BudgetExceeded, match="tool_calls"):
        ledger.reserve({"tokens": 5, "tool_calls": 1})
    assert ledger.status("tokens").reserved == 0


def test_ten_at_once_five_succeed() -> None:
    ledger = Ledger({"tool_calls": 5})
    gate, done = threading.Barrier(10), []

    def work() -> None:
        gate.wait(30)
        try:
            ledger.settle(ledger.reserve({"tool_calls": 1}))
            done.append(True)
        except BudgetExceeded:
            done.append(False)

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == [False] * 5 + [True] * 5
    assert ledger.used("tool_calls") == 5


def test_a_childs_share_comes_out_of_its_parents() -> None:
    parent = Ledger({"tokens": 100})
    child = parent.child({"tokens": 60})
    with pytest.raises(BudgetExceeded):
        parent.child({"tokens": 41})
    with pytest.raises(BudgetExceeded):
        parent.reserve({"tokens": 41})
    child.charge("tokens", 25)
    grandchild = child.child({"tokens": 35})
    grandchild.charge("tokens", 99)
    assert grandchild.used("tokens") == 35
    assert grandchild.exceeded("tokens")
    grandchild.close()
    child.close()
    assert (parent.used("tokens"), parent.status("tokens").remaining) == (60, 40)


@pytest.mark.parametrize("amount", [-1, 2**64, 1.5, True, "1"])
def test_amounts_are_u64(amount: object) -> None:
    ledger = Ledger({"tokens": 10})
    for use in (lambda: ledger.reserve({"tokens": amount}), lambda: ledger.charge("tokens", amount)):  # type: ignore[dict-item, arg-type]
        with pytest.raises(ValueError, match="amount"):
            use()
    with pytest.raises(ValueError, match="called 'love'"):
        ledger.charge("love", 1)
    with pytest.raises(ValueError, match="called 'love'"):
        Ledger({"love": 1})


def test_refunds_stop_at_zero() -> None:
    ledger = Ledger({"heap_bytes": 10})
    ledger.charge("heap_bytes", 4)
    ledger.refund("heap_bytes", 9)
    assert ledger.used("heap_bytes") == 0
    assert ledger.snapshot() == dict.fromkeys(NAMES, 0)


def test_limits_of_a_policy() -> None:
    assert limits_of({"usd": 1.2345678, "cpu_time_ns": 5, "tokens": None}) == {
        "usd": 1234567,
        "cpu_ns": 5,
        "tokens": None,
    }
