"""COMMIT, LAST_ERROR, TRACE, POLICY_SUGGEST: what the log and the refusals so far say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from akbox.kernel.calls.base import Args, Call, NoArgs
from akbox.kernel.codes import CallError, Code
from akbox.kernel.ops import Op

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context

Limit = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class TraceArgs(Args):
    limit: Limit = 100
    decision: str | None = None


class SuggestArgs(Args):
    limit: Limit = 100


def _commit(ctx: Context, _args: NoArgs) -> dict[str, Any]:
    ctx.kernel.flush_events()
    point = ctx.kernel.log.checkpoint()
    return {"seq": point.seq, "hash": point.hash, "checkpoint": msgspec.to_builtins(point)}


def last_denial(ctx: Context) -> dict[str, Any]:
    """The agent's last refusal, under the keys of every dialect that reads it."""
    ctx.kernel.flush_events()
    found = ctx.kernel.refusals.last(ctx.subject)
    if found is None:
        raise CallError(Code.NOT_FOUND, "nothing was refused so far")
    return {
        "op": found.op,
        "operation": found.op,
        "target": found.target,
        "reason": found.message,
        "error_code": int(Code.POLICY_DENY if found.code is None else found.code),
        "errno": found.errno,
        "rule": found.rule,
        "missing_cap": found.missing_cap,
        "capability_required": found.missing_cap,
        "suggested_fix": found.suggested_fix,
        "suggested_snippet": found.suggested_fix,
        "suggestion": found.suggested_fix,
        "trace_id": found.trace_id,
        "timestamp_ns": found.last_ts_ns,
    }


def _trace(ctx: Context, args: TraceArgs) -> dict[str, Any]:
    ctx.kernel.flush_events()
    agent = ctx.subject.hex()
    head, _ = ctx.kernel.log.head()
    found: list[dict[str, Any]] = []
    first = max(1, head - 10 * args.limit + 1)  # of a run with several agents, look a little further back
    for e in ctx.kernel.log.entries(first):
        if e.agent == agent and args.decision in (None, e.decision):
            keep = ("seq", "ts", "name", "target", "decision", "stage", "rule", "trace")
            found.append({key: getattr(e, key) for key in keep})
    return {"entries": found[-args.limit :]}


def _suggest(ctx: Context, args: SuggestArgs) -> dict[str, Any]:
    ctx.kernel.flush_events()
    keys = ("op", "target", "missing_cap", "suggested_fix", "count")
    found = [d for d in ctx.kernel.denials() if d.suggested_fix]
    return {"suggestions": [{key: getattr(d, key) for key in keys} for d in found[: args.limit]]}


CALLS = (
    Call(op=Op.COMMIT, args=NoArgs, execute=_commit, target=lambda _args: "audit"),
    Call(op=Op.LAST_ERROR, args=NoArgs, execute=lambda ctx, _args: last_denial(ctx)),
    Call(op=Op.TRACE, args=TraceArgs, execute=_trace),
    Call(op=Op.POLICY_SUGGEST, args=SuggestArgs, execute=_suggest),
)
