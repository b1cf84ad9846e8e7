"""A tool's manifest (`tool.toml`, or the same keys as `tool.json`): what it is called, takes, gives and may ask for.

The format is documented in docs/tools.md. Unknown keys are errors, and nothing of a bad manifest is used.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec

from akbox.tools.failure import ToolFailure

NAMES = ("tool.toml", "tool.json")
MANIFEST_BYTES_MAX = 256 << 10
PAGE = 1 << 16

# What a tool may ask of akbox, each an effect of the agent that called it (akbox/tools/hostcalls.py).
HOST_CALLS = (
    *("http_request", "fs_read", "fs_write", "fs_list", "fs_stat", "heap_read", "heap_write", "llm_complete"),
    *("log", "time_now", "random"),
)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one call. `fuel` counts WebAssembly instructions; the default is more than a core does in 30 s. `output_bytes`
    is what standard output takes."""

    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=600_000)] = 30_000
    memory_bytes: Annotated[int, msgspec.Meta(ge=PAGE, le=256 << 20)] = 64 << 20
    fuel: Annotated[int, msgspec.Meta(ge=1, le=10**15)] = 500_000_000_000
    output_bytes: Annotated[int, msgspec.Meta(ge=1, le=8 << 20)] = 1 << 20


class Flags(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the author says of the tool, for whoever shows it to a model. akbox decides nothing by it."""

    idempotent: bool = False
    sensitive: bool = False
    read_only: bool = False


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`module`: a file beside the manifest; `sha256` of it, which only a tool in development goes without."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    description: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    module: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.(wasm|wat)$")]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")] | None = None
    input_schema: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "object"})
    output_schema: dict[str, Any] | None = None
    hostcalls: tuple[str, ...] = ()
    limits: Limits = Limits()
    flags: Flags = Flags()


def find(directory: Path) -> Path:
    """The manifest in a tool's directory. Raises ToolFailure."""
    for name in NAMES:
        if (directory / name).is_file():
            return directory / name
    raise ToolFailure("manifest", f"{directory} holds no {' or '.join(NAMES)}", fix="see docs/tools.md for a template")


def load(path: Path) -> tuple[Manifest, bytes]:
    """The manifest and the bytes it was read from. Raises ToolFailure naming file and key."""
    try:
        with open(path, "rb") as file:
            data = file.read(MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        raise ToolFailure("manifest", f"{path}: {error.strerror}") from error
    return parse(data, str(path)), data


def parse(data: bytes, name: str) -> Manifest:
    """A manifest's text; `name` ends in .json for JSON. Raises ToolFailure."""
    if len(data) > MANIFEST_BYTES_MAX:
        raise ToolFailure("manifest", f"{name}: more than {MANIFEST_BYTES_MAX} bytes")
    try:
        text = data.decode()
        value = json.loads(text) if name.endswith(".json") else tomllib.loads(text)
        manifest = msgspec.convert(value, Manifest)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        raise ToolFailure("manifest", f"{name}: {place.rstrip('`').lstrip('.') or 'manifest'}: {message}") from error
    except (ValueError, RecursionError) as error:
        raise ToolFailure("manifest", f"{name}: {error}") from error
    for i, call in enumerate(manifest.hostcalls):
        if call not in HOST_CALLS:
            raise ToolFailure(
                "manifest", f"{name}: hostcalls[{i}]: {call!r} is no host call", fix=f"known: {', '.join(HOST_CALLS)}"
            )
    for key in ("input_schema", "output_schema"):
        _check_schema(name, key, getattr(manifest, key))
    return manifest


def _check_schema(name: str, key: str, schema: dict[str, Any] | None) -> None:
    if schema is None:
        return
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        place = "".join(f".{part}" for part in error.absolute_path)
        raise ToolFailure("manifest", f"{name}: {key}{place}: {error.message}"[:500]) from error
