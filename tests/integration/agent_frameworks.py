"""Tools of a real framework under the policy; prints what came of it as JSON. Runs inside akbox, one framework a run:
`add` is allowed, `wipe` is not, and the run's own tools are played by a transport that speaks CALL's wire format."""

import json
import sys

from authority_nanos import AuthorityKernel
from authority_nanos.transport import default_transport

done = []
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    done.append("add")
    return a + b


def wipe(path: str) -> str:
    """Removes a tree."""
    done.append("wipe")
    return "gone"


def played(real):
    """The kernel of the run, but for the tools it offers and what they do."""

    def transport(nr, request):
        args = json.loads(request)["args"]
        if nr == 1028 and args.get("what") == "tools":
            tool = {"name": "file.read", "description": "Reads a file.", "input_schema": SCHEMA}
            return 0, json.dumps({"ok": True, "result": {"tools": [tool]}}).encode()
        if nr == 1031:
            assert args["tool"] == "file.read"
            if args["params"] == {"path": "/app/x"}:
                return 0, b'{"ok": true, "result": {"value": "text"}, "usage": {}}'
            error = {"code": -4201, "name": "POLICY_DENY", "message": "no rule allows it"}
            return 1, json.dumps({"ok": False, "error": error}).encode()
        return real(nr, request)

    return transport


def langchain():
    from authority_nanos.integrations.langchain import guard, kernel_tools
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.tools import tool

    kernel = AuthorityKernel(played(default_transport()))
    tools = {t.name: t for t in [guard(tool(add)), guard(tool(wipe)), *kernel_tools(kernel)]}
    wanted = [
        ("add", {"a": 2, "b": 3}), ("wipe", {"path": "/"}), ("file_read", {"path": "/app/x"}),
        ("file_read", {"path": "/etc/shadow"}), ("add", {"a": "two"}),
    ]  # fmt: skip
    said = [
        AIMessage(content="", tool_calls=[{"name": n, "args": args, "id": str(k)}])
        for k, (n, args) in enumerate(wanted)
    ]
    model = GenericFakeChatModel(messages=iter([*said, AIMessage(content="done")]))
    history, seen = [], []
    while True:
        answer = model.invoke([("human", "go"), *history])
        history.append(answer)
        if not answer.tool_calls:
            return seen, answer.content
        for call in answer.tool_calls:
            try:
                message = tools[call["name"]].invoke(call)
            except ValueError as error:
                seen.append([call["name"], "invalid", type(error).__name__])
                continue
            history.append(message)
            seen.append([call["name"], message.status, message.content])


def openai_agents():
    from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
    from authority_nanos.integrations.openai_agents import guard, kernel_tools
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    kernel = AuthorityKernel(played(default_transport()))
    agent = Agent(
        name="clerk", instructions="reply 3", model=OpenAIChatCompletionsModel("gpt-test", AsyncOpenAI()),
        tools=[guard(function_tool(add)), guard(function_tool(wipe)), *kernel_tools(kernel)],
        model_settings=ModelSettings(max_tokens=64),
    )  # fmt: skip
    result = Runner.run_sync(agent, "please reply 3")
    seen = [[item.type, str(item.output)] for item in result.new_items if item.type == "tool_call_output_item"]
    return seen, result.final_output


def crewai():
    from authority_nanos.integrations.crewai import guard, kernel_tools
    from crewai import LLM, Agent, Crew, Task
    from crewai.tools import tool

    kernel = AuthorityKernel(played(default_transport()))
    own = [guard(tool("add")(add)), guard(tool("wipe")(wipe))]
    model = LLM(model="openai/gpt-test", max_tokens=64)
    agent = Agent(
        role="clerk", goal="please reply 3", backstory="none", llm=model, tools=[*own, *kernel_tools(kernel)],
        verbose=False, cache=False,
    )  # fmt: skip
    task = Task(description="please reply 3", expected_output="three words", agent=agent)
    result = Crew(agents=[agent], tasks=[task], verbose=False).kickoff()
    return [[failure.tool_name, failure.failure.message] for failure in result.tasks_output[0].tool_failures], str(
        result
    )


seen, answer = {"langchain": langchain, "openai-agents": openai_agents, "crewai": crewai}[sys.argv[1]]()
print(json.dumps({"seen": seen, "answer": answer, "done": done}))
