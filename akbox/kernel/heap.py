"""The typed heap: JSON objects with versions, owners and, where the policy gives one, a JSON Schema per type.

Budgets are the pipeline's: functions here say by how much an object grows or shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from akbox.kernel.codes import CallError, Code
from akbox.kernel.patch import apply_patch, encode_value
from akbox.kernel.taint import TAINT_TRUSTED, combined
from akbox.store.base import HeapObject, Transaction

MAX_TYPE_CHARS = 255

Access = Callable[[HeapObject | None, int], HeapObject]
"""Gives the object that was asked for, or refuses: NOT_FOUND, or CAP_MISSING for another agent's."""


class Heap:
    """Operations on objects inside a store's transaction. `types` maps a type's name to its JSON Schema."""

    def __init__(self, types: Mapping[str, Mapping[str, Any]]) -> None:
        self._types = types
        self._validators: dict[str, Any] = {}  # Any: jsonschema is imported when a type with a schema is first used

    def prepare(self, type_name: str, value: Any, where: str = "value") -> bytes:
        """The stored form of a new object's value, checked against its type. Raises CallError(SCHEMA_INVALID)."""
        if not 0 < len(type_name) <= MAX_TYPE_CHARS:
            raise CallError(Code.SCHEMA_INVALID, f"type: a name of 1 to {MAX_TYPE_CHARS} characters")
        data = encode_value(value, where)
        self._check(type_name, value, where)
        return data

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


def _check_version(found: HeapObject, expected: int) -> None:
    if expected and found.version != expected:
        raise CallError(
            Code.CONFLICT,
            f"object {found.ptr} has version {found.version}, not {expected}",
            details={"version": found.version},
        )
