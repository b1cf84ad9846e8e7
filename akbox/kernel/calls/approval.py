"""APPROVAL: what the agent has asked for that a person has to allow, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from akbox.kernel.calls.base import Args, Call
from akbox.kernel.codes import CallError, Code
from akbox.kernel.ops import Op

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context


class List(Args, tag_field="op", tag="list"):
    pass


class State(Args, tag_field="op", tag="state"):
    id: int


class ApprovalArgs(Args):
    question: List | State


def _execute(ctx: Context, args: ApprovalArgs) -> dict[str, Any]:
    approvals = ctx.kernel.approvals
    mine = [] if approvals is None else approvals.all(ctx.subject.hex())
    if isinstance(args.question, List):
        return {"requests": mine}
    wanted = args.question.id
    found = next((r for r in mine if r["id"] == wanted), None)
    if found is None:
        raise CallError(Code.NOT_FOUND, f"this agent has no request {wanted}")
    return found


CALLS = (
    Call(
        op=Op.APPROVAL,
        args=ApprovalArgs,
        normalise=lambda args: {"question": {"op": "state" if "id" in args else "list"} | args},
        target=lambda args: f"approval:{type(args.question).__struct_config__.tag}",
        execute=_execute,
    ),
)
