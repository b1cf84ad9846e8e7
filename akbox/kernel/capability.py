"""Capability tokens: their format, minting, narrowing and checking (design 02). Pure functions over bytes and time.

`akc1.<capability>[.<caveat>…].<mac>`, each part base64url without padding, capability and caveats canonical JSON (RFC
8785), so that a token has one spelling. The MAC is HMAC-SHA256 under the run's key; each caveat is mixed in as in
macaroons (mac' = HMAC(mac, caveat)), so a holder can narrow a token without the key, and nobody can widen one. What a
run knows besides (revocations, rates, keys) is in capabilities.py.
"""

from __future__ import annotations

import base64
import binascii
import os
from enum import IntEnum
from functools import lru_cache
from typing import Annotated, Any

import msgspec

from akbox.kernel.canonical import CanonicalError, canonical
from akbox.kernel.codes import CallError, Code
from akbox.kernel.strictjson import StrictJSONError, parse

PREFIX = "akc1"
MAX_TOKEN_BYTES = 8192
MAX_CAVEATS = 16
MAX_TTL_MS = 7 * 24 * 3600 * 1000
MAX_RATE = 10_000
CLOCK_SKEW_MS = 1000


class Type(IntEnum):
    NET = 1
    FS = 2
    TOOL = 3
    SECRETS = 4
    SPAWN = 5
    HEAP = 6
    INFERENCE = 7
    IPC = 8
    ADMIN = 255


METHODS: dict[Type, tuple[str, ...]] = {
    Type.NET: ("connect", "bind", "listen", "dns"),
    Type.FS: ("read", "write", "exec"),
    Type.TOOL: ("invoke",),
    Type.SECRETS: ("use",),
    Type.SPAWN: ("spawn",),
    Type.HEAP: ("read", "write", "delete", "alloc"),
    Type.INFERENCE: ("invoke",),
    Type.IPC: ("send", "recv"),
    Type.ADMIN: (),
}

Hex16 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Ttl = Annotated[int, msgspec.Meta(ge=0, le=MAX_TTL_MS)]
Rate = Annotated[int, msgspec.Meta(ge=0, le=MAX_RATE)]
MethodNames = Annotated[
    tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=31)], ...], msgspec.Meta(max_length=8)
]


