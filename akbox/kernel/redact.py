"""Keeps secrets out of the log: run over every value before it is hashed.

Works by the names of keys and options, by URL userinfo and by the shapes that well-known credentials have. It is a net
under the design (real keys never enter the sandbox), not a promise that any secret is recognised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from akbox.kernel.canonical import interoperable

if TYPE_CHECKING:
    from akbox.policy.compile import CompiledPolicy

MASK = "[redacted]"

# Compared without case, "-", "_" and " ".
BUILT_IN = (
    "authorization", "proxyauthorization", "password", "passwd", "passphrase", "pwd", "token", "accesstoken",
    "refreshtoken", "idtoken", "authtoken", "bearertoken", "sessiontoken", "apikey", "apitoken", "xapikey", "secret",
    "clientsecret", "secretkey", "secretaccesskey", "awssecretaccesskey", "privatekey", "cookie", "setcookie",
    "credential", "credentials", "githubtoken", "openaiapikey", "anthropicapikey",
)  # fmt: skip
# Longer names that end like these are secrets too (MY_SERVICE_TOKEN, db-password); "tokens" and "max_tokens" are not.
_SUFFIXES = ("password", "passwd", "token", "secret", "apikey", "privatekey", "accesskey", "secretkey")

# Given to re as text, which compiles a pattern when it is first needed and keeps it: most runs need none of these.
_USERINFO = r"(?<=://)[^\s/@?#\"']+(?=@)"
_HEADER = r"(?i)\b((?:proxy-)?authorization|x-api-key|api-key|cookie|set-cookie)(\s*[:=]\s*)([^\r\n\"']+)"
_ASSIGN = (
    r"(?i)(?<![\w-])(-{0,2}[\w.-]*(?:password|passwd|token|secret|api[_-]?key|access[_-]?key))(=|:\s*)([^\s&\"',;]+)"
)
_OPTION = r"(?i)(?<!\S)(--?[\w-]*(?:password|passwd|token|secret|api-?key|access-?key))(\s+)([^\s\"']+)"
# "password": "…", as JSON and most languages write it, the quotes escaped or not.
_QUOTED = (
    r"(?i)(\\?[\"'])([\w .-]*(?:password|passwd|passphrase|token|secret|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|cookie|authorization|credentials?))\1(\s*[:=]\s*)(\\?[\"'])(?:(?!\4).)+\4"
)
_BEARER = r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"
_SHAPES = (
    r"\b(?:sk-[\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|xox[abposr]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+|akc1(?:\.[\w-]+)+)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
_HINT = re.compile(
    r"(?i)://[^/]*@|authoriz|cookie|key|token|passw|secret|bearer|basic|sk-|gh[pousr]_|github_pat|xox|AKIA|AIza|eyJ|akc1\."
)


class Redactor:
    """Redacts by the built-in names and `names` (policy `audit.redact`)."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = frozenset(_fold(n) for n in (*BUILT_IN, *names))
        self._values: tuple[str, ...] = ()

    def hide(self, value: str) -> None:
        """From now on this exact text is masked wherever it stands."""
        self._values = (*self._values, value)

    def value(self, value: Any) -> Any:
        """A copy of a JSON value with secrets masked, fit for canonical JSON (see `canonical.interoperable`)."""
        return self._walk(interoperable(value))

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            named = self._names_secret(value)
            return {
                self.text(k): MASK
                if (self.is_secret(k) or (named and k == "value")) and v not in (None, "")
                else self._walk(v)
                for k, v in value.items()
            }
        if isinstance(value, list):
            return self._argv(value)
        return value

    def text(self, text: str) -> str:
        """A string with userinfo, credential headers, assignments and known shapes masked."""
        for value in self._values:
            text = text.replace(value, MASK)
        if not _HINT.search(text):
            return text
        text = re.sub(_USERINFO, MASK, text)
        text = re.sub(_SHAPES, MASK, text)
        text = re.sub(_QUOTED, rf"\1\2\1\3\4{MASK}\4", text)
        text = re.sub(_HEADER, rf"\1\2{MASK}", text)
        text = re.sub(_ASSIGN, rf"\1\2{MASK}", text)
        text = re.sub(_OPTION, rf"\1\2{MASK}", text)
        return re.sub(_BEARER, rf"\1 {MASK}", text)

    def is_secret(self, key: str) -> bool:
        folded = _fold(key)
        return folded in self._names or folded.endswith(_SUFFIXES)

    def _names_secret(self, value: dict[str, Any]) -> bool:
        """Is it {"path": "/token", "value": …} (RFC 6902), or {"name": "Authorization", "value": …}?"""
        if "value" not in value:
            return False
        names = (value.get(key) for key in ("path", "name", "key", "header"))
        return any(isinstance(name, str) and self.is_secret(name.rpartition("/")[2]) for name in names)

    def _argv(self, items: list[Any]) -> list[Any]:
        """A list may be an argv: what follows `--token` (as its own item) is masked."""
        out: list[Any] = []
        hide = False
        for item in items:
            out.append(MASK if hide and isinstance(item, str) else self._walk(item))
            hide = isinstance(item, str) and item.startswith("-") and "=" not in item and self.is_secret(item)
        return out


def stored_policy(policy: CompiledPolicy) -> bytes:
    """The policy as `policy.json` has it, and as the log's first entry has its hash: canonical JSON, in which variables
    that `env.set` gives a secret have the mask for a value."""
    given = dict(policy.env.set)
    masked = Redactor(policy.audit.redact).value(given)
    if masked == given:
        return policy.to_json()
    plain = json.loads(policy.to_json())
    plain["env"]["set"] = masked
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _fold(key: str) -> str:
    return key.lower().translate(_DROP)


_DROP = str.maketrans("", "", "-_ .")
