"""BATCH: up to 100 of alloc, write and delete as one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from akbox.kernel.calls.base import Args, Call, Use
from akbox.kernel.calls.objects import (
    AllocArgs,
    DeleteArgs,
    WriteArgs,
    alloc_object,
    delete_object,
    prepare_alloc,
    use_of,
    write_object,
)
from akbox.kernel.capability import Type
from akbox.kernel.codes import CallError, Code
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
    ctx.values = [(b"", 0)] * len(args.operations)
    for index, item in enumerate(args.operations):
        if isinstance(item, Alloc):
            ctx.values[index] = prepare_alloc(ctx, item, f"operations[{index}].")
        elif isinstance(item, Write):
            check_patch(item.patch, f"operations[{index}].patch")


def _batch(ctx: Context, args: BatchArgs) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    with ctx.kernel.store.transaction() as tx:
        for index, item in enumerate(args.operations):
            try:
                if isinstance(item, Alloc):
                    results.append(alloc_object(ctx, tx, item.type, ctx.values[index]))
                    ctx.grow({"heap_objects": 1, "heap_bytes": len(ctx.values[index][0])})
                elif isinstance(item, Write):
                    results.append({"version": write_object(ctx, tx, item)})
                else:
                    delete_object(ctx, tx, item)
                    results.append({"deleted": True})
            except CallError as error:
                error.message = f"operations[{index}]: {error.message}"
                error.details["index"] = index
                raise
        return ctx.journal(tx, {"results": results, "committed": True})


def _uses(args: BatchArgs) -> list[Use]:
    methods = {Alloc: "alloc", Write: "write", Delete: "delete"}
    return [
        Use(Type.HEAP, "heap:new", "alloc") if isinstance(item, Alloc) else use_of(methods[type(item)], item.ptr)
        for item in args.operations
    ]


CALLS = (
    Call(
        op=Op.BATCH,
        args=BatchArgs,
        aliases={"ops": "operations"},
        normalise=_normalise,
        prepare=_prepare,
        target=lambda args: f"heap:batch:{len(args.operations)}",
        uses=_uses,
        execute=_batch,
    ),
)
