"""What a run knows about its capabilities: keys, who minted what from what, what is revoked, and how often each was
used.

Not the token format (capability.py) and not what the policy grants (an agent's held capabilities are in agents.py).
Keys live in memory only: tokens end with the supervisor, revocations do not.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from akbox.kernel.capability import CLOCK_SKEW_MS, Capability, Token, Type, covers, decode, mint, new_tid
from akbox.kernel.codes import CallError, Code
from akbox.store.base import Store

KEYS_MAX = 4
ROTATE_MS = 24 * 3600 * 1000
_MAX_BUCKETS = 65_536
_KID_END = 256


class _Key(msgspec.Struct):
    kid: int
    key: bytes
    since_ms: int


class _Uses(msgspec.Struct):
    """When a tid was used within its window, in ms."""

    window_ms: int
    times: deque[int] = msgspec.field(default_factory=deque)


class Capabilities:
    """Thread-safe. Every method that refuses raises CallError with the code of design 02."""

    def __init__(self, run_id: bytes, store: Store, now_ms: Callable[[], int]) -> None:
        self.run_id = run_id.hex()
        self._store = store
        self._now_ms = now_ms
        self._lock = threading.RLock()
        # Guarded by _lock:
        self._keys: list[_Key] = []
        self._parents: dict[str, str] = {}
        self._revoked: dict[str, str] = {}  # tid -> why
        self._run_revoked: str | None = None
        self._uses: dict[str, _Uses] = {}

    def load(self) -> None:
        """Takes up what an earlier supervisor of this run had revoked. Raises StoreError."""
        with self._lock:
            self._revoked, self._parents, self._run_revoked = self._store.load_capabilities()

    # ---- minting ---------------------------------------------------------------------------------------------------

    def mint(
        self,
        kind: Type,
        resource: str,
        *,
        methods: Iterable[str] = (),
        ttl_ms: int = 0,
        rate_limit: int = 0,
        rate_window_ms: int = 0,
        parent: str | None = None,
    ) -> str:
        """A new token of this run. `parent`: the tid whose revocation ends it as well."""
        with self._lock:
            key = self._key()
            capability = Capability(
                type=int(kind), resource=resource, methods=tuple(methods), issued_ms=self._now_ms(), ttl_ms=ttl_ms,
                rate_limit=rate_limit, rate_window_ms=rate_window_ms, run_id=self.run_id, tid=new_tid(), kid=key.kid,
                parent=parent,
            )  # fmt: skip
            try:
                capability = msgspec.convert(msgspec.to_builtins(capability), Capability)  # the bounds of its fields
            except msgspec.ValidationError as error:
                raise CallError(Code.SCHEMA_INVALID, str(error)) from None
            text = mint(capability, key.key)
            if parent is not None:
                self.adopt(capability.tid, parent)
            return text

    def adopt(self, tid: str, parent: str) -> None:
        """From now on `tid` ends with `parent`."""
        with self._lock:
            self._store.save_lineage(tid, parent)
            self._parents[tid] = parent

    def rotate(self) -> int:
        """A new key for what is minted from now on; the KEYS_MAX last ones still verify. Returns its kid."""
        with self._lock:
            kid = (self._keys[-1].kid + 1) % _KID_END if self._keys else 0
            self._keys.append(_Key(kid, os.urandom(32), self._now_ms()))
            del self._keys[:-KEYS_MAX]
            return kid

    # ---- checking --------------------------------------------------------------------------------------------------

    def verify(self, text: object, *, agent: bytes | None = None) -> Token:
        """The token, if it is authentic, of this run, in time and not revoked; `agent`: who presents it (None: the
        supervisor itself). Uses nothing of its rate. CAP_INVALID, CAP_RUN_MISMATCH, CAP_EXPIRED, CAP_REVOKED,
        CAP_SCOPE."""
        token = decode(text)
        capability = token.capability
        if capability.run_id != self.run_id:
            raise CallError(Code.CAP_RUN_MISMATCH, "the capability belongs to another run")
        with self._lock:
            key = next((k.key for k in self._keys if k.kid == capability.kid), None)
        if key is None or not token.signed_by(key):
            raise CallError(Code.CAP_INVALID, "the capability token can't be verified")
        now = self._now_ms()
        if token.expires_ms is not None and now >= token.expires_ms:
            raise CallError(Code.CAP_EXPIRED, f"the capability expired {now - token.expires_ms} ms ago")
        if capability.issued_ms > now + CLOCK_SKEW_MS:
            raise CallError(Code.CAP_INVALID, "the capability is from the future")
        for tid in token.tids:
            self.check_live(tid)
        for caveat in token.caveats:
            if caveat.agent is not None and agent is not None and caveat.agent != agent.hex():
                raise CallError(Code.CAP_SCOPE, "the capability was given to another agent")
        return token

    def check(self, text: object, kind: Type, target: str, method: str | None, *, agent: bytes | None = None) -> Token:
        """`verify`, and that this one use is in the token's scope and rate, of which it takes one. Also CAP_SCOPE,
        CAP_RATE."""
        token = self.verify(text, agent=agent)
        if not covers(token, kind, target, method):
            name = Type(token.capability.type).name
            raise CallError(
                Code.CAP_SCOPE,
                f"the capability ({name} {' and '.join(token.resources)}; {', '.join(sorted(token.methods)) or 'any'})"
                f" does not cover {method or 'this'} on {target or kind.name}",
                missing_cap=kind.name.lower(),
            )
        self.use(token)
        return token

    def use(self, token: Token) -> None:
        """Takes one of the rates of the token and of all it comes from, or none. Raises CallError(CAP_RATE)."""
        rates = token.rates
        if not rates:
            return
        now = self._now_ms()
        with self._lock:
            buckets = [(self._bucket(tid, window_ms, now), limit) for tid, limit, window_ms in rates]
            for bucket, limit in buckets:
                if len(bucket.times) >= limit:
                    raise CallError(
                        Code.CAP_RATE, f"the capability may be used {limit} times in {bucket.window_ms} ms",
                        details={"retry_after_ms": bucket.times[0] + bucket.window_ms - now},
                    )  # fmt: skip
            for bucket, _ in buckets:
                bucket.times.append(now)

    def _bucket(self, tid: str, window_ms: int, now: int) -> _Uses:
        """Precondition: locked. What may be forgotten is forgotten when there are too many; what may not is refused:
        a holder can make any number of narrowed tokens, each with a rate of its own."""
        if tid not in self._uses and len(self._uses) >= _MAX_BUCKETS:
            over = [t for t, u in self._uses.items() if not u.times or u.times[-1] <= now - u.window_ms]
            for t in over:
                del self._uses[t]
            if not over:
                raise CallError(Code.CAP_RATE, "too many capabilities with a rate are in use")
        bucket = self._uses.setdefault(tid, _Uses(window_ms))
        while bucket.times and bucket.times[0] <= now - bucket.window_ms:
            bucket.times.popleft()
        return bucket

    def check_live(self, tid: str) -> None:
        """Raises CallError(CAP_REVOKED) when the tid, anything above it, or the run was revoked."""
        why = self.revoked(tid)
        if why is not None:
            raise CallError(Code.CAP_REVOKED, f"the capability was revoked{f': {why}' if why else ''}")

    def revoked(self, tid: str) -> str | None:
        """Why the tid is revoked; None: it is not."""
        with self._lock:
            if self._run_revoked is not None:
                return self._run_revoked
            at: str | None = tid
            for _ in range(1024):  # a chain that long is nobody's; and a damaged store may hold a ring
                if at is None:
                    return None
                if at in self._revoked:
                    return self._revoked[at]
                at = self._parents.get(at)
            return "its lineage has no end"

    # ---- revoking --------------------------------------------------------------------------------------------------

    def revoke(self, tid: str, why: str = "") -> bool:
        """Ends the tid and everything that comes from it, durably. False: it was revoked before."""
        with self._lock:
            if tid in self._revoked:
                return False
            self._store.save_revocation(tid, why)
            self._revoked[tid] = why
            return True

    def revoke_run(self, why: str = "") -> None:
        """Ends every capability of the run, durably."""
        with self._lock:
            self._store.save_revocation("run", why)
            self._run_revoked = why

    @property
    def run_revoked(self) -> bool:
        return self._run_revoked is not None

    def descends(self, tid: str, ancestor: str) -> bool:
        """Is `tid` the ancestor or one of those that come from it?"""
        with self._lock:
            at: str | None = tid
            for _ in range(1024):
                if at is None or at == ancestor:
                    return at == ancestor
                at = self._parents.get(at)
            return False

    def _key(self) -> _Key:
        """Precondition: locked."""
        if not self._keys or self._now_ms() - self._keys[-1].since_ms >= ROTATE_MS:
            self.rotate()
        return self._keys[-1]
