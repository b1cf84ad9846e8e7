"""HTTP for tools: one request of the calling agent's, each connection judged by its network rules.

The address that is judged is the address that is connected to: a name is asked once, what may not be handed out for it
is not used, and no proxy, cookie or credential of the supervisor's goes along. Each redirect is judged as a new
request.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import msgspec

from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import Effect
from akbox.kernel.ops import Op
from akbox.policy.netpatterns import canonical_address, canonical_host
from akbox.policy.patterns import PatternError
from akbox.tools.hostcalls import HostCalls, Http, decoded, encoded

REDIRECTS_MAX = 5
CONNECT_S = 15.0
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_FROM_TOOLS = frozenset(("host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade"))
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")  # RFC 9110, 5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e]*")
_NOT_TO_OTHERS = frozenset(("authorization", "cookie", "proxy-authorization"))

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Url(msgspec.Struct, frozen=True):
    scheme: str
    host: str  # canonical; an address without brackets
    port: int
    target: str
    address: _Address | None  # the host, when it is one

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port


def fetch(host: HostCalls, request: Http) -> dict[str, Any]:
    """{status, headers, body, encoding, url, truncated}. Raises CallError."""
    body = None if request.body is None else decoded(request.body, request.encoding)
    headers = {name.lower(): value for name, value in request.headers.items()}
    bad = _NOT_FROM_TOOLS & headers.keys()
    if bad:
        raise CallError(Code.SCHEMA_INVALID, f"headers: {', '.join(sorted(bad))} cannot be set")
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise CallError(Code.SCHEMA_INVALID, f"headers: {name[:100]!r} is no name of a header, or its value none")
    url, method = request.url, request.method
    seen: _Url | None = None
    for _ in range(REDIRECTS_MAX + 1):
        at = _parse(url)
        if seen is not None and at.origin != seen.origin:
            headers = {name: value for name, value in headers.items() if name not in _NOT_TO_OTHERS}
        seen = at
        with _exchange(host, at, method, headers, body) as reply:
            location = reply.headers.get("location")
            if not (request.follow and reply.status in _REDIRECTS and location):
                return _answer(host, request, reply, url)
        if reply.status == 303 or (reply.status in (301, 302) and method == "POST"):
            method, body = "GET", None
            headers.pop("content-type", None)
        url = urljoin(url, location)
    raise CallError(Code.TOOL_FAIL, f"{request.url}: more than {REDIRECTS_MAX} redirects")


def _answer(host: HostCalls, request: Http, reply: http.client.HTTPResponse, url: str) -> dict[str, Any]:
    data = bytearray()
    while len(data) <= request.max_bytes:
        _left(host)
        part = reply.read1(65536)
        if not part:
            break
        data += part
    host.count_bytes(len(data))
    shown = encoded(bytes(data[: request.max_bytes]), "utf-8")
    return {
        "status": reply.status,
        "headers": {name.lower(): value for name, value in reply.headers.items()},
        "body": shown["content"],
        "encoding": shown["encoding"],
        "url": url,
        "truncated": len(data) > request.max_bytes,
    }


@contextlib.contextmanager
def _exchange(
    host: HostCalls, url: _Url, method: str, headers: dict[str, str], body: bytes | None
) -> Iterator[http.client.HTTPResponse]:
    address = _judged(host, url, method)
    limit = min(CONNECT_S, _left(host))
    try:
        with contextlib.ExitStack() as undo:
            plain = socket.create_connection((str(address), url.port), limit)
            undo.callback(plain.close)
            undo.callback(host.box.until_closed(lambda: _shut(plain)))
            plain.settimeout(_left(host))
            stream = plain
            if url.scheme == "https":
                stream = ssl.create_default_context().wrap_socket(plain, server_hostname=url.host)
                undo.callback(stream.close)
            connection = http.client.HTTPConnection(url.host, url.port)
            connection.sock = stream
            undo.callback(connection.close)
            connection.request(method, url.target, body=body, headers=_headers(url, headers))
            if body is not None:
                host.count_bytes(len(body))
            reply = connection.getresponse()
            undo.callback(reply.close)
            yield reply
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        raise CallError(Code.TOOL_FAIL, f"{url.scheme}://{url.host}:{url.port}: {reason}"[:500]) from error


def _headers(url: _Url, headers: dict[str, str]) -> dict[str, str]:
    name = f"[{url.host}]" if ":" in url.host else url.host
    default = url.port == _PORTS[url.scheme]
    return {
        "host": name if default else f"{name}:{url.port}", "user-agent": "akbox", "accept": "*/*",
        "accept-encoding": "identity", **headers, "connection": "close",
    }  # fmt: skip


def _parse(text: str) -> _Url:
    try:
        parts = urlsplit(text)
        port = parts.port or _PORTS.get(parts.scheme, 0)
        name = parts.hostname or ""
    except ValueError as error:
        raise CallError(Code.SCHEMA_INVALID, f"url: {error}") from error
    if parts.scheme not in _PORTS:
        raise CallError(Code.SCHEMA_INVALID, f"url: {text[:200]!r} is neither http nor https")
    if parts.username is not None or parts.password is not None:
        raise CallError(Code.SCHEMA_INVALID, "url: a name and password in it are not sent; use a header")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or any(c <= " " or c == "\x7f" for c in target):
        raise CallError(Code.SCHEMA_INVALID, "url: write characters outside ASCII, and blanks, as %XX")
    address: _Address | None = None
    with contextlib.suppress(ValueError):
        address = canonical_address(ipaddress.ip_address(name))
    try:
        return _Url(parts.scheme, str(address) if address else canonical_host(name), port, target, address)
    except PatternError as error:
        raise CallError(Code.SCHEMA_INVALID, f"url: {error.message}") from error


def _judged(host: HostCalls, url: _Url, method: str) -> _Address:
    """The address to connect to. What decides is logged: the name with its port, or the address where a rule on
    addresses does. Raises CallError."""
    more = {"method": method}
    if url.address is not None:
        host.allow(_connect(host, _ip(url.address, url.port), **more), "network")
        return url.address
    by_name = _connect(host, f"dns:{url.host}:{url.port}", **more)
    known = host.kernel.decide(host.subject, Effect(op=Op.NET_DNS, target=f"dns:{url.host}"))
    named = host.kernel.decide(host.subject, by_name)
    if not known.allowed or host.box.resolve is None:
        if named.allowed:
            raise host.refuse(by_name, "this run has no names", "network")
        host.allow(by_name, "network")  # asks, or refuses and says why
    names = host.box.resolve(host.subject, url.host) if host.box.resolve is not None else None
    if names is None or not names.addresses:
        withheld = "" if names is None else names.withheld
        if withheld:
            message = f"{url.host} leads to {withheld}"
            fix = f'net.private = ["{url.host}"], if it is meant to'
            raise host.refuse(_connect(host, by_name.target, **more), message, "network", fix)
        raise CallError(Code.TOOL_FAIL, f"{url.host}: no address for this name")
    refused = None
    for address in names.addresses:
        effect = _connect(host, _ip(address, url.port), name=url.host, **more)
        by_address = host.kernel.decide(host.subject, effect)
        if by_address.allowed:
            host.allow(effect, "network")
            return address
        if by_address.rule is None:  # no rule on addresses is about it: the name's decide
            host.allow(_connect(host, by_name.target, address=str(address), **more), "network")
            return address
        refused = effect
    assert refused is not None
    host.allow(refused, "network")
    raise CallError(Code.POLICY_DENY, f"{refused.target}: its rule has changed meanwhile")


def _connect(host: HostCalls, target: str, **detail: Any) -> Effect:
    return Effect(op=Op.NET_CONNECT, target=target, detail=host.detail(**detail), pid=host.pid)


def _ip(address: _Address, port: int) -> str:
    return f"ip:[{address}]:{port}" if address.version == 6 else f"ip:{address}:{port}"


def _left(host: HostCalls) -> float:
    """Seconds until the call's end. Raises TimeoutError."""
    left = host.end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time of the call is over")
    return left


def _shut(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)
