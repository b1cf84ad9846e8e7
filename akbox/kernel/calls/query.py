"""QUERY: one call, many questions, told apart by `what`. The keys `query` and `check` of older clients are
understood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from akbox.kernel.calls.base import Args, Call
from akbox.kernel.calls.budget import budget_status
from akbox.kernel.calls.log import Limit, last_denial
from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import Effect
from akbox.kernel.ops import BY_NAME, Op, effect_op, op_name
from akbox.kernel.patch import same_json

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context

Position = Annotated[int, msgspec.Meta(ge=0)]
MAX_SCANNED = 10_000
PAGE = 200  # objects that are looked at with one question to the store


class Objects(Args, tag_field="what", tag="objects"):
    """`where`: JSON pointers (or names of top-level members) to the values they must have; `after`: a ptr."""

    type: str | None = None
    where: dict[str, Any] = msgspec.field(default_factory=dict)
    limit: Limit = 100
    after: Position = 0


class Audit(Args, tag_field="what", tag="audit"):
    from_seq: Position = 1
    to_seq: Position | None = None
    op: str | int | None = None
    limit: Limit = 100


class Authorize(Args, tag_field="what", tag="authorize"):
    op: str | int
    target: str


class Check(Args, tag_field="what", tag="check"):
    op: str | int
    target: str


class Budget(Args, tag_field="what", tag="budget"):
    resource: str | None = None


class Capabilities(Args, tag_field="what", tag="capabilities"):
    pass


class Tools(Args, tag_field="what", tag="tools"):
    pass


class Agents(Args, tag_field="what", tag="agents"):
    pass


class LastDenial(Args, tag_field="what", tag="last_denial"):
    pass


class WhoAmI(Args, tag_field="what", tag="context"):
    pass


Question = Objects | Audit | Authorize | Check | Budget | Capabilities | Tools | Agents | LastDenial | WhoAmI


class QueryArgs(Args):
    question: Question


_OLD_NAMES = {"auth": "authorize", "audit_log": "audit", "audit_logs": "audit"}


def _normalise(args: dict[str, Any]) -> dict[str, Any]:
    """Every dialect to {"question": {"what": …}}: `query` for `what`, {"check": op, "target"}, and a bare range of
    seqs."""
    args = dict(args)
    named = [key for key in ("what", "query", "check") if key in args]
    if len(named) > 1:
        raise CallError(Code.SCHEMA_INVALID, f"{' and '.join(named)}: give one of them")
    if named == ["query"]:
        args["what"] = args.pop("query")
    elif named == ["check"]:
        args |= {"what": "check", "op": args.pop("check")}
    elif not named and args.keys() & {"from_seq", "to_seq", "start_seq", "end_seq"}:
        args["what"] = "audit"
    if isinstance(args.get("what"), str):
        args["what"] = _OLD_NAMES.get(args["what"], args["what"])
    for old, new in (("start_seq", "from_seq"), ("end_seq", "to_seq")):
        if old in args and new not in args:
            args[new] = args.pop(old)
    return {"question": args}


def _objects(ctx: Context, q: Objects) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    after, scanned = q.after, 0
    while len(found) < q.limit and scanned < MAX_SCANNED:
        page = ctx.kernel.store.objects(
            ctx.subject, type=q.type, after=after, limit=PAGE if q.where else min(PAGE, q.limit)
        )
        if not page:
            return {"objects": found, "next": None}
        for item in page:
            after, scanned = item.ptr, scanned + 1
            value = msgspec.json.decode(item.value)
            if _matches(value, q.where):
                found.append(
                    {"ptr": item.ptr, "type": item.type, "version": item.version, "value": value, "taint": item.taint}
                )
                if len(found) == q.limit:
                    break
    return {"objects": found, "next": after}


def _matches(value: Any, where: dict[str, Any]) -> bool:
    if not where:
        return True
    from jsonpointer import JsonPointer, JsonPointerException

    for key, wanted in where.items():
        try:
            if key.startswith("/"):
                found = JsonPointer(key).resolve(value)
            elif isinstance(value, dict) and key in value:
                found = value[key]
            else:
                return False
        except (JsonPointerException, TypeError):
            return False
        if not same_json(found, wanted):
            return False
    return True


def _audit(ctx: Context, q: Audit) -> dict[str, Any]:
    """The agent's own entries (the root agent's: the run's), in order."""
    ctx.kernel.flush_events()
    number = None
    if q.op is not None:
        number = q.op if isinstance(q.op, int) else BY_NAME.get(q.op, BY_NAME.get(q.op.upper()))
        if number is None:
            raise CallError(Code.SCHEMA_INVALID, f"op: {q.op!r} names no op")
    own = None if ctx.subject == ctx.kernel.root else ctx.subject.hex()
    head, _ = ctx.kernel.log.head()
    found: list[dict[str, Any]] = []
    for e in ctx.kernel.log.entries(q.from_seq, q.to_seq):
        if own in (None, e.agent) and number in (None, e.op):
            found.append(msgspec.to_builtins(e) | {"hash": e.this_hash})
            if len(found) == q.limit:
                break
    return {"entries": found, "head_seq": head, "count": len(found)}


def _authorize(ctx: Context, q: Authorize | Check) -> dict[str, Any]:
    try:
        op, need = effect_op(q.op)
    except ValueError as error:
        raise CallError(Code.SCHEMA_INVALID, f"op: {error}") from error
    decision = ctx.kernel.decide(ctx.subject, Effect(op=op, target=q.target, need=need))
    if isinstance(q, Check):
        return {"allowed": decision.allowed}
    return {
        "allowed": decision.allowed,
        "authorized": decision.allowed,
        "op": op_name(op),
        "target": q.target,
        "reason": decision.reason,
        "rule": decision.rule,
        "missing_cap": decision.missing_cap,
        "capability_name": decision.missing_cap or decision.rule,
        "suggested_fix": decision.suggested_fix,
        "ttl_ms": 0,
    }


def _capabilities(ctx: Context) -> dict[str, Any]:
    """What the agent holds: its heap and mailbox, and one per rule of its policy that grants something."""
    from akbox.kernel.calls.cap import describe_held

    return {"capabilities": [describe_held(ctx.kernel, ctx.agent, held) for held in ctx.agent.held()]}


def _execute(ctx: Context, args: QueryArgs) -> dict[str, Any]:
    match args.question:
        case Objects() as q:
            return _objects(ctx, q)
        case Audit() as q:
            return _audit(ctx, q)
        case Authorize() | Check() as q:
            return _authorize(ctx, q)
        case Budget() as q:
            return budget_status(ctx, q.resource)
        case Capabilities():
            return _capabilities(ctx)
        case Tools():
            tools = ctx.kernel.tools
            return {"tools": [] if tools is None else list(tools.describe(ctx.subject))}
        case Agents():
            return {"agents": ctx.kernel.tree.described()}
        case LastDenial():
            return last_denial(ctx)
        case WhoAmI():
            return {
                "agent": ctx.subject.hex(),
                "run_id": ctx.kernel.run_id.hex(),
                "root": ctx.subject == ctx.kernel.root,
            }


CALLS = (
    Call(
        op=Op.QUERY,
        args=QueryArgs,
        normalise=_normalise,
        target=lambda args: f"query:{type(args.question).__struct_config__.tag}",
        execute=_execute,
    ),
)
