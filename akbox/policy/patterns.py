"""Path and name patterns: their grammar, and nothing about what they grant.

A path pattern is a list of segments. `*` and `?` stay inside a segment, `**` is zero or more whole segments, a pattern
without a leading `/` starts at any depth, and `~`, `${workdir}`, `${home}`, `${tmp}`, `${prefix}` stand for directories
that are known only when a policy is compiled; their text is always taken literally, whatever characters it has.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from msgspec import Struct

PATTERN_BYTES_MAX = 4096
NAME_BYTES_MAX = 255  # NAME_MAX of Linux: a longer segment can never match

# Kinds of a segment. DIGITS is for the built-in rule on /proc/<pid> alone: it has no spelling in a policy.
LITERAL, GLOB, ANY, STAR, DIGITS = range(5)

CONTROL = "[\x00-\x1f\x7f\ud800-\udfff]"  # none of these is printable; compiled when something is not
Segment = tuple[int, bytes]
VARIABLES = ("workdir", "home", "tmp", "prefix")


class PatternError(ValueError):
    """A pattern that cannot be used: what is wrong with it, and in `hint` what to write instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    """'did you mean "read"?', or "" when nothing known is near."""
    import difflib  # only errors need it

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else ""


class PathPattern(Struct, frozen=True):
    """A parsed path pattern: `base` is "" for the root or the name of a variable, `segments` what follows it."""

    text: str
    base: str
    segments: tuple[Segment, ...]

    def expand(self, variables: Mapping[str, str]) -> tuple[Segment, ...]:
        """Segments from the root; `variables` maps each of VARIABLES to an absolute path."""
        return literal_segments(variables[self.base]) + self.segments if self.base else self.segments

    @property
    def exact(self) -> bool:
        """Whether the pattern has no wildcard: it names one path."""
        return all(kind == LITERAL for kind, _ in self.segments)


def literal_segments(path: str) -> tuple[Segment, ...]:
    """An absolute path, character for character, as segments."""
    return tuple((LITERAL, name) for name in path_bytes(path).split(b"/") if name)


def path_bytes(path: str) -> bytes:
    """The bytes of a path as Python's os.fsencode gives them, whatever the locale."""
    return path.encode("utf-8", "surrogateescape")


@functools.lru_cache(maxsize=4096)
def parse_path(text: str) -> PathPattern:
    """Parse one path pattern; raises PatternError."""
    check_text(text)
    base, rest = _split_base(text)
    names = [] if rest in ("", "/") else rest.removeprefix("/").split("/")
    segments = [_segment(name, text) for name in names]
    if not base and not text.startswith("/"):
        segments.insert(0, (STAR, b""))
    merged = [s for i, s in enumerate(segments) if s[0] != STAR or i == 0 or segments[i - 1][0] != STAR]
    return PathPattern(text, base, tuple(merged))


def check_text(text: str) -> None:
    """What holds for every kind of pattern: not empty, not too long, no control characters."""
    if not text:
        raise PatternError("an empty pattern matches nothing", "remove it")
    if len(text.encode("utf-8", "surrogatepass")) > PATTERN_BYTES_MAX:
        raise PatternError(f"a pattern may have at most {PATTERN_BYTES_MAX} bytes", "shorten it with * or **")
    if not text.isprintable() and re.search(CONTROL, text):
        raise PatternError("a pattern may not hold control characters", "use ? for such a character")


def _split_base(text: str) -> tuple[str, str]:
    """The variable a pattern starts with ("" for none) and the text after it."""
    if text.startswith("~"):
        if text != "~" and not text.startswith("~/"):
            raise PatternError("~ stands for the home directory of the user who runs akbox only", "write the path")
        return "home", text[1:]
    if "${" not in text:
        return "", text
    name, close, rest = text.partition("${")[2].partition("}")
    if not text.startswith("${") or "${" in rest:
        raise PatternError("a ${…} may only be the start of a pattern", "it stands for an absolute path")
    if not close or name not in VARIABLES:
        known = "known are " + ", ".join(f"${{{v}}}" for v in VARIABLES)
        raise PatternError(f"unknown variable ${{{name}}}", did_you_mean(name, VARIABLES) or known)
    if rest and not rest.startswith("/"):
        raise PatternError("a ${…} must be followed by / or end the pattern", f"${{{name}}}/{rest}")
    return name, rest


def _segment(name: str, text: str) -> Segment:
    if not name:
        hint = f"write {text.rstrip('/')} for the directory itself or {text.rstrip('/')}/** for all below it"
        raise PatternError("a pattern may not hold // or end in /", hint)
    if name in (".", ".."):
        fixed = "/".join(part for part in text.split("/") if part not in (".", ".."))
        raise PatternError(
            f"a pattern is an absolute path: {name} is not resolved", f"write ${{workdir}}/{fixed.lstrip('/')}"
        )
    if name == "**":
        return STAR, b""
    if "**" in name:
        raise PatternError("** must be a whole segment", f"write {text.replace('**', '*')} or put ** between slashes")
    if name == "*":
        return ANY, b""
    raw = path_bytes(name)
    if len(raw) > NAME_BYTES_MAX:
        raise PatternError(f"a file name has at most {NAME_BYTES_MAX} bytes: this can never match", "shorten it with *")
    return (GLOB if b"*" in raw or b"?" in raw else LITERAL), raw


def match_glob(pattern: bytes, name: bytes) -> bool:
    """Does one segment match? `*` is any run of bytes, `?` one character (a byte and its UTF-8 continuation bytes).

    Backtracks to the last `*` only, so the work is at most len(pattern) * len(name).
    """
    p = n = 0
    star, mark = -1, 0
    while n < len(name):
        if p < len(pattern) and pattern[p] == 0x2A:
            star, mark = p, n
            p += 1
        elif p < len(pattern) and pattern[p] == 0x3F:
            p, n = p + 1, n + 1
            while n < len(name) and name[n] & 0xC0 == 0x80:
                n += 1
        elif p < len(pattern) and pattern[p] == name[n]:
            p, n = p + 1, n + 1
        elif star >= 0:
            mark += 1
            p, n = star + 1, mark
        else:
            return False
    return all(byte == 0x2A for byte in pattern[p:])


def match_segment(segment: Segment, name: bytes) -> bool:
    """Does one segment of a pattern, other than `**`, match one name?"""
    kind, raw = segment
    if kind == LITERAL:
        return raw == name
    if kind == GLOB:
        return match_glob(raw, name)
    return kind == ANY or (kind == DIGITS and name.isdigit())


def show(segments: tuple[Segment, ...]) -> str:
    """Segments as text again, for people."""
    words = {ANY: b"*", STAR: b"**", DIGITS: b"<pid>"}
    return "/" + b"/".join(words.get(kind, raw) for kind, raw in segments).decode("utf-8", "surrogateescape")


def parse_name(text: str) -> str:
    """A pattern for tools, models, modules and host calls: exact, `prefix*`, or `*`; raises PatternError."""
    check_text(text)
    if "*" in text[:-1]:
        raise PatternError("a * may only end a name pattern", f"write {text.partition('*')[0]}*")
    if any(c.isspace() for c in text):
        raise PatternError("a name may not hold white space", "remove it")
    return text


def match_name(pattern: str, name: str) -> bool:
    """Case-sensitive; a final `*` is any suffix, the empty one included."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
