"""CAP: derive a token from what the agent holds, revoke, inspect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from akbox.kernel.calls.base import Args, Call
from akbox.kernel.capability import MAX_TTL_MS, METHODS, Caveat, Rate, Token, Ttl, Type, decode, derive, new_tid
from akbox.kernel.codes import CallError, Code
from akbox.kernel.ops import Op

if TYPE_CHECKING:
    from akbox.kernel.agents import Agent, Held
    from akbox.kernel.kernel import Kernel
    from akbox.kernel.pipeline import Context

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]


class Derive(Args, tag_field="op", tag="derive"):
    """`cap`: a token, or the tid of a capability that the agent holds. `agent`: the only one that may use it."""

    cap: Text
    resource: str | None = None
    methods: tuple[str, ...] | None = None
    ttl_ms: Ttl = 0
    rate_limit: Rate = 0
    rate_window_ms: Ttl = 0
    agent: str | None = None


class Revoke(Args, tag_field="op", tag="revoke"):
    """`cap`: a token (that one and what was derived from it), or a tid. `after_ms`: later, for what an agent holds."""

    cap: Text
    reason: Annotated[str, msgspec.Meta(max_length=200)] = ""
    after_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_TTL_MS)] = 0


class Inspect(Args, tag_field="op", tag="inspect"):
    cap: Text


class CapArgs(Args):
    question: Derive | Revoke | Inspect


def _derive(ctx: Context, q: Derive) -> dict[str, Any]:
    kernel = ctx.kernel
    held = next((h for h in ctx.agent.held() if h.tid == q.cap), None)
    if held is not None:
        kernel.caps.check_live(held.tid)
        if held.rule is not None and ctx.agent.layers[0].over(held.rule):
            raise CallError(Code.CAP_EXPIRED, "the capability is over")
        if held.ask:
            raise CallError(Code.CAP_SCOPE, "what waits for approval cannot be handed on")
        text = kernel.caps.mint(Type(held.type), held.resource, methods=held.methods, ttl_ms=q.ttl_ms, parent=held.tid)
    else:
        text = q.cap
        kernel.caps.verify(text, agent=ctx.subject)
    kind = Type(decode(text).capability.type)
    _check_methods(kind, q.methods)
    if kind == Type.HEAP and q.resource is not None and held is not None:
        _own_object(ctx, q.resource)
    now_ms = kernel.clock_ns() // 1_000_000
    caveat = Caveat(
        tid=new_tid(), resource=q.resource, methods=q.methods, expires_ms=now_ms + q.ttl_ms if q.ttl_ms else None,
        rate_limit=q.rate_limit, rate_window_ms=q.rate_window_ms,
        agent=None if q.agent is None else kernel.tree.find(q.agent).id.hex(),
    )  # fmt: skip
    text = derive(text, caveat)
    token = decode(text)
    return {"token": text, "tid": token.tids[-1], "expires_ms": token.expires_ms}


def _check_methods(kind: Type, methods: tuple[str, ...] | None) -> None:
    for method in methods or ():
        if method not in METHODS[kind]:
            raise CallError(Code.SCHEMA_INVALID, f"methods: {kind.name} has no {method!r}")


def _own_object(ctx: Context, resource: str) -> None:
    """A grant for one object says whose it is: not a promise about an object that somebody else may get."""
    number = resource.removeprefix("heap:")
    if number.isdecimal() and len(number) < 20:
        found = ctx.kernel.store.get(int(number))
        if found is None or found.owner != ctx.subject:
            raise CallError(Code.CAP_SCOPE, f"object {number} is not this agent's", missing_cap="heap")


def _revoke(ctx: Context, q: Revoke) -> dict[str, Any]:
    kernel = ctx.kernel
    own = {h.tid for a in kernel.tree.below(ctx.agent) for h in a.held()}
    if "." in q.cap:
        token = kernel.caps.verify(q.cap)
        tid = token.tids[-1]
        if not own & set(token.tids):
            kernel.caps.verify(q.cap, agent=ctx.subject)  # a holder may throw its own away
    else:
        tid = q.cap
        if tid not in own and not any(kernel.caps.descends(tid, h) for h in own):
            raise CallError(Code.CAP_SCOPE, "an agent revokes what it, or an agent below it, holds or has derived")
    return {"revoked": kernel.revoke(tid, q.reason, by=ctx.subject, after_ms=q.after_ms), "tid": tid}


def inspect_token(kernel: Kernel, token: Token) -> dict[str, Any]:
    """A token's fields, and what has become of it."""
    why = next((w for w in map(kernel.caps.revoked, token.tids) if w is not None), None)
    now_ms = kernel.clock_ns() // 1_000_000
    expired = token.expires_ms is not None and token.expires_ms <= now_ms
    return describe(token) | {"state": "revoked" if why is not None else "expired" if expired else "live"}


def describe(token: Token) -> dict[str, Any]:
    """A token's fields as data; nothing of it is checked."""
    return {
        "type": Type(token.capability.type).name,
        "capability": msgspec.to_builtins(token.capability),
        "caveats": msgspec.to_builtins(token.caveats),
        "methods": sorted(token.methods),
        "resources": list(token.resources),
        "expires_ms": token.expires_ms,
        "tids": list(token.tids),
    }


def _inspect(ctx: Context, q: Inspect) -> dict[str, Any]:
    if "." in q.cap:
        return inspect_token(ctx.kernel, decode(q.cap))
    held = next((h for h in ctx.agent.held() if h.tid == q.cap), None)
    if held is None:
        raise CallError(Code.NOT_FOUND, "this agent holds no such capability")
    return describe_held(ctx.kernel, ctx.agent, held)


def describe_held(kernel: Kernel, agent: Agent, held: Held) -> dict[str, Any]:
    """A held capability, as QUERY and CAP say it."""
    over = held.rule is not None and agent.layers[0].over(held.rule)
    revoked = kernel.capabilities_in_use and kernel.caps.revoked(held.tid) is not None
    return {
        "tid": held.tid,
        "type": Type(held.type).name,
        "methods": list(held.methods),
        "capability": held.section,
        "resource": held.pattern,
        "covers": held.resource,
        "approval": held.ask,
        "origin": held.origin,
        "state": "revoked" if revoked else "expired" if over else "live",
    }


def _normalise(args: dict[str, Any]) -> dict[str, Any]:
    args = dict(args)
    for old in ("token", "tid"):
        if old in args and "cap" not in args:
            args["cap"] = args.pop(old)
    return {"question": args}


def _execute(ctx: Context, args: CapArgs) -> dict[str, Any]:
    match args.question:
        case Derive() as q:
            return _derive(ctx, q)
        case Revoke() as q:
            return _revoke(ctx, q)
        case Inspect() as q:
            return _inspect(ctx, q)


CALLS = (
    Call(
        op=Op.CAP,
        args=CapArgs,
        normalise=_normalise,
        target=lambda args: f"cap:{type(args.question).__struct_config__.tag}",
        execute=_execute,
    ),
)
