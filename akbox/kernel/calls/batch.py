"""BATCH: up to 100 of alloc, write and delete as one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from akbox.kernel.calls.base import Args, Call
from akbox.kernel.calls.objects import AllocArgs, DeleteArgs, WriteArgs
from akbox.kernel.codes import CallError, Code
from akbox.kernel.heap import TAINT_TRUSTED
from akbox.kernel.ops import Op
from akbox.kernel.patch import check_patch

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context

MAX_OPERATIONS = 100


class Alloc(AllocArgs, tag_field="op", tag="alloc"):
    pass


class Write(WriteArgs, tag_field="op", tag="write"):
    pass


class Delete(DeleteArgs, tag_field="op", tag="delete"):
    pass


class BatchArgs(Args):
    operations: list[Alloc | Write | Delete]


def _normalise(args: dict[str, Any]) -> dict[str, Any]:
    """Ops in any case, `version` for `expected_version`, as older clients write them."""
    operations = args.get("operations")
    if not isinstance(operations, list):
        return args
    out: list[Any] = []
    for index, item in enumerate(operations):
        if isinstance(item, dict):
            item = dict(item)
            if isinstance(item.get("op"), str):
                item["op"] = item["op"].lower()
            if "version" in item:
                if "expected_version" in item:
                    raise CallError(Code.SCHEMA_INVALID, f"operations[{index}]: both version and expected_version")
                item["expected_version"] = item.pop("version")
        out.append(item)
    return args | {"operations": out}


def _prepare(ctx: Context, args: BatchArgs) -> None:
    if not 0 < len(args.operations) <= MAX_OPERATIONS:
        raise CallError(Code.SCHEMA_INVALID, f"operations: 1 to {MAX_OPERATIONS}, not {len(args.operations)}")
    ctx.values = [b""] * len(args.operations)
    for index, item in enumerate(args.operations):
        if isinstance(item, Alloc):
            ctx.values[index] = ctx.kernel.heap.prepare(item.type, item.value, f"operations[{index}].value")
        elif isinstance(item, Write):
            check_patch(item.patch, f"operations[{index}].patch")


def _batch(ctx: Context, args: BatchArgs) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    growth = {"heap_objects": 0, "heap_bytes": 0}
    heap = ctx.kernel.heap
    with ctx.kernel.store.transaction() as tx:
        for index, item in enumerate(args.operations):
            try:
                if isinstance(item, Alloc):
                    ptr = tx.insert(owner=ctx.subject, type=item.type, value=ctx.values[index], taint=TAINT_TRUSTED)
                    results.append({"ptr": ptr, "version": 1})
                    growth["heap_objects"] += 1
                    growth["heap_bytes"] += len(ctx.values[index])
                elif isinstance(item, Write):
                    version, more = heap.write(tx, ctx.subject, item.ptr, item.patch, item.expected_version)
                    results.append({"version": version})
                    growth["heap_bytes"] += more
                else:
                    size = heap.delete(tx, ctx.subject, item.ptr, item.expected_version)
                    results.append({"deleted": True})
                    growth["heap_objects"] -= 1
                    growth["heap_bytes"] -= size
            except CallError as error:
                error.message = f"operations[{index}]: {error.message}"
                error.details["index"] = index
                raise
        ctx.grow(growth)
    return {"results": results, "committed": True}


CALLS = (
    Call(
        op=Op.BATCH,
        args=BatchArgs,
        aliases={"ops": "operations"},
        normalise=_normalise,
        prepare=_prepare,
        target=lambda args: f"heap:batch:{len(args.operations)}",
        execute=_batch,
    ),
)
