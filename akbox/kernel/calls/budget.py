"""BUDGET_STATUS and BUDGET_HISTORY."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from akbox.kernel.budget import ALIASES, MICROS_PER_USD, NAMES
from akbox.kernel.calls.base import Args, Call
from akbox.kernel.codes import CallError, Code
from akbox.kernel.ops import Op

if TYPE_CHECKING:
    from akbox.kernel.effect import AgentId
    from akbox.kernel.kernel import Kernel
    from akbox.kernel.pipeline import Context


class StatusArgs(Args):
    resource: str | None = None


class HistoryArgs(Args):
    count: Annotated[int, msgspec.Meta(ge=1, le=60)] = 60


def one_budget(kernel: Kernel, agent: AgentId, name: str) -> dict[str, Any]:
    """{limit, used, reserved, remaining}; null: unlimited. Dollars as a number with six places."""
    status = kernel.ledger(agent).status(name)
    used, remaining = status.used, status.remaining
    if name == "wall_time_ms":  # nobody charges it: it passes
        elapsed = (time.monotonic_ns() - kernel.agent(agent).started_ns) // 1_000_000
        used = elapsed if status.limit is None else min(elapsed, status.limit)
        remaining = None if status.limit is None else status.limit - used
    values = {"limit": status.limit, "used": used, "reserved": status.reserved, "remaining": remaining}
    if name == "usd":
        return {key: None if value is None else value / MICROS_PER_USD for key, value in values.items()}
    return values


def budget_status(ctx: Context, resource: str | None) -> dict[str, Any]:
    if resource is None:
        return {"budgets": {name: one_budget(ctx.kernel, ctx.subject, name) for name in NAMES}}
    name = ALIASES.get(resource, resource)
    if name not in NAMES:
        raise CallError(
            Code.SCHEMA_INVALID, f"resource: no budget is called {resource!r}; there are {', '.join(NAMES)}"
        )
    return {"resource": name, **one_budget(ctx.kernel, ctx.subject, name)}


def _history(ctx: Context, args: HistoryArgs) -> dict[str, Any]:
    breakdown: dict[str, dict[str, Any]] = {}
    breakdown |= ctx.kernel.budget_breakdown(ctx.subject)
    for row in breakdown.values():
        if "usd" in row:
            row["usd"] /= MICROS_PER_USD
    return {"snapshots": ctx.kernel.budget_history(ctx.subject)[-args.count :], "breakdown": breakdown}


CALLS = (
    Call(
        op=Op.BUDGET_STATUS,
        args=StatusArgs,
        aliases={"name": "resource", "budget": "resource"},
        target=lambda args: f"budget:{args.resource or '*'}",
        execute=lambda ctx, args: budget_status(ctx, args.resource),
    ),
    Call(op=Op.BUDGET_HISTORY, args=HistoryArgs, target=lambda _args: "budget:*", execute=_history),
)
