"""Where the keys and list elements of a TOML text are. Only for texts that tomllib has accepted, so nothing is checked
here.

tomllib gives values without places. This walks the same text once with a few token patterns and notes the offset of
each key path; values are skipped, not read.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]

BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
SPACE = re.compile(r"[ \t]*")
STRING = re.compile(
    r'"""(?:\\.|(?!""")[\s\S])*"{3,5}' r"|'''(?:(?!''')[\s\S])*'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'", re.DOTALL
)
BARE = re.compile(r"[A-Za-z0-9_-]+")
SCALAR = re.compile(r"[^,\]}#\n]*")


def toml_places(text: str) -> dict[Path, int]:
    """Offset of each key (its first definition) and list element, by key path. `text` must be valid TOML."""
    return _Walker(text.replace("\r\n", " \n")).run()


class _Walker:
    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.places: dict[Path, int] = {}
        self.lengths: dict[Path, int] = {}  # arrays of tables: how many were opened

    def run(self) -> dict[Path, int]:
        table: Path = ()
        while True:
            self._skip(BLANK)
            if self.pos >= len(self.text):
                return self.places
            if self.text[self.pos] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self.pos)
        self.pos = found.end() if found else self.pos

    def _header(self) -> Path:
        many = self.text.startswith("[[", self.pos)
        self.pos += 2 if many else 1
        self._skip(SPACE)
        start = self.pos
        path: Path = ()
        for part in self._key():
            path = (*path, part)
            if path in self.lengths and not (many and path == ()):
                path = (*path, self.lengths[path] - 1)
            self.places.setdefault(path, start)
        if many:
            base = path[:-1] if path and isinstance(path[-1], int) else path
            self.lengths[base] = self.lengths.get(base, 0) + 1
            path = (*base, self.lengths[base] - 1)
            self.places.setdefault(path, start)
        self._skip(SPACE)
        self.pos += 2 if many else 1
        return path

    def _key(self) -> list[str]:
        parts: list[str] = []
        while True:
            self._skip(SPACE)
            if self.text[self.pos] in "\"'":
                parts.append(self._quoted())
            else:
                start = self.pos
                self._skip(BARE)
                parts.append(self.text[start : self.pos])
            self._skip(SPACE)
            if not self.text.startswith(".", self.pos):
                return parts
            self.pos += 1

    def _quoted(self) -> str:
        start = self.pos
        self._skip(STRING)
        word = self.text[start : self.pos]
        return str(tomllib.loads(f"k = {word}")["k"]) if "\\" in word else word[1:-1]

    def _pair(self, table: Path) -> None:
        start = self.pos
        path = table
        for part in self._key():
            path = (*path, part)
            self.places.setdefault(path, start)
        self._skip(SPACE)
        self.pos += 1  # =
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip(BLANK)
        head = self.text[self.pos : self.pos + 1]
        if head == "[":
            self._array(path)
        elif head == "{":
            self._inline(path)
        elif head and head in "\"'":
            self._skip(STRING)
        else:
            self._skip(SCALAR)

    def _array(self, path: Path) -> None:
        self.pos += 1
        index = 0
        while self.pos < len(self.text):
            self._skip(BLANK)
            if self.text.startswith("]", self.pos):
                self.pos += 1
                return
            self.places[(*path, index)] = self.pos
            self._value((*path, index))
            index += 1
            self._skip(BLANK)
            if self.text.startswith(",", self.pos):
                self.pos += 1

    def _inline(self, path: Path) -> None:
        self.pos += 1
        while self.pos < len(self.text):
            self._skip(BLANK)
            if self.text.startswith("}", self.pos):
                self.pos += 1
                return
            self._pair(path)
            self._skip(BLANK)
            if self.text.startswith(",", self.pos):
                self.pos += 1
