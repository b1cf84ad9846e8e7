"""Policy text with places: which line and column each key and each list element was read from.

JSON is parsed here, strictly (RFC 8259; duplicate keys, NaN, trailing bytes and deep nesting are errors), because the
standard parser keeps no places and accepts more. TOML is parsed by tomllib; toml_places.py then finds the places, only
when asked for.
"""

from __future__ import annotations

import re
from functools import cached_property
from json.decoder import scanstring  # type: ignore[attr-defined]  # the C string scanner of the standard parser
from typing import Any, Literal

from msgspec import Struct

Syntax = Literal["toml", "json"]
Path = tuple[str | int, ...]
DEPTH_MAX = 64


class SyntaxProblem(ValueError):
    """Text that does not parse: message, line and column (from 1), and what to do."""

    def __init__(self, message: str, line: int, column: int, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.line, self.column, self.hint = message, line, column, hint


class Source(Struct, frozen=True, dict=True):
    """One policy text and the name people know it by. `file`: the absolute path it was read from, if it was."""

    name: str
    text: str
    syntax: Syntax
    file: str | None = None

    def __repr__(self) -> str:
        return f"Source({self.name!r})"

    @cached_property
    def places(self) -> dict[Path, int]:
        """Offset in `text` of each key and list element, by key path."""
        if self.syntax == "toml":
            from akbox.policy.toml_places import toml_places

            return toml_places(self.text)
        reader = JsonReader(self.text)
        reader.document()
        return reader.places

    def at(self, path: Path) -> tuple[int, int]:
        """Line and column (from 1) of the nearest known place on the way to `path`."""
        while path and path not in self.places:
            path = path[:-1]
        return line_column(self.text, self.places.get(path, 0))


def line_column(text: str, offset: int) -> tuple[int, int]:
    """Line and column, both from 1; a column counts characters."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def read_document(source: Source) -> dict[str, Any]:
    """The document as plain dicts, lists, strings, numbers and booleans. Raises SyntaxProblem."""
    if source.syntax == "json":
        return JsonReader(source.text).document()
    import tomllib

    try:
        return tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as error:
        raise _toml_problem(source.text, str(error)) from error
    except RecursionError as error:
        raise SyntaxProblem(f"nested deeper than {DEPTH_MAX}", 1, 1, "a policy has at most five levels") from error


def _toml_problem(text: str, message: str) -> SyntaxProblem:
    """tomllib says where in words: "… (at line 3, column 7)" or "… (at end of document)"."""
    found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    line, column = (int(found[1]), int(found[2])) if found else line_column(text, len(text))
    what = re.sub(r" \(at [^)]*\)$", "", message)
    again = re.search(r"[Oo]verwrite|[Dd]uplicate|twice|mutate", what)
    return SyntaxProblem(f"not TOML: {what}", line, column, "give each key once; join the lists" if again else "")


class JsonReader:
    """A strict JSON parser that remembers places."""

    SPACE = re.compile(r"[ \t\n\r]*")
    NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
    WORDS = (("true", True), ("false", False), ("null", None))

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.places: dict[Path, int] = {}

    def document(self) -> dict[str, Any]:
        """The one object of the text. Raises SyntaxProblem."""
        self._skip()
        value = self._value((), 0)
        self._skip()
        if self.pos != len(self.text):
            raise self._problem("something follows the end of the policy", "remove it")
        if not isinstance(value, dict):
            self.pos = 0
            raise self._problem("a policy is an object", 'start with { "version": "1.0"')
        return value

    def _problem(self, message: str, hint: str = "") -> SyntaxProblem:
        return SyntaxProblem(f"not JSON: {message}", *line_column(self.text, self.pos), hint)

    def _skip(self) -> None:
        found = self.SPACE.match(self.text, self.pos)
        self.pos = found.end() if found else self.pos

    def _value(self, path: Path, depth: int) -> Any:  # Any: whatever the JSON text holds
        if depth > DEPTH_MAX:
            raise self._problem(f"nested deeper than {DEPTH_MAX}", "a policy has at most five levels")
        self.places.setdefault(path, self.pos)
        head = self.text[self.pos : self.pos + 1]
        if head == "{":
            return self._object(path, depth)
        if head == "[":
            return self._array(path, depth)
        if head == '"':
            return self._string()
        for word, value in self.WORDS:
            if self.text.startswith(word, self.pos):
                self.pos += len(word)
                return value
        return self._number()

    def _number(self) -> int | float:
        found = self.NUMBER.match(self.text, self.pos)
        if not found:
            word = re.compile(r"[^\s,\]}]{0,20}").match(self.text, self.pos)
            raise self._problem(f"expected a value, found {word[0] if word and word[0] else 'the end'!r}")
        if len(found[0]) > 40:
            raise self._problem("a number of more than 40 characters")
        self.pos = found.end()
        return float(found[0]) if found[1] or found[2] else int(found[0])

    def _string(self) -> str:
        try:
            value, self.pos = scanstring(self.text, self.pos + 1, True)
        except ValueError as error:
            self.pos = getattr(error, "pos", self.pos)
            raise self._problem(getattr(error, "msg", str(error))) from error
        return str(value)

    def _object(self, path: Path, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        self.pos += 1
        self._skip()
        if self._take("}"):
            return result
        while True:
            start = self.pos
            if self.text[start : start + 1] != '"':
                raise self._problem("expected a key in double quotes")
            key = self._string()
            if key in result:
                self.pos = start
                raise self._problem(f'the key "{key}" is given twice', "give each key once; join the lists")
            self.places[(*path, key)] = start
            self._skip()
            if not self._take(":"):
                raise self._problem("expected :")
            self._skip()
            result[key] = self._value((*path, key), depth + 1)
            self._skip()
            if self._take("}"):
                return result
            if not self._take(","):
                raise self._problem("expected , or }")
            self._skip()

    def _array(self, path: Path, depth: int) -> list[Any]:
        result: list[Any] = []
        self.pos += 1
        self._skip()
        if self._take("]"):
            return result
        while True:
            result.append(self._value((*path, len(result)), depth + 1))
            self._skip()
            if self._take("]"):
                return result
            if not self._take(","):
                raise self._problem("expected , or ]")
            self._skip()

    def _take(self, char: str) -> bool:
        if self.text.startswith(char, self.pos):
            self.pos += 1
            return True
        return False
