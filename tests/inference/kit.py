"""The gateway of one run without a run: its service over a kernel, in front of the fake provider, and plain HTTP to
it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from unit.kernel_kit import Box

from akbox.inference.service import Service
from akbox.kernel.capability import Type

from .upstream import FakeUpstream

KEY = "sk-real-key-0123456789abcdef"
BASE = """
version = "1.0"
[infer]
models = ["claude-*", "gpt-*", "embed-*"]
{infer}
[infer.upstreams.anthropic]
type = "anthropic"
base_url = "{url}"
key = "secret:KEY"
timeout_ms = {timeout_ms}
retries = {retries}
[infer.upstreams.openai]
type = "openai"
base_url = "{url}"
key = "secret:KEY"
timeout_ms = {timeout_ms}
retries = {retries}
[secrets.KEY]
from = "env:KEY"
for = ["infer:anthropic", "infer:openai"]
[budgets]
{budgets}
"""
PATHS = {
    "anthropic": "/v1/messages",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
}
LIMIT_FIELD = {"anthropic": "max_tokens", "chat": "max_completion_tokens", "responses": "max_output_tokens"}
MODELS = {"anthropic": "claude-test", "chat": "gpt-test", "responses": "gpt-test"}
WIRES = tuple(PATHS)


class Bench:
    """Context manager. `call` makes one request, `stream` one that is read as it comes."""

    def __init__(
        self,
        directory: Path,
        *,
        budgets: Mapping[str, object] | None = None,
        infer: str = "",
        timeout_ms: int = 20_000,
        retries: int = 0,
        policy: str | None = None,
        cache_tokens: int = 0,
        unix: str | None = None,
    ) -> None:
        self.upstream = FakeUpstream(cache_tokens=cache_tokens, unix=unix)
        lines = "\n".join(f"{name} = {value}" for name, value in (budgets or {}).items())
        text = (policy or BASE).format(
            url=self.upstream.url, infer=infer, budgets=lines, timeout_ms=timeout_ms, retries=retries
        )
        self.box = Box(directory, text)
        self.kernel = self.box.kernel
        self.failures: list[str] = []
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        compiled = self.kernel.policy
        keys = {name: KEY for name, up in compiled.infer.upstreams.items() if up.key}
        self.service = Service([listener], self.kernel, compiled.infer, keys, self.failures.append)
        self.token = self.kernel.caps.mint(Type.INFERENCE, "*")

    def __enter__(self) -> Bench:
        self.upstream.__enter__()
        self.service.start()
        self.kernel.infer = self.service.infer
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.service.close()
        self.upstream.__exit__(kind, error, where)
        self.box.close()
        assert self.failures == []

    # ---- requests ---------------------------------------------------------------------------------------------------

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def send(
        self,
        path: str,
        body: object,
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> http.client.HTTPResponse:
        """The reply, not yet read. `body`: bytes as they are, None for none, else JSON."""
        there = connection or self.connection()
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        token = self.token if token is None else token
        sent = {"content-type": "application/json", **({"x-api-key": token} if token else {}), **(headers or {})}
        there.request(method, path, data, sent)
        return there.getresponse()

    def call(self, wire: str, text: str, limit: int | None = 50, **fields: Any) -> tuple[int, Any]:
        """Status and decoded body of one model call."""
        reply = self.send(PATHS[wire], request_body(wire, text, limit, **fields))
        return reply.status, json.loads(reply.read())

    def stream(self, wire: str, text: str, limit: int | None = 50, **fields: Any) -> list[tuple[str, Any]]:
        """The events of a streamed call, to its end. Raises AssertionError when it is no stream."""
        reply = self.send(PATHS[wire], request_body(wire, text, limit, stream=True, **fields))
        assert reply.status == 200, reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream")
        return list(events(reply))

    # ---- what became of it ------------------------------------------------------------------------------------------

    def entries(self, decision: str | None = None) -> list[dict[str, Any]]:
        """The log's entries on model calls."""
        found = [e for e in self.box.entries() if e["name"] == "infer"]
        return [e for e in found if decision in (None, e["decision"])]

    def ends(self) -> list[dict[str, Any]]:
        """`res` of the entries that say what became of a call."""
        return [e["res"] for e in self.entries("allow") if "ended" in e["res"]]

    def logged_tokens(self) -> tuple[int, int]:
        """(prompt, output) tokens in the log, together."""
        usages = [end["usage"] for end in self.ends() if "usage" in end]
        return sum(u["prompt_tokens"] for u in usages), sum(u["output_tokens"] for u in usages)

    def billed(self) -> tuple[int, int]:
        """(prompt, output) tokens that the provider counted."""
        return self.upstream.counters.prompt_tokens, self.upstream.counters.output_tokens

    def used(self, name: str = "tokens") -> int:
        return self.kernel.budgets.used(name)

    def reserved(self, name: str = "tokens") -> int:
        return self.kernel.budgets.status(name).reserved


def request_body(wire: str, text: str, limit: int | None = 50, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": MODELS[wire]}
    if wire == "responses":
        body["input"] = text
    else:
        body["messages"] = [{"role": "user", "content": text}]
    if limit is not None:
        body[LIMIT_FIELD[wire]] = limit
    return body | fields


def events(reply: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    """(name, value) of each event; value is text where it is no JSON."""
    name, data = "", ""
    for raw in reply:
        line = raw.decode().rstrip("\r\n")
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data += line[5:].strip()
        elif not line and data:
            try:
                yield name, json.loads(data)
            except ValueError:
                yield name, data
            name, data = "", ""


def text_of(wire: str, seen: list[tuple[str, Any]]) -> str:
    """The text that a stream brought."""
    out = ""
    for _, value in seen:
        if not isinstance(value, dict):
            continue
        if wire == "anthropic" and value.get("type") == "content_block_delta":
            out += value["delta"].get("text", "")
        elif wire == "chat":
            out += "".join(c["delta"].get("content") or "" for c in value.get("choices", ()))
        elif wire == "responses" and value.get("type") == "response.output_text.delta":
            out += value["delta"]
    return out


def error_in(wire: str, body: Any) -> dict[str, Any]:
    """The error of a body, after checking that it has the provider's shape."""
    if wire == "anthropic":
        assert body["type"] == "error"
        assert set(body["error"]) >= {"type", "message"}
    else:
        assert set(body["error"]) >= {"message", "type", "param", "code"}
    error = body["error"]
    assert isinstance(error, dict)
    return error


def wait_for(condition: Callable[[], bool]) -> None:
    """The other side of a connection notices by itself; bounded."""
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not come to that")
