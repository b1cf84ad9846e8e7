"""The HTTP side of the gateway: who calls, what for, and the answer in the caller's own dialect.

Not for deciding: exchange.py does. Every request needs the run's token; what has none is answered before its body is
read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from akbox.inference import anthropic, openai
from akbox.inference.bodies import BodiesError
from akbox.inference.callers import Caller, identify
from akbox.inference.exchange import Exchange, Exchanges
from akbox.inference.routing import NoUpstream, Router
from akbox.inference.upstream import Client, UpstreamDown, reply_headers
from akbox.inference.wire import FAILURES, Endpoint, WireError, decode_object, encode, error_body, text_field
from akbox.kernel.audit import AuditError
from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import AgentId, Effect
from akbox.kernel.entry import Draft
from akbox.kernel.kernel import Kernel
from akbox.kernel.ops import Op, op_name

MAX_BODY_BYTES = 32 << 20  # what Anthropic takes; OpenAI takes less
MAX_HELD_BYTES = 128 << 20  # of all requests together
MAX_CONNECTIONS = 200
MODELS_PATH = "/v1/models"
_STRANGER_NS = 1_000_000_000
_KINDS = {
    Code.CAP_RATE: "rate",
    Code.CAP_EXPIRED: "unauthenticated",
    Code.CAP_REVOKED: "unauthenticated",
    Code.POLICY_DENY: "forbidden",
    Code.APPROVAL_REQUIRED: "forbidden",
    Code.DLP_BLOCK: "forbidden",
    Code.BUDGET_EXCEEDED: "budget",
}


class Gateway:
    """Answers requests of one run. `handle` is what aiohttp's server calls, in the gateway's own event loop."""

    def __init__(
        self,
        kernel: Kernel,
        router: Router,
        exchanges: Exchanges,
        clients: Mapping[str, Client],
        on_failure: Callable[[str], None],
    ) -> None:
        self._kernel, self._router, self._exchanges, self._clients = kernel, router, exchanges, clients
        self._on_failure = on_failure
        self._endpoints = {e.path: e for e in (*anthropic.ENDPOINTS, *openai.ENDPOINTS)}
        self._held = 0
        self._strangers = _Strangers(kernel)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Never raises: what goes wrong in here is answered as an error, and a log that can't be written ends the
        run."""
        try:
            return await self._answer(request)
        except (AuditError, BodiesError) as error:
            self._on_failure(f"the audit log cannot be written: {error}")
        except Exception as error:  # the connection's edge: it denies
            self._kernel.log.append(
                Draft(
                    ts_ns=self._kernel.clock_ns(), agent=self._kernel.root, op=Op.INFER, name=op_name(Op.INFER),
                    target="gateway", decision="deny", stage="EXECUTE",
                    req={"call": f"{request.method} {request.path}"},
                    res={"status": 500, "why": f"internal error: {error!r}"[:500]},
                )
            )  # fmt: skip
        return _failed(_dialect(request), "internal", "akbox: internal error")

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        endpoint = self._endpoints.get(request.path)
        wire = endpoint.wire if endpoint is not None else _dialect(request)
        try:
            caller = identify(self._kernel, _token(request))
        except CallError as error:
            self._strangers.note(request, error)
            refusal = _failed(wire, "unauthenticated", "this gateway takes only the token of its own run")
            refusal.force_close()  # whatever its body is, nobody reads it
            return refusal
        try:
            if endpoint is not None and request.method == "POST":
                return await self._forward(request, endpoint, caller)
            if request.method == "GET" and _is_models(request.path):
                return await self._models(request, caller, wire)
        except CallError as error:
            kind = _KINDS.get(error.code, "forbidden")
            fix = f" ({error.suggested_fix})" if error.suggested_fix else ""
            return _failed(wire, kind, f"akbox: {error.message}{fix}")
        except NoUpstream as error:
            return _failed(wire, "not_found", f"akbox: {error}")
        except _TooLarge as error:
            return _failed(wire, error.kind, f"akbox: {error}")
        except WireError as error:
            return _failed(wire, "invalid", f"akbox: {error}")
        except UpstreamDown as error:
            return _failed(wire, error.kind, f"akbox: {error}")
        except (ConnectionError, web.RequestPayloadError):  # the caller hung up; what it holds was settled
            return _failed(wire, "invalid", "akbox: the request is not whole")
        return _failed(wire, "not_found", f"akbox: this gateway has no {request.method} {request.path}")

    def close(self) -> None:
        """Writes what is still to be said about strangers."""
        self._strangers.flush()

    # ---- calls of a model -------------------------------------------------------------------------------------------

    async def _forward(self, request: web.BaseRequest, endpoint: Endpoint, caller: Caller) -> web.StreamResponse:
        async with self._body(request) as raw:
            body = decode_object(raw)
            model = body["model"] = self._router.resolve(text_field(body, "model"))
            upstream = self._router.find(endpoint.wire, model)
            exchange = await self._exchanges.begin(caller, endpoint, body, raw, upstream)
            with contextlib.closing(exchange):
                reply = await exchange.send(request.query_string, request.headers)
                if reply is None:
                    return await self._stream(request, exchange)
                headers = reply_headers(reply.headers)
                if reply.status >= 400 and reply.tries > 1:
                    headers["x-should-retry"] = "false"  # it was tried again from here already
                return web.Response(status=reply.status, headers=headers, body=reply.body)

    async def _stream(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        response = web.StreamResponse(headers=reply_headers(exchange.reply_headers))
        await response.prepare(request)
        async for data in exchange.events():
            await response.write(data)
        await response.write_eof()
        return response

    @contextlib.asynccontextmanager
    async def _body(self, request: web.BaseRequest) -> Any:  # Any: what asynccontextmanager makes of it
        """The request's body, counted among what all requests hold. Raises _TooLarge."""
        data = bytearray()
        try:
            async for chunk in request.content.iter_any():
                self._held += len(chunk)
                data += chunk
                if len(data) > MAX_BODY_BYTES:
                    raise _TooLarge("too_large", f"a request has at most {MAX_BODY_BYTES} bytes")
                if self._held > MAX_HELD_BYTES:
                    raise _TooLarge("busy", "too many large requests at once")
            yield bytes(data)
        finally:
            self._held -= len(data)

    # ---- the list of models -----------------------------------------------------------------------------------------

    async def _models(self, request: web.BaseRequest, caller: Caller, wire: str) -> web.StreamResponse:
        """The upstreams' own lists, without what the policy does not allow; aliases are models, too."""
        wanted = request.path.removeprefix(MODELS_PATH).strip("/")
        found: dict[str, dict[str, Any]] = {}
        problem: UpstreamDown | None = None
        clients = [client for client in self._clients.values() if client.wire == wire]
        for client in clients:
            try:
                for item in await _list_models(client, request.headers):
                    found.setdefault(str(item.get("id")), item)
            except UpstreamDown as error:
                problem = error
        if problem is not None and not found:
            raise problem
        for alias, model in self._router.aliases().items():
            if model in found:
                found[alias] = found[model] | {"id": alias}
        allowed = {name: item for name, item in found.items() if self._may_use(caller.agent, name)}
        self._kernel.log.append(
            Draft(
                ts_ns=self._kernel.clock_ns(), agent=caller.agent, op=Op.INFER, name=op_name(Op.INFER), target="models",
                decision="allow", req={"api": "models", "upstreams": [c.name for c in clients]},
                res={"models": len(allowed), "left_out": len(found) - len(allowed)},
            )
        )  # fmt: skip
        if wanted:
            if wanted not in allowed:
                return _failed(wire, "not_found", f"akbox: there is no model {wanted}, or it is not allowed")
            return _json(encode(allowed[wanted]))
        data = list(allowed.values())
        if wire == "anthropic":
            ids = [str(item.get("id")) for item in data]
            page = {
                "data": data,
                "has_more": False,
                "first_id": ids[0] if ids else None,
                "last_id": ids[-1] if ids else None,
            }
            return _json(encode(page))
        return _json(encode({"object": "list", "data": data}))

    def _may_use(self, caller: AgentId, model: str) -> bool:
        target = f"model:{self._router.resolve(model)}"
        return self._kernel.decide(caller, Effect(op=Op.INFER, target=target)).allowed


class _Server(web.Server):
    """aiohttp's, with no more than MAX_CONNECTIONS: descriptors are the whole supervisor's."""

    def __call__(self) -> RequestHandler:
        return super().__call__() if len(self.connections) < MAX_CONNECTIONS else _Full()  # type: ignore[return-value]


class _Full(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def limited_server(handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> web.Server:
    """What a listening socket is given to: it calls `handle` for each request, and cancels that when its caller hangs
    up."""
    return _Server(handle, handler_cancellation=True, access_log=None)


class _TooLarge(Exception):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Strangers:
    """Refusals of callers without the run's token: each second one entry, which counts those before it, so that nobody
    on the host can fill the log."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._next_ns = 0
        self._waiting: list[tuple[str, str, str]] = []
        self._more = 0

    def note(self, request: web.BaseRequest, error: CallError) -> None:
        now = time.monotonic_ns()
        seen = (f"{request.method} {request.path}"[:200], str(request.remote), error.code.name)
        if now < self._next_ns:
            self._waiting, self._more = [seen], self._more + 1
            return
        self._next_ns = now + _STRANGER_NS
        self._write(seen, self._more + 1)
        self._more = 0

    def flush(self) -> None:
        if self._more:
            self._write(self._waiting[0], self._more)
            self._more = 0

    def _write(self, seen: tuple[str, str, str], count: int) -> None:
        what, remote, code = seen
        self._kernel.log.append(
            Draft(
                ts_ns=self._kernel.clock_ns(), agent=self._kernel.root, op=Op.INFER, name=op_name(Op.INFER),
                target="gateway", decision="deny", stage="CAPABILITY",
                req={"call": what, "from": remote, "count": count},
                res={"status": 401, "code": int(Code[code]), "why": code},
            )
        )  # fmt: skip


def _token(request: web.BaseRequest) -> str:
    """The API key as any of the providers' clients send it; "" for none."""
    key = request.headers.get("x-api-key") or request.headers.get("api-key")
    if key:
        return key
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _dialect(request: web.BaseRequest) -> str:
    """Whose errors the caller understands, where the path does not say."""
    return "anthropic" if "anthropic-version" in request.headers or "x-api-key" in request.headers else "openai"


def _is_models(path: str) -> bool:
    return path == MODELS_PATH or path.startswith(MODELS_PATH + "/")


async def _list_models(client: Client, headers: Mapping[str, str]) -> list[dict[str, Any]]:
    query = "limit=1000" if client.wire == "anthropic" else ""
    reply, _ = await client.send("GET", MODELS_PATH, query, headers, None, stream=False)
    async with reply:
        try:
            data = await asyncio.wait_for(reply.content.read(MAX_BODY_BYTES), client.silence_s or None)
            value = msgspec.json.decode(data)
        except (msgspec.DecodeError, TimeoutError) as error:
            raise UpstreamDown("upstream", f"{client.name}: its list of models cannot be read") from error
    items = value.get("data") if isinstance(value, dict) else None
    if reply.status != 200 or not isinstance(items, list):
        raise UpstreamDown("upstream", f"{client.name}: no list of models (status {reply.status})")
    return [item for item in items if isinstance(item, dict)]


def _json(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def _failed(wire: str, kind: str, message: str) -> web.Response:
    """An error of the gateway's own. Clients of both providers try 429 and 5xx again unless told not to."""
    headers = {"x-should-retry": "false"} if FAILURES[kind].status in (429, 502, 503, 504) else None
    return _json(error_body(wire, kind, message), FAILURES[kind].status, headers)
