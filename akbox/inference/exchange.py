"""One metered call to a model, whoever asked: decided and reserved, sent, followed to its end, settled.

The HTTP gateway and INFERENCE both go through `Exchanges.begin`; they differ only in what they do with what comes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import msgspec

from akbox.inference import anthropic
from akbox.inference.bodies import MAX_BODY_BYTES, Bodies
from akbox.inference.callers import Caller
from akbox.inference.keeper import Keeper
from akbox.inference.metering import Meter, Ticket
from akbox.inference.sse import Splitter
from akbox.inference.upstream import Client, UpstreamDown
from akbox.inference.wire import Body, Endpoint, Stream, Usage, WireError, encode
from akbox.kernel.codes import Code
from akbox.kernel.effect import AgentId, Effect
from akbox.kernel.kernel import Kernel
from akbox.kernel.ops import Op
from akbox.policy.model import Infer

MAX_REPLY_BYTES = 64 << 20
MAX_ERROR_BYTES = 1 << 20
_DRAIN_S = 0.5
_COUNTED = ("model", "messages", "system", "tools", "tool_choice", "thinking", "mcp_servers", "context_management")
_NOT_TEXT = frozenset(("model", "max_tokens", "max_completion_tokens", "max_output_tokens", "stream", "n"))
_COUNT_MARGIN = 1.05  # the provider calls its own count an estimate


class Reply(msgspec.Struct):
    """A whole reply. `headers` are the upstream's own, unfiltered."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    tries: int


