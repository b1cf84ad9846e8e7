"""Checks a decoded policy document against the schema and collects every problem, with its place and a fix.

The types of model.py are the schema; a string's `kind` names its grammar here. Problems are collected instead of
raised so that one `akbox policy check` shows all of them.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Meta, Struct
from msgspec.structs import FieldInfo, fields

from akbox.policy import model
from akbox.policy.netpatterns import parse_endpoint, parse_host
from akbox.policy.patterns import VARIABLES, PatternError, did_you_mean, parse_name, parse_path
from akbox.policy.source import Path, Source

# The sections of a rule in `approve.effects` and the grammar of what follows them.
EFFECT_SECTIONS = {
    "fs.read": "path",
    "fs.write": "path",
    "fs.exec": "path",
    "net.connect": "connect",
    "net.dns": "host",
    "net.bind": "bind",
    "net.listen": "bind",
    "net.unix": "socket",
    "tools": "name",
    "wasm.modules": "name",
    "infer.models": "name",
    "spawn": "path",
}
TYPE_WORDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
}
TYPE_HINTS = {
    str: "put it in double quotes",
    int: "write digits only",
    float: "write digits, with a point if needed",
    bool: "write true or false",
    dict: "its keys go into a table of this name",
    list: "write [] around it",
}
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
INT_MAX = (1 << 63) - 1


class Problem(Struct, frozen=True):
    """One thing wrong with a policy. Line and column count from 1; `key` is like `fs.read[2]`; `hint` says what to
    do."""

    file: str
    line: int
    column: int
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        return where + (f"{self.key}: " if self.key else "") + self.message + (f" ({self.hint})" if self.hint else "")


class PolicyError(ValueError):
    """A policy that cannot be used; nothing of it is applied. `problems` holds every finding."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Checker:
    """Walks one document. `value()` returns what msgspec converts: sizes as numbers, aliases resolved."""

    def __init__(self, source: Source, profiles: Callable[[], list[str]]) -> None:
        self.source = source
        self.profiles = profiles
        self.problems: list[Problem] = []
        self.rules = 0

    def problem(self, path: Path, message: str, hint: str = "") -> None:
        """Record one finding."""
        line, column = self.source.at(path)
        self.problems.append(Problem(self.source.name, line, column, key_text(path), message, hint))

    def value(self, kind: Any, value: Any, path: Path) -> Any:  # Any: a type of the schema, and any JSON value
        """Check `value` against the schema type `kind`."""
        meta: Meta | None = None
        if get_origin(kind) is Annotated:
            kind, meta = get_args(kind)[0], get_args(kind)[1]
        origin, args = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            return self.value(next(a for a in args if a is not type(None)), value, path)
        if origin is Literal:
            return self._choice(args, value, path)
        if origin is tuple:
            return self._list(args[0], value, path)
        if origin is dict:
            return self._dict(args, value, path)
        if isinstance(kind, type) and issubclass(kind, Struct):
            return self._struct(kind, value, path)
        return self._scalar(kind, meta, value, path)

    def _wrong_type(self, kind: type, value: Any, path: Path) -> None:
        found = "null" if value is None else TYPE_WORDS.get(type(value), type(value).__name__)
        hint = TYPE_HINTS[kind]
        if kind is list and isinstance(value, str):
            hint = f'write ["{value}"]'
        elif kind is int and isinstance(value, str) and value.isdigit():
            hint = f"write {value} without quotes"
        self.problem(path, f"expected {TYPE_WORDS[kind]}, found {found}", hint)

    def _choice(self, choices: tuple[Any, ...], value: Any, path: Path) -> Any:
        if value not in choices or isinstance(value, bool):
            words = " or ".join(f'"{c}"' for c in choices)
            near = did_you_mean(value, choices) if isinstance(value, str) else ""
            self.problem(path, f"expected {words}, found {value!r:.60}", near or f"write {words}")
        return value

    def _list(self, item: Any, value: Any, path: Path) -> Any:
        if not isinstance(value, list):
            self._wrong_type(list, value, path)
            return []
        self.rules += len(value)
        seen: dict[Any, int] = {}
        result = []
        for i, entry in enumerate(value):
            result.append(self.value(item, entry, (*path, i)))
            if isinstance(entry, str) and seen.setdefault(entry, i) != i:
                self.problem(
                    (*path, i), f'"{entry}" is already at {key_text(path)}[{seen[entry]}]', "remove one of the two"
                )
        return result

    def _dict(self, args: tuple[Any, ...], value: Any, path: Path) -> Any:
        if not isinstance(value, dict):
            self._wrong_type(dict, value, path)
            return {}
        if args[1] is Any:
            return value
        for key in value:
            self.value(args[0], key, (*path, key))
        return {key: self.value(args[1], entry, (*path, key)) for key, entry in value.items()}

    def _struct(self, kind: type[Struct], value: Any, path: Path) -> Any:
        if not isinstance(value, dict):
            self._wrong_type(dict, value, path)
            return {}
        hints, known = _schema(kind)
        result = {}
        for key, entry in value.items():
            name = ALIASES.get((kind, key), key)
            if name not in known:
                near = did_you_mean(key, list(known)) or f"known here: {', '.join(known)}"
                self.problem((*path, key), f'unknown key "{key}"', near)
            elif name != key and name in value:
                self.problem(
                    (*path, key), f'"{key}" is another name of "{name}", which is given too', "remove one of the two"
                )
            else:
                result[name] = self.value(hints[known[name].name], entry, (*path, key))
        for name, f in known.items():
            if f.required and name not in value:
                extra = f'add {name} = "{model.POLICY_VERSION}"' if name == "version" else f"add {name}"
                self.problem(path, f'"{name}" is missing', extra)
        return result

    def _scalar(self, kind: type, meta: Meta | None, value: Any, path: Path) -> Any:
        text_kind = (meta.extra or {}).get("kind") if meta else None
        if text_kind == "size" and isinstance(value, str):
            return self._size(value, path)
        right = isinstance(value, (int, float) if kind is float else kind) and (
            kind is bool or not isinstance(value, bool)
        )
        if not right:
            self._wrong_type(kind, value, path)
            return value
        if kind in (int, float):
            self._number(value, path)
        elif text_kind:
            self._text(text_kind, value, path)
        return value

    def _number(self, value: float, path: Path) -> None:
        if value != value or value in (float("inf"), float("-inf")):
            self.problem(path, "not a number that can be counted to", "leave it out for no limit")
        elif value < 0:
            self.problem(path, f"{value} is negative", "0 means none may be spent; leave it out for the default")
        elif value > INT_MAX:
            self.problem(path, f"{value} is over {INT_MAX}", "leave it out for no limit")

    def _size(self, text: str, path: Path) -> int:
        found = re.fullmatch(r"([0-9]{1,19}) ?([KMGT]?)(?:i?B)?", text)
        if not found or int(found[1]) * UNITS[found[2]] > INT_MAX:
            self.problem(path, f'not a size: "{text}"', 'write bytes as a number, or "512K", "64M", "2G"')
            return 0
        return int(found[1]) * UNITS[found[2]]

    def _text(self, kind: str, text: str, path: Path) -> None:
        try:
            check_kind(kind, text)
        except PatternError as error:
            self.problem(path, error.message, error.hint)
            return
        if kind == "profile" and text not in (names := self.profiles()):
            self.problem(path, f'unknown profile "{text}"', did_you_mean(text, names) or f"known: {', '.join(names)}")


