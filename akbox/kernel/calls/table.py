"""All calls by number."""

from __future__ import annotations

from akbox.kernel.calls import answer, approval, batch, budget, cap, inference, log, mail, objects, query, spawn, tool
from akbox.kernel.calls.base import Call

FAMILIES = (objects, batch, query, log, budget, cap, mail, answer, approval, spawn, inference, tool)

CALLS: dict[int, Call] = {int(call.op): call for family in FAMILIES for call in family.CALLS}
