"""A model provider that speaks Anthropic's and OpenAI's wire formats as they document them, with counters and faults.

Run as a program (`python upstream.py --port 0`) or in a test (`FakeUpstream`). One word of the reply is one token and
one piece of a stream; the prompt has as many tokens as it has words. What it answers is said in the last user message:

    reply N            N words (default 8), at most what the request allows
    greedy N           N words, whatever the request allows
    call-tool NAME     a call of this tool
    slow MS            so many ms between two pieces
    fault KIND         401, 429, 500, 529: that status; half: half a body, then the connection is cut; malformed: an
                       event that is no JSON; silence: nothing more after the first piece; deaf: no reply at all;
                       reset: the connection is reset before a reply; echo-key: a 400 that says the key it was sent
    once               the fault is only for the first request with this text
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any

from aiohttp import web

MODELS = ("claude-test", "claude-other", "gpt-test", "embed-test")
Json = dict[str, Any]


class Counters:
    """What the provider saw and would bill."""

    def __init__(self) -> None:
        self.requests = 0
        self.paths: list[str] = []
        self.keys: list[str] = []
        self.bodies: list[Json] = []
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.aborted = 0
        self.open = 0
        self.most_open = 0


def words_of(value: object) -> str:
    """All text of a prompt."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(words_of(v) for v in value)
    if isinstance(value, dict):
        return " ".join(words_of(v) for k, v in value.items() if k in ("content", "text", "input", "output", "parts"))
    return ""


