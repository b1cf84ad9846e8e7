"""How many tokens a request's prompt has at most, before anything is sent.

Tokenizers of the providers are not public, or not small, so this is a bound and no guess: every token stands for at
least one byte of text, and what the providers wrap around messages is shorter than the JSON around them. Pictures cost
by their area, with a maximum. What is only referred to (files, earlier responses, tools that run at the provider) has
no bound here.
"""

from __future__ import annotations

from typing import Any

FRAME_TOKENS = 64
TOOL_TOKENS = 2_000
"""The providers' own instructions for tools; the longest published is Anthropic's for computer use, under 1,000."""
IMAGE_TOKENS = {"anthropic": 5_000, "openai": 50_000}
"""Anthropic: width x height / 750 after scaling to at most 2,576 pixels a side. OpenAI: gpt-4o-mini's tiles are the
dearest, 2,833 + 8 x 5,667."""

_IMAGES = {"image", "image_url", "input_image"}
_REFERENCES = (
    "file_id",
    "file_data",
    "file_url",
    "previous_response_id",
    "conversation",
    "container",
    "mcp_servers",
    "web_search_options",
)
_OWN_TOOLS = (
    "function",
    "custom",
    "bash_",
    "text_editor_",
    "computer_",
    "memory_",
    "local_shell",
    "apply_patch",
    "shell",
)
_MAX_DEPTH = 64


def prompt_bound(body: dict[str, Any], size: int, wire: str) -> int | None:
    """`size`: bytes of the request as it is sent. None: nothing bounds it."""
    if any(body.get(name) for name in _REFERENCES) or not all(map(_runs_here, body.get("tools") or ())):
        return None
    if wire == "openai" and isinstance(body.get("prompt"), dict):  # a template that is kept at the provider
        return None
    bound = size + FRAME_TOKENS + (TOOL_TOKENS if body.get("tools") else 0)
    for name in ("messages", "system", "input"):
        more = _media(body.get(name), IMAGE_TOKENS[wire], 0)
        if more is None:
            return None
        bound += more
    return bound


def _runs_here(tool: object) -> bool:
    """Is it the agent that runs this tool? One that runs at the provider reads what nobody knows before."""
    kind = tool.get("type", "function") if isinstance(tool, dict) else None
    return isinstance(kind, str) and kind.startswith(_OWN_TOOLS)


def _media(value: object, image: int, depth: int) -> int | None:
    """What pictures add to the bytes (their own bytes are no text), below `value`."""
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, list):
        parts = [_media(item, image, depth + 1) for item in value if isinstance(item, (dict, list))]
        return None if None in parts else sum(p for p in parts if p is not None)
    if not isinstance(value, dict):
        return 0
    kind = value.get("type")
    if kind in _IMAGES:
        return image - _data_length(value)
    if kind in ("document", "file", "input_file", "container_upload", "item_reference", "search_result_reference"):
        source = value.get("source")
        if not (isinstance(source, dict) and source.get("type") in ("text", "content")):
            return None
    return _media([v for v in value.values() if isinstance(v, (dict, list))], image, depth)


def _data_length(block: dict[str, Any]) -> int:
    """Bytes of the block that are a picture's: base64 in it, or a data: URL."""
    source = block.get("source")
    if isinstance(source, dict) and isinstance(source.get("data"), str):
        return len(source["data"])
    url = block.get("image_url")
    if isinstance(url, dict):
        url = url.get("url")
    return len(url) if isinstance(url, str) and url.startswith("data:") else 0
