"""AsyncAuthorityKernel: the same methods as coroutines. A call blocks in a system call, so each runs in a worker
thread."""

from __future__ import annotations

import asyncio
from functools import partial

from .kernel import AuthorityKernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from .kernel import Json, Patch, Transport
    from .types import AuthorizationDetails, DenialInfo, Handle

    T = TypeVar("T")


class AsyncAuthorityKernel:
    """See AuthorityKernel. `async with` and plain use both work. `sync` is the AuthorityKernel underneath."""

    def __init__(self, transport: Transport | None = None, *, debug: bool = False) -> None:
        self.sync = AuthorityKernel(transport, debug=debug)

    async def __aenter__(self) -> AsyncAuthorityKernel:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.sync.shutdown()

    @staticmethod
    async def _run(function: Callable[..., T], *args: Any, **more: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **more))

    async def syscall(self, nr: int, args: dict[str, Any] | None = None, cap: str | None = None) -> dict[str, Any]:
        return await self._run(self.sync.syscall, nr, args, cap)

    async def alloc(self, type_name: str, value: bytes | str | Json = b"") -> Handle:
        return await self._run(self.sync.alloc, type_name, value)

    async def read(self, handle: Handle | int) -> bytes:
        return await self._run(self.sync.read, handle)

    async def read_object(self, handle: Handle | int) -> dict[str, Any]:
        return await self._run(self.sync.read_object, handle)

    async def write(self, handle: Handle | int, patch: Patch, expected_version: int = 0) -> int:
        return await self._run(self.sync.write, handle, patch, expected_version)

    async def delete(self, handle: Handle | int, expected_version: int = 0) -> None:
        await self._run(self.sync.delete, handle, expected_version)

    async def batch(self, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return await self._run(self.sync.batch, operations)

    async def query(self, what: str = "objects", **args: Any) -> dict[str, Any]:
        return await self._run(self.sync.query, what, **args)

    async def authorize(self, operation: str, target: str) -> bool:
        return await self._run(self.sync.authorize, operation, target)

    async def authorize_details(self, operation: str, target: str) -> AuthorizationDetails:
        return await self._run(self.sync.authorize_details, operation, target)

    async def get_last_denial(self) -> DenialInfo | None:
        return await self._run(self.sync.get_last_denial)

    async def budget_status(self, resource: str | None = None) -> dict[str, Any]:
        return await self._run(self.sync.budget_status, resource)

    async def commit(self) -> dict[str, Any]:
        return await self._run(self.sync.commit)

    async def audit_query(self, query: dict[str, Any] | None = None, **filters: Any) -> list[dict[str, Any]]:
        return await self._run(self.sync.audit_query, query, **filters)

    async def audit_log(self, event_type: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
        return await self._run(self.sync.audit_log, event_type, details)

    async def call_tool(self, tool_name: str, params: bytes | dict[str, Any] | None = None) -> dict[str, Any]:
        return await self._run(self.sync.call_tool, tool_name, params)

    tool_call = call_tool

    async def http_request(self, method: str, url: str, body: str | None = None, **more: Any) -> dict[str, Any]:
        return await self._run(self.sync.http_request, method, url, body, **more)

    async def spawn(self, program: str, argv: list[str] | None = None, **more: Any) -> dict[str, Any]:
        return await self._run(self.sync.spawn, program, argv, **more)

    async def send(self, to: str, payload: Json, **more: Any) -> dict[str, Any]:
        return await self._run(self.sync.send, to, payload, **more)

    async def recv(self, limit: int = 10, timeout_ms: int = 0) -> list[dict[str, Any]]:
        return await self._run(self.sync.recv, limit, timeout_ms)

    async def respond(self, content: Json) -> dict[str, Any]:
        return await self._run(self.sync.respond, content)

    async def assert_(self, name: str, value: bool, message: str | None = None, halt: bool = False) -> dict[str, Any]:
        return await self._run(self.sync.assert_, name, value, message, halt)

    async def inference(self, model: str, prompt: str | list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return await self._run(self.sync.inference, model, prompt, **more)

    async def capabilities(self) -> list[dict[str, Any]]:
        return await self._run(self.sync.capabilities)

    async def cap_derive(self, cap: str, **narrower: Any) -> str:
        return await self._run(self.sync.cap_derive, cap, **narrower)

    async def cap_revoke(self, cap: str, reason: str = "") -> bool:
        return await self._run(self.sync.cap_revoke, cap, reason)

    async def approvals(self) -> list[dict[str, Any]]:
        return await self._run(self.sync.approvals)

    async def trace(self, limit: int = 100) -> list[dict[str, Any]]:
        return await self._run(self.sync.trace, limit)

    async def policy_suggest(self) -> list[dict[str, Any]]:
        return await self._run(self.sync.policy_suggest)

    async def file_read(self, path: str, max_size: int = 10 * 1024 * 1024) -> bytes:
        return await self._run(self.sync.file_read, path, max_size)

    async def file_write(self, path: str, data: bytes) -> None:
        await self._run(self.sync.file_write, path, data)