class Capability(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a token says. `methods` empty: all of the type. ttl_ms 0: as long as the run. rate_limit 0: no limit, else
    at most so many uses in any rate_window_ms. `tid` and `parent` are 32 hex digits, as is `run_id`."""

    type: int
    resource: Text
    methods: MethodNames = ()
    issued_ms: Millis
    ttl_ms: Ttl = 0
    rate_limit: Rate = 0
    rate_window_ms: Ttl = 0
    run_id: Hex16
    tid: Hex16
    kid: Annotated[int, msgspec.Meta(ge=0, le=255)]
    parent: Hex16 | None = None

    @property
    def expires_ms(self) -> int | None:
        return self.issued_ms + self.ttl_ms if self.ttl_ms else None


class Caveat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One narrowing. Whatever it names must hold as well; `tid` names the narrowed token, for its own revocation;
    `agent` is the only one that may use it from here on. A caveat with a key that this akbox does not know is refused
    whole: a restriction that is not understood is not kept."""

    tid: Hex16
    resource: Text | None = None
    methods: MethodNames | None = None
    expires_ms: Millis | None = None
    rate_limit: Rate = 0
    rate_window_ms: Ttl = 0
    agent: Hex16 | None = None


class Token(msgspec.Struct, frozen=True):
    """A token taken apart. Not yet checked: `signed_by` does that."""

    capability: Capability
    caveats: tuple[Caveat, ...]
    parts: tuple[bytes, ...]  # the signed bytes, capability first
    mac: bytes

    @property
    def tids(self) -> tuple[str, ...]:
        """Everything whose revocation ends this token, its own number last; the first is the lineage's."""
        parent = (self.capability.parent,) if self.capability.parent else ()
        return (*parent, self.capability.tid, *(c.tid for c in self.caveats))

    @property
    def expires_ms(self) -> int | None:
        times = [t for t in (self.capability.expires_ms, *(c.expires_ms for c in self.caveats)) if t is not None]
        return min(times, default=None)

    @property
    def methods(self) -> frozenset[str]:
        """What is left of the methods."""
        kind = Type(self.capability.type)
        left = frozenset(self.capability.methods or METHODS[kind])
        for caveat in self.caveats:
            if caveat.methods is not None:
                left &= frozenset(caveat.methods)
        return left

    @property
    def resources(self) -> tuple[str, ...]:
        """Patterns of which each has to cover the target."""
        return (self.capability.resource, *(c.resource for c in self.caveats if c.resource is not None))

    @property
    def rates(self) -> tuple[tuple[str, int, int], ...]:
        """(tid, limit, window in ms) of each rate that applies; the bucket of a tid is shared by all that hold it."""
        members: tuple[Capability | Caveat, ...] = (self.capability, *self.caveats)
        return tuple((m.tid, m.rate_limit, m.rate_window_ms) for m in members if m.rate_limit)

    def signed_by(self, key: bytes) -> bool:
        import hmac

        return hmac.compare_digest(_mac(key, self.parts), self.mac)


def new_tid() -> str:
    return os.urandom(16).hex()


def check_fields(capability: Capability) -> None:
    """What types cannot say. Raises CallError(SCHEMA_INVALID)."""
    try:
        kind = Type(capability.type)
    except ValueError:
        raise CallError(Code.SCHEMA_INVALID, f"type: {capability.type} is no kind of capability") from None
    check_methods(kind, capability.methods)
    check_rate(capability.rate_limit, capability.rate_window_ms)
    check_resource(kind, capability.resource)


def check_methods(kind: Type, methods: tuple[str, ...] | None) -> None:
    for method in methods or ():
        if method not in METHODS[kind]:
            known = ", ".join(METHODS[kind]) or "none"
            raise CallError(Code.SCHEMA_INVALID, f"methods: {kind.name} has no {method!r} (it has {known})")


def check_rate(limit: int, window_ms: int) -> None:
    if bool(limit) != bool(window_ms):
        raise CallError(Code.SCHEMA_INVALID, "rate_limit and rate_window_ms belong together")


def check_resource(kind: Type, resource: str) -> None:
    """Raises CallError(SCHEMA_INVALID) for a pattern that is none of the type's."""
    from akbox.kernel.scope import ScopeError, parse_resource

    try:
        parse_resource(kind, resource)
    except ScopeError as error:
        raise CallError(Code.SCHEMA_INVALID, f"resource: {error}") from error


def mint(capability: Capability, key: bytes) -> str:
    """The token of a capability, signed. Raises CallError(SCHEMA_INVALID)."""
    check_fields(capability)
    body = canonical(msgspec.to_builtins(capability))
    return _join((body,), _mac(key, (body,)))


def derive(text: str, caveat: Caveat) -> str:
    """The token, narrowed by `caveat`; needs no key and cannot be taken back by the one who gets it. Raises
    CallError(CAP_INVALID)."""
    import hmac

    token = decode(text)
    if len(token.caveats) >= MAX_CAVEATS:
        raise CallError(Code.CAP_INVALID, f"a token has at most {MAX_CAVEATS} caveats")
    kind = Type(token.capability.type)
    check_methods(kind, caveat.methods)
    check_rate(caveat.rate_limit, caveat.rate_window_ms)
    if caveat.resource is not None:
        check_resource(kind, caveat.resource)
    body = canonical(msgspec.to_builtins(caveat))
    narrowed = _join((*token.parts, body), hmac.digest(token.mac, body, "sha256"))
    if len(narrowed) > MAX_TOKEN_BYTES:
        raise CallError(Code.CAP_INVALID, f"a token has at most {MAX_TOKEN_BYTES} bytes")
    return narrowed


def decode(text: object) -> Token:
    """Takes a token apart and checks its form, not its MAC. Raises CallError(CAP_INVALID), which says no more than that
    it is not a token."""
    if not isinstance(text, str) or len(text) > MAX_TOKEN_BYTES or not text.isascii():
        raise _bad(f"a token is a string of at most {MAX_TOKEN_BYTES} ASCII characters")
    return _decode(text)


@lru_cache(maxsize=256)
def _decode(text: str) -> Token:
    """A model gateway's callers show the same token with each request; what it is taken apart to never changes."""
    prefix, *parts = text.split(".")
    if prefix != PREFIX or not 2 <= len(parts) <= MAX_CAVEATS + 2:
        raise _bad(f"a token starts with {PREFIX}. and has a capability and a MAC")
    signed = tuple(_unbase64(part) for part in parts[:-1])
    mac = _unbase64(parts[-1])
    capability = _struct(signed[0], Capability)
    try:
        Type(capability.type)
    except ValueError:
        raise _bad(f"{capability.type} is no kind of capability") from None
    return Token(capability, tuple(_struct(part, Caveat) for part in signed[1:]), signed, mac)


def covers(token: Token, kind: Type, target: str, method: str | None) -> bool:
    """Is this use inside everything that the token says? `method` None: any. ADMIN covers every type."""
    from akbox.kernel.scope import matches

    own = Type(token.capability.type)
    if own not in (kind, Type.ADMIN):
        return False
    if method is not None and own is not Type.ADMIN and method not in token.methods:
        return False
    return all(matches(own, pattern, target) for pattern in token.resources)


def _mac(key: bytes, parts: tuple[bytes, ...]) -> bytes:
    import hmac

    mac = hmac.digest(key, PREFIX.encode() + b"." + parts[0], "sha256")
    for part in parts[1:]:
        mac = hmac.digest(mac, part, "sha256")
    return mac


def _join(parts: tuple[bytes, ...], mac: bytes) -> str:
    return ".".join((PREFIX, *(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in (*parts, mac))))


def _unbase64(part: str) -> bytes:
    """Strict: of the many texts that decoders take for the same bytes, only the one an encoder makes."""
    try:
        data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _bad("a part of the token is not base64url") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != part:
        raise _bad("a part of the token is not base64url as an encoder writes it")
    return data


def _struct(data: bytes, kind: type[Any]) -> Any:
    what = kind.__name__.lower()
    try:
        value = parse(data)
        made = msgspec.convert(value, kind)
        same = canonical(value) == data
    except (StrictJSONError, CanonicalError, msgspec.ValidationError) as error:
        raise _bad(f"the token's {what} is not understood ({str(error)[:200]})") from None
    if not same:
        raise _bad(f"the token's {what} is not canonical JSON")
    return made


def _bad(message: str) -> CallError:
    return CallError(Code.CAP_INVALID, message)
