"""The way out: one pool of connections per upstream, its key, and what is tried again.

A key is added here, last, to a request that holds none; headers that carry authority of their own never pass, in
either direction.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import aiohttp

from akbox.inference.routing import is_official, url_of
from akbox.policy.model import Upstream

TIMEOUT_MS = 600_000
RETRIES = 2
CONNECT_S = 30
_RETRIED = frozenset((408, 409, 429, 500, 502, 503, 504, 529))
_BACKOFF_S = 0.5
_BACKOFF_MOST_S = 8.0
_WAIT_MOST_S = 20.0  # a provider that asks for longer gets no second try from here

# Of the agent's request: what speaks for somebody, describes this connection, or is the gateway's to say.
_NOT_OUT = frozenset(
    (
        *("authorization", "x-api-key", "api-key", "proxy-authorization", "cookie", "x-goog-api-key"),
        *("openai-organization", "openai-project", "host", "connection", "keep-alive", "te", "trailer", "upgrade"),
        *("transfer-encoding", "content-length", "content-encoding", "accept-encoding", "expect", "proxy-connection"),
        *("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "via", "origin"),
        *("referer", "content-type"),
    )
)
_NOT_BACK = frozenset(
    (
        *("connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "set-cookie"),
        *("proxy-authenticate", "www-authenticate", "trailer", "upgrade", "alt-svc", "server", "date", "nel"),
        *("strict-transport-security", "report-to", "vary"),
    )
)


class UpstreamDown(Exception):
    """There was no reply. `kind` is one of wire.FAILURES; the message is for the agent."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Client:
    """Connections to one upstream. Of the gateway's own event loop only."""

    def __init__(self, name: str, upstream: Upstream, key: str | None) -> None:
        self.name = name
        self.wire: str = upstream.type
        self.official = is_official(upstream.base_url)
        self.silence_s = (TIMEOUT_MS if upstream.timeout_ms is None else upstream.timeout_ms) / 1000
        self.key = key
        self._base = upstream.base_url
        self._retries = RETRIES if upstream.retries is None else upstream.retries
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes | None, *, stream: bool
    ) -> tuple[aiohttp.ClientResponse, int]:
        """The reply, its body not yet read, and how often the request was sent. What failed before a reply began is
        tried again, as is what the provider itself calls temporary. Raises UpstreamDown."""
        url = url_of(self._base, path) + (f"?{query}" if query else "")
        out = self._headers(headers, stream)
        tries = 0
        while True:
            tries += 1
            last = tries > self._retries
            try:
                reply = await self._open().request(method, url, data=body, headers=out, allow_redirects=False)
            except TimeoutError as error:
                raise UpstreamDown("timeout", f"{self.name}: no answer in {self.silence_s:g} s") from error
            except (aiohttp.ClientError, OSError, ValueError) as error:
                if last:
                    raise UpstreamDown("upstream", f"{self.name}: {_reason(error)}") from error
                wait = _backoff(tries)
            else:
                if 300 <= reply.status < 400:
                    reply.close()
                    raise UpstreamDown("upstream", f"{self.name} redirects, which is not followed: keys would go along")
                wait = _asked_wait(reply.headers, _backoff(tries))
                if last or reply.status not in _RETRIED or wait > _WAIT_MOST_S:
                    return reply, tries
                reply.close()
            await asyncio.sleep(wait)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def scrub(self, data: bytes) -> bytes:
        """A reply that says the key to whoever asked: it does not get through."""
        return data.replace(self.key.encode(), b"[redacted]") if self.key else data

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._base.startswith("unix:"):
                connector = aiohttp.UnixConnector(self._base.removeprefix("unix:"), limit=0)
            else:
                connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self.silence_s or None),
                skip_auto_headers=("User-Agent", "Accept", "Content-Type"),
                read_bufsize=1 << 18,
            )
        return self._session

    def _headers(self, headers: Mapping[str, str], stream: bool) -> dict[str, str]:
        out = {name.lower(): value for name, value in headers.items() if name.lower() not in _NOT_OUT}
        out["content-type"] = "application/json"
        out["accept-encoding"] = "identity" if stream else "gzip, deflate"  # an event must not wait in a compressor
        if self.wire == "anthropic":
            out.setdefault("anthropic-version", "2023-06-01")
            if self.key:
                out["x-api-key"] = self.key
        elif self.key:
            out["authorization"] = f"Bearer {self.key}"
        return out


def reply_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Of an upstream's reply: what is for the agent."""
    return {name: value for name, value in headers.items() if name.lower() not in _NOT_BACK}


def _backoff(tries: int) -> float:
    """Half a second, doubled each time, and a little different for each caller."""
    wait: float = min(_BACKOFF_S * 2.0 ** (tries - 1), _BACKOFF_MOST_S)
    return wait * random.uniform(0.75, 1)


def _asked_wait(headers: Mapping[str, str], default: float) -> float:
    """What the provider asks to wait, in seconds; a date or nonsense is not followed."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        if text.replace(".", "", 1).isascii() and text.replace(".", "", 1).isdecimal():
            return float(text) * scale
    return default


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) < 200 else text[:200]