class Plan:
    """What the last user message asks for."""

    def __init__(self, body: Json) -> None:
        messages = body.get("messages") or body.get("input") or ""
        prompt = words_of(messages) + " " + words_of(body.get("system") or body.get("instructions") or "")
        self.prompt = max(len(prompt.split()), 1)
        last = words_of(messages[-1:] if isinstance(messages, list) else messages)
        self.text = last
        stated = [body.get(n) for n in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
        limit = min((n for n in stated if isinstance(n, int)), default=10_000)
        greedy = re.search(r"\bgreedy (\d+)", last)
        asked = re.search(r"\breply (\d+)", last)
        wanted = int(greedy[1]) if greedy else int(asked[1]) if asked else 8
        self.output = wanted if greedy else min(wanted, limit)
        self.cut = self.output < wanted
        self.tool = m[1] if (m := re.search(r"\bcall-tool (\w+)", last)) and body.get("tools") else None
        self.arguments: Json = {"x": 1}
        self.call_id = "call_1"
        self.slow_s = int(m[1]) / 1000 if (m := re.search(r"\bslow (\d+)", last)) else 0.0
        self.fault = m[1] if (m := re.search(r"\bfault ([\w-]+)", last)) else ""
        self.once = "once" in last

    def pieces(self) -> list[str]:
        return [f"word{i} " for i in range(self.output)]


class FakeUpstream:
    """Context manager: a server on a port of 127.0.0.1 that the kernel chose, in a thread of its own."""

    def __init__(
        self, port: int = 0, unix: str | None = None, cache_tokens: int = 0, calls: Sequence[tuple[str, Json]] = ()
    ) -> None:
        """`calls`: (tool, arguments) for the first requests that offer this tool, one each."""
        self.counters = Counters()
        self.calls = list(calls)
        self.cache_tokens = cache_tokens
        self._served: set[str] = set()
        if unix is not None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(unix)
            self.url = f"unix:{unix}"
        else:
            self._socket = socket.create_server(("127.0.0.1", port), backlog=1024)
            self.port = int(self._socket.getsockname()[1])
            self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._server: web.Server | None = None

    def __enter__(self) -> FakeUpstream:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._server.connections) if self._server is not None else 0

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        runner = web.ServerRunner(
            web.Server(self._handle, handler_cancellation=True, access_log=None), shutdown_timeout=0
        )
        await runner.setup()
        self._server = runner.server
        await web.SockSite(runner, self._socket, backlog=1024).start()
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    # ---- requests ---------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        c = self.counters
        c.requests += 1
        c.paths.append(request.path)
        key = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        c.keys.append(key)
        if request.path.startswith("/v1/models"):
            return self._models(request)
        if request.method != "POST":
            return web.json_response(
                {"error": {"message": "no such call", "type": "invalid_request_error"}}, status=404
            )
        request._client_max_size = 64 << 20
        body = json.loads(await request.read())
        c.bodies.append(body)
        plan = Plan(body)
        names = [(tool.get("function") or tool).get("name") for tool in body.get("tools") or ()]
        if self.calls and self.calls[0][0] in names:
            plan.tool, plan.arguments = self.calls.pop(0)
            plan.call_id = f"call_{c.requests}"
        c.open += 1
        c.most_open = max(c.most_open, c.open)
        try:
            fault = plan.fault
            if plan.once and plan.text in self._served:
                fault = ""
            self._served.add(plan.text)
            refused = await self._refuse(request, fault, key)
            if refused is not None:
                return refused
            match request.path:
                case "/v1/messages":
                    return await self._reply(request, body, plan, fault, anthropic_reply, anthropic_events)
                case "/v1/messages/count_tokens":
                    return web.json_response({"input_tokens": plan.prompt})
                case "/v1/chat/completions":
                    return await self._reply(request, body, plan, fault, chat_reply, chat_events)
                case "/v1/responses":
                    return await self._reply(request, body, plan, fault, responses_reply, responses_events)
                case "/v1/embeddings":
                    return self._embeddings(body)
            return web.json_response({"error": {"message": "no such call"}}, status=404)
        except (asyncio.CancelledError, ConnectionError):
            c.aborted += 1
            raise
        finally:
            c.open -= 1

    def _models(self, request: web.BaseRequest) -> web.Response:
        if "anthropic-version" in request.headers:
            data = [
                {"type": "model", "id": m, "display_name": m, "created_at": "2025-01-01T00:00:00Z"}
                for m in MODELS if m.startswith("claude")
            ]  # fmt: skip
            return web.json_response(
                {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
            )
        listed = [{"id": m, "object": "model", "created": 1, "owned_by": "test"} for m in MODELS if m[:2] != "cl"]
        return web.json_response({"object": "list", "data": listed})

    def _embeddings(self, body: Json) -> web.Response:
        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        tokens = sum(len(str(text).split()) for text in given)
        self.counters.prompt_tokens += tokens
        vectors = [{"object": "embedding", "index": i, "embedding": [0.5, -0.25, float(i)]} for i in range(len(given))]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "data": vectors, "model": body["model"], "usage": usage})

    async def _refuse(self, request: web.BaseRequest, fault: str, key: str) -> web.Response | None:
        wire = "anthropic" if request.path.startswith("/v1/messages") else "openai"
        if fault.isdecimal():
            status = int(fault)
            kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "api_error", 529: "overloaded_error"}
            headers = {"request-id": "req_test", "x-request-id": "req_test"}
            return web.json_response(error_of(wire, kinds[status], f"fault {status}"), status=status, headers=headers)
        if fault == "echo-key":
            return web.json_response(error_of(wire, "invalid_request_error", f"bad key {key}"), status=400)
        if fault == "reset":
            assert request.transport is not None
            sock = request.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.transport.abort()
            return web.Response()
        if fault == "deaf":
            await asyncio.sleep(600)
        return None

    async def _reply(
        self, request: web.BaseRequest, body: Json, plan: Plan, fault: str, whole: Any, events: Any
    ) -> web.StreamResponse:
        if not body.get("stream"):
            data = json.dumps(whole(body, plan, self.cache_tokens)).encode()
            if fault == "half":
                response = web.StreamResponse(headers={"content-type": "application/json"})
                response.content_length = len(data)
                await response.prepare(request)
                await response.write(data[: len(data) // 2])
                assert request.transport is not None
                request.transport.close()
                return response
            self._bill(plan.prompt + self.cache_tokens, plan.output)
            response = web.Response(body=data, content_type="application/json", headers={"request-id": "req_test"})
            if "gzip" in request.headers.get("accept-encoding", ""):
                response.enable_compression(web.ContentCoding.gzip)
            return response
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        self._bill(plan.prompt + self.cache_tokens, 0)
        sent = 0
        async for piece, tokens in events(body, plan, self.cache_tokens):
            await response.write(piece)
            self._bill(0, tokens)
            sent += tokens
            if tokens and plan.slow_s:
                await asyncio.sleep(plan.slow_s)
            if tokens and sent == 1 and fault == "malformed":
                await response.write(b"data: {this is no json\n\n")
            if tokens and sent == 1 and fault == "silence":
                await asyncio.sleep(600)
            if tokens and sent == 2 and fault == "half":
                assert request.transport is not None
                request.transport.close()
                return response
        await response.write_eof()
        return response

    def _bill(self, prompt: int, output: int) -> None:
        self.counters.prompt_tokens += prompt
        self.counters.output_tokens += output


def error_of(wire: str, kind: str, message: str) -> Json:
    if wire == "anthropic":
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_test"}
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def sse(name: str, value: Json) -> bytes:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n".encode()


# ---- Anthropic Messages ----------------------------------------------------------------------------------------------


def anthropic_usage(plan: Plan, cached: int, output: int) -> Json:
    return {
        "input_tokens": plan.prompt, "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached,
        "output_tokens": output, "service_tier": "standard",
    }  # fmt: skip


def anthropic_reply(body: Json, plan: Plan, cached: int) -> Json:
    content: list[Json] = [{"type": "text", "text": "".join(plan.pieces()).strip()}]
    if plan.tool:
        content.append({"type": "tool_use", "id": "toolu_1", "name": plan.tool, "input": plan.arguments})
    return {
        "id": "msg_test", "type": "message", "role": "assistant", "model": body["model"], "content": content,
        "stop_reason": "tool_use" if plan.tool else "max_tokens" if plan.cut else "end_turn", "stop_sequence": None,
        "usage": anthropic_usage(plan, cached, plan.output),
    }  # fmt: skip


async def anthropic_events(body: Json, plan: Plan, cached: int) -> AsyncIterator[tuple[bytes, int]]:
    message = anthropic_reply(body, plan, cached) | {"content": [], "stop_reason": None}
    message["usage"] = anthropic_usage(plan, cached, 0)
    yield sse("message_start", {"type": "message_start", "message": message}), 0
    block: Json = {"type": "text", "text": ""}
    yield sse("content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}), 0
    yield sse("ping", {"type": "ping"}), 0
    for text in plan.pieces():
        delta: Json = {"type": "text_delta", "text": text}
        yield sse("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}), 1
    yield sse("content_block_stop", {"type": "content_block_stop", "index": 0}), 0
    if plan.tool:
        block = {"type": "tool_use", "id": "toolu_1", "name": plan.tool, "input": {}}
        yield sse("content_block_start", {"type": "content_block_start", "index": 1, "content_block": block}), 0
        delta = {"type": "input_json_delta", "partial_json": json.dumps(plan.arguments)}
        yield sse("content_block_delta", {"type": "content_block_delta", "index": 1, "delta": delta}), 1
        yield sse("content_block_stop", {"type": "content_block_stop", "index": 1}), 0
    stop = "tool_use" if plan.tool else "max_tokens" if plan.cut else "end_turn"
    output = plan.output + (1 if plan.tool else 0)
    end = {
        "type": "message_delta",
        "delta": {"stop_reason": stop, "stop_sequence": None},
        "usage": {"output_tokens": output},
    }
    yield sse("message_delta", end), 0
    yield sse("message_stop", {"type": "message_stop"}), 0


# ---- OpenAI Chat Completions -----------------------------------------------------------------------------------------


def chat_usage(plan: Plan, cached: int) -> Json:
    return {
        "prompt_tokens": plan.prompt + cached, "completion_tokens": plan.output,
        "total_tokens": plan.prompt + cached + plan.output, "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


def chat_reply(body: Json, plan: Plan, cached: int) -> Json:
    message: Json = {"role": "assistant", "content": "".join(plan.pieces()).strip(), "refusal": None}
    finish = "length" if plan.cut else "stop"
    if plan.tool:
        call = {
            "id": plan.call_id,
            "type": "function",
            "function": {"name": plan.tool, "arguments": json.dumps(plan.arguments)},
        }
        message |= {"content": None, "tool_calls": [call]}
        finish = "tool_calls"
    return {
        "id": "chatcmpl-test", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": chat_usage(plan, cached),
    }  # fmt: skip


async def chat_events(body: Json, plan: Plan, cached: int) -> AsyncIterator[tuple[bytes, int]]:
    def chunk(delta: Json, finish: str | None = None) -> bytes:
        value = {
            "id": "chatcmpl-test", "object": "chat.completion.chunk", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}],
        }  # fmt: skip
        return f"data: {json.dumps(value)}\n\n".encode()

    yield chunk({"role": "assistant", "content": ""}), 0
    for text in plan.pieces():
        yield chunk({"content": text}), 1
    if plan.tool:
        call = {
            "index": 0,
            "id": plan.call_id,
            "type": "function",
            "function": {"name": plan.tool, "arguments": json.dumps(plan.arguments)},
        }
        yield chunk({"tool_calls": [call]}), 0
    yield chunk({}, "tool_calls" if plan.tool else "length" if plan.cut else "stop"), 0
    if (body.get("stream_options") or {}).get("include_usage"):
        value = {"id": "chatcmpl-test", "object": "chat.completion.chunk", "created": 1, "model": body["model"],
                 "choices": [], "usage": chat_usage(plan, cached)}  # fmt: skip
        yield f"data: {json.dumps(value)}\n\n".encode(), 0
    yield b"data: [DONE]\n\n", 0


# ---- OpenAI Responses ------------------------------------------------------------------------------------------------


def responses_reply(body: Json, plan: Plan, cached: int) -> Json:
    text = "".join(plan.pieces()).strip()
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    output: list[Json] = [
        {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    ]
    if plan.tool:
        call = {
            "id": "fc_1",
            "call_id": plan.call_id,
            "type": "function_call",
            "name": plan.tool,
            "arguments": json.dumps(plan.arguments),
        }
        output = [call | {"status": "completed"}]
    return {
        "id": "resp_test", "object": "response", "created_at": 1, "status": "incomplete" if plan.cut else "completed",
        "model": body["model"], "output": output, "error": None, "parallel_tool_calls": True, "tool_choice": "auto",
        "tools": body.get("tools") or [], "temperature": 1.0, "top_p": 1.0, "metadata": {}, "instructions": None,
        "incomplete_details": {"reason": "max_output_tokens"} if plan.cut else None,
        "usage": {
            "input_tokens": plan.prompt + cached, "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": plan.output, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": plan.prompt + cached + plan.output,
        },
    }  # fmt: skip


async def responses_events(body: Json, plan: Plan, cached: int) -> AsyncIterator[tuple[bytes, int]]:
    number = 0

    def one(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return sse(kind, {"type": kind, "sequence_number": number - 1, **fields})

    done = responses_reply(body, plan, cached)
    empty = done | {"status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield one("response.created", response=empty), 0
    yield one("response.in_progress", response=empty), 0
    item = done["output"][0]
    if plan.tool:
        yield (
            one("response.output_item.added", output_index=0, item=item | {"arguments": "", "status": "in_progress"}),
            0,
        )
        where = {"item_id": item["id"], "output_index": 0}
        for _ in range(plan.output - 1):
            yield one("response.function_call_arguments.delta", delta=" ", **where), 1
        yield one("response.function_call_arguments.delta", delta=json.dumps(plan.arguments), **where), 1
        yield (
            one(
                "response.function_call_arguments.done",
                arguments=json.dumps(plan.arguments),
                name=item["name"],
                **where,
            ),
            0,
        )
    else:
        where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        yield one("response.output_item.added", output_index=0, item=item | {"content": [], "status": "in_progress"}), 0
        part = item["content"][0]
        yield one("response.content_part.added", part=part | {"text": ""}, **where), 0
        for text in plan.pieces():
            yield one("response.output_text.delta", delta=text, logprobs=[], **where), 1
        yield one("response.output_text.done", text=part["text"], logprobs=[], **where), 0
        yield one("response.content_part.done", part=part, **where), 0
    yield one("response.output_item.done", output_index=0, item=item), 0
    yield one("response.incomplete" if plan.cut else "response.completed", response=done), 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    upstream = FakeUpstream(parser.parse_args().port)
    with upstream:
        print(upstream.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
