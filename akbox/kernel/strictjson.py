"""Strict JSON for what agents send: duplicate keys, NaN, trailing bytes, depth over 64, numbers no machine word holds
and lone surrogates are errors, not guesses."""

import json
from typing import Any

MAX_DEPTH = 64
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1


class StrictJSONError(ValueError):
    """The bytes are not strict JSON; the message says what and, where known, at which byte."""


def parse(data: bytes, *, wide_ints: bool = False) -> Any:
    """The value of UTF-8 JSON `data`. Raises StrictJSONError. `wide_ints`: integers need not fit 64 bits (canonical
    JSON writes doubles up to 1e21 as such)."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrictJSONError(f"not UTF-8 (byte {error.start})") from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise StrictJSONError(f"nested deeper than {MAX_DEPTH}")
    try:
        value = (_WIDE if wide_ints else _DECODER).decode(text)
    except json.JSONDecodeError as error:
        raise StrictJSONError(f"{error.msg} (character {error.pos})") from None
    except RecursionError:
        raise StrictJSONError(f"nested deeper than {MAX_DEPTH}") from None
    if b"\\u" in data:
        _check_surrogates(value)
    return value


def depth(value: Any) -> int:
    """How deeply lists and dicts are nested: 0 for a scalar. Iterative, so that it holds for any value."""
    deepest, level = 0, [value]
    while nested := [v for v in level if isinstance(v, (dict, list))]:
        deepest += 1
        level = [item for v in nested for item in (v.values() if isinstance(v, dict) else v)]
    return deepest


def _depth(data: bytes) -> int:
    """Brackets open at once, outside strings. Checked before parsing, so that no parser's recursion is relied on."""
    import re

    bare = re.sub(rb'"(?:[^"\\]+|\\.)*"?', b"", data, flags=re.DOTALL)  # "?: an open string must not backtrack
    open_now = deepest = 0
    for byte in re.sub(rb"[^\[\]{}]", b"", bare):
        open_now += 1 if byte in b"[{" else -1
        deepest = max(deepest, open_now)
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise StrictJSONError(f"duplicate key {twice!r}")
    return out


def _int(text: str) -> int:
    if len(text) > 20 or not _INT_MIN <= (value := int(text)) <= _INT_MAX:
        raise StrictJSONError(f"integer {text[:24]} does not fit 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise StrictJSONError(f"number {text[:24]} is out of range")
    return value


def _constant(text: str) -> Any:
    raise StrictJSONError(f"{text} is not JSON")


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise StrictJSONError("a string holds a lone surrogate") from None


def _wide_int(text: str) -> int:
    if len(text) > 22:
        raise StrictJSONError(f"integer {text[:24]} is too long")
    return int(text)


_WIDE = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_wide_int, parse_float=_float, parse_constant=_constant, strict=True
)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_constant, strict=True
)
