"""INFERENCE: one answer of a model. What it costs and whether it may be asked is decided where the HTTP gateway's calls
are, too; the target puts that in as `kernel.infer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from akbox.kernel.calls.base import Args, Call
from akbox.kernel.codes import CallError, Code
from akbox.kernel.ops import Op

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context


class InferenceArgs(Args):
    """`messages` [{role, content}] or `prompt`; `tools` [{name, description, input_schema}]."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    system: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 4096
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    tools: list[dict[str, Any]] | None = None


def _prepare(_ctx: Context, args: InferenceArgs) -> None:
    if (args.messages is None) == (args.prompt is None):
        raise CallError(Code.SCHEMA_INVALID, "messages or prompt: give one of them")
    for i, message in enumerate(args.messages or ()):
        if not isinstance(message.get("role"), str):
            raise CallError(Code.SCHEMA_INVALID, f"messages[{i}].role: a string is required")
    for i, tool in enumerate(args.tools or ()):
        if not isinstance(tool.get("function", tool), dict) or not isinstance(
            tool.get("function", tool).get("name"), str
        ):
            raise CallError(Code.SCHEMA_INVALID, f"tools[{i}].name: a string is required")


def _infer(ctx: Context, args: InferenceArgs) -> dict[str, Any]:
    if ctx.kernel.infer is None:
        raise CallError(
            Code.NO_UPSTREAM, "this run has no model gateway",
            suggested_fix="[infer.upstreams.NAME] with type, base_url and key",
        )  # fmt: skip
    return ctx.kernel.infer(ctx.subject, args)


CALLS = (
    Call(
        op=Op.INFERENCE,
        args=InferenceArgs,
        prepare=_prepare,
        target=lambda args: f"model:{args.model}",
        execute=_infer,
    ),
)
