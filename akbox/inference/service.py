"""The gateway's life in one run: a port before the run is planned, a thread with an event loop while it lasts.

`Listener` is cheap and made first, because the agent's policy and environment name its port. aiohttp is loaded by the
thread, while the agent starts; whoever connects before that waits in the socket's backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from akbox.kernel.codes import CallError, Code

if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine

    from akbox.inference.exchange import Exchanges
    from akbox.inference.gateway import Gateway, Identify
    from akbox.inference.routing import Router
    from akbox.inference.upstream import Client
    from akbox.kernel.calls.inference import InferenceArgs
    from akbox.kernel.effect import AgentId
    from akbox.kernel.kernel import Kernel
    from akbox.policy.model import Infer

_CLOSE_S = 10.0


class Service:
    """`start`, `close`; `run` a coroutine of its loop from any other thread."""

    def __init__(
        self,
        listeners: list[socket.socket],
        kernel: Kernel,
        infer: Infer,
        keys: Mapping[str, str],
        identify: Identify,
        on_failure: Callable[[str], None],
    ) -> None:
        """`keys`: an upstream's name to its key. `listeners` are the service's to close."""
        self._listeners, self._kernel, self._infer, self._keys = listeners, kernel, infer, keys
        self._identify, self._on_failure = identify, on_failure
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name="akbox-gateway", daemon=True)
        self.router: Router
        self.exchanges: Exchanges

    def start(self) -> None:
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:  # Any: whatever it returns
        """Runs it in the gateway's loop and returns what it does. Raises what it does; RuntimeError when the gateway
        has ended."""
        self._ready.wait()
        if self._loop is None:
            coroutine.close()
            raise RuntimeError("the model gateway has ended")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def infer(self, subject: AgentId, args: InferenceArgs) -> dict[str, Any]:
        """INFERENCE, for any thread but the loop's own. Raises CallError."""
        from concurrent.futures import CancelledError

        from akbox.inference.call import infer

        self._ready.wait()
        try:
            found: dict[str, Any] = self.run(infer(self.exchanges, self.router, subject, args))
        except (CancelledError, RuntimeError) as error:
            raise CallError(Code.INFERENCE_FAIL, "the run is ending") from error
        return found

    def close(self) -> None:
        """Calls under way are aborted and settled; on return nothing of the gateway is left."""
        if self._thread.ident is None:
            for listener in self._listeners:
                listener.close()
            return
        self._ready.wait()
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(stop.set)
        self._thread.join(_CLOSE_S)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # the thread's edge: without its gateway the run is not what its policy says
            self._on_failure(f"internal error in the model gateway: {error!r}")
        finally:
            self._loop = None
            self._ready.set()
            for listener in self._listeners:
                listener.close()

    async def _serve(self) -> None:
        from aiohttp import web

        for name in ("aiohttp.server", "aiohttp.access", "aiohttp.client", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # standard error belongs to the agent
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        gateway, clients = self._build()
        server = web.Server(gateway.handle, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0)
        await runner.setup()
        try:
            for listener in self._listeners:
                await web.SockSite(runner, listener, backlog=1024).start()
            self._ready.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()
            for client in clients.values():
                await client.close()
            gateway.close()

    def _build(self) -> tuple[Gateway, dict[str, Client]]:
        from akbox.inference.exchange import Exchanges
        from akbox.inference.gateway import Gateway
        from akbox.inference.metering import Meter
        from akbox.inference.prices import Prices
        from akbox.inference.routing import Router
        from akbox.inference.upstream import Client

        clients = {name: Client(name, up, self._keys.get(name)) for name, up in self._infer.upstreams.items()}
        meter = Meter(self._kernel, Prices(self._infer.prices), self._infer.max_tokens)
        self.router = Router(self._infer)
        self.exchanges = Exchanges(self._kernel, self.router, meter, clients)
        gateway = Gateway(
            self._kernel, self.router, self.exchanges, clients, self._identify, self._on_failure
        )  # fmt: skip
        return gateway, clients
