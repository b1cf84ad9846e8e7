"""OpenAI Agents SDK (openai-agents): tools under the policy. A refused use of a tool of the agent's own is rejected by
a tool guardrail; a refused CALL is the tool's output, as the SDK does with errors of tools. The model hears of both."""

from __future__ import annotations

import asyncio
import dataclasses
import json

from ..errors import AuthorityKernelError
from ..kernel import AuthorityKernel
from . import called, offered, permit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agents import FunctionTool


def guard(tool: FunctionTool, kernel: AuthorityKernel | None = None) -> FunctionTool:
    """The same tool; each use is first asked of the kernel."""
    from agents import ToolGuardrailFunctionOutput, ToolInputGuardrail

    ak = AuthorityKernel() if kernel is None else kernel

    async def ask(_data: Any) -> ToolGuardrailFunctionOutput:
        try:
            await asyncio.get_running_loop().run_in_executor(None, permit, ak, tool.name, "openai-agents")
        except AuthorityKernelError as error:
            return ToolGuardrailFunctionOutput.reject_content(str(error), output_info={"code": error.code})
        return ToolGuardrailFunctionOutput.allow()

    guardrail: ToolInputGuardrail[Any] = ToolInputGuardrail(guardrail_function=ask, name="akbox")
    return dataclasses.replace(tool, tool_input_guardrails=[guardrail, *(tool.tool_input_guardrails or ())])


def kernel_tools(kernel: AuthorityKernel | None = None) -> list[FunctionTool]:
    """The tools of the run, each use a CALL."""
    ak = AuthorityKernel() if kernel is None else kernel
    return [_kernel_tool(ak, *tool) for tool in offered(ak)]


def _kernel_tool(ak: AuthorityKernel, name: str, target: str, description: str, schema: dict[str, Any]) -> FunctionTool:
    from agents import FunctionTool

    async def use(_context: Any, arguments: str) -> str:
        try:
            params = json.loads(arguments or "{}")
            return await asyncio.get_running_loop().run_in_executor(None, called, ak, target, params)
        except (AuthorityKernelError, ValueError) as error:  # ValueError: a model wrote no JSON
            return f"The tool failed: {error}"

    return FunctionTool(
        name=name, description=description, params_json_schema=schema, on_invoke_tool=use, strict_json_schema=False
    )
