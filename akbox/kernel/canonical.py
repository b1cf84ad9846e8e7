"""RFC 8785 canonical JSON: one byte string per value, so that a hash of it means something.

Not a general encoder: a value that JSON numbers or UTF-8 can't carry exactly (NaN, integers that no double holds, lone
surrogates) is an error here; `interoperable` rewrites such values before they reach the log.
"""

from typing import Any

import msgspec

MAX_SAFE_INT = 2**53 - 1

_encode = msgspec.json.Encoder(order="deterministic").encode


class CanonicalError(ValueError):
    """The value has no canonical form."""


def canonical(value: Any) -> bytes:
    """The RFC 8785 serialisation of dicts with str keys, lists, str, int, float, bool and None. Raises
    CanonicalError."""
    out: list[bytes] = []
    try:
        _write(value, out)
    except UnicodeEncodeError as error:
        raise CanonicalError("a string holds a lone surrogate") from error
    except RecursionError as error:
        raise CanonicalError("the value is nested too deeply") from error
    return b"".join(out)


def _write(value: Any, out: list[bytes]) -> None:
    if isinstance(value, str):
        out.append(_encode(value))  # msgspec escapes exactly what RFC 8785 3.2.2.2 says
    elif value is None or value is True or value is False:
        out.append(b"null" if value is None else b"true" if value else b"false")
    elif isinstance(value, int):
        out.append(_integer(value))
    elif isinstance(value, float):
        out.append(number(value))
    elif isinstance(value, dict):
        _write_object(value, out)
    elif isinstance(value, (list, tuple)):
        out.append(b"[")
        for index, item in enumerate(value):
            if index:
                out.append(b",")
            _write(item, out)
        out.append(b"]")
    else:
        raise CanonicalError(f"{type(value).__name__} is not a JSON value")


def _integer(value: int) -> bytes:
    """Past 2^53 only what a double's canonical text reads back as (1e20 is written 100000000000000000000)."""
    text = b"%d" % value
    if -MAX_SAFE_INT <= value <= MAX_SAFE_INT:
        return text
    if len(text) > 22 or number(float(value)) != text:
        raise CanonicalError("an integer is not exact as an IEEE double")
    return text


def _write_object(value: dict[str, Any], out: list[bytes]) -> None:
    out.append(b"{")
    for index, key in enumerate(sorted(value, key=_utf16)):
        if index:
            out.append(b",")
        out.append(_encode(key))
        out.append(b":")
        _write(value[key], out)
    out.append(b"}")


def _utf16(key: str) -> bytes:
    if not isinstance(key, str):
        raise CanonicalError(f"{key!r} is not a string key")
    return key.encode("utf-16-be")


def number(value: float) -> bytes:
    """ECMAScript's Number.prototype.toString (ECMA-262 6.1.6.1.20), which RFC 8785 3.2.2.3 asks for."""
    if value != value or value in (float("inf"), float("-inf")):
        raise CanonicalError(f"{value} is not a JSON number")
    if value == 0:
        return b"0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")  # Python's repr gives the same shortest digits
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0)  # the decimal point stands after this many digits
    point -= len(whole + fraction) - len(digits)
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        text = digits + "0" * (point - count)
    elif 0 < point <= 21:
        text = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        shown = point - 1
        text = digits[0] + ("." + digits[1:] if count > 1 else "") + f"e{'+' if shown >= 0 else '-'}{abs(shown)}"
    return (sign + text).encode()


def interoperable(value: Any) -> Any:
    """The value with what canonical JSON can't carry written as strings: large integers in decimal, lone surrogates
    escaped, bytes as UTF-8 with `\\xNN` for what is not."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value) if -MAX_SAFE_INT <= value <= MAX_SAFE_INT else str(int(value))
    if isinstance(value, float):
        return value if abs(value) < float("inf") else repr(value)
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {interoperable(str(k)): interoperable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [interoperable(v) for v in value]
    raise CanonicalError(f"{type(value).__name__} is not a JSON value")
