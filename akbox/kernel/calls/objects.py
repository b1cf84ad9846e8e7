"""READ, ALLOC, WRITE, DELETE: one heap object at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from akbox.kernel.calls.base import Args, Call
from akbox.kernel.heap import TAINT_TRUSTED, owned
from akbox.kernel.ops import Op
from akbox.kernel.patch import check_patch

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context


class ReadArgs(Args):
    ptr: int


class AllocArgs(Args):
    type: str
    value: Any  # any JSON value


class WriteArgs(Args):
    ptr: int
    patch: list[dict[str, Any]]
    expected_version: int = 0


class DeleteArgs(Args):
    ptr: int
    expected_version: int = 0


def _read(ctx: Context, args: ReadArgs) -> dict[str, Any]:
    found = owned(ctx.kernel.store.get(args.ptr), ctx.subject, args.ptr)
    return {
        "ptr": found.ptr,
        "type": found.type,
        "version": found.version,
        "value": msgspec.json.decode(found.value),
        "taint": found.taint,
    }


def _prepare_alloc(ctx: Context, args: AllocArgs) -> None:
    ctx.values = [ctx.kernel.heap.prepare(args.type, args.value)]


def _alloc(ctx: Context, args: AllocArgs) -> dict[str, Any]:
    with ctx.kernel.store.transaction() as tx:
        ptr = tx.insert(owner=ctx.subject, type=args.type, value=ctx.values[0], taint=TAINT_TRUSTED)
    return {"ptr": ptr, "version": 1}


def _write(ctx: Context, args: WriteArgs) -> dict[str, Any]:
    with ctx.kernel.store.transaction() as tx:
        version, growth = ctx.kernel.heap.write(tx, ctx.subject, args.ptr, args.patch, args.expected_version)
        ctx.grow({"heap_bytes": growth})
    return {"version": version}


def _delete(ctx: Context, args: DeleteArgs) -> dict[str, Any]:
    with ctx.kernel.store.transaction() as tx:
        size = ctx.kernel.heap.delete(tx, ctx.subject, args.ptr, args.expected_version)
        ctx.grow({"heap_objects": -1, "heap_bytes": -size})
    return {"deleted": True}


def _heap_target(args: ReadArgs | WriteArgs | DeleteArgs) -> str:
    return f"heap:{args.ptr}"


CALLS = (
    Call(op=Op.READ, args=ReadArgs, execute=_read, target=_heap_target),
    Call(
        op=Op.ALLOC,
        args=AllocArgs,
        prepare=_prepare_alloc,
        target=lambda args: f"heap:{args.type}",
        cost=lambda ctx, _args: {"heap_objects": 1, "heap_bytes": len(ctx.values[0])},
        execute=_alloc,
    ),
    Call(
        op=Op.WRITE,
        args=WriteArgs,
        aliases={"version": "expected_version"},
        prepare=lambda _ctx, args: check_patch(args.patch),
        target=_heap_target,
        execute=_write,
    ),
    Call(op=Op.DELETE, args=DeleteArgs, aliases={"version": "expected_version"}, target=_heap_target, execute=_delete),
)
