"""READ, ALLOC, WRITE, DELETE: one heap object at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from akbox.kernel.calls.base import Args, Call, Use
from akbox.kernel.capability import Type
from akbox.kernel.codes import CallError, Code
from akbox.kernel.kernel import TYPE_TYPE
from akbox.kernel.ops import Op
from akbox.kernel.patch import check_patch
from akbox.kernel.sanitize import sanitized
from akbox.kernel.taint import LABELS, TAINT_TRUSTED, TAINT_UNTRUSTED, combined
from akbox.kernel.uses import reachable

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context
    from akbox.store.base import HeapObject, Transaction


MAX_SOURCES = 100


class ReadArgs(Args):
    ptr: int


class AllocArgs(Args):
    """`value`: any JSON value; or `sanitize` (a sanitizer's name) of the one object in `from`. `from`: objects that the
    value was made of, whose labels it gets; `taint`: a label of its own."""

    type: str
    value: Any = msgspec.UNSET
    taint: str | int | None = None
    sources: list[int] = msgspec.field(name="from", default_factory=list)
    sanitize: str | None = None


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
        "taint": label_in(ctx, found),
    }


def prepare_alloc(ctx: Context, args: AllocArgs, where: str = "") -> tuple[bytes, int]:
    """(stored value, label) of a new object. Raises CallError."""
    labels = [label_of(args.taint)]
    found = sources(ctx, args.sources, f"{where}from")
    labels += [label_in(ctx, item) for item in found]
    value = args.value
    if args.sanitize is not None:
        if value is not msgspec.UNSET or len(found) != 1:
            raise CallError(Code.SCHEMA_INVALID, f"{where}sanitize: takes no value, and one object in `from`")
        value, label = sanitized(args.sanitize, msgspec.json.decode(found[0].value))
        labels = [label_of(args.taint), label]
    if value is msgspec.UNSET:
        raise CallError(Code.SCHEMA_INVALID, f"{where}value: required")
    if args.type == TYPE_TYPE and ctx.agent.parent is not None:
        raise CallError(Code.POLICY_DENY, "only the root agent may register a type", stage="POLICY")
    return ctx.kernel.heap.prepare(args.type, value, f"{where}value"), combined(*labels)


def sources(ctx: Context, ptrs: Sequence[int], where: str) -> list[HeapObject]:
    """The objects that something was made of. Raises CallError."""
    if len(ptrs) > MAX_SOURCES:
        raise CallError(Code.SCHEMA_INVALID, f"{where}: at most {MAX_SOURCES} objects", stage="SCHEMA")
    return [reachable(ctx, ctx.kernel.store.get(ptr), ptr) for ptr in ptrs]


def label_from(ctx: Context, ptrs: Sequence[int], where: str) -> int:
    """The label of what was made of these objects."""
    return combined(*(label_in(ctx, item) for item in sources(ctx, ptrs, where)))


def label_in(ctx: Context, item: HeapObject) -> int:
    """The label that an object has for the caller: what is another agent's it cannot trust."""
    return item.taint if item.owner == ctx.subject else TAINT_UNTRUSTED


def _prepare_alloc(ctx: Context, args: AllocArgs) -> None:
    ctx.values = [prepare_alloc(ctx, args)]


def _alloc(ctx: Context, args: AllocArgs) -> dict[str, Any]:
    with ctx.kernel.store.transaction() as tx:
        return ctx.journal(tx, alloc_object(ctx, tx, args.type, ctx.values[0]))


def alloc_object(ctx: Context, tx: Transaction, type_name: str, prepared: tuple[bytes, int]) -> dict[str, Any]:
    value, label = prepared
    ptr = tx.insert(owner=ctx.subject, type=type_name, value=value, taint=label)
    if type_name == TYPE_TYPE:
        ctx.afterwards.append(lambda: ctx.kernel.heap.register(value))
    return {"ptr": ptr, "version": 1}


def _write(ctx: Context, args: WriteArgs) -> dict[str, Any]:
    with ctx.kernel.store.transaction() as tx:
        return ctx.journal(tx, {"version": write_object(ctx, tx, args)})


def write_object(ctx: Context, tx: Transaction, args: WriteArgs) -> int:
    """Patches one object; its growth is its owner's. Returns the new version."""
    foreign: list[int] = []

    def access(found: HeapObject | None, ptr: int) -> HeapObject:
        item = _changeable(reachable(ctx, found, ptr))
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
    before = ctx.kernel.heap.delete(
        tx, lambda found, ptr: _changeable(reachable(ctx, found, ptr)), args.ptr, args.expected_version
    )
    ctx.grow({"heap_objects": -1, "heap_bytes": -len(before.value)}, ctx.kernel.ledger(before.owner))


def _changeable(item: HeapObject) -> HeapObject:
    if item.type == TYPE_TYPE:  # objects of the type were checked against it
        raise CallError(Code.POLICY_DENY, "a registered type stays as it is", stage="POLICY")
    return item


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
        return ctx.journal(tx, {"deleted": True})


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
        cost=lambda ctx, _args: {"heap_objects": 1, "heap_bytes": len(ctx.values[0][0])},
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
