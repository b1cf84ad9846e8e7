"""LangChain (langchain-core): tools under the policy. What is refused is a ToolException, which becomes a ToolMessage
with the status "error"."""

from __future__ import annotations

import asyncio

from ..errors import AuthorityKernelError
from ..kernel import AuthorityKernel
from . import called, offered, permit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from langchain_core.tools import BaseTool


def guard(tool: BaseTool, kernel: AuthorityKernel | None = None) -> BaseTool:
    """The same tool, for `bind_tools` and agents; each use is first asked of the kernel."""
    from langchain_core.tools import StructuredTool, ToolException

    ak = AuthorityKernel() if kernel is None else kernel

    def ask() -> None:
        try:
            permit(ak, tool.name, "langchain")
        except AuthorityKernelError as error:
            raise ToolException(str(error)) from error

    def use(**params: Any) -> Any:
        ask()
        return tool.invoke(params)

    async def use_async(**params: Any) -> Any:
        await asyncio.get_running_loop().run_in_executor(None, ask)
        return await tool.ainvoke(params)

    return StructuredTool.from_function(
        func=use, coroutine=use_async, name=tool.name, description=tool.description, args_schema=tool.args_schema,
        return_direct=tool.return_direct, infer_schema=False, handle_tool_error=True,
    )  # fmt: skip


def kernel_tools(kernel: AuthorityKernel | None = None) -> list[BaseTool]:
    """The tools of the run, each use a CALL."""
    ak = AuthorityKernel() if kernel is None else kernel
    return [_kernel_tool(ak, *tool) for tool in offered(ak)]


def _kernel_tool(ak: AuthorityKernel, name: str, target: str, description: str, schema: dict[str, Any]) -> BaseTool:
    from langchain_core.tools import StructuredTool, ToolException

    def use(**params: Any) -> str:
        try:
            return called(ak, target, params)
        except AuthorityKernelError as error:
            raise ToolException(str(error)) from error

    async def use_async(**params: Any) -> str:
        return await asyncio.get_running_loop().run_in_executor(None, lambda: use(**params))

    return StructuredTool.from_function(
        func=use, coroutine=use_async, name=name, description=description, args_schema=schema, infer_schema=False,
        handle_tool_error=True,
    )  # fmt: skip