class Exchange:
    """A call that may be sent. Close it with `close`, whatever happens; what it has not used is free again then."""

    def __init__(
        self,
        endpoint: Endpoint,
        client: Client,
        ticket: Ticket,
        body: bytes,
        stream: bool,
        own: bool,
        bodies: Bodies | None,
    ) -> None:
        self._bodies, self._kept = bodies, bytearray()
        self.endpoint, self.client, self.ticket = endpoint, client, ticket
        self.body, self.stream, self._own = body, stream, own
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._tries = 0
        self.ended = ""
        """How it ended, once it has: complete, cut, broken, aborted, refused, failed."""
        self.usage = Usage()
        """What was charged, then."""
        self._stream: Stream | None = None
        self._reply: aiohttp.ClientResponse | None = None

    async def send(self, query: str, headers: Mapping[str, str]) -> Reply | None:
        """Sends it. A whole reply, settled; None: a stream has begun, to be read by `events`. Raises UpstreamDown."""
        reply, self._tries = await self.client.send(
            "POST", self.endpoint.path, query, headers, self.body, stream=self.stream
        )
        self._reply = reply
        if reply.status == 200 and self.stream and reply.content_type == "text/event-stream":
            return None
        if reply.status >= 400:
            return await self._error(reply)
        return await self._whole(reply)

    @property
    def reply_headers(self) -> Mapping[str, str]:
        assert self._reply is not None
        return self._reply.headers

    async def events(self) -> AsyncIterator[bytes]:
        """Whole events for the agent as they come, the last ones of a stream that breaks off or is cut included."""
        assert self._reply is not None
        assert self.endpoint.stream is not None
        stream = self._stream = self.endpoint.stream(self._own)
        splitter = Splitter()
        out = bytearray()
        try:
            async for chunk in self._reply.content.iter_any():
                for name, data, raw in splitter.feed(chunk):
                    keep = stream.event(name, data)
                    if self._over(stream):
                        message = "the run's budget for output is used up: the answer is cut here"
                        passed = self._passed(bytes(out) + stream.end("budget", message))
                        self._settle(stream, "cut")
                        self._reply.close()
                        yield passed
                        return
                    out += raw if keep else b""
                passed = self._passed(bytes(out))
                out.clear()
                if stream.complete:  # settled before the last of it is seen: who asks then is told what is left
                    self._settle(stream, "complete")
                if passed:
                    yield passed
                if stream.complete:
                    await self._drain()
                    return
            problem = ("upstream", f"{self.client.name}: the stream broke off")
        except WireError as error:
            problem = ("upstream", f"{self.client.name}: {error}")
        except TimeoutError:
            problem = ("timeout", f"{self.client.name}: silent for {self.client.silence_s:g} s")
        except aiohttp.ClientError as error:
            problem = ("upstream", f"{self.client.name}: the stream broke off ({type(error).__name__})")
        self._reply.close()
        last = self._passed(bytes(out) + (b"" if stream.failed else stream.end(*problem)))
        self._settle(stream, "broken")
        if last:
            yield last

    def close(self) -> None:
        """Settles what came when the caller went away; releases what was never answered."""
        if self._reply is not None:
            self._reply.close()  # nothing, where its end was reached and the connection is back in the pool
        if self._stream is not None:
            self._settle(self._stream, "aborted")
        elif self._reply is not None and self._reply.status == 200:
            self._charge(self.ticket.guess(None, self._bytes), "aborted")
        else:
            self.ticket.release(self._result("failed"))

    # ---- inside -----------------------------------------------------------------------------------------------------

    async def _whole(self, reply: aiohttp.ClientResponse) -> Reply:
        try:
            data = await _read(reply, MAX_REPLY_BYTES)
            value: Any = msgspec.json.decode(data)
            if not isinstance(value, dict):
                raise WireError("the reply is not a JSON object")
        except (aiohttp.ClientError, TimeoutError, WireError, msgspec.DecodeError) as error:
            self._charge(self.ticket.guess(None, reply.content.total_bytes), "broken")
            reply.close()
            kind = "timeout" if isinstance(error, TimeoutError) else "upstream"
            raise UpstreamDown(kind, f"{self.client.name}: the reply is not whole") from error
        data = self._passed(data)
        usage = self.endpoint.usage(value.get("usage")) or self.ticket.guess(None, len(data))
        self._charge(usage, "complete")
        return Reply(reply.status, reply.headers, data, self._tries)

    async def _error(self, reply: aiohttp.ClientResponse) -> Reply:
        """The provider's refusal in its own words."""
        try:
            data = await _read(reply, MAX_ERROR_BYTES)
        except (aiohttp.ClientError, TimeoutError, WireError):
            data = b""
        data = self._passed(data)
        self.ticket.release(self._result("refused"))
        return Reply(reply.status, reply.headers, data, self._tries)

    async def _drain(self) -> None:
        """The end of the body comes right after the last event; with it the connection can be used again."""
        assert self._reply is not None
        try:
            async with asyncio.timeout(_DRAIN_S):
                await self._reply.content.readany()
        except (aiohttp.ClientError, TimeoutError):
            self._reply.close()

    def _over(self, stream: Stream) -> bool:
        told = stream.usage.output if stream.usage is not None else 0
        return max(stream.pieces, told) > self.ticket.output_all

    def _settle(self, stream: Stream, ended: str) -> None:
        whole = stream.complete and stream.usage is not None
        usage: Usage | None = stream.usage if whole else None
        if ended == "cut":
            usage = self.ticket.guess(stream.usage, 0)
            usage.output = self.ticket.output_all
        self._charge(usage or self.ticket.guess(stream.usage, stream.characters), ended)

    def _charge(self, usage: Usage, ended: str) -> None:
        if not self.ended:
            self.ended, self.usage = ended, usage
            self.ticket.settle(usage, self._result(ended))

    def _passed(self, data: bytes) -> bytes:
        """Counts what goes to the agent; the key does not."""
        data = self.client.scrub(data)
        self._hash.update(data)
        if self._bodies is not None and len(self._kept) <= MAX_BODY_BYTES:
            self._kept += data
        self._bytes += len(data)
        return data

    def _result(self, ended: str) -> dict[str, Any]:
        status = self._reply.status if self._reply is not None else None
        result = {"ended": ended, "status": status, "tries": self._tries, "bytes": self._bytes}
        if self._bytes:
            result["sha256"] = self._hash.hexdigest()
            if self._bodies is not None:
                result |= self._bodies.keep("reply", bytes(self._kept))
        return result


