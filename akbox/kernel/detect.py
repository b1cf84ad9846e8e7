"""Finds secrets in text that leaves: API keys, bearer tokens, JWTs, private keys, passwords in URLs, card numbers.

For what goes out (RESPOND, inference, tools); the log has its own masks (redact.py), which may be cruder because
nothing is refused for them. Each shape has a check that text which only looks like it does not pass: a JWT's header
must decode, a card number must have a known issuer and a right check digit, a generic key must be as mixed as a random
one. `scripts/measure-detect` counts what is found in ordinary text.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

MASK = "[secret removed]"
MAX_TEXT_CHARS = 4 << 20


class Finding(Struct, frozen=True):
    """One secret: what it is, and where in the text (or, of a JSON value, in which string: a JSON pointer)."""

    kind: str
    start: int
    end: int
    path: str = ""


def find(text: str) -> list[Finding]:
    """Every secret in a text, in order, without overlaps. At most MAX_TEXT_CHARS are looked at; the rest of a longer
    text counts as one finding, `unchecked`."""
    found: list[Finding] = []
    for kind, hint, pattern, check in _SHAPES:
        if hint not in text if hint is not None else not any(c.isdigit() for c in text):
            continue
        for match in re.finditer(pattern, text[:MAX_TEXT_CHARS]):
            start, end = match.span(1 if match.lastindex else 0)
            if check(text[start:end]):
                found.append(Finding(kind, start, end))
    if len(text) > MAX_TEXT_CHARS:
        found.append(Finding("unchecked", MAX_TEXT_CHARS, len(text)))
    found.sort(key=lambda f: (f.start, -f.end))
    out: list[Finding] = []
    for finding in found:
        if not out or finding.start >= out[-1].end:
            out.append(finding)
    return out


def removed(text: str) -> tuple[str, list[Finding]]:
    """The text with MASK for each secret, and what they were."""
    found = find(text)
    out, at = [], 0
    for finding in found:
        out += [text[at : finding.start], MASK]
        at = finding.end
    return "".join([*out, text[at:]]), found


def scan(value: Any) -> list[Finding]:
    """Secrets in any string of a JSON value, keys included."""
    return [
        Finding(finding.kind, finding.start, finding.end, path)
        for path, text in _strings(value)
        for finding in find(text)
    ]


def scrubbed(value: Any) -> Any:
    """A copy of a JSON value without its secrets."""
    if isinstance(value, str):
        return removed(value)[0]
    if isinstance(value, int) and not isinstance(value, bool):
        return MASK if find(str(value)) else value
    if isinstance(value, dict):
        return {removed(k)[0]: scrubbed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [scrubbed(v) for v in value]
    return value


def _strings(value: Any) -> Iterator[tuple[str, str]]:
    level = [("", value)]
    while level:
        path, item = level.pop()
        if isinstance(item, str):
            yield path, item
        elif isinstance(item, int) and not isinstance(item, bool):
            yield path, str(item)  # a card number is one without quotes, too
        elif isinstance(item, dict):
            for key, inner in item.items():
                yield f"{path} (key)", key
                level.append((f"{path}/{key.replace('~', '~0').replace('/', '~1')}", inner))
        elif isinstance(item, list):
            level += [(f"{path}/{n}", inner) for n, inner in enumerate(item)]


# ---- checks ----------------------------------------------------------------------------------------------------------


def _always(_text: str) -> bool:
    return True


def _mixed(text: str) -> bool:
    """As mixed as a random key of its length, and not a placeholder."""
    body = text.rpartition("_")[2] if "_" in text[:12] else text
    if re.search(r"(?i)x{4}|\*{3}|\.{3}|example|placeholder|your|sample|dummy|1234567|abcdef|changeme|redacted", text):
        return False
    kinds = sum(1 for test in (str.isdigit, str.islower, str.isupper) if any(test(c) for c in body))
    return kinds >= 2 and entropy(body) >= min(3.0, 0.72 * math.log2(len(body)))


def _password(text: str) -> bool:
    """A value that somebody gave a password or secret: not a variable, a call, a type or a word."""
    if len(text) < 8 or not _mixed(text) or re.search(r"[${}()<>\[\]%]|::|\\", text):
        return False
    kinds = sum(1 for test in (str.isdigit, str.isalpha, lambda c: not c.isalnum()) if any(test(c) for c in text))
    return kinds >= 2 and any(c.isdigit() for c in text) and entropy(text) >= 2.75 and not _is_name(text)


def _is_name(text: str) -> bool:
    """snake_case, dotted.names, kebab-case and paths are code."""
    return re.fullmatch(r"[A-Za-z][a-z]*([_.\-/][A-Za-z0-9]*)*", text) is not None


def _jwt(text: str) -> bool:
    """The header decodes to an object with `alg`; the payload to an object."""
    try:
        head, payload, _ = text.split(".")
        parts = [json.loads(base64.urlsafe_b64decode(p + "=" * (-len(p) % 4))) for p in (head, payload)]
    except (ValueError, binascii.Error):
        return False
    return all(isinstance(p, dict) for p in parts) and "alg" in parts[0]


def _card(text: str) -> bool:
    """A known issuer's prefix and length, the check digit of ISO/IEC 7812-1, and groups as they are printed."""
    digits = re.sub(r"[ -]", "", text)
    if len(set(digits)) < 4 or not _ISSUERS.fullmatch(digits):
        return False
    groups = [len(g) for g in re.split(r"[ -]", text)]
    if len(groups) > 1 and groups not in ([4, 4, 4, 4], [4, 6, 5], [4, 4, 4, 4, 3], [4, 6, 4]):
        return False
    return luhn(digits)


