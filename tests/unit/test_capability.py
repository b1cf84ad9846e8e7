"""Capability tokens: one spelling, no widening, revocation, rates, time and keys."""

from __future__ import annotations

import base64
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from akbox.kernel.capabilities import KEYS_MAX, ROTATE_MS, Capabilities
from akbox.kernel.capability import (
    MAX_CAVEATS,
    METHODS,
    Capability,
    Caveat,
    Type,
    covers,
    decode,
    derive,
    mint,
    new_tid,
)
from akbox.kernel.codes import CallError, Code
from akbox.kernel.redact import MASK, Redactor
from akbox.store.sqlite import SqliteStore

NOW = 1_767_225_600_000


class Clock:
    def __init__(self) -> None:
        self.ms = NOW

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def caps(tmp_path: Path, clock: Clock) -> Iterator[Capabilities]:
    store = SqliteStore(tmp_path / "kernel.db")
    yield Capabilities(os.urandom(16), store, clock)
    store.close()


def refused(call: Any) -> Code:
    with pytest.raises(CallError) as caught:
        call()
    return caught.value.code


def test_a_token_says_what_it_says(caps: Capabilities) -> None:
    text = caps.mint(Type.FS, "/app/**", methods=("read",), ttl_ms=1000, rate_limit=5, rate_window_ms=60_000)
    prefix, body, mac = text.split(".")
    fields = json.loads(base64.urlsafe_b64decode(body + "=="))
    assert (prefix, len(base64.urlsafe_b64decode(mac + "=="))) == ("akc1", 32)
    assert {k: fields[k] for k in ("type", "resource", "methods", "issued_ms", "ttl_ms", "rate_limit", "kid")} == {
        "type": 2, "resource": "/app/**", "methods": ["read"], "issued_ms": NOW, "ttl_ms": 1000, "rate_limit": 5,
        "kid": 0,
    }  # fmt: skip
    assert caps.check(text, Type.FS, "/app/a", "read").capability.tid == fields["tid"]


@pytest.mark.parametrize(
    ("kind", "resource", "inside", "outside"),
    [
        (Type.FS, "/app/*", ["/app/a"], ["/app", "/app/a/b", "/b", "app/a", "/app/../etc", "/app/a/", ""]),
        (Type.FS, "/a/**/k", ["/a/k", "/a/b/c/k"], ["/a/kk", "/b/a/k"]),
        (Type.SPAWN, "/usr/bin/python3", ["/usr/bin/python3"], ["/usr/bin/python3.11"]),
        (Type.NET, "dns:*.example.com:443", ["dns:a.example.com:443"], ["dns:example.com:443", "dns:a.example.com:80"]),
        (Type.NET, "ip:10.0.0.0/8:*", ["ip:10.1.2.3:1", "ip:[::ffff:a00:1]:5"], ["ip:11.0.0.1:1", "udp+ip:10.0.0.1:1"]),
        (Type.NET, "unix:/run/x.sock", ["unix:/run/x.sock"], ["unix:/run/y", "/run/x.sock"]),
        (Type.NET, "host:*.example.com", ["dns:a.example.com"], ["dns:evilexample.com", "a.example.com"]),
        (Type.TOOL, "file_*", ["tool:file_read", "file_"], ["tool:http"]),
        (Type.INFERENCE, "model:claude-*", ["model:claude-x", "claude-x"], ["model:gpt"]),
        (Type.HEAP, "heap:12", ["heap:12"], ["heap:123", "heap:1"]),
        (Type.SECRETS, "API_*", ["secret:API_KEY"], ["secret:KEY"]),
        (Type.IPC, "*", ["agent:ab", ""], []),
    ],
)  # fmt: skip
def test_scope(caps: Capabilities, kind: Type, resource: str, inside: list[str], outside: list[str]) -> None:
    token = decode(caps.mint(kind, resource))
    method = METHODS[kind][0]
    assert [t for t in inside if not covers(token, kind, t, method)] == []
    assert [t for t in outside if covers(token, kind, t, method)] == []
    other = next(k for k in Type if k not in (kind, Type.ADMIN))
    assert refused(lambda: caps.check(caps.mint(kind, resource), other, inside[0], None)) == Code.CAP_SCOPE
    assert covers(decode(caps.mint(Type.ADMIN, "*")), kind, inside[0], method)


def test_methods(caps: Capabilities) -> None:
    text = caps.mint(Type.FS, "/app/**", methods=("read", "write"))
    narrowed = derive(text, Caveat(tid=new_tid(), methods=("read",)))
    caps.check(text, Type.FS, "/app/x", "write")
    caps.check(narrowed, Type.FS, "/app/x", "read")
    for method in ("write", "exec"):
        assert refused(lambda m=method: caps.check(narrowed, Type.FS, "/app/x", m)) == Code.CAP_SCOPE
    none = derive(narrowed, Caveat(tid=new_tid(), methods=("exec",)))  # what its parent does not have
    for method in ("read", "write", "exec"):
        assert refused(lambda m=method: caps.check(none, Type.FS, "/app/x", m)) == Code.CAP_SCOPE