@cache
def _schema(kind: type[Struct]) -> tuple[dict[str, Any], dict[str, FieldInfo]]:
    """The types of a Struct's fields by name, and the fields by their keys. Asked for by every policy and profile."""
    known = {f.encode_name: f for f in fields(kind) if f.name != "source" or kind is not model.Policy}
    return get_type_hints(kind, include_extras=True), known


ALIASES: dict[tuple[type, str], str] = {(model.Budgets, "cpu_time_ns"): "cpu_ns"}


def check_kind(kind: str, text: str) -> None:
    """Check one string against the grammar `kind`; raises PatternError."""
    if kind == "path":
        parse_path(text)
    elif kind == "host":
        parse_host(text)
    elif kind in ("connect", "bind"):
        parse_endpoint(text, ip_only=kind == "bind")
    elif kind == "name":
        parse_name(text)
    elif kind == "socket":
        _socket(text)
    elif kind == "effect":
        split_effect(text)
    elif kind == "url" and text.startswith(("virtio:", "vsock:")):
        raise PatternError(
            f"no virtio channel: {text!r:.80}",
            'it is a virtual machine\'s, and this version has no such target: write a URL, or "unix:/path/of.sock"',
        )
    else:
        pattern, hint = SHAPES.get(kind, (r"(?s).*", ""))
        if not re.fullmatch(pattern, text):
            raise PatternError(f"not valid here: {text!r:.80}", hint)


SHAPES = {
    "env": (r"[A-Za-z_][A-Za-z0-9_]*", "a variable's name: letters, digits and _"),
    "env-pass": (r"[A-Za-z_][A-Za-z0-9_]*\*?", 'a variable\'s name, or the start of names: "LC_*"'),
    "env-value": (
        rf"(?s)(?:\$\{{(?:{'|'.join(VARIABLES)})\}}|(?!\$\{{)[^\0])*",
        "known are ${workdir}, ${home}, ${tmp}, ${prefix}",
    ),
    "url": (
        r"https?://[A-Za-z0-9.\[\]:_-]+(/[^\s?#]*)?|unix:/[^\s?#]+",
        'write "https://api.example.com", or "unix:/path/of.sock"',
    ),
    "mount": (r"[a-z][a-z0-9_]{0,31}", "lower-case letters, digits and _: its tools are NAME.TOOL"),
    "public-key": (r"[0-9a-f]{64}", "an Ed25519 public key: 64 lower-case hex digits, as `akbox tool key` prints it"),
    "upstream": (r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "an upstream's name: letters, digits, ., _ and -"),
    "secret-ref": (r"secret:[A-Za-z_][A-Za-z0-9_]*", 'write "secret:NAME", with NAME a key of [secrets]'),
    "secret-source": (
        r"env:[A-Za-z_][A-Za-z0-9_]*|file:(?:~/|/).+|exec:\s*\S.*",
        'write "env:NAME", "file:/path" or "exec:COMMAND ARG"',
    ),
    "secret-use": (r"[a-z]+:.+", 'write "infer:UPSTREAM" or "http:HOST"'),
}


def _socket(text: str) -> None:
    if text.startswith("@"):
        raise PatternError("abstract sockets have no owner to judge and cannot be granted", "use a socket with a path")
    parse_path(text.removeprefix("unix:"))


def split_effect(text: str) -> tuple[str, str]:
    """`fs.write /app/**` as (section, pattern); raises PatternError."""
    section, _, pattern = text.partition(" ")
    if section not in EFFECT_SECTIONS:
        known = list(EFFECT_SECTIONS)
        raise PatternError(f'unknown effect "{section}"', did_you_mean(section, known) or f"known: {', '.join(known)}")
    pattern = pattern.strip()
    if not pattern:
        raise PatternError("the pattern is missing", f'write "{section} PATTERN"')
    check_kind(EFFECT_SECTIONS[section], pattern)
    return section, pattern


def key_text(path: Path) -> str:
    """`("fs", "read", 2)` as `fs.read[2]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"')
    return text
