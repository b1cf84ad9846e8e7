"""OpenAI's Chat Completions, Responses and Embeddings, as documented by their provider and spoken by many servers."""

from __future__ import annotations

from akbox.inference.prompt import prompt_bound
from akbox.inference.sse import event
from akbox.inference.wire import (
    FAILURES,
    Body,
    Endpoint,
    Facts,
    Usage,
    WireError,
    count_field,
    dearer,
    decode_event,
    encode,
    error_body,
    event_type,
    number,
    text_field,
)

RESPONSES_LEAST = 16  # the smallest max_output_tokens that is accepted
MAX_COPIES = 128


def _chat_facts(body: Body, size: int) -> Facts:
    stated = [n for n in (count_field(body, name) for name in ("max_completion_tokens", "max_tokens")) if n is not None]
    copies = count_field(body, "n") or 1
    if copies > MAX_COPIES:
        raise WireError(f"n: at most {MAX_COPIES}")
    return Facts(
        model=text_field(body, "model"),
        stream=body.get("stream") is True,
        prompt=prompt_bound(body, size, "openai"),
        output=min(stated, default=None),
        copies=copies,
        dearer=dearer(body),
    )


def _responses_facts(body: Body, size: int) -> Facts:
    if body.get("background") is True:
        raise WireError("background: a response that nobody waits for cannot be metered")
    return Facts(
        model=text_field(body, "model"),
        stream=body.get("stream") is True,
        prompt=prompt_bound(body, size, "openai"),
        output=count_field(body, "max_output_tokens"),
        least=RESPONSES_LEAST,
        dearer=dearer(body),
    )


def _embeddings_facts(body: Body, size: int) -> Facts:
    """`input` may be numbers of tokens, which are no shorter in JSON."""
    return Facts(model=text_field(body, "model"), prompt=size, output=0, generates=False)


def _cap_chat(body: Body, tokens: int, official: bool) -> None:
    """OpenAI's newer models know only max_completion_tokens, other servers often only max_tokens."""
    names = [n for n in ("max_completion_tokens", "max_tokens") if body.get(n) is not None]
    for name in names or ["max_completion_tokens" if official else "max_tokens"]:
        body[name] = tokens


def _cap_responses(body: Body, tokens: int, _official: bool) -> None:
    body["max_output_tokens"] = tokens


def _ask_usage(body: Body) -> bool:
    """Chat streams tell their usage only when asked."""
    options = body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage") is True:
        return False
    body["stream_options"] = (options if isinstance(options, dict) else {}) | {"include_usage": True}
    return True


def usage_of(usage: object) -> Usage | None:
    """A `usage` object of either dialect: prompt_tokens and completion_tokens, or input_tokens and output_tokens."""
    if not isinstance(usage, dict):
        return None
    if "input_tokens" in usage:
        prompt, output, details = (
            usage.get("input_tokens"),
            usage.get("output_tokens"),
            usage.get("input_tokens_details"),
        )
    else:
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        details = usage.get("prompt_tokens_details")
    found = Usage(prompt=number(prompt), output=number(output))
    total = number(usage.get("total_tokens"))
    if total > found.prompt + found.output:  # what some servers count besides (reasoning) is output, too
        found.output = total - found.prompt
    if isinstance(details, dict):
        found.cache_read = min(number(details.get("cached_tokens")), found.prompt)
    return found


class ChatStream:
    """Chunks of choices, one with the usage and no choices, `[DONE]`. `own`: the usage is the gateway's own wish."""

    def __init__(self, own: bool) -> None:
        self.usage: Usage | None = None
        self.pieces = self.characters = 0
        self.complete = self.failed = False
        self._own = own

    def event(self, name: bytes, data: bytes) -> bool:
        if not data:
            return True
        if data == b"[DONE]":
            self.complete = True
            return True
        value = decode_event(data)
        if "error" in value and value["error"] is not None:
            self.failed = True
            return True
        choices = value.get("choices")
        if value.get("usage") is not None:
            self.usage = usage_of(value["usage"])
            if self._own and not choices:
                return False
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            size = _text_bytes(delta, 0)
            self.characters += size
            self.pieces += size > 0
        return True

    def end(self, kind: str, message: str) -> bytes:
        return event("", error_body("openai", kind, message)) + event("", b"[DONE]")


class ResponseStream:
    """Typed events from response.created to response.completed (or incomplete, or failed)."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.pieces = self.characters = 0
        self.complete = self.failed = False
        self._sequence = 0

    def event(self, name: bytes, data: bytes) -> bool:
        if not data or data == b"[DONE]":
            return True
        value = decode_event(data)
        kind = event_type(value)
        self._sequence = max(self._sequence, number(value.get("sequence_number")))
        if kind.endswith(".delta"):
            delta = value.get("delta")
            if isinstance(delta, str) and delta:
                self.characters += len(delta.encode())
                self.pieces += 1
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            response = value.get("response")
            self.usage = usage_of(response.get("usage")) if isinstance(response, dict) else None
            self.complete = True
        elif kind == "error":
            self.failed = True
        return True

    def end(self, kind: str, message: str) -> bytes:
        failure = FAILURES[kind]
        code = failure.code or failure.openai
        body = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": self._sequence + 1}
        return event("error", encode(body))


def _text_bytes(value: object, depth: int) -> int:
    """Bytes of the output in a delta: its texts, a refusal, tool calls' names and arguments."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list):
        return sum(_text_bytes(item, depth + 1) for item in value)
    if isinstance(value, dict) and depth < 8:
        return sum(_text_bytes(v, depth + 1) for k, v in value.items() if k not in ("role", "id", "type", "index"))
    return 0


CHAT = Endpoint(
    name="chat.completions",
    wire="openai",
    path="/v1/chat/completions",
    facts=_chat_facts,
    cap=_cap_chat,
    usage=usage_of,
    stream=ChatStream,
    ask_usage=_ask_usage,
)
RESPONSES = Endpoint(
    name="responses",
    wire="openai",
    path="/v1/responses",
    facts=_responses_facts,
    cap=_cap_responses,
    usage=usage_of,
    stream=lambda _own: ResponseStream(),
)
EMBEDDINGS = Endpoint(
    name="embeddings",
    wire="openai",
    path="/v1/embeddings",
    facts=_embeddings_facts,
    usage=usage_of,
)
ENDPOINTS = (CHAT, RESPONSES, EMBEDDINGS)