class Exchanges:
    """Makes exchanges: the one place where a model call is decided."""

    def __init__(
        self,
        kernel: Kernel,
        meter: Meter,
        clients: Mapping[str, Client],
        infer: Infer,
        on_failure: Callable[[str], None],
    ) -> None:
        self._kernel, self._meter, self._clients = kernel, meter, clients
        self._detect = infer.detect or "off"
        self._keeper = Keeper(kernel, on_failure)
        meter.changed = self._keeper.keep
        self._bodies = Bodies(kernel.log.path.with_name("bodies"), kernel.log.redactor) if infer.log_bodies else None

    async def begin(self, caller: Caller, endpoint: Endpoint, body: Body, raw: bytes, upstream: str) -> Exchange:
        """`body` is what the agent sent (`raw`), decoded, with its alias replaced; it is changed here. Raises CallError
        (denied, over budget) or WireError."""
        client = self._clients[upstream]
        streamed = body.get("stream") is True and endpoint.stream is not None
        own = streamed and endpoint.ask_usage(body)
        secrets = "" if self._detect == "off" else await asyncio.to_thread(_secrets_in, body)
        if secrets and self._detect == "redact":
            body = await asyncio.to_thread(_without_secrets, body)
        blocked = secrets if self._detect == "block" else ""
        data = encode(body)
        facts = endpoint.facts(body, len(data))
        effect = Effect(op=Op.INFER, target=f"model:{facts.model}")
        decision = self._kernel.decide(caller.agent, effect)
        if decision.code is Code.APPROVAL_REQUIRED:
            agent = self._kernel.agent(caller.agent)
            decision = await asyncio.to_thread(self._kernel.ask, agent, effect, decision)
        if decision.allowed and endpoint is anthropic.MESSAGES and facts.prompt is not None and not blocked:
            facts = msgspec.structs.replace(facts, prompt=await self._counted(caller.agent, client, body, facts.prompt))
        detail = {
            "api": endpoint.name, "upstream": upstream, "stream": streamed, "bytes": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }  # fmt: skip
        if secrets and not blocked:
            detail["removed"] = secrets
        if self._bodies is not None and not blocked:
            detail |= self._bodies.keep("request", data if secrets else raw)
        ticket = self._meter.open(caller, facts, decision, detail, metered=endpoint.metered, secrets=blocked)
        if ticket.write_cap:
            endpoint.cap(body, ticket.output, client.official)
            data = encode(body)
        if endpoint.metered:
            self._keeper.keep(caller.agent)
        return Exchange(endpoint, client, ticket, data, streamed, own, self._bodies)

    async def close(self) -> None:
        """What calls have used is on disk."""
        await self._keeper.flush()

    async def _counted(self, caller: AgentId, client: Client, body: Body, bound: int) -> int:
        """The bound, or the provider's own count (which is free) where the bound alone would make the call smaller or
        refuse it."""
        left = self._meter.left(caller)
        asked = body.get("max_tokens")
        if left is None or bound + (asked if isinstance(asked, int) else 0) <= left:
            return bound
        counted = {name: body[name] for name in _COUNTED if name in body}
        try:
            reply, _ = await client.send("POST", anthropic.COUNT_TOKENS.path, "", {}, encode(counted), stream=False)
            value = msgspec.json.decode(await _read(reply, MAX_ERROR_BYTES)) if reply.status == 200 else None
            reply.release()
        except (UpstreamDown, aiohttp.ClientError, TimeoutError, WireError, msgspec.DecodeError):
            return bound
        tokens = value.get("input_tokens") if isinstance(value, dict) else None
        return min(bound, int(tokens * _COUNT_MARGIN) + 1) if isinstance(tokens, int) and tokens >= 0 else bound


def _secrets_in(body: Body) -> str:
    """What looks like a secret in a request, by kind, and where the first of each kind is; "" for nothing."""
    from akbox.kernel.detect import scan

    first: dict[str, str] = {}
    for finding in scan(body):
        first.setdefault(finding.kind, finding.path)
    return ", ".join(f"{kind} at {path}" for kind, path in sorted(first.items()))[:1000]


def _without_secrets(body: Body) -> Body:
    """A copy with a mask in their places. What the request asks for is not text, and stays."""
    from akbox.kernel.detect import scrubbed

    return {name: value if name in _NOT_TEXT else scrubbed(value) for name, value in body.items()}


async def _read(reply: aiohttp.ClientResponse, most: int) -> bytes:
    data = bytearray()
    async for chunk in reply.content.iter_any():
        data += chunk
        if len(data) > most:
            raise WireError(f"the reply is over {most} bytes")
    return bytes(data)
