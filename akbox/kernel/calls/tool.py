"""CALL: one use of a tool. What a tool is and how it runs is the target's to know; it puts that in as
`kernel.tools`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec

from akbox.kernel.calls.base import Args, Call, Use
from akbox.kernel.capability import Type
from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import AgentId, Effect
from akbox.kernel.ops import Op
from akbox.kernel.taint import NAMES, TAINT_UNTRUSTED

if TYPE_CHECKING:
    from akbox.kernel.pipeline import Context


class ToolArgs(Args):
    """`params`: what the tool's input_schema describes."""

    tool: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    params: dict[str, Any] = msgspec.field(default_factory=dict)


class ToolAnswer(msgspec.Struct, frozen=True):
    """What a tool gave, and what that took (duration_us, fuel, memory_bytes, as far as they are known)."""

    result: Any
    usage: dict[str, int]


class Tools(Protocol):
    """The tools of a run. Any thread may call these."""

    def describe(self, subject: AgentId) -> Sequence[dict[str, Any]]:
        """Those that the agent may call: {name, description, input_schema, …}."""

    def check(self, tool: str, params: dict[str, Any]) -> None:
        """Raises CallError(SCHEMA_INVALID) with the path of what does not fit; says nothing of unknown tools."""

    def call(self, subject: AgentId, tool: str, params: dict[str, Any], pid: int) -> ToolAnswer:
        """Precondition: the agent may call it. Raises CallError."""


def _prepare(ctx: Context, args: ToolArgs) -> None:
    tools = ctx.kernel.tools
    if tools is not None:
        tools.check(args.tool, args.params)


def _call(ctx: Context, args: ToolArgs) -> dict[str, Any]:
    ctx.breakdown_key = f"tool:{args.tool}"
    tools = ctx.kernel.tools  # the run may be ending
    if tools is None:
        raise CallError(Code.TOOL_NOT_FOUND, f"this run has no tool {args.tool!r}, nor any other")
    answer = tools.call(ctx.subject, args.tool, args.params, ctx.pid)
    taint = {"taint": TAINT_UNTRUSTED, "label": NAMES[TAINT_UNTRUSTED]}  # whatever it read on its way
    ctx.usage = {"tool_calls": 1, **answer.usage, **taint}
    return answer.result if isinstance(answer.result, dict) else {"value": answer.result}


CALLS = (
    Call(
        op=Op.CALL,
        args=ToolArgs,
        aliases={"args": "params"},
        prepare=_prepare,
        effect=lambda args: Effect(op=Op.CALL, target=f"tool:{args.tool}"),
        uses=lambda args: (Use(Type.TOOL, f"tool:{args.tool}", "invoke"),),
        cost=lambda _ctx, _args: {"tool_calls": 1},
        may_wait=lambda _args: True,
        execute=_call,
    ),
)