def test_every_bit_counts(caps: Capabilities) -> None:
    """A token with any one bit of any part changed is refused, whatever the part."""
    text = derive(caps.mint(Type.FS, "/app/**"), Caveat(tid=new_tid(), resource="/app/a/**"))
    for n in range(len("akc1."), len(text)):
        for bit in (1, 2, 4, 32):
            changed = text[:n] + chr(ord(text[n]) ^ bit) + text[n + 1 :]
            code = refused(lambda t=changed: caps.verify(t))
            assert code in (Code.CAP_INVALID, Code.CAP_RUN_MISMATCH), changed


@pytest.mark.parametrize(
    "bad",
    [None, 5, "", "akc1", "akc1.", "akc1.a", "akc1.a.b", "akc2.e30.e30", "akc1.e30.e30", "akc1.e30=.e30", "akc1.W10.AA",
     "akc1." + "A" * 9000 + ".AA", "akc1.é.AA", "akc1." + ".".join(["e30"] * 30), " akc1.e30.AA", {"a": 1}],
)  # fmt: skip
def test_what_is_no_token(caps: Capabilities, bad: object) -> None:
    assert refused(lambda: caps.verify(bad)) == Code.CAP_INVALID


def test_a_caveat_cannot_be_taken_off_swapped_or_misread(caps: Capabilities) -> None:
    text = caps.mint(Type.FS, "/app/**")
    one = derive(text, Caveat(tid=new_tid(), resource="/app/a/**"))
    two = derive(one, Caveat(tid=new_tid(), methods=("read",)))
    prefix, body, first, second, mac = two.split(".")
    for parts in (
        (body, mac),
        (body, first, mac),
        (body, second, mac),
        (body, second, first, mac),
        (first, second, mac),
    ):
        assert refused(lambda p=parts: caps.verify(".".join((prefix, *p)))) == Code.CAP_INVALID
    import hmac

    token = decode(text)
    for raw in (b'{"tid":"' + b"0" * 32 + b'","only_on_sundays":true}', b'{"tid": "' + b"0" * 32 + b'"}', b"[]"):
        forged = hmac.digest(token.mac, raw, "sha256")  # properly signed, but not understood, or not canonical
        parts = [base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in (token.parts[0], raw, forged)]
        assert refused(lambda p=parts: caps.verify(".".join(("akc1", *p)))) == Code.CAP_INVALID


def test_time(caps: Capabilities, clock: Clock) -> None:
    text = caps.mint(Type.TOOL, "x", ttl_ms=1000)
    short = derive(text, Caveat(tid=new_tid(), expires_ms=NOW + 500))
    long = derive(text, Caveat(tid=new_tid(), expires_ms=NOW + 10_000))  # says more than it has
    clock.ms = NOW + 499
    caps.verify(short)
    clock.ms = NOW + 500
    assert refused(lambda: caps.verify(short)) == Code.CAP_EXPIRED
    caps.verify(text)
    clock.ms = NOW + 1000
    assert [refused(lambda t=t: caps.verify(t)) for t in (text, long)] == [Code.CAP_EXPIRED] * 2
    clock.ms = NOW - 5000
    assert refused(lambda: caps.verify(text)) == Code.CAP_INVALID


def test_revocation_cascades(caps: Capabilities, tmp_path: Path) -> None:
    text = caps.mint(Type.TOOL, "*")
    tid = decode(text).capability.tid
    left = derive(text, Caveat(tid=new_tid(), resource="a*"))
    right = derive(text, Caveat(tid=new_tid(), resource="b*"))
    below = derive(left, Caveat(tid=new_tid(), resource="aa"))
    minted = caps.mint(Type.TOOL, "aa", parent=decode(left).tids[-1])
    grandchild = caps.mint(Type.TOOL, "aa", parent=decode(minted).capability.tid)
    assert caps.revoke(decode(left).tids[-1], "misused")
    assert not caps.revoke(decode(left).tids[-1])
    for gone in (left, below, minted, grandchild):
        assert refused(lambda t=gone: caps.verify(t)) == Code.CAP_REVOKED
    caps.verify(text)
    caps.verify(right)
    caps.revoke(tid)
    assert refused(lambda: caps.verify(right)) == Code.CAP_REVOKED
    again = Capabilities(bytes.fromhex(caps.run_id), caps._store, caps._now_ms)  # the supervisor restarts
    again.load()
    assert again.revoked(decode(grandchild).capability.tid) == "misused"
    assert again.revoked(tid) == ""
    assert again.revoked(new_tid()) is None
    again.revoke_run("over")
    assert again.revoked(new_tid()) == "over"


