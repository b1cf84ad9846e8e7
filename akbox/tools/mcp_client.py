"""A mounted MCP server, spoken to over pipes: JSON-RPC, one message a line (https://modelcontextprotocol.io).

Small on purpose: start, tools/list and tools/call are all that a mount needs. What the server says is bounded and never
trusted; what it asks of its client (sampling, roots) is refused. Who started it, and what holds it, is not known here.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import Any

import msgspec

from akbox import __version__
from akbox.tools.failure import ToolFailure

PROTOCOL = "2025-06-18"
LINE_BYTES_MAX = 8 << 20
TOOLS_MAX, PAGES_MAX = 1000, 50
_METHOD_NOT_FOUND = -32601
_SEND_S = 5.0


class Client:
    """One server. Thread-safe. `write_fd` and `read_fd` are its standard input and output, ours to close."""

    def __init__(self, name: str, write_fd: int, read_fd: int) -> None:
        self.name = name
        self._write_fd, self._read_fd = write_fd, read_fd
        self._changed = threading.Condition()
        self._waiting: set[int] = set()  # guarded by _changed, as the rest
        self._replies: dict[int, dict[str, Any]] = {}
        self._next = 0
        self._over: str | None = None
        self._sending = threading.Lock()
        self._broken = False  # guarded by _sending
        os.set_blocking(write_fd, False)
        self._reader = threading.Thread(target=self._read, name=f"akbox-mcp-{name}", daemon=True)

    def start(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        """What the server's tools say of themselves, by name. Raises ToolFailure."""
        self._reader.start()
        end = time.monotonic() + timeout_s
        about = {
            "protocolVersion": PROTOCOL,
            "capabilities": {},
            "clientInfo": {"name": "akbox", "version": __version__},
        }
        self.request("initialize", about, end)
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        tools: dict[str, dict[str, Any]] = {}
        cursor: object = None
        for _ in range(PAGES_MAX):
            page = self.request("tools/list", {} if cursor is None else {"cursor": cursor}, end)
            listed = page.get("tools")
            for tool in listed if isinstance(listed, list) else ():
                if isinstance(tool, dict) and isinstance(tool.get("name"), str):
                    tools[tool["name"]] = tool
            cursor = page.get("nextCursor")
            if cursor is None or len(tools) > TOOLS_MAX:
                break
        if len(tools) > TOOLS_MAX:
            raise ToolFailure("module", f"MCP server {self.name!r} has more than {TOOLS_MAX} tools")
        return tools

    def call(self, tool: str, params: dict[str, Any], end: float) -> dict[str, Any]:
        """The result of one call. Raises ToolFailure."""
        result = self.request("tools/call", {"name": tool, "arguments": params}, end)
        if result.get("isError"):
            raise ToolFailure("exit", f"tool {self.name}.{tool}: {_texts(result)}"[:1000])
        return {key: result[key] for key in ("content", "structuredContent") if key in result}

    def request(self, method: str, params: dict[str, Any], end: float) -> dict[str, Any]:
        """One request, and its result. Raises ToolFailure."""
        with self._changed:
            self._next += 1
            number = self._next
            self._waiting.add(number)
        try:
            self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params}, end)
            with self._changed:
                done = self._changed.wait_for(
                    lambda: number in self._replies or self._over is not None, max(end - time.monotonic(), 0)
                )
                reply, over = self._replies.pop(number, None), self._over
        finally:
            with self._changed:
                self._waiting.discard(number)
                self._replies.pop(number, None)
        if reply is None and over is not None:
            raise ToolFailure("unavailable", f"MCP server {self.name!r} {over}")
        if reply is None or not done:
            with contextlib.suppress(ToolFailure):
                about = {"requestId": number, "reason": "timeout"}
                self._send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": about})
            raise ToolFailure("timeout", f"MCP server {self.name!r} gives no answer to {method}")
        error, result = reply.get("error"), reply.get("result")
        if error is not None:
            text = error.get("message") if isinstance(error, dict) else error
            raise ToolFailure("exit", f"MCP server {self.name!r}: {text}"[:1000])
        if not isinstance(result, dict):
            raise ToolFailure("output_json", f"MCP server {self.name!r}: its answer to {method} has no result")
        return result

    def close(self) -> None:
        """Precondition: the server is gone, or goes when its standard input does."""
        with self._sending:
            if self._write_fd >= 0:
                os.close(self._write_fd)
                self._write_fd = -1
        if self._reader.ident is not None:
            self._reader.join()

    def _send(self, message: dict[str, Any], end: float | None = None) -> None:
        """A server that does not read is given up at `end`: what it has got of the message is no message."""
        data = memoryview(msgspec.json.encode(message) + b"\n")
        end = time.monotonic() + _SEND_S if end is None else end
        with self._sending:
            if self._broken:
                raise ToolFailure("unavailable", f"MCP server {self.name!r} does not read")
            try:
                poll = select.poll()
                poll.register(self._write_fd, select.POLLOUT)
                while data:
                    if not poll.poll(max(end - time.monotonic(), 0) * 1000):
                        self._broken = True
                        raise ToolFailure("timeout", f"MCP server {self.name!r} does not read")
                    with contextlib.suppress(BlockingIOError):
                        data = data[os.write(self._write_fd, data[:65536]) :]
            except OSError as error:
                raise ToolFailure("unavailable", f"MCP server {self.name!r} has ended") from error

    def _read(self) -> None:
        why = "has ended"
        try:
            with open(self._read_fd, "rb") as stream:
                while line := stream.readline(LINE_BYTES_MAX + 1):
                    if len(line) > LINE_BYTES_MAX:
                        why = f"wrote a line of more than {LINE_BYTES_MAX} bytes"
                        return
                    self._take(line)
        except OSError as error:
            why = f"cannot be read: {error.strerror}"
        finally:
            with self._changed:
                self._over = why
                self._changed.notify_all()

    def _take(self, line: bytes) -> None:
        """A reply that somebody waits for, or a request, which is refused. What is neither is not for us."""
        try:
            message = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError):
            return
        if not isinstance(message, dict):
            return
        number = message.get("id")
        if "method" in message:
            if number is not None:
                answer: dict[str, Any] = {"jsonrpc": "2.0", "id": number}
                if message["method"] == "ping":
                    answer["result"] = {}
                else:
                    answer["error"] = {"code": _METHOD_NOT_FOUND, "message": "not for servers that akbox mounts"}
                with contextlib.suppress(ToolFailure):
                    self._send(answer)
            return
        with self._changed:
            if isinstance(number, int) and number in self._waiting:
                self._replies[number] = message
                self._changed.notify_all()


def _texts(result: dict[str, Any]) -> str:
    content = result.get("content")
    items = content if isinstance(content, list) else []
    return " ".join(str(item.get("text", "")) for item in items if isinstance(item, dict)) or "it says that it failed"
