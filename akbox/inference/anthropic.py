"""Anthropic's Messages API, as documented by its provider: requests, replies and the events of a stream."""

from __future__ import annotations

import msgspec

from akbox.inference.prompt import prompt_bound
from akbox.inference.sse import event
from akbox.inference.wire import (
    Body,
    Endpoint,
    Facts,
    Usage,
    count_field,
    dearer,
    decode_event,
    error_body,
    event_type,
    number,
    text_field,
)


def _facts(body: Body, size: int) -> Facts:
    thinking = body.get("thinking")
    thought = count_field(thinking, "budget_tokens") if isinstance(thinking, dict) else None
    return Facts(
        model=text_field(body, "model"),
        stream=body.get("stream") is True,
        prompt=prompt_bound(body, size, "anthropic"),
        output=count_field(body, "max_tokens"),
        least=(thought or 0) + 1,
        dearer=dearer(body),
    )


def _count_facts(body: Body, size: int) -> Facts:
    return Facts(model=text_field(body, "model"), prompt=0, output=0, generates=False)


def _cap(body: Body, tokens: int, _official: bool) -> None:
    body["max_tokens"] = tokens


def usage_of(usage: object, before: Usage | None = None) -> Usage | None:
    """A `usage` object; what it leaves out stays as it was `before`: a stream's last one tells the output only."""
    if not isinstance(usage, dict):
        return before
    found = Usage() if before is None else msgspec.structs.replace(before)
    read, written = usage.get("cache_read_input_tokens"), usage.get("cache_creation_input_tokens")
    plain = found.prompt - found.cache_read - found.cache_write
    if usage.get("input_tokens") is not None:
        plain = number(usage["input_tokens"])
    found.cache_read = found.cache_read if read is None else number(read)
    found.cache_write = found.cache_write if written is None else number(written)
    kinds = usage.get("cache_creation")
    if isinstance(kinds, dict):
        found.cache_write_long = min(number(kinds.get("ephemeral_1h_input_tokens")), found.cache_write)
    found.prompt = plain + found.cache_read + found.cache_write
    found.output = max(found.output, number(usage.get("output_tokens")))
    return found


class MessageStream:
    """message_start, then blocks of content, message_delta with the usage, message_stop."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.pieces = self.characters = 0
        self.complete = self.failed = False
        self._began = False

    def event(self, name: bytes, data: bytes) -> bool:
        if not name and not data:
            return True  # a comment that keeps the connection open
        value = decode_event(data)
        kind = event_type(value)
        if kind == "content_block_delta":
            self._delta(value.get("delta"))
        elif kind == "message_start":
            self._began = True
            message = value.get("message")
            self.usage = usage_of(message.get("usage") if isinstance(message, dict) else None)
        elif kind == "message_delta":
            self.usage = usage_of(value.get("usage"), self.usage)
        elif kind == "message_stop":
            self.complete = self._began
        elif kind == "error":
            self.failed = True
        return True

    def _delta(self, delta: object) -> None:
        if isinstance(delta, dict):
            size = sum(
                len(v.encode()) for k, v in delta.items() if isinstance(v, str) and k not in ("type", "signature")
            )
            self.characters += size
            self.pieces += size > 0

    def end(self, kind: str, message: str) -> bytes:
        return event("error", error_body("anthropic", kind, message))


MESSAGES = Endpoint(
    name="messages",
    wire="anthropic",
    path="/v1/messages",
    facts=_facts,
    cap=_cap,
    usage=usage_of,
    stream=lambda _own: MessageStream(),
)
COUNT_TOKENS = Endpoint(
    name="count_tokens",
    wire="anthropic",
    path="/v1/messages/count_tokens",
    facts=_count_facts,
    metered=False,
)
ENDPOINTS = (MESSAGES, COUNT_TOKENS)
