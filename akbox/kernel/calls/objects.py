"""READ, ALLOC, WRITE, DELETE: one heap object at a time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec

from akbox.kernel.calls.base import Args, Call, Use
from akbox.kernel.capability import Type
from akbox.kernel.codes import CallError, Code
from akbox.kernel.ops import Op
from akbox.kernel.patch import check_patch
from akbox.kernel.taint import LABELS, TAINT_TRUSTED, TAINT_UNTRUSTED
from akbox.kernel.uses import reachable

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context
    from akbox.store.base import HeapObject, Transaction


class ReadArgs(Args):
    ptr: int


class AllocArgs(Args):
    type: str
    value: Any  # any JSON value


class WriteArgs(Args):
    ptr: int
    patch: list[dict[str, Any]]
    expected_version: int = 0
    taint: str | int | None = None


class DeleteArgs(Args):
    ptr: int
    expected_version: int = 0


def _read(ctx: Context, args: ReadArgs) -> dict[str, Any]:
    found = reachable(ctx, ctx.kernel.store.get(args.ptr), args.ptr)
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
        version = write_object(ctx, tx, args)
    return {"version": version}


def write_object(ctx: Context, tx: Transaction, args: WriteArgs) -> int:
    """Patches one object; its growth is its owner's. Returns the new version."""
    foreign: list[int] = []

    def access(found: HeapObject | None, ptr: int) -> HeapObject:
        item = reachable(ctx, found, ptr)
        foreign.extend([1] if item.owner != ctx.subject else [])
        return item

    label = label_of(args.taint)
    before, version, growth = ctx.kernel.heap.write(tx, access, args.ptr, args.patch, args.expected_version, label)
    if foreign:  # what another agent wrote
        tx.mark(args.ptr, TAINT_UNTRUSTED)
    ctx.grow({"heap_bytes": growth}, ctx.kernel.ledger(before.owner))
    return version


def delete_object(ctx: Context, tx: Transaction, args: DeleteArgs) -> None:
    """Deletes one object; its owner gets back what it held."""
    access = functools.partial(reachable, ctx)
    before = ctx.kernel.heap.delete(tx, access, args.ptr, args.expected_version)
    ctx.grow({"heap_objects": -1, "heap_bytes": -len(before.value)}, ctx.kernel.ledger(before.owner))


def label_of(taint: str | int | None) -> int:
    """A label by name or number. Raises CallError(SCHEMA_INVALID)."""
    if taint is None:
        return TAINT_TRUSTED
    number = LABELS.get(taint) if isinstance(taint, str) else taint
    if number not in (TAINT_TRUSTED, TAINT_UNTRUSTED):
        raise CallError(Code.SCHEMA_INVALID, f"taint: {taint!r} is not TRUSTED or UNTRUSTED; sanitizers set the others")
    return number


def _delete(ctx: Context, args: DeleteArgs) -> dict[str, Any]:
    with ctx.kernel.store.transaction() as tx:
        delete_object(ctx, tx, args)
    return {"deleted": True}


def _heap_target(args: ReadArgs | WriteArgs | DeleteArgs) -> str:
    return f"heap:{args.ptr}"


def use_of(method: str, ptr: int) -> Use:
    """What a HEAP capability has to cover."""
    return Use(Type.HEAP, f"heap:{ptr}", method)


CALLS = (
    Call(
        op=Op.READ,
        args=ReadArgs,
        execute=_read,
        target=_heap_target,
        uses=lambda args: (use_of("read", args.ptr),),
    ),
    Call(
        op=Op.ALLOC,
        args=AllocArgs,
        prepare=_prepare_alloc,
        target=lambda args: f"heap:{args.type}",
        uses=lambda _args: (Use(Type.HEAP, "heap:new", "alloc"),),
        cost=lambda ctx, _args: {"heap_objects": 1, "heap_bytes": len(ctx.values[0])},
        execute=_alloc,
    ),
    Call(
        op=Op.WRITE,
        args=WriteArgs,
        aliases={"version": "expected_version"},
        prepare=lambda _ctx, args: check_patch(args.patch),
        target=_heap_target,
        uses=lambda args: (use_of("write", args.ptr),),
        execute=_write,
    ),
    Call(
        op=Op.DELETE,
        args=DeleteArgs,
        aliases={"version": "expected_version"},
        target=_heap_target,
        uses=lambda args: (use_of("delete", args.ptr),),
        execute=_delete,
    ),
)
