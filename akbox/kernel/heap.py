"""The typed heap: JSON objects with versions, owners and, where the policy gives one, a JSON Schema per type.

Budgets are the pipeline's: functions here say by how much an object grows or shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec

from akbox.kernel.codes import CallError, Code
from akbox.kernel.kernel import MAX_TYPES, TYPE_TYPE
from akbox.kernel.patch import apply_patch, encode_value
from akbox.kernel.taint import TAINT_TRUSTED, combined
from akbox.store.base import HeapObject, Transaction

MAX_TYPE_CHARS = 255

_NOT_FOR_AGENTS = {"pattern", "patternProperties", "format", "$ref", "$dynamicRef", "$recursiveRef"}

Access = Callable[[HeapObject | None, int], HeapObject]
"""Gives the object that was asked for, or refuses: NOT_FOUND, or CAP_MISSING for another agent's."""


class NewType(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TYPE_CHARS)]
    schema: dict[str, Any]


class Heap:
    """Operations on objects inside a store's transaction. `types` maps a type's name to its JSON Schema."""

    def __init__(self, types: Mapping[str, Mapping[str, Any]]) -> None:
        self._types = dict(types)
        self._validators: dict[str, Any] = {}  # Any: jsonschema is imported when a type with a schema is first used

    def prepare(self, type_name: str, value: Any, where: str = "value") -> bytes:
        """The stored form of a new object's value, checked against its type. Raises CallError(SCHEMA_INVALID)."""
        if not 0 < len(type_name) <= MAX_TYPE_CHARS:
            raise CallError(Code.SCHEMA_INVALID, f"type: a name of 1 to {MAX_TYPE_CHARS} characters")
        data = encode_value(value, where)
        if type_name == TYPE_TYPE:
            self._check_type(value, where)
        self._check(type_name, value, where)
        return data

    def _check_type(self, value: Any, where: str) -> None:
        """{name, schema}: a new type. A regular expression of an agent's could keep the kernel busy for ever, so its
        schemas have none."""
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for

        try:
            made = msgspec.convert(value, NewType)
        except msgspec.ValidationError as error:
            raise CallError(Code.SCHEMA_INVALID, f"{where}: {error}") from None
        if made.name in self._types or made.name == TYPE_TYPE:
            raise CallError(Code.NAME_EXISTS, f"there is a type {made.name!r} already")
        if len(self._types) >= MAX_TYPES:
            raise CallError(Code.QUOTA_EXCEEDED, f"at most {MAX_TYPES} types")
        if bad := _keys(made.schema) & {
            "pattern",
            "patternProperties",
            "format",
            "$ref",
            "$dynamicRef",
            "$recursiveRef",
        }:
            raise CallError(Code.SCHEMA_INVALID, f"{where}/schema: {', '.join(sorted(bad))} may not be used here")
        try:
            validator_for(made.schema).check_schema(made.schema)
        except SchemaError as error:
            raise CallError(Code.SCHEMA_INVALID, f"{where}/schema: {error.message}"[:500]) from None

    def register(self, data: bytes) -> None:
        """Takes up a type that the root agent has stored (TYPE_TYPE); it was checked by `prepare`."""
        made = msgspec.json.decode(data)
        self._types[made["name"]] = made["schema"]

    def write(
        self,
        tx: Transaction,
        access: Access,
        ptr: int,
        patch: list[dict[str, Any]],
        expected: int,
        taint: int = TAINT_TRUSTED,
        where: str = "patch",
    ) -> tuple[HeapObject, int, int]:
        """Patches an object. `taint`: of what is written; the object's own label is never lowered by it. Returns (the
        object before, new version, growth in bytes, which may be negative)."""
        before = access(tx.get(ptr), ptr)
        _check_version(before, expected)
        value = apply_patch(msgspec.json.decode(before.value), patch, where)
        data = encode_value(value, where)
        self._check(before.type, value, where)
        if not tx.update(ptr, version=before.version, value=data, taint=combined(before.taint, taint)):
            raise CallError(Code.CONFLICT, f"object {ptr} was changed meanwhile")
        return before, before.version + 1, len(data) - len(before.value)

    def delete(self, tx: Transaction, access: Access, ptr: int, expected: int) -> HeapObject:
        """Deletes an object; returns it as it was."""
        before = access(tx.get(ptr), ptr)
        _check_version(before, expected)
        if not tx.delete(ptr, version=before.version):
            raise CallError(Code.CONFLICT, f"object {ptr} was changed meanwhile")
        return before

    def _check(self, type_name: str, value: Any, where: str) -> None:
        schema = self._types.get(type_name)
        if schema is None:
            return
        import re

        from jsonschema.exceptions import SchemaError
        from referencing.exceptions import Unresolvable

        try:
            validator = self._validators.get(type_name) or self._validator(type_name, schema)
            error = next(validator.iter_errors(value), None)
        except (SchemaError, Unresolvable, RecursionError, re.error) as problem:
            text = f"the policy's schema of {type_name!r} can't be applied: {str(problem).splitlines()[0]}"
            raise CallError(Code.SCHEMA_INVALID, text[:500]) from problem
        if error is not None:
            place = "".join(f"/{part}" for part in error.absolute_path)
            raise CallError(Code.SCHEMA_INVALID, f"{where}{place}: {error.message}"[:500], details={"type": type_name})

    def _validator(self, type_name: str, schema: Mapping[str, Any]) -> Any:
        from jsonschema.validators import validator_for
        from referencing import Registry

        # An explicit, empty registry: a schema never makes the kernel fetch something.
        kind = validator_for(schema)
        kind.check_schema(schema)
        validator = kind(schema, registry=Registry())
        return self._validators.setdefault(type_name, validator)


def _keys(value: Any) -> set[str]:
    """Every key of every object in a JSON value."""
    found: set[str] = set()
    level = [value]
    while level:
        item = level.pop()
        if isinstance(item, dict):
            found |= item.keys()
            level += item.values()
        elif isinstance(item, list):
            level += item
    return found


def _check_version(found: HeapObject, expected: int) -> None:
    if expected and found.version != expected:
        raise CallError(
            Code.CONFLICT,
            f"object {found.ptr} has version {found.version}, not {expected}",
            details={"version": found.version},
        )
