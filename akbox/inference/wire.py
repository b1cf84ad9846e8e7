"""What the gateway has to know of a provider's format, as data; the formats themselves are in anthropic.py and
openai.py.

Requests are decoded once and sent on as they were decoded, so that what was judged is what the provider reads (a body
with two "model" keys means one thing here and perhaps another there). Fields that the gateway does not know stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

Body = dict[str, Any]  # a decoded JSON object

encode = msgspec.json.Encoder().encode


class WireError(Exception):
    """A request or reply that is not what the format says. The message is for the agent."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a request means to the meter. `prompt`: no more tokens than this, or None where nothing bounds it before it
    is sent; `output`: the most tokens one answer may have (None: the request does not say); `copies`: answers asked
    for; `least`: a smaller `output` makes the request invalid; `dearer`: what makes it cost more than its list
    price."""

    model: str
    stream: bool = False
    prompt: int | None
    output: int | None = None
    copies: int = 1
    least: int = 1
    generates: bool = True
    dearer: str = ""


class Usage(msgspec.Struct, kw_only=True):
    """Tokens as the provider counts them. `prompt` is everything that was read, cached or not; the `cache_*` are parts
    of it. `estimated`: the provider did not say (all of it), and this is a bound."""

    prompt: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_long: int = 0
    estimated: bool = False


class Stream(Protocol):
    """Follows one streamed reply, event by event."""

    usage: Usage | None
    """What the provider has said so far; None: nothing yet."""
    pieces: int
    """Pieces of output that came: no more tokens than were really made."""
    characters: int
    """Bytes of output that came: no fewer tokens than were shown."""
    complete: bool
    """The reply is whole: its last event was here."""
    failed: bool
    """The provider itself ended it with an error event."""

    def event(self, name: bytes, data: bytes) -> bool:
        """Takes one event in; False: it is not for the agent. Raises WireError when it is no event of the format."""

    def end(self, kind: str, message: str) -> bytes:
        """The events that end the stream well-formed with an error of this kind (see Errors)."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a provider's API. `cap` writes the most output tokens into a request; `usage` reads the `usage` of a
    reply; `ask_usage` makes a streamed reply tell its usage and says whether that is the gateway's own wish."""

    name: str
    wire: str
    path: str
    facts: Callable[[Body, int], Facts]
    cap: Callable[[Body, int, bool], None] = lambda _body, _tokens, _official: None
    usage: Callable[[object], Usage | None] = lambda _usage: None
    stream: Callable[[bool], Stream] | None = None
    ask_usage: Callable[[Body], bool] = lambda _body: False
    metered: bool = True


# What can go wrong, by the gateway's own words: HTTP status, and each provider's name for it.
class Failure(msgspec.Struct, frozen=True):
    status: int
    anthropic: str
    openai: str
    code: str | None = None


FAILURES: dict[str, Failure] = {
    "invalid": Failure(400, "invalid_request_error", "invalid_request_error"),
    "unauthenticated": Failure(401, "authentication_error", "invalid_request_error", "invalid_api_key"),
    "forbidden": Failure(403, "permission_error", "invalid_request_error", "model_not_allowed"),
    "not_found": Failure(404, "not_found_error", "invalid_request_error", "not_found"),
    "too_large": Failure(413, "request_too_large", "invalid_request_error", "request_too_large"),
    "rate": Failure(429, "rate_limit_error", "rate_limit_exceeded", "rate_limit_exceeded"),
    "budget": Failure(429, "rate_limit_error", "insufficient_quota", "insufficient_quota"),
    "internal": Failure(500, "api_error", "server_error", "internal_error"),
    "upstream": Failure(502, "api_error", "server_error", "upstream_error"),
    "busy": Failure(503, "overloaded_error", "server_error", "overloaded"),
    "timeout": Failure(504, "timeout_error", "server_error", "upstream_timeout"),
}


def error_body(wire: str, kind: str, message: str) -> bytes:
    """An error as the provider of this wire format would write it."""
    failure = FAILURES[kind]
    if wire == "anthropic":
        return encode({"type": "error", "error": {"type": failure.anthropic, "message": message}})
    error = {"message": message, "type": failure.openai, "param": None, "code": failure.code}
    return encode({"error": error})


def decode_object(data: bytes) -> Body:
    """A JSON object. Raises WireError."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise WireError("the body is not a JSON object")
    return value


def decode_event(data: bytes) -> Body:
    """What one event of a stream says. Raises WireError."""
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError:
        raise WireError("an event of the stream is not JSON") from None
    if not isinstance(value, dict):
        raise WireError("an event of the stream is not an object")
    return value


def event_type(value: Body) -> str:
    """Raises WireError."""
    kind = value.get("type")
    if not isinstance(kind, str):
        raise WireError("an event of the stream has no type")
    return kind


def text_field(body: Body, name: str) -> str:
    """A field that has to be there. Raises WireError."""
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 256 or not value.isprintable():
        raise WireError(f"{name}: a string is required")
    return value


def count_field(body: Body, name: str) -> int | None:
    """A whole number from 0, or None when it is absent (or null). Raises WireError."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise WireError(f"{name}: a whole number is required")
    return value


def dearer(body: Body) -> str:
    """A faster service costs more: `service_tier` of both providers, `speed` of Anthropic."""
    if body.get("speed") not in (None, "standard"):
        return f"speed {body['speed']!r}"[:60]
    if body.get("service_tier") not in (None, "auto", "default", "standard", "standard_only", "flex"):
        return f"service_tier {body['service_tier']!r}"[:60]
    return ""


def number(value: object) -> int:
    """A count that a provider told; anything else counts as 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else 0
