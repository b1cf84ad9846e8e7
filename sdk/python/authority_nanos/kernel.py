"""AuthorityKernel: one method per authority call, and the conveniences of the original SDK."""

from __future__ import annotations

import json
import os

from .errors import AuthorityKernelError, InvalidArgumentError, NotFoundError, error_from_reply
from .files import file_read, file_write
from .transport import default_transport
from .types import AuthorizationDetails, DenialInfo, Handle, Syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Transport = Callable[[int, bytes], tuple[int, bytes]]
    Json = Any  # a JSON value
    Patch = bytes | str | list[dict[str, Any]]

_HTTP_TOOLS = {"GET": "http_get", "POST": "http_post"}
_FILE_OPS = ("read", "write", "fs.", "exec", "file_", "spawn", "stat")


class AuthorityKernel:
    """The kernel of this run, seen from inside. Usable with and without `with`; thread-safe; makes no call by itself.

    `transport(nr, request) -> (errno, reply)` replaces the doors of transport.py, for tests and other channels.
    """

    def __init__(self, transport: Transport | None = None, *, debug: bool = False) -> None:
        self._transport = default_transport() if transport is None else transport
        self._debug = debug
        self.budget = Budget(self)

    def __enter__(self) -> AuthorityKernel:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()

    def init(self) -> None:
        """Nothing to do; kept for programs written for the original SDK."""

    def shutdown(self) -> None:
        """Nothing to do; kept for programs written for the original SDK."""

    def syscall(self, nr: int, args: dict[str, Any] | None = None, cap: str | None = None) -> dict[str, Any]:
        """Makes authority call `nr` and returns the reply's result. Raises the typed error of the reply."""
        request: dict[str, Any] = {"args": args or {}}
        if cap is not None:
            request["cap"] = cap
        error, body = self._transport(int(nr), json.dumps(request, allow_nan=False).encode("utf-8"))
        try:
            reply = json.loads(body.decode("utf-8")) if body else {}
        except ValueError:  # an error reply that was cut to the buffer
            reply = {}
        if error == 0 and isinstance(reply, dict) and reply.get("ok") is True:
            result = reply["result"]
            return result if isinstance(result, dict) else {"value": result}
        problem = reply.get("error") if isinstance(reply, dict) else None
        if isinstance(problem, dict):
            raise error_from_reply(problem, error)
        raise AuthorityKernelError(f"authority call {nr}: {os.strerror(error)}", errno=error)

    # ---- typed heap ------------------------------------------------------------------------------------------------

    def alloc(self, type_name: str, value: bytes | str | Json = b"") -> Handle:
        """Makes an object. `value`: a JSON value, or JSON text as bytes (empty: null; a str is a JSON string)."""
        result = self.syscall(Syscall.ALLOC, {"type": type_name, "value": _json_value(value)})
        return Handle(int(result["ptr"]), int(result["version"]))

    def read(self, handle: Handle | int) -> bytes:
        """The object's value as JSON text, without blanks."""
        value = self.read_object(handle)["value"]
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")

    def read_object(self, handle: Handle | int) -> dict[str, Any]:
        """{ptr, type, version, value, taint}."""
        return self.syscall(Syscall.READ, {"ptr": _ptr(handle)})

    def write(self, handle: Handle | int, patch: Patch, expected_version: int = 0) -> int:
        """Applies a JSON Patch (RFC 6902, and `set`) and returns the new version. With `expected_version` only if that
        is the version there, else ConflictError; 0 does not check."""
        args = {"ptr": _ptr(handle), "patch": _patch(patch), "expected_version": expected_version}
        return int(self.syscall(Syscall.WRITE, args)["version"])

    def delete(self, handle: Handle | int, expected_version: int = 0) -> None:
        self.syscall(Syscall.DELETE, {"ptr": _ptr(handle), "expected_version": expected_version})

    def batch(self, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Up to 100 of {"op": "alloc", type, value}, {"op": "write", ptr, patch}, {"op": "delete", ptr}: all or
        nothing."""
        return list(self.syscall(Syscall.BATCH, {"operations": operations})["results"])

    def query(self, what: str = "objects", **args: Any) -> dict[str, Any]:
        """Asks about objects, audit, authorize, budget, capabilities, tools or agents."""
        return self.syscall(Syscall.QUERY, dict(args, what=what))

    # ---- authorization ---------------------------------------------------------------------------------------------

    def authorize(self, operation: str, target: str) -> bool:
        """May it be done? `operation` as in a policy ("fs.read", "net.connect") or short ("READ"), in any case."""
        return self.authorize_details(operation, target).authorized

    def authorize_details(self, operation: str, target: str) -> AuthorizationDetails:
        """The answer with its reason, the rule that decided and what would allow it. A file is judged as it
        resolves."""
        if operation.lower().startswith(_FILE_OPS) and "://" not in target:
            target = os.path.realpath(target)
        return AuthorizationDetails(self.query("authorize", op=operation, target=target))

    def get_last_denial(self) -> DenialInfo | None:
        """The last thing this agent was refused, or None."""
        try:
            return DenialInfo(self.syscall(Syscall.LAST_ERROR))
        except NotFoundError:
            return None

    def budget_status(self, resource: str | None = None) -> dict[str, Any]:
        """{resource, limit, used, reserved, remaining} of one budget, or {name: {limit, …}} of all. None: unlimited."""
        if resource is not None:
            return self.syscall(Syscall.BUDGET_STATUS, {"resource": resource})
        return dict(self.syscall(Syscall.BUDGET_STATUS)["budgets"])

    # ---- the log ---------------------------------------------------------------------------------------------------

    def commit(self) -> dict[str, Any]:
        """Everything so far is on disk and signed: {seq, hash, checkpoint}."""
        return self.syscall(Syscall.COMMIT)

    def audit_query(self, query: dict[str, Any] | None = None, **filters: Any) -> list[dict[str, Any]]:
        """Entries of the log, by from_seq, to_seq, op, limit."""
        return list(self.query("audit", **dict(query or {}, **filters))["entries"])

    audit_logs = audit_query

    def audit_log(self, event_type: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
        """Puts an event of the agent's own into the log."""
        return self.syscall(Syscall.ASSERT, {"event": event_type, "details": details or {}})

    # ---- tools, agents, models -------------------------------------------------------------------------------------

    def call_tool(self, tool_name: str, params: bytes | dict[str, Any] | None = None) -> dict[str, Any]:
        return self.syscall(Syscall.CALL, {"tool": tool_name, "params": _json_value(params or {})})

    tool_call = call_tool

    def http_request(self, method: str, url: str, body: str | None = None, **more: Any) -> dict[str, Any]:
        """{status, headers, body, …} by the tools http_get and http_post; `more`: headers, follow, max_bytes."""
        tool = _HTTP_TOOLS.get(method.upper())
        if tool is None or (body is not None and tool == "http_get"):
            raise InvalidArgumentError(f"{method}: tools make GET requests without a body, and POST requests")
        params = dict(more, url=url)
        if body is not None:
            params["body"] = body
        return self.call_tool(tool, params)

    def spawn(self, program: str, argv: list[str] | None = None, **more: Any) -> dict[str, Any]:
        return self.syscall(Syscall.SPAWN, dict(more, program=program, argv=argv or [program]))

    def send(self, to: str, payload: Json, **more: Any) -> dict[str, Any]:
        return self.syscall(Syscall.SEND, dict(more, to=to, payload=payload))

    def recv(self, limit: int = 10, timeout_ms: int = 0) -> list[dict[str, Any]]:
        return list(self.syscall(Syscall.RECV, {"limit": limit, "timeout_ms": timeout_ms})["messages"])

    def respond(self, content: Json) -> dict[str, Any]:
        return self.syscall(Syscall.RESPOND, {"content": content})

    def assert_(self, name: str, value: bool, message: str | None = None, halt: bool = False) -> dict[str, Any]:
        args: dict[str, Any] = {"name": name, "value": value, "halt": halt}
        if message is not None:
            args["message"] = message
        return self.syscall(Syscall.ASSERT, args)

    def inference(self, model: str, prompt: str | list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """`prompt`: a string, or messages [{role, content}]."""
        key = "prompt" if isinstance(prompt, str) else "messages"
        return self.syscall(Syscall.INFERENCE, dict(more, model=model, **{key: prompt}))

    # ---- capabilities, approvals, decisions ------------------------------------------------------------------------

    def capabilities(self) -> list[dict[str, Any]]:
        """What this agent holds, each with its tid."""
        return list(self.query("capabilities")["capabilities"])

    def cap_derive(self, cap: str, **narrower: Any) -> str:
        """A token from one that the agent has, or from what it holds by its tid: `resource`, `methods`, `ttl_ms`,
        `rate_limit` with `rate_window_ms`, `agent`. It can do at most what `cap` can."""
        return str(self.syscall(Syscall.CAP, dict(narrower, op="derive", cap=cap))["token"])

    def cap_revoke(self, cap: str, reason: str = "") -> bool:
        """Ends a capability and everything that was derived from it. False: it was revoked before."""
        return bool(self.syscall(Syscall.CAP, {"op": "revoke", "cap": cap, "reason": reason})["revoked"])

    def approvals(self) -> list[dict[str, Any]]:
        """What waited or waits for a person, and what became of it."""
        return list(self.syscall(Syscall.APPROVAL, {"op": "list"})["requests"])

    def trace(self, limit: int = 100) -> list[dict[str, Any]]:
        """The last decisions about this agent."""
        return list(self.syscall(Syscall.TRACE, {"limit": limit})["entries"])

    def policy_suggest(self) -> list[dict[str, Any]]:
        """For each refusal so far, what would have allowed it."""
        return list(self.syscall(Syscall.POLICY_SUGGEST)["suggestions"])

    # ---- files -----------------------------------------------------------------------------------------------------

    def file_read(self, path: str, max_size: int = 10 * 1024 * 1024) -> bytes:
        """The file's bytes, by plain open(2). Raises OperationDeniedError (with what would allow it), NotFoundError,
        BufferOverflowError; OSError for the rest."""
        return file_read(self, path, max_size)

    def file_write(self, path: str, data: bytes) -> None:
        """Replaces the file's content. Errors as for file_read."""
        file_write(self, path, data)


class Budget:
    """`ak.budget`: what this agent may still spend."""

    def __init__(self, kernel: AuthorityKernel) -> None:
        self._kernel = kernel

    def status(self) -> dict[str, Any]:
        return self._kernel.budget_status()

    def remaining(self, resource: str) -> float | None:
        """What is left; None: unlimited."""
        value = self._kernel.budget_status(resource)["remaining"]
        return None if value is None else value

    def history(self, count: int = 60) -> list[dict[str, Any]]:
        return list(self._kernel.syscall(Syscall.BUDGET_HISTORY, {"count": count})["snapshots"])


def _ptr(handle: Handle | int) -> int:
    return handle.id if isinstance(handle, Handle) else int(handle)


def _json_value(value: Any) -> Any:
    """bytes are JSON text (as in the original SDK), anything else is the value itself."""
    if not isinstance(value, (bytes, bytearray)):
        return value
    if not value:
        return None
    try:
        return json.loads(bytes(value).decode("utf-8"))
    except ValueError as error:
        raise InvalidArgumentError(f"not JSON: {error}") from None


def _patch(patch: Patch) -> Any:
    return _json_value(patch.encode("utf-8")) if isinstance(patch, str) else _json_value(patch)
