"""SEND and RECV: messages between the agents of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from akbox.kernel.calls.base import Args, Call, Use
from akbox.kernel.capability import Type
from akbox.kernel.codes import CallError, Code
from akbox.kernel.ops import Op
from akbox.kernel.patch import encode_value
from akbox.kernel.taint import TAINT_UNTRUSTED

if TYPE_CHECKING:
    from akbox.kernel.agents import Agent
    from akbox.kernel.pipeline import Context

MAX_PAYLOAD_BYTES = 64 << 10
MAX_WAITING = 100


class SendArgs(Args):
    """`to`: an agent's id or name. `urgent`: before everything that is not."""

    to: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    payload: Any  # any JSON value
    urgent: bool = False
    correlation: Annotated[str, msgspec.Meta(max_length=256)] | None = None


class RecvArgs(Args):
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_WAITING)] = 10
    timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=3_600_000)] = 0


def _prepare_send(ctx: Context, args: SendArgs) -> None:
    data = encode_value(args.payload, "payload")
    if len(data) > MAX_PAYLOAD_BYTES:
        raise CallError(Code.MSG_TOO_LARGE, f"payload: at most {MAX_PAYLOAD_BYTES} bytes, not {len(data)}")
    ctx.values = [(data, TAINT_UNTRUSTED)]


def _send(ctx: Context, args: SendArgs) -> dict[str, Any]:
    to = ctx.kernel.tree.find(args.to)
    _may_write_to(ctx, to)
    with ctx.kernel.store.transaction() as tx:
        if tx.waiting(to.id) >= MAX_WAITING:
            raise CallError(Code.MAILBOX_FULL, f"agent {to.name} has {MAX_WAITING} messages that it did not read yet")
        number = tx.post(to.id, ctx.subject, ctx.values[0][0], urgent=args.urgent, correlation=args.correlation)
        result = ctx.journal(tx, {"queued": True, "to": to.id.hex(), "seq": number})
    ctx.afterwards.append(ctx.kernel.doorbell.ring)
    return result


def _may_write_to(ctx: Context, to: Agent) -> None:
    """Parent and child always, and oneself; others with an IPC capability that the recipient gave."""
    me = ctx.agent
    if to is me or to.parent is me or me.parent is to:
        return
    token = ctx.token
    if token is not None and token.capability.parent == to.ipc_tid:
        return
    raise CallError(
        Code.CAP_MISSING, f"agents that are not parent and child need a capability to write to {to.name}",
        missing_cap="ipc", stage="CAPABILITY", suggested_fix="ask it for an IPC capability (CAP derive)",
    )  # fmt: skip


def _recv(ctx: Context, args: RecvArgs) -> dict[str, Any]:
    deadline = time.monotonic() + args.timeout_ms / 1000
    kernel = ctx.kernel
    while True:
        seen = kernel.doorbell.count
        with kernel.store.transaction() as tx:
            found = tx.take(ctx.subject, args.limit) if tx.waiting(ctx.subject) else []
            if found or args.timeout_ms == 0:
                messages = [
                    {
                        "from": m.sender.hex(), "from_name": kernel.tree.name(m.sender), "seq": m.number,
                        "payload": msgspec.json.decode(m.payload), "correlation": m.correlation, "urgent": m.urgent,
                        "taint": TAINT_UNTRUSTED,
                    }
                    for m in found
                ]  # fmt: skip
                return ctx.journal(tx, {"messages": messages})
        if not kernel.doorbell.wait(seen, deadline - time.monotonic()):
            args.timeout_ms = 0  # one last look, and the answer may be empty


CALLS = (
    Call(
        op=Op.SEND,
        args=SendArgs,
        prepare=_prepare_send,
        target=lambda args: f"agent:{args.to}",
        uses=lambda args: (Use(Type.IPC, f"agent:{args.to}", "send"),),
        execute=_send,
    ),
    Call(
        op=Op.RECV,
        args=RecvArgs,
        target=lambda _args: "agent:me",
        uses=lambda _args: (Use(Type.IPC, "agent:me", "recv"),),
        may_wait=lambda args: args.timeout_ms > 0,
        execute=_recv,
    ),
)
