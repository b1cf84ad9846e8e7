"""All calls by number. Those that later parts of akbox bring answer NOT_IMPLEMENTED, with an entry like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from akbox.kernel.calls import answer, approval, batch, budget, cap, inference, log, mail, objects, query, spawn
from akbox.kernel.calls.base import Args, Call
from akbox.kernel.codes import CallError, Code
from akbox.kernel.ops import Op

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context

FAMILIES = (objects, batch, query, log, budget, cap, mail, answer, approval, spawn, inference)
ABSENT = (Op.CALL,)


class AnyArgs(Args, forbid_unknown_fields=False):
    """Arguments of a call that this version does not have."""


def _absent(ctx: Context, _args: Any) -> dict[str, Any]:
    raise CallError(Code.NOT_IMPLEMENTED, f"this akbox has no {Op(ctx.nr).name} call")


CALLS: dict[int, Call] = {int(call.op): call for family in FAMILIES for call in family.CALLS}
CALLS |= {int(op): Call(op=op, args=AnyArgs, execute=_absent) for op in ABSENT}
