"""The gateway's life in one run: a port before the run is planned, a thread with an event loop while it lasts.

The port is there first, because the agent's policy and environment name it. The thread waits for the first caller;
then it loads aiohttp, a tenth of a second once, so that a run that asks no model pays nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from akbox.kernel.codes import CallError, Code

if TYPE_CHECKING:
    import asyncio
    import socket

    from akbox.inference.exchange import Exchanges
    from akbox.inference.gateway import Gateway
    from akbox.inference.routing import Router
    from akbox.inference.upstream import Client
    from akbox.kernel.calls.inference import InferenceArgs
    from akbox.kernel.effect import AgentId
    from akbox.kernel.kernel import Kernel
    from akbox.policy.model import Infer

_CLOSE_S = 10.0


class Service:
    """`start`, `close`; `infer` from any other thread."""

    def __init__(
        self,
        listeners: list[socket.socket],
        kernel: Kernel,
        infer: Infer,
        keys: Mapping[str, str],
        on_failure: Callable[[str], None],
    ) -> None:
        """`keys`: an upstream's name to its key. `listeners` are the service's to close."""
        self._listeners, self._kernel, self._infer, self._keys = listeners, kernel, infer, keys
        self._on_failure = on_failure
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._lock = threading.Lock()  # guards the next four, which the thread and its callers both set
        self._stop: asyncio.Event | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC)
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="akbox-gateway", daemon=True)
        self._router: Router | None = None
        self._exchanges: Exchanges | None = None

    def start(self) -> None:
        self._thread.start()

    def infer(self, subject: AgentId, args: InferenceArgs) -> dict[str, Any]:
        """INFERENCE, for any thread but the loop's own. Raises CallError."""
        from concurrent.futures import CancelledError

        with self._lock:
            self._nudge()
        self._ready.wait()
        try:
            return self._ask(subject, args)
        except (CancelledError, RuntimeError) as error:  # RuntimeError: the loop has ended
            raise CallError(Code.INFERENCE_FAIL, "the run is ending") from error

    def close(self) -> None:
        """Calls under way are aborted and settled; on return nothing of the gateway is left."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            if self._loop is not None and self._stop is not None:
                self._loop.call_soon_threadsafe(self._stop.set)
            self._nudge()
        if self._thread.ident is None:
            self._end()
        else:
            self._thread.join(_CLOSE_S)

    def _nudge(self) -> None:
        """The thread, which may wait for its first caller, looks up. Precondition: locked."""
        if self._wake_write >= 0:
            os.write(self._wake_write, b"\0")

    def _ask(self, subject: AgentId, args: InferenceArgs) -> dict[str, Any]:
        import asyncio

        from akbox.inference.call import infer

        with self._lock:
            loop, exchanges, router = self._loop, self._exchanges, self._router
        if loop is None or exchanges is None or router is None:
            raise RuntimeError("the model gateway has ended")
        return asyncio.run_coroutine_threadsafe(infer(exchanges, router, subject, args), loop).result()

    def _main(self) -> None:
        import select

        try:
            callers: list[socket.socket | int] = [*self._listeners, self._wake_read]
            select.select(callers, [], [])
            if not self._stopping:
                import asyncio

                asyncio.run(self._serve())
        except Exception as error:  # the thread's edge: without its gateway the run is not what its policy says
            self._on_failure(f"internal error in the model gateway: {error!r}")
        finally:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._loop, self._stopping = None, True
            if self._wake_write >= 0:
                os.close(self._wake_read)
                os.close(self._wake_write)
                self._wake_read = self._wake_write = -1
        self._ready.set()
        for listener in self._listeners:
            listener.close()

    async def _serve(self) -> None:
        import asyncio
        import logging

        from aiohttp import web

        from akbox.inference.gateway import limited_server

        for name in ("aiohttp.server", "aiohttp.access", "aiohttp.client", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # standard error belongs to the agent
        gateway, clients = self._build()
        with self._lock:
            if self._stopping:
                return
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = limited_server(gateway.handle)
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
            if self._exchanges is not None:
                await self._exchanges.close()
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
        self._router = Router(self._infer)
        self._exchanges = Exchanges(self._kernel, meter, clients, self._infer, self._on_failure)
        return Gateway(self._kernel, self._router, self._exchanges, clients, self._on_failure), clients
