"""INFERENCE over the gateway's own path: a neutral request in the words of the provider that serves the model, its
stream put together to one result."""

from __future__ import annotations

from typing import Any

import msgspec

from akbox.inference import anthropic, openai
from akbox.inference.callers import Caller
from akbox.inference.exchange import Exchanges
from akbox.inference.routing import NoUpstream, Router
from akbox.inference.sse import Splitter
from akbox.inference.upstream import UpstreamDown
from akbox.inference.wire import Body, WireError, encode
from akbox.kernel.calls.inference import InferenceArgs
from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import AgentId

_FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


async def infer(exchanges: Exchanges, router: Router, subject: AgentId, args: InferenceArgs) -> dict[str, Any]:
    """The result of the call: content, tool_calls, finish_reason, model, usage. Raises CallError."""
    model = router.resolve(args.model)
    try:
        upstream = router.find_any(model)
        wire = router.upstreams[upstream].type
        body = (_to_anthropic if wire == "anthropic" else _to_openai)(model, args)
        endpoint = anthropic.MESSAGES if wire == "anthropic" else openai.CHAT
        exchange = await exchanges.begin(Caller(subject), endpoint, body, encode(body), upstream)
    except NoUpstream as error:
        raise CallError(Code.NO_UPSTREAM, str(error)) from error
    except WireError as error:
        raise CallError(Code.SCHEMA_INVALID, str(error)) from error
    try:
        whole = await exchange.send("", {})
        if whole is not None and whole.status >= 400:
            raise _failed(f"{upstream} answers {whole.status}: {_message(whole.body)}", status=whole.status)
        if whole is not None:
            found = _Answer(wire)
            found.whole(msgspec.json.decode(whole.body))
        else:
            found = _Answer(wire)
            splitter = Splitter()
            async for data in exchange.events():
                for _, event, _ in splitter.feed(data):
                    found.event(event)
    except UpstreamDown as error:
        raise _failed(str(error)) from error
    finally:
        exchange.close()
    if exchange.ended == "cut":
        raise CallError(Code.BUDGET_EXCEEDED, "the run's budget for output ended the answer", missing_cap="budgets")
    if found.error is not None:
        raise _failed(f"{upstream}: {found.error}")
    usage = exchange.usage
    return {
        "content": found.text,
        "finish_reason": _FINISH.get(found.finish or "", found.finish),
        "tool_calls": found.calls(),
        "model": model,
        "usage": {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.output,
            "total_tokens": usage.prompt + usage.output,
        },
    }


class _Answer:
    """Puts a reply together, whole or from its events, of either provider."""

    def __init__(self, wire: str) -> None:
        self._wire = wire
        self._calls: dict[int, dict[str, str]] = {}
        self.text = ""
        self.finish: str | None = None
        self.error: str | None = None

    def event(self, data: bytes) -> None:
        if not data or data == b"[DONE]":
            return
        value = msgspec.json.decode(data)
        if isinstance(value, dict):
            if value.get("error") is not None:
                self.error = _message(data)
            elif self._wire == "anthropic":
                self._anthropic(value)
            else:
                for choice in value.get("choices") or ():
                    self._choice(choice, choice.get("delta") or {})

    def whole(self, value: Body) -> None:
        if self._wire != "anthropic":
            for choice in value.get("choices") or ():
                self._choice(choice, choice.get("message") or {})
            return
        for i, block in enumerate(value.get("content") or ()):
            self.text += block.get("text") or ""
            if block.get("type") == "tool_use":
                self._call(i, block.get("id"), block.get("name"), encode(block.get("input")).decode())
        self.finish = value.get("stop_reason")

    def calls(self) -> list[dict[str, Any]]:
        """[{id, name, arguments}]; arguments that are no JSON stay text."""
        out = []
        for call in self._calls.values():
            try:
                arguments: Any = msgspec.json.decode(call["arguments"] or "{}")
            except msgspec.DecodeError:
                arguments = call["arguments"]
            out.append({"id": call["id"], "name": call["name"], "arguments": arguments})
        return out

    def _call(self, index: int, call_id: object, name: object, arguments: object) -> None:
        call = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
        for key, part in (("id", call_id), ("name", name), ("arguments", arguments)):
            if isinstance(part, str):
                call[key] += part

    def _anthropic(self, value: Body) -> None:
        kind, index = value.get("type"), value.get("index", 0)
        if kind == "content_block_start" and value["content_block"].get("type") == "tool_use":
            self._call(index, value["content_block"].get("id"), value["content_block"].get("name"), "")
        elif kind == "content_block_delta":
            self.text += value["delta"].get("text") or ""
            if "partial_json" in value["delta"]:
                self._call(index, None, None, value["delta"]["partial_json"])
        elif kind == "message_delta":
            self.finish = value["delta"].get("stop_reason") or self.finish

    def _choice(self, choice: Body, part: Body) -> None:
        self.text += part.get("content") or ""
        self.finish = choice.get("finish_reason") or self.finish
        for call in part.get("tool_calls") or ():
            function = call.get("function") or {}
            self._call(call.get("index", 0), call.get("id"), function.get("name"), function.get("arguments"))


