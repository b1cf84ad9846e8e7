"""The CAPABILITY stage's questions: may the caller use what it holds, and does its token cover what it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from akbox.kernel.capability import Type, covers
from akbox.kernel.codes import CallError, Code

if TYPE_CHECKING:
    from akbox.kernel.calls.base import Use
    from akbox.kernel.capability import Token
    from akbox.kernel.pipeline import Context
    from akbox.store.base import HeapObject


def check_uses(ctx: Context, uses: Sequence[Use]) -> None:
    """What every agent holds of itself (heap, mailbox) can be revoked like anything else. Raises
    CallError(CAP_REVOKED)."""
    if not ctx.kernel.capabilities_in_use:
        return
    for kind in {use.type for use in uses}:
        if kind == Type.HEAP:
            ctx.kernel.caps.check_live(ctx.agent.heap_tid)
        elif kind == Type.IPC:
            ctx.kernel.caps.check_live(ctx.agent.ipc_tid)


def check_token(ctx: Context, uses: Sequence[Use]) -> None:
    """The request's token is good and covers each use; one of its rate is taken. Raises CallError."""
    caps = ctx.kernel.caps
    token = caps.verify(ctx.cap, agent=ctx.subject)
    for use in uses:
        if not covers(token, Type(use.type), use.target, use.method):
            raise CallError(
                Code.CAP_SCOPE,
                f"the capability ({Type(token.capability.type).name} {' and '.join(token.resources)}) does not cover"
                f" {use.method} on {use.target}",
                missing_cap=Type(use.type).name.lower(),
            )
    caps.use(token)
    ctx.token = token


def reachable(ctx: Context, found: HeapObject | None, ptr: int) -> HeapObject:
    """The object, if it is there (NOT_FOUND) and the agent's own, or its owner gave a HEAP capability for it
    (CAP_MISSING). That the token covers this object and what is done with it was checked before."""
    if found is None:
        raise CallError(Code.NOT_FOUND, f"there is no object {ptr}")
    if found.owner == ctx.subject or (ctx.token is not None and _granted_by(ctx, ctx.token, found.owner)):
        return found
    raise CallError(
        Code.CAP_MISSING, f"object {ptr} belongs to another agent", missing_cap="heap", stage="CAPABILITY",
        suggested_fix="ask its owner for a HEAP capability",
    )  # fmt: skip


def _granted_by(ctx: Context, token: Token, owner: bytes) -> bool:
    """Was the token derived from what the owner holds of its own heap?"""
    return token.capability.parent == ctx.kernel.agent(owner).heap_tid
