"""Sanitizers: each makes text fit for one kind of place, by quoting what it can and refusing what it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from akbox.kernel.codes import CallError, Code
from akbox.kernel.taint import TAINT_CMD, TAINT_HTML, TAINT_PATH, TAINT_SQL, TAINT_URL


def sanitized(name: str, value: Any) -> tuple[str, int]:
    """(the text, its label). Raises CallError: SCHEMA_INVALID for an unknown sanitizer or what is no string, TAINT for
    what cannot be made fit."""
    if name not in _SANITIZERS:
        raise CallError(Code.SCHEMA_INVALID, f"sanitize: {name!r} is none of {', '.join(_SANITIZERS)}")
    if not isinstance(value, str):
        raise CallError(Code.SCHEMA_INVALID, "sanitize: only a string can be sanitized")
    work, label = _SANITIZERS[name]
    try:
        return work(value), label
    except ValueError as error:
        raise CallError(Code.TAINT, f"this cannot be used as a {name}: {error}") from None


def _url(text: str) -> str:
    """A http(s) URL without credentials."""
    from urllib.parse import urlsplit

    if not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("it holds blanks, backslashes or control characters")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is not a http or https URL")
    if "@" in parts.netloc:
        raise ValueError("it holds credentials")
    if parts.port is not None and not 0 < parts.port < 65536:
        raise ValueError("it has no such port")
    return text


def _path(text: str) -> str:
    """An absolute path that means what it says."""
    if not text.startswith("/") or "\0" in text or any(p in ("", ".", "..") for p in text[1:].split("/")):
        raise ValueError("it is not an absolute path without . and ..")
    return text


def _sql(text: str) -> str:
    """The inside of a string literal of standard SQL."""
    if "\0" in text or "\\" in text:
        raise ValueError("it holds NUL or backslashes, which databases read differently")
    return text.replace("'", "''")


def _cmd(text: str) -> str:
    """One word of a POSIX shell."""
    import shlex

    if "\0" in text:
        raise ValueError("it holds NUL")
    return shlex.quote(text)


def _html(text: str) -> str:
    """Text between tags or in a quoted attribute."""
    import html

    return html.escape(text, quote=True)


_SANITIZERS: dict[str, tuple[Callable[[str], str], int]] = {
    "url": (_url, TAINT_URL), "path": (_path, TAINT_PATH), "sql": (_sql, TAINT_SQL), "cmd": (_cmd, TAINT_CMD),
    "html": (_html, TAINT_HTML),
}  # fmt: skip
LABEL_OF = {name: label for name, (_, label) in _SANITIZERS.items()}
