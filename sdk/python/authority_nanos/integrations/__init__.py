"""Agent frameworks whose tools are used under the kernel's policy: `langchain`, `crewai`, `openai_agents`.

Each module has `guard(tool)`, which asks the kernel before each use of a tool of the agent's own and logs it, and
`kernel_tools()`, the tools of the run (CALL) as the framework's. What is refused is the framework's own tool error, so
the model hears of it. None of this holds an agent: what a tool of its own does is held by the sandbox, as ever.
"""

from __future__ import annotations

import json
import re

from ..errors import OperationDeniedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..kernel import AuthorityKernel


def permit(kernel: AuthorityKernel, tool: str, framework: str) -> None:
    """One use of a tool of the agent's own, by the policy's `tools.allow` and `tools.deny`. Raises
    OperationDeniedError; either way the log has it (`event` "tool")."""
    answer = kernel.authorize_details("tools.call", f"tool:{tool}")
    event = {"tool": tool, "framework": framework, "allowed": answer.authorized}
    kernel.audit_log("tool", event)
    if not answer.authorized:
        raise OperationDeniedError(
            f"tool {tool}: {answer.reason}", code=-4201, name="POLICY_DENY", missing_cap=answer.missing_cap,
            suggested_fix=answer.suggested_fix,
        )  # fmt: skip


def offered(kernel: AuthorityKernel) -> list[tuple[str, str, str, dict[str, Any]]]:
    """The tools of the run: (name for a model, name for CALL, description, JSON Schema of the parameters)."""
    found = []
    for tool in kernel.query("tools")["tools"]:
        schema = dict(tool.get("input_schema") or {}, type="object")
        schema.setdefault("properties", {})
        name = str(tool["name"])
        found.append((re.sub(r"[^A-Za-z0-9_-]", "_", name), name, str(tool.get("description") or name), schema))
    return found


def called(kernel: AuthorityKernel, tool: str, params: dict[str, Any]) -> str:
    """The result of one CALL as JSON text. Raises the typed errors."""
    return json.dumps(kernel.call_tool(tool, params), ensure_ascii=False)
