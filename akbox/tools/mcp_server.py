"""The tools of a run, and its authority calls, as an MCP server on standard streams (https://modelcontextprotocol.io).

It runs inside the sandbox, as the agent: every call goes to the kernel by the SDK and is judged and logged there. With
this process an MCP client gets what the run's policy grants, and nothing else. Needs the package mcp (the extra `mcp`).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import mcp.types as types
from authority_nanos import AuthorityKernel, AuthorityKernelError, Syscall
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from msgspec import Struct

from akbox import __version__

PREFIX = "ak_"
_TEXT = {"type": "string"}
_PTR = {"type": "integer", "minimum": 1}


class _Call(Struct, frozen=True):
    """An authority call under a name of its own. `fixed`: arguments that the client does not give."""

    number: int
    description: str
    properties: dict[str, Any]
    required: tuple[str, ...] = ()
    fixed: dict[str, Any] = {}


CALLS: dict[str, _Call] = {
    "ak_authorize": _Call(
        Syscall.QUERY, "Would the policy allow this? Says which rule decides, and what would allow it.",
        {"op": {"type": "string", "description": "fs.read, fs.write, exec, net.connect, net.dns, tool, infer"},
         "target": _TEXT},
        ("op", "target"), {"what": "authorize"},
    ),
    "ak_budget": _Call(Syscall.BUDGET_STATUS, "What may still be spent, and what was.", {"resource": _TEXT}),
    "ak_last_denial": _Call(Syscall.LAST_ERROR, "The last thing that was refused, and what would have allowed it.", {}),
    "ak_audit": _Call(
        Syscall.QUERY, "Entries of this run's log.",
        {"from_seq": _PTR, "op": _TEXT, "limit": {"type": "integer", "minimum": 1, "maximum": 1000}}, (),
        {"what": "audit"},
    ),
    "ak_alloc": _Call(Syscall.ALLOC, "Keeps a JSON value as a typed object.", {"type": _TEXT, "value": {}},
                      ("type", "value")),
    "ak_read": _Call(Syscall.READ, "Reads an object by its number.", {"ptr": _PTR}, ("ptr",)),
    "ak_write": _Call(
        Syscall.WRITE, "Changes an object by a JSON Patch (RFC 6902).",
        {"ptr": _PTR, "patch": {"type": "array"}, "expected_version": {"type": "integer"}}, ("ptr", "patch"),
    ),
    "ak_delete": _Call(Syscall.DELETE, "Deletes an object.", {"ptr": _PTR}, ("ptr",)),
    "ak_respond": _Call(Syscall.RESPOND, "Records the run's answer.", {"content": {}}, ("content",)),
}  # fmt: skip


def serve() -> None:
    """Until the client closes standard input. Raises NotUnderAkboxError outside a run."""
    kernel = AuthorityKernel()
    kernel.query("tools")
    asyncio.run(_serve(kernel))


async def _serve(kernel: AuthorityKernel) -> None:
    async def list_tools(_ctx: Any, _params: Any) -> types.ListToolsResult:
        found = await asyncio.to_thread(kernel.query, "tools")
        return types.ListToolsResult(tools=[*map(_tool, found["tools"]), *(_own(n, c) for n, c in CALLS.items())])

    async def call_tool(_ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        return await asyncio.to_thread(_call, kernel, params.name, dict(params.arguments or {}))

    server: Server[Any] = Server("akbox", version=__version__, on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def _call(kernel: AuthorityKernel, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
    """A refusal is a result that says so: the model is to read what would allow it."""
    own = CALLS.get(name)
    try:
        if own is None:
            result = kernel.call_tool(name, arguments)
        else:
            result = kernel.syscall(own.number, {**arguments, **own.fixed})
    except AuthorityKernelError as error:
        problem = {
            "error": error.name, "code": error.code, "message": error.message, "missing_cap": error.missing_cap,
            "suggested_fix": error.suggested_fix, "trace_id": error.trace_id,
        }  # fmt: skip
        shown = {key: value for key, value in problem.items() if value is not None}
        return types.CallToolResult.model_validate({"content": [_text(shown)], "isError": True})
    return types.CallToolResult.model_validate({"content": [_text(result)], "structuredContent": result})


def _text(value: Any) -> dict[str, Any]:
    return {"type": "text", "text": json.dumps(value, ensure_ascii=False)}


def _tool(found: dict[str, Any]) -> types.Tool:
    flags = found["flags"]
    shown = {
        "name": found["name"],
        "description": found["description"],
        "inputSchema": found["input_schema"],
        "annotations": {"readOnlyHint": flags["read_only"], "idempotentHint": flags["idempotent"]},
    }
    if (found["output_schema"] or {}).get("type") == "object":
        shown["outputSchema"] = found["output_schema"]
    return types.Tool.model_validate(shown)


def _own(name: str, call: _Call) -> types.Tool:
    schema = {
        "type": "object", "properties": call.properties, "required": list(call.required), "additionalProperties": False,
    }  # fmt: skip
    return types.Tool.model_validate({"name": name, "description": call.description, "inputSchema": schema})
