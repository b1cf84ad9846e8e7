"""Policies that are nearly right: keys of the schema with values of any kind, in TOML and in JSON."""

from __future__ import annotations

import json

from hypothesis import strategies as st

SECTIONS = """
fs net tools wasm infer spawn secrets env limits budgets approve heap audit profiles runtime version sf
"""
KEYS = """
read write exec deny protect metadata dns connect bind listen unix allow modules hostcalls models max_tokens upstreams
max_agents pass set memory pids open_files file_size core stack tokens wall_time_ms cpu_ns cpu_time_ns bytes usd
timeout_ms effects types level durability redact raed
"""
PIECES = (
    *(
        "/",
        "a",
        "*",
        "**",
        "?",
        "..",
        ".",
        "~",
        "${workdir}",
        "${tmp}",
        "${x}",
        "[",
        "]",
        "\\",
        " ",
        "\n",
        "\0",
        "é",
        "ip:",
    ),
    *(
        "10.0.0.1",
        "/33",
        "/8",
        ":443",
        ":1-99",
        ":*",
        "dns:",
        "*.example.com",
        "udp+",
        "[::1]",
        "2G",
        "512K",
        "-1",
        "1.0",
    ),
)


def policy_text() -> st.SearchStrategy[tuple[str, str]]:
    """(text, "toml" or "json")."""
    pattern = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
    scalar = pattern | st.text(max_size=12) | st.integers() | st.booleans() | st.floats(allow_nan=False)
    value = scalar | st.lists(pattern, max_size=4) | st.dictionaries(st.sampled_from(KEYS.split()), pattern, max_size=2)
    section = st.dictionaries(st.sampled_from(KEYS.split()), value, max_size=4) | value
    document = st.dictionaries(st.sampled_from(SECTIONS.split()), section, max_size=4)
    document = document.map(lambda d: {"version": "1.0", **d})
    as_json = document.map(lambda d: (json.dumps(d), "json"))
    as_toml = document.map(lambda d: (_toml(d), "toml"))
    return as_json | as_toml | st.tuples(st.text(max_size=60), st.sampled_from(["json", "toml"]))


def _toml(document: dict[str, object]) -> str:
    lines = [f"{key} = {_inline(value)}" for key, value in document.items()]
    return "\n".join(lines) + "\n"


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
