"""The name in a ClientHello: real ones, cut anywhere, broken anyhow."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from akbox.linux.client_hello import HELLO_MAX, MORE, OTHER, Hello, parse_hello


def hello_of(name: str | None) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def records(body: bytes, size: int) -> bytes:
    """The same handshake message spread over records of `size` bytes."""
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


def test_a_real_one() -> None:
    assert parse_hello(hello_of("api.example.com")) == Hello(True, True, "api.example.com")
    assert parse_hello(hello_of(None)) == Hello(True, True, "")


def test_every_beginning_asks_for_more() -> None:
    whole = hello_of("api.example.com")
    assert all(parse_hello(whole[:n]) == MORE for n in range(1, len(whole)))
    assert parse_hello(whole + b"later").name == "api.example.com"


@pytest.mark.parametrize("size", [1, 3, 100])
def test_spread_over_records(size: int) -> None:
    assert parse_hello(records(hello_of("api.example.com")[5:], size)).name == "api.example.com"


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"SSH-2.0-x\r\n", b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"\x16\x02\x00"]
)
def test_what_is_no_tls(data: bytes) -> None:
    assert parse_hello(data) == (OTHER if data[0] != 0x16 else Hello(True, True))


def test_no_tls_is_told_by_the_first_byte() -> None:
    assert parse_hello(b"x") == OTHER
    assert parse_hello(b"\x16") == MORE


def test_a_length_that_never_comes_ends_at_the_limit() -> None:
    body = b"\x01\xff\xff\xff" + bytes(HELLO_MAX)
    data = records(body, 16384)
    assert parse_hello(data[:HELLO_MAX]) == Hello(True, True, "")


def test_two_names_are_none() -> None:
    """Servers differ in which of them they take."""
    whole = hello_of("a.example")
    entry = b"\x00\x00\x09a.example"
    assert entry in whole
    body = whole[5:].replace(b"\x00\x0c" + entry, b"\x00\x0c" + entry)
    at = body.index(b"\x00\x0e\x00\x0c" + entry)
    doubled = body[:at] + b"\x00\x1a\x00\x18" + entry + entry + body[at + 16 :]
    delta = len(doubled) - len(body)
    extensions_at = at - 4 - 2
    doubled = bytes([1]) + (int.from_bytes(body[1:4], "big") + delta).to_bytes(3, "big") + doubled[4:]
    while int.from_bytes(body[extensions_at : extensions_at + 2], "big") != len(body) - extensions_at - 2:
        extensions_at -= 1
    grown = (len(body) - extensions_at - 2 + delta).to_bytes(2, "big")
    doubled = doubled[:extensions_at] + grown + doubled[extensions_at + 2 :]
    assert parse_hello(records(doubled, 16384)) == Hello(True, True, "")


WHOLE = hello_of("api.example.com")


@given(st.binary(max_size=600), st.integers(0, 500), st.integers(0, 255))
@settings(deadline=None)
def test_no_bytes_raise_anything(data: bytes, at: int, byte: int) -> None:
    parse_hello(data)
    parse_hello(b"\x16\x03\x01" + data)
    whole = bytearray(WHOLE)
    whole[at % len(whole)] = byte
    assert len(parse_hello(bytes(whole)).name) <= 300
