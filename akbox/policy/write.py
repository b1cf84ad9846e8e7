"""A policy as TOML, the way people write one: top-level keys, a table for each section, a list item on each line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from akbox.policy.model import Policy

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_WIDTH = 120
Notes = Mapping[tuple[str, str, str], str]


def as_toml(policy: Policy, *, head: Sequence[str] = (), notes: Notes | None = None, tail: Sequence[str] = ()) -> str:
    """head, tail: comment lines before and after; notes: comments by (section, list, item). Raises ValueError for a
    null (of a JSON Schema), which TOML cannot hold."""
    data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(msgspec.structs.replace(policy, source=None)))
    lines = [*_comments(head), f"version = {_value(data.pop('version'))}"]
    tables = {key: data.pop(key) for key in list(data) if isinstance(data[key], dict)}
    lines += [f"{key} = {_value(value)}" for key, value in data.items() if value is not None]
    for name, table in tables.items():
        lines += _table((name,), table, notes or {})
    if tail:
        lines += ["", *_comments(tail)]
    return "\n".join(lines) + "\n"


def _comments(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield f"# {text}".rstrip()


def _table(path: tuple[str, ...], table: dict[str, Any], notes: Notes) -> list[str]:
    """A table whose values are tables becomes as many; env.set and its like stay on one line each."""
    inner = {key: value for key, value in table.items() if isinstance(value, dict) and _has_tables(path)}
    plain = {key: value for key, value in table.items() if key not in inner and value is not None}
    lines = ["", f"[{'.'.join(map(_key, path))}]"] if plain else []
    for key, value in plain.items():
        if isinstance(value, list):
            lines += list_lines(_key(key), [(_value(item), notes.get((path[0], key, str(item)), "")) for item in value])
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in inner.items():
        lines += _table((*path, key), value, notes)
    return lines


def _has_tables(path: tuple[str, ...]) -> bool:
    return path in (("secrets",), ("infer",), ("infer", "upstreams"), ("infer", "prices"), ("heap",))


def list_lines(key: str, items: Sequence[tuple[str, str]]) -> list[str]:
    """A list of (value as TOML, comment or ""): on one line when that is short and says it all."""
    short = f"{key} = [{', '.join(text for text, _ in items)}]"
    if not any(about for _, about in items) and len(short) <= _WIDTH:
        return [short]
    wide = min(max((len(text) for text, about in items if about), default=0), 60)
    rows = [f"  {text},{' ' * (wide - len(text))}  # {about}" if about else f"  {text}," for text, about in items]
    return [f"{key} = [", *rows, "]"]


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if value is None:
        raise ValueError("a null, which TOML cannot hold")
    return str(value)


def _string(text: str) -> str:
    """JSON's escapes are TOML's, but for DEL and the slash."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
