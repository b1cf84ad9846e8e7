"""CrewAI: tools under the policy. What is refused is raised in the tool, which CrewAI tells the model and counts as a
failure of the tool."""

from __future__ import annotations

import asyncio

from ..kernel import AuthorityKernel
from . import called, offered, permit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crewai.tools import BaseTool


def guard(tool: BaseTool, kernel: AuthorityKernel | None = None) -> BaseTool:
    """The same tool; each use is first asked of the kernel."""
    from crewai.tools.base_tool import Tool

    ak = AuthorityKernel() if kernel is None else kernel

    def use(**params: Any) -> Any:
        permit(ak, tool.name, "crewai")
        result = tool.run(**params)
        return asyncio.run(result) if asyncio.iscoroutine(result) else result

    return Tool(
        name=tool.name, description=tool.description, func=use, args_schema=tool.args_schema,
        result_as_answer=tool.result_as_answer,
    )  # fmt: skip


def kernel_tools(kernel: AuthorityKernel | None = None) -> list[BaseTool]:
    """The tools of the run, each use a CALL."""
    ak = AuthorityKernel() if kernel is None else kernel
    return [_kernel_tool(ak, *tool) for tool in offered(ak)]


def _kernel_tool(ak: AuthorityKernel, name: str, target: str, description: str, schema: dict[str, Any]) -> BaseTool:
    from crewai.tools.base_tool import Tool

    def use(**params: Any) -> str:
        return called(ak, target, params)

    return Tool(name=name, description=description, func=use, args_schema=schema)