def test_another_run(caps: Capabilities, clock: Clock) -> None:
    other = Capabilities(os.urandom(16), caps._store, clock)
    assert refused(lambda: caps.verify(other.mint(Type.TOOL, "x"))) == Code.CAP_RUN_MISMATCH
    forged = Capabilities(bytes.fromhex(caps.run_id), caps._store, clock)  # right run, other key
    caps.mint(Type.TOOL, "x")
    assert refused(lambda: caps.verify(forged.mint(Type.TOOL, "x"))) == Code.CAP_INVALID


def test_a_rate_is_shared_by_the_lineage(caps: Capabilities, clock: Clock) -> None:
    text = caps.mint(Type.TOOL, "*", rate_limit=3, rate_window_ms=1000)
    wide = derive(text, Caveat(tid=new_tid(), rate_limit=100, rate_window_ms=1000))
    tight = derive(text, Caveat(tid=new_tid(), rate_limit=1, rate_window_ms=10_000))

    def use(token: str) -> bool:
        try:
            caps.check(token, Type.TOOL, "x", "invoke")
        except CallError as error:
            return (error.code, bool(error.details["retry_after_ms"])) != (Code.CAP_RATE, True)
        return True

    assert [use(tight), use(tight)] == [True, False]
    assert [use(wide), use(text), use(wide), use(text)] == [True, True, False, False]
    clock.ms += 1000
    assert [use(tight), use(wide), use(wide), use(wide), use(wide)] == [False, True, True, True, False]
    assert refused(lambda: caps.check(wide, Type.NET, "x", None)) == Code.CAP_SCOPE  # and takes nothing


def test_keys_rotate(caps: Capabilities, clock: Clock) -> None:
    tokens = []
    for _ in range(KEYS_MAX + 1):
        tokens.append(caps.mint(Type.TOOL, "x"))
        clock.ms += ROTATE_MS
    assert [decode(t).capability.kid for t in tokens] == list(range(KEYS_MAX + 1))
    assert refused(lambda: caps.verify(tokens[0])) == Code.CAP_INVALID
    for token in tokens[1:]:
        caps.verify(token)


@pytest.mark.parametrize(
    "fields",
    [{"resource": "relative/../x"}, {"resource": "~/x"}, {"resource": ""}, {"methods": ("fly",)}, {"ttl_ms": -1},
     {"ttl_ms": 2**60}, {"rate_limit": 5}, {"rate_limit": 1 << 30, "rate_window_ms": 5}],
)  # fmt: skip
def test_what_cannot_be_minted(caps: Capabilities, fields: dict[str, Any]) -> None:
    assert refused(lambda: caps.mint(Type.FS, **({"resource": "/x"} | fields))) == Code.SCHEMA_INVALID


def test_caveats_are_bounded(caps: Capabilities) -> None:
    text = caps.mint(Type.TOOL, "x")
    for _ in range(MAX_CAVEATS):
        text = derive(text, Caveat(tid=new_tid(), methods=("invoke",)))
    caps.verify(text)
    assert refused(lambda: derive(text, Caveat(tid=new_tid()))) == Code.CAP_INVALID


def test_tokens_never_reach_the_log(caps: Capabilities) -> None:
    text = derive(caps.mint(Type.FS, "/app/**"), Caveat(tid=new_tid()))
    assert Redactor().value({"note": f"use {text} now"}) == {"note": f"use {MASK} now"}


PATHS = st.sampled_from(["/a", "/a/b", "/a/b/c", "/b", "/b/c", "/c"])
CAVEATS = st.builds(
    Caveat,
    tid=st.just("0" * 32),
    resource=st.none() | st.sampled_from(["/a/**", "/a/*", "/**", "/b/**", "*", "/a/b"]),
    methods=st.none() | st.lists(st.sampled_from(["read", "write", "exec"]), max_size=3).map(tuple),
    expires_ms=st.none() | st.integers(0, 100),
    agent=st.none() | st.sampled_from(["a" * 32, "b" * 32]),
)


@settings(max_examples=300, deadline=None)
@given(
    resource=st.sampled_from(["/a/**", "/**", "/a/*", "/b/**"]), chain=st.lists(CAVEATS, max_size=6), target=PATHS,
    method=st.sampled_from(["read", "write", "exec"]),
)  # fmt: skip
def test_a_derived_token_never_covers_more(resource: str, chain: list[Caveat], target: str, method: str) -> None:
    """Attenuation, through any depth: what a token covers, each token above it covers, in scope and in time."""
    key = bytes(32)
    text = mint(
        Capability(type=2, resource=resource, issued_ms=0, ttl_ms=50, run_id="0" * 32, tid=new_tid(), kid=0), key
    )
    tokens = [decode(text)]
    for caveat in chain:
        text = derive(text, caveat)
        tokens.append(decode(text))
    assert all(t.signed_by(key) for t in tokens)
    for above, below in itertools.pairwise(tokens):
        assert covers(above, Type.FS, target, method) or not covers(below, Type.FS, target, method)
        assert below.methods <= above.methods
        assert below.expires_ms is not None
        assert above.expires_ms is not None
        assert below.expires_ms <= above.expires_ms
        assert set(above.tids) <= set(below.tids)
