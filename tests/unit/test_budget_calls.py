"""Budgets through the pipeline: settled by what was really used, broken down, kept over a crash, exact when crowded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_kit import POLICY, Box

from akbox.kernel import pipeline
from akbox.kernel.calls.base import Args, Call
from akbox.kernel.calls.table import CALLS
from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import Effect
from akbox.kernel.ops import Op
from akbox.store.sqlite import SqliteStore

CALL, HISTORY, STATUS = 1031, 1039, 1038


class PaidArgs(Args):
    tool: str
    tokens: int = 0
    fail: bool = False


def paid(ctx: pipeline.Context, args: PaidArgs) -> dict[str, Any]:
    if args.fail:
        raise CallError(Code.TOOL_FAIL, "it failed")
    ctx.breakdown_key = f"tool:{args.tool}"
    ctx.actual = {"tool_calls": 1, "tokens": args.tokens}
    return {"done": True}


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """With a call that costs something, as CALL and INFERENCE do."""
    call = Call(op=Op.CALL, args=PaidArgs, execute=paid, cost=lambda _ctx, _args: {"tool_calls": 1, "tokens": 50})
    monkeypatch.setitem(CALLS, CALL, call)
    made = Box(tmp_path, POLICY + "[budgets]\ntool_calls = 5\ntokens = 1000\nbytes = 1000\n")
    yield made
    made.close()


def test_ten_at_once_with_a_budget_of_five(box: Box) -> None:
    results: list[int] = []
    start = threading.Barrier(10)

    def work() -> None:
        start.wait()
        results.append(box.raw(CALL, b'{"tool":"x"}')[0])

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [0] * 5 + [28] * 5
    assert box.call(STATUS, resource="tool_calls") == {
        "resource": "tool_calls", "limit": 5, "used": 5, "reserved": 0, "remaining": 0,
    }  # fmt: skip


def test_what_was_really_used_counts(box: Box) -> None:
    box.call(CALL, tool="a", tokens=20)
    box.call(CALL, tool="a", tokens=1)
    box.call(CALL, tool="b", tokens=5)
    assert box.fail(CALL, tool="b", fail=True)["code"] == Code.TOOL_FAIL
    assert box.kernel.budgets.snapshot()["tokens"] == 26
    history = box.call(HISTORY)
    assert history["breakdown"]["tool:a"] == {"calls": 2, "tool_calls": 2, "tokens": 21}
    assert history["breakdown"]["tool:b"] == {"calls": 1, "tool_calls": 1, "tokens": 5}
    assert history["snapshots"][-1]["tokens"] == 26


def test_a_crash_gives_nothing_back(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was set aside when the supervisor died counts as used."""
    seen: list[dict[str, int]] = []

    def look(ctx: pipeline.Context, args: PaidArgs) -> dict[str, Any]:
        other = SqliteStore(tmp_path / "kernel.db")
        seen.append(other.load_budgets(ctx.subject))
        other.close()
        return paid(ctx, args)

    call = Call(op=Op.CALL, args=PaidArgs, execute=look, cost=lambda _ctx, _args: {"tool_calls": 1, "tokens": 50})
    monkeypatch.setitem(CALLS, CALL, call)
    box.call(CALL, tool="a", tokens=7)
    assert {k: seen[0][k] for k in ("tool_calls", "tokens")} == {"tool_calls": 1, "tokens": 50}
    assert box.store.load_budgets(box.kernel.root)["tokens"] == 7


def test_a_measured_budget_ends_the_agent(box: Box) -> None:
    ended: list[tuple[str, str]] = []
    box.kernel.over_budget = lambda agent, name: ended.append((agent.name, name))
    assert box.kernel.charge(box.kernel.root, "bytes", 999)
    assert not box.kernel.charge(box.kernel.root, "bytes", 2)
    assert ended == [("root", "bytes")]


def test_an_effect_has_a_cost(box: Box) -> None:
    effect = Effect(op=Op.FS_OPEN, target="/app/x", need=1, cost={"tokens": 600})
    assert box.kernel.authorize(box.kernel.root, effect).allowed
    again = box.kernel.authorize(box.kernel.root, effect)
    assert (again.allowed, again.code, again.errno) == (False, Code.BUDGET_EXCEEDED, 28)
    refused = box.kernel.authorize(box.kernel.root, Effect(op=Op.FS_OPEN, target="/etc/x", need=1, cost={"tokens": 10}))
    assert (refused.allowed, box.kernel.budgets.used("tokens")) == (False, 600)


@pytest.mark.parametrize("amount", [2**64, -1, 1.5, "5", True])
def test_what_is_no_amount(box: Box, amount: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        box.kernel.budgets.reserve({"tokens": amount} if amount is not False else {})
