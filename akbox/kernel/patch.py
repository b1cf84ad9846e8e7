"""JSON Patch (RFC 6902, by the jsonpatch package) with one more op, `set`: replace what is there, add what is not.

Bounded: a few `copy` operations could otherwise double a value again and again.
"""

from __future__ import annotations

from typing import Any

import msgspec

from akbox.kernel.codes import CallError, Code
from akbox.kernel.strictjson import MAX_DEPTH, depth

MAX_OPERATIONS = 256
MAX_VALUE_BYTES = 1 << 20
_FIELDS = {
    "add": ("value",), "replace": ("value",), "set": ("value",), "test": ("value",), "remove": (), "move": ("from",),
    "copy": ("from",),
}  # fmt: skip


def check_patch(operations: list[dict[str, Any]], where: str = "patch") -> None:
    """The shape of a patch, before anything is applied. Raises CallError(SCHEMA_INVALID) with the key path."""
    if len(operations) > MAX_OPERATIONS:
        raise CallError(Code.SCHEMA_INVALID, f"{where}: more than {MAX_OPERATIONS} operations")
    for index, op in enumerate(operations):
        place = f"{where}[{index}]"
        kind = op.get("op")
        if not isinstance(kind, str) or kind not in _FIELDS:
            raise CallError(Code.SCHEMA_INVALID, f"{place}.op: {kind!r} is not one of {', '.join(_FIELDS)}")
        for key in ("path", *_FIELDS[kind]):
            if key not in op:
                raise CallError(Code.SCHEMA_INVALID, f"{place}.{key}: required by {kind!r}")
        for key in ("path", "from"):
            if key in op and not (isinstance(op[key], str) and (op[key] == "" or op[key].startswith("/"))):
                raise CallError(Code.SCHEMA_INVALID, f"{place}.{key}: not a JSON pointer")


def apply_patch(document: Any, operations: list[dict[str, Any]], where: str = "patch") -> Any:
    """The patched document; `document` itself may have been changed on the way. Raises CallError: NOT_FOUND for a path
    that is not there, CONFLICT for a `test` that fails, SCHEMA_INVALID for the rest."""
    import jsonpatch
    from jsonpointer import JsonPointerException

    for index, operation in enumerate(operations):
        place = f"{where}[{index}]"
        try:
            if operation["op"] == "test":
                _test(document, operation, place)
                continue
            step = _resolve_set(document, operation) if operation["op"] == "set" else operation
            document = jsonpatch.JsonPatch([step]).apply(document, in_place=True)
            if operation["op"] == "copy":
                _bounded(document, place)
        except CallError:
            raise
        except (jsonpatch.JsonPatchConflict, JsonPointerException) as error:
            raise CallError(Code.NOT_FOUND, f"{place}: no such path {operation['path']!r} ({error})") from error
        except (jsonpatch.JsonPatchException, TypeError, RecursionError) as error:
            raise CallError(Code.SCHEMA_INVALID, f"{place}: {error}") from error
    _bounded(document, where)
    return document


def encode_value(value: Any, where: str = "value") -> bytes:
    """A value as it is stored. Raises CallError when it is too large or too deep."""
    if depth(value) > MAX_DEPTH:
        raise CallError(Code.SCHEMA_INVALID, f"{where}: nested deeper than {MAX_DEPTH}")
    data = msgspec.json.encode(value)
    if len(data) > MAX_VALUE_BYTES:
        raise CallError(Code.SCHEMA_INVALID, f"{where}: a value has at most {MAX_VALUE_BYTES} bytes")
    return data


def _bounded(document: Any, place: str) -> None:
    encode_value(document, place)


def _resolve_set(document: Any, operation: dict[str, Any]) -> dict[str, Any]:
    """`set` as the RFC's own op: `replace` for the whole document and for an element of an array, else `add` (which
    replaces a member of an object and appends at an array's end)."""
    from jsonpointer import JsonPointer

    path = operation["path"]
    kind = "add"
    if path == "":
        kind = "replace"
    else:
        parent, last = JsonPointer(path).to_last(document)
        if isinstance(parent, list) and isinstance(last, int) and last < len(parent):
            kind = "replace"
    return {"op": kind, "path": path, "value": operation["value"]}


def _test(document: Any, operation: dict[str, Any], place: str) -> None:
    """RFC 6902 4.6 compares JSON values: true is not 1, which Python's == would say it is."""
    from jsonpointer import JsonPointer

    found = JsonPointer(operation["path"]).resolve(document)
    if not same_json(found, operation["value"]):
        raise CallError(Code.CONFLICT, f"{place}: the test of {operation['path']!r} failed")


def same_json(a: Any, b: Any) -> bool:
    """Equality of JSON values: numbers by value, booleans only with booleans."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_json(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same_json(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