def _to_openai(model: str, args: InferenceArgs) -> Body:
    messages = args.messages or [{"role": "user", "content": args.prompt}]
    if args.system is not None:
        messages = [{"role": "system", "content": args.system}, *messages]
    body: Body = {"model": model, "messages": messages, "max_tokens": args.max_tokens, "stream": True}
    if args.temperature is not None:
        body["temperature"] = args.temperature
    if args.tools:
        body["tools"] = [_function(tool) for tool in args.tools]
    return body


def _function(tool: Body) -> Body:
    if "function" in tool:
        return tool
    schema = tool.get("input_schema") or tool.get("parameters") or {"type": "object"}
    return {
        "type": "function",
        "function": {"name": tool["name"], "description": tool.get("description", ""), "parameters": schema},
    }


def _to_anthropic(model: str, args: InferenceArgs) -> Body:
    system = [args.system] if args.system is not None else []
    messages: list[Body] = []
    for message in args.messages or [{"role": "user", "content": args.prompt}]:
        if message["role"] in ("system", "developer"):
            system.append(str(message.get("content", "")))
        else:
            messages.append(_turn(message))
    body: Body = {"model": model, "messages": messages, "max_tokens": args.max_tokens, "stream": True}
    if system:
        body["system"] = "\n\n".join(system)
    if args.temperature is not None:
        body["temperature"] = min(args.temperature, 1.0)
    if args.tools:
        functions = [_function(tool)["function"] for tool in args.tools]
        body["tools"] = [
            {"name": f["name"], "description": f.get("description", ""), "input_schema": f["parameters"]}
            for f in functions
        ]
    return body


def _turn(message: Body) -> Body:
    """A message with OpenAI's tool calls and results in Anthropic's blocks; others are the same for both."""
    if message["role"] == "tool":
        result = {
            "type": "tool_result",
            "tool_use_id": message.get("tool_call_id"),
            "content": message.get("content", ""),
        }
        return {"role": "user", "content": [result]}
    calls = message.get("tool_calls")
    if not calls:
        return message
    content = message.get("content")
    blocks: list[Body] = [{"type": "text", "text": content}] if isinstance(content, str) and content else []
    for call in calls:
        function = call.get("function") or call
        arguments = function.get("arguments", {})
        given = msgspec.json.decode(arguments) if isinstance(arguments, str) else arguments
        blocks.append({"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": given})
    return {"role": message["role"], "content": blocks}


def _message(body: bytes) -> str:
    """The provider's own words in an error body."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body[:200].decode("utf-8", "replace")
    error = value.get("error") if isinstance(value, dict) else None
    return str(error.get("message") if isinstance(error, dict) else error)[:1000]


def _failed(message: str, **details: object) -> CallError:
    return CallError(Code.INFERENCE_FAIL, message, details=details)