def luhn(digits: str) -> bool:
    """The check of ISO/IEC 7812-1, annex B."""
    total = 0
    for n, char in enumerate(reversed(digits)):
        value = int(char) * (1 + n % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _pem(text: str) -> bool:
    """With a body: the marker alone is in every program that reads keys."""
    body = re.sub(r"-----[^-]*-----|\\[nr]|[\s\"']|^[\w-]+:.*$", "", text, flags=re.MULTILINE)
    return len(body) >= 64 and re.fullmatch(r"[A-Za-z0-9+/=]+", body[:64]) is not None and len(set(body[:64])) > 12


def _userinfo(text: str) -> bool:
    return not re.search(r"(?i)^(\$|\{|<|\*|%|pass(word|wd)?$|secret$|pw$|pwd$|x+$|user$|token$|example)", text)


def entropy(text: str) -> float:
    """Bits per character by the text's own frequencies."""
    counts = [text.count(c) for c in set(text)]
    return -sum(n / len(text) * math.log2(n / len(text)) for n in counts)


_ISSUERS = re.compile(
    r"4\d{15}|4\d{18}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
_END = r"(?![\w-])"
_Check = Callable[[str], bool]
# kind, a text without which there is none (None: a digit), the shape (its first group, or all of it), the check
_SHAPES: tuple[tuple[str, str | None, str, _Check], ...] = (
    ("api key (anthropic)", "sk-ant-", rf"(?<![\w-])sk-ant-[\w-]{{20,200}}{_END}", _mixed),
    ("api key (openai)", "sk-", rf"(?<![\w-])sk-(?!ant-)(?:proj-|svcacct-|admin-)?[\w-]{{20,200}}{_END}", _mixed),
    ("api key (stripe)", "k_live_", rf"(?<!\w)[rs]k_live_[A-Za-z0-9]{{16,200}}{_END}", _mixed),
    ("api key (aws)", "AKIA", r"(?<![A-Za-z0-9])AKIA[0-9A-Z]{16}(?![A-Za-z0-9])", _mixed),
    ("api key (aws)", "ASIA", r"(?<![A-Za-z0-9])ASIA[0-9A-Z]{16}(?![A-Za-z0-9])", _mixed),
    ("api key (google)", "AIza", rf"(?<![\w-])AIza[\w-]{{35}}{_END}", _mixed),
    ("api key (github)", "gh", r"(?<!\w)gh[pousr]_[A-Za-z0-9]{36,255}(?!\w)", _mixed),
    ("api key (github)", "github_pat_", r"(?<!\w)github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}(?!\w)", _mixed),
    ("api key (gitlab)", "glpat-", rf"(?<![\w-])glpat-[\w-]{{20,64}}{_END}", _mixed),
    ("api key (slack)", "xox", rf"(?<![\w-])xox[abeoprs]-[A-Za-z0-9-]{{20,250}}{_END}", _mixed),
    ("api key (hugging face)", "hf_", r"(?<!\w)hf_[A-Za-z0-9]{34,40}(?!\w)", _mixed),
    ("api key (npm)", "npm_", r"(?<!\w)npm_[A-Za-z0-9]{36}(?!\w)", _mixed),
    ("api key (pypi)", "pypi-", rf"(?<![\w-])pypi-AgEIcHlwaS5vcmc[\w-]{{50,1000}}{_END}", _mixed),
    ("api key (sendgrid)", "SG.", rf"(?<![\w.-])SG\.[\w-]{{22}}\.[\w-]{{43}}{_END}", _mixed),
    ("capability", "akc1.", r"(?<![\w.])akc1(?:\.[\w-]{20,}){2,18}", _always),
    ("jwt", "eyJ", r"(?<![\w.-])eyJ[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{16,2000}(?![\w-])", _jwt),
    ("bearer token", "earer", r"(?i)\bbearer[ \t]+([A-Za-z0-9._~+/-]{20,2000}=*)", _mixed),
    ("bearer token", "uthorization",
     r"(?i)\bauthorization[\"']?\s*[:=]\s*[\"']?basic\s+([A-Za-z0-9+/]{12,500}=*)", _mixed),
    ("private key", "PRIVATE KEY-----",
     r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----[\s\S]{64,20000}?(?:-----END|\Z)", _pem),
    ("password in a URL", "://",
     r"[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{1,100}:([^\s/@\"'<>]{6,200})@[\w.\[-]", _userinfo),
    ("password", None,
     r"(?i)(?<![A-Za-z0-9])(?:[a-z0-9]{1,30}[_-]){0,4}"
     r"(?:password|passwd|passphrase|secret|api[_-]?key|access[_-]?key"
     r"|auth[_-]?token|access[_-]?token)[\"']?\s{0,4}[:=]\s{0,4}[\"']?([^\s\"',;&#)}]{8,200})", _password),
    ("card number", None,
     r"(?<![\w.+#/=-])(\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{4}(?:[ -]\d{3})?|\d{4}[ -]\d{6}[ -]\d{4,5}|\d{14,19})"
     r"(?![\w+#/=-]|\.\d)", _card),
)  # fmt: skip
