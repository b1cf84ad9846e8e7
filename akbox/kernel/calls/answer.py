"""RESPOND and ASSERT: what the agent says to whoever runs it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from akbox.kernel.calls.base import Args, Call, Sink
from akbox.kernel.calls.objects import label_from, label_of
from akbox.kernel.codes import CallError, Code
from akbox.kernel.ops import Op
from akbox.kernel.patch import encode_value
from akbox.kernel.sanitize import LABEL_OF
from akbox.kernel.taint import NAMES, TAINT_TRUSTED, combined

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context


class RespondArgs(Args):
    """`content`: any JSON value. `from`: objects it was made of, `taint`: a label of its own."""

    content: Any
    taint: str | int | None = None
    sources: list[int] = msgspec.field(name="from", default_factory=list)


class AssertArgs(Args):
    """`name`: the predicate. `halt`: if it is false, the run ends (exit code 125). `event` and `details`: an event of
    the agent's own for the log, as older clients write it."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    value: bool = True
    message: Annotated[str, msgspec.Meta(max_length=4096)] | None = None
    details: dict[str, Any] | None = None
    halt: bool = False


def _prepare(ctx: Context, args: RespondArgs) -> None:
    """Looks before anything is logged: what is found must not be in the entry of the refusal either."""
    from akbox.kernel.detect import scan, scrubbed

    encode_value(args.content, "content")
    found = scan(args.content)
    if not found:
        return
    ctx.logged_args = {"content": scrubbed(args.content)} if len(str(args.content)) < 4096 else {}
    kinds = Counter(finding.kind for finding in found)
    words = ", ".join(f"{kind}{f' ({count})' if count > 1 else ''}" for kind, count in sorted(kinds.items()))
    raise CallError(
        Code.DLP_BLOCK, f"the content holds what looks like a secret ({words})", stage="TAINT",
        suggested_fix="leave it out, or write what it stands for",
        details={"findings": [{"kind": f.kind, "path": f.path, "start": f.start, "end": f.end} for f in found[:20]]},
    )  # fmt: skip


def _label(ctx: Context, args: RespondArgs) -> int:
    return combined(label_of(args.taint), label_from(ctx, args.sources, "from"))


def _sinks(ctx: Context, args: RespondArgs) -> list[Sink]:
    """What every policy above the agent says of answers (`taint.respond`)."""
    stated = {part.taint.respond for layer in ctx.agent.layers for _, part in layer.policy.parts} - {None, "any"}
    if not stated:
        return []
    label = _label(ctx, args)
    return [Sink("content", label, (LABEL_OF.get(word, TAINT_TRUSTED),)) for word in sorted(map(str, stated))]


def _respond(ctx: Context, args: RespondArgs) -> dict[str, Any]:
    label = _label(ctx, args)
    ctx.afterwards.append(lambda: ctx.kernel.set_answer(ctx.agent, args.content, label))
    return {"acknowledged": True, "taint": label, "label": NAMES[label]}


def _assert(ctx: Context, args: AssertArgs) -> dict[str, Any]:
    halted = args.halt and not args.value
    if halted:
        said = f"{args.name}{f': {args.message}' if args.message else ''}"
        ctx.at_the_end.append(lambda: ctx.kernel.halt(f"assertion failed: {said}"))
    return {"recorded": True, "value": args.value, "halted": halted}


CALLS = (
    Call(
        op=Op.RESPOND,
        args=RespondArgs,
        prepare=_prepare,
        target=lambda _args: "answer",
        sinks=_sinks,
        execute=_respond,
    ),
    Call(
        op=Op.ASSERT,
        args=AssertArgs,
        aliases={"event": "name", "predicate": "name"},
        target=lambda args: f"assert:{args.name}",
        execute=_assert,
    ),
)
