"""What the user may ask of a running kernel from outside (`akbox cap`, `akbox approve`): requests and answers as data.

Who asks is the business of whoever carries the requests here (akbox/linux/control.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from akbox.kernel.audit import AuditError
from akbox.kernel.calls.cap import describe, inspect_token
from akbox.kernel.capability import MethodNames, Rate, Ttl, Type, decode
from akbox.kernel.codes import CallError, Code
from akbox.store.base import StoreError

if TYPE_CHECKING:
    from akbox.kernel.kernel import Kernel


class Mint(msgspec.Struct, forbid_unknown_fields=True, tag_field="cmd", tag="cap.mint"):
    type: str
    resource: str
    methods: MethodNames = ()
    ttl_ms: Ttl = 0
    rate_limit: Rate = 0
    rate_window_ms: Ttl = 0


class Revoke(msgspec.Struct, forbid_unknown_fields=True, tag_field="cmd", tag="cap.revoke"):
    """`cap`: a token, a tid, or "run"."""

    cap: str
    reason: str = ""
    after_ms: int = 0


class Inspect(msgspec.Struct, forbid_unknown_fields=True, tag_field="cmd", tag="cap.inspect"):
    cap: str


class Held(msgspec.Struct, forbid_unknown_fields=True, tag_field="cmd", tag="cap.held"):
    agent: str = "root"


class Requests(msgspec.Struct, forbid_unknown_fields=True, tag_field="cmd", tag="approve.list"):
    pass


class Decide(msgspec.Struct, forbid_unknown_fields=True, tag_field="cmd", tag="approve.decide"):
    """`always`: equal ones are approved from now on, too."""

    id: int
    allow: bool
    always: bool = False
    by: str = "the command line"


Command = Mint | Revoke | Inspect | Held | Requests | Decide


def _mint(kernel: Kernel, c: Mint) -> dict[str, Any]:
    try:
        kind = Type[c.type.upper()]
    except KeyError:
        raise CallError(Code.SCHEMA_INVALID, f"type: {c.type!r} is none of {', '.join(t.name for t in Type)}") from None
    token = kernel.caps.mint(
        kind, c.resource, methods=c.methods, ttl_ms=c.ttl_ms, rate_limit=c.rate_limit, rate_window_ms=c.rate_window_ms
    )
    kernel.note_mint(decode(token))
    return {"token": token, **describe(decode(token))}


def _revoke(kernel: Kernel, c: Revoke) -> dict[str, Any]:
    tid = kernel.caps.verify(c.cap).tids[-1] if "." in c.cap else c.cap
    return {"revoked": kernel.revoke(tid, c.reason, after_ms=c.after_ms), "tid": tid}


def _inspect(kernel: Kernel, c: Inspect) -> dict[str, Any]:
    token = decode(c.cap)
    try:
        kernel.caps.verify(c.cap)
        good: str | None = None
    except CallError as error:
        good = f"{error.code.name}: {error.message}"
    return inspect_token(kernel, token) | {"problem": good}


def _held(kernel: Kernel, c: Held) -> dict[str, Any]:
    from akbox.kernel.calls.cap import describe_held

    agent = kernel.tree.find(c.agent)
    return {"capabilities": [describe_held(kernel, agent, held) for held in agent.held()]}


def _requests(kernel: Kernel, _c: Requests) -> dict[str, Any]:
    return {"requests": [] if kernel.approvals is None else kernel.approvals.all()}


def _decide(kernel: Kernel, c: Decide) -> dict[str, Any]:
    if kernel.approvals is None:
        raise CallError(Code.NOT_FOUND, f"there is no request {c.id}")
    return {"request": msgspec.to_builtins(kernel.approvals.decide(c.id, c.allow, c.by, always=c.always))}


_HANDLERS: Mapping[type[Any], Callable[[Kernel, Any], dict[str, Any]]] = {
    Mint: _mint, Revoke: _revoke, Inspect: _inspect, Held: _held, Requests: _requests,
    Decide: _decide,
}  # fmt: skip


def answer(kernel: Kernel, request: bytes) -> bytes:
    """One request's JSON, one answer's. A request that is not understood, or that fails, is answered with why."""
    try:
        command = msgspec.json.decode(request, type=Command)
        body: dict[str, Any] = {"ok": True, "result": _HANDLERS[type(command)](kernel, command)}
    except CallError as error:
        body = {"ok": False, "error": f"{error.code.name}: {error.message}"}
    except (msgspec.MsgspecError, AuditError, StoreError) as error:
        body = {"ok": False, "error": str(error)}
    return msgspec.json.encode(body)
