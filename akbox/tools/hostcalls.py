"""What a tool may ask of akbox: each an effect of the agent that called it, decided and logged as the agent's own.

A host call has to be in the tool's manifest (else its module is not even linked) and granted by `wasm.hostcalls`; then
the effect itself is judged: the address by the network rules, the path by those on files. The entries name the tool.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import AgentId, Decision, Effect
from akbox.kernel.ops import Op
from akbox.kernel.strictjson import StrictJSONError, parse
from akbox.tools.failure import ToolFailure
from akbox.tools.registry import Tool

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from akbox.tools.box import ToolBox

    Resolve = Callable[[AgentId, str], "Names"]

CALLS_MAX = 10_000
LOG_LINE_BYTES_MAX = 4096
LOG_LINES_MAX = 100


class Names(msgspec.Struct, frozen=True):
    """What a name leads to for an agent: addresses that may be handed out, and why others are not."""

    addresses: Sequence[IPv4Address | IPv6Address] = ()
    withheld: str = ""


class _Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class Nothing(_Request):
    pass


class Http(_Request):
    """`body` is text, or bytes in base64 with `encoding`. `follow`: redirects, each judged anew."""

    url: Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = "GET"
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    body: str | None = None
    encoding: Literal["utf-8", "base64"] = "utf-8"
    follow: bool = True
    max_bytes: Annotated[int, msgspec.Meta(ge=0, le=8 << 20)] = 1 << 20


class Path(_Request):
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4095)]


class Read(Path):
    offset: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0
    max_bytes: Annotated[int, msgspec.Meta(ge=0, le=8 << 20)] = 1 << 20
    encoding: Literal["utf-8", "base64"] = "utf-8"


class Write(Path):
    content: str
    encoding: Literal["utf-8", "base64"] = "utf-8"
    append: bool = False


class List(Path):
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000


class Log(_Request):
    message: str


class Random(_Request):
    """`count` bytes, in base64."""

    count: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 32


class HostCalls:
    """Those of one call of a tool. `refusal`: the last one that was refused; `problem`: the last that went
    wrong; `failure`: what must end the call."""

    def __init__(self, box: ToolBox, subject: AgentId, tool: Tool, pid: int, end: float) -> None:
        self.box, self.kernel, self.subject, self.tool, self.pid, self.end = box, box.kernel, subject, tool, pid, end
        self.refusal: CallError | None = None
        self.problem: CallError | None = None
        self.failure: Exception | None = None
        self._granted: set[str] = set()
        self._count = 0
        self.lines = 0

    def serve(self, name: str, request: bytes) -> tuple[bool, bytes]:
        """The reply as JSON, and whether it is one of success. Raises nothing: a failure of akbox's own is kept for the
        call to end with."""
        if self.failure is not None:
            return False, b"{}"
        try:
            return True, msgspec.json.encode(self._serve(name, request))
        except CallError as error:
            if error.code in (Code.POLICY_DENY, Code.APPROVAL_REQUIRED, Code.BUDGET_EXCEEDED) or error.missing_cap:
                self.refusal = error
            self.problem = error
            body = {"code": int(error.code), "name": error.code.name, "message": error.message}
            return False, msgspec.json.encode({"error": body})
        except Exception as error:  # the edge to the tool: the log may have failed; the call must not go on
            self.failure = error
            return False, b"{}"

    def _serve(self, name: str, request: bytes) -> Any:
        self._count += 1
        if self._count > CALLS_MAX:
            raise ToolFailure("busy", f"more than {CALLS_MAX} host calls in one call of a tool")
        kind, work = HOST_TABLE[name]
        try:
            value = msgspec.convert(parse(request) if request else {}, kind)
        except StrictJSONError as error:
            raise CallError(Code.JSON_INVALID, f"{name}: {error}") from error
        except msgspec.ValidationError as error:
            raise CallError(Code.SCHEMA_INVALID, f"{name}: {error}") from error
        self._grant(name)
        return work(self, value)

    def _grant(self, name: str) -> None:
        """Once for each host call of a call of a tool."""
        if name in self._granted:
            return
        self.allow(Effect(op=Op.HOST_CALL, target=f"hostcall:{name}", detail=self.detail(), pid=self.pid), "hostcall")
        self._granted.add(name)

    def detail(self, **more: Any) -> dict[str, Any]:
        return {"tool": self.tool.name, **more}

    def count_bytes(self, count: int) -> None:
        """Into the agent's budget of bytes, where it has one. Raises CallError past it."""
        agent = self.kernel.agent(self.subject)
        if agent.ledger.limit("bytes") is not None and not self.kernel.charge(self.subject, "bytes", count):
            raise CallError(Code.BUDGET_EXCEEDED, "the budget of bytes is used up", missing_cap="budgets.bytes")

    def allow(self, effect: Effect, reason: str) -> Decision:
        """Decided and logged. Raises CallError for what is refused."""
        decision = self.kernel.authorize(self.subject, effect)
        if not decision.allowed:
            raise refusal(decision, effect, self.tool.name, reason)
        return decision

    def refuse(self, effect: Effect, message: str, reason: str, fix: str | None = None) -> CallError:
        """Logged as refused; the error to raise."""
        decision = self.kernel.refuse(self.subject, effect, CallError(Code.POLICY_DENY, message, suggested_fix=fix))
        return refusal(decision, effect, self.tool.name, reason)


def refusal(decision: Decision, effect: Effect, tool: str, reason: str) -> CallError:
    """What the caller of the tool gets when the tool gives up because of it."""
    return CallError(
        decision.code or Code.POLICY_DENY, f"tool {tool!r}: {effect.target}: {decision.reason}",
        missing_cap=decision.missing_cap, suggested_fix=decision.suggested_fix,
        details={"reason": reason, "refused_trace_id": decision.trace_id},
    )  # fmt: skip


def encoded(data: bytes, encoding: str) -> dict[str, str]:
    """Text as text; what is no UTF-8, or is asked for so, in base64."""
    if encoding == "utf-8":
        try:
            return {"content": data.decode("utf-8"), "encoding": "utf-8"}
        except UnicodeDecodeError:
            pass
    return {"content": base64.b64encode(data).decode("ascii"), "encoding": "base64"}


def decoded(content: str, encoding: str) -> bytes:
    """Raises CallError."""
    if encoding == "utf-8":
        return content.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(content, validate=True)
    except ValueError as error:
        raise CallError(Code.SCHEMA_INVALID, f"not base64: {error}") from error


def _http(host: HostCalls, request: Http) -> Any:
    from akbox.tools.web import fetch

    return fetch(host, request)


def _file(work: str) -> Callable[[HostCalls, Any], Any]:
    def call(host: HostCalls, request: Any) -> Any:
        from akbox.tools import files

        return getattr(files, work)(host, request)

    return call


def _kernel_call(nr: Op) -> Callable[[HostCalls, Any], Any]:
    """One of the agent's own authority calls, made by its tool."""

    def call(host: HostCalls, request: dict[str, Any]) -> Any:
        data = msgspec.json.encode({"args": request})
        reply = host.kernel.call(host.subject, nr, data, pid=host.pid, tool=host.tool.name)
        body = msgspec.json.decode(reply.body)
        if reply.errno == 0:
            return body["result"]
        error = body["error"]
        raise CallError(
            Code[error["name"]], error["message"], missing_cap=error.get("missing_cap"),
            suggested_fix=error.get("suggested_fix"),
        )  # fmt: skip

    return call


def _log(host: HostCalls, request: Log) -> Any:
    """A line of the tool's own in the log, cut to what an entry may hold."""
    host.lines += 1
    if host.lines > LOG_LINES_MAX:
        raise CallError(Code.QUOTA_EXCEEDED, f"at most {LOG_LINES_MAX} lines")
    text = request.message.encode("utf-8", "replace")[:LOG_LINE_BYTES_MAX].decode("utf-8", "ignore")
    host.allow(
        Effect(op=Op.HOST_CALL, target="hostcall:log", detail=host.detail(message=text), pid=host.pid), "hostcall"
    )
    return {}


HOST_TABLE: dict[str, tuple[Any, Callable[[HostCalls, Any], Any]]] = {
    "http_request": (Http, _http),
    "fs_read": (Read, _file("read")),
    "fs_write": (Write, _file("write")),
    "fs_list": (List, _file("list_")),
    "fs_stat": (Path, _file("stat_")),
    "heap_read": (dict[str, Any], _kernel_call(Op.READ)),
    "heap_write": (dict[str, Any], _kernel_call(Op.WRITE)),
    "llm_complete": (dict[str, Any], _kernel_call(Op.INFERENCE)),
    "log": (Log, _log),
    "time_now": (Nothing, lambda _host, _request: {"unix_ns": time.time_ns()}),
    "random": (Random, lambda _host, r: {"bytes": base64.b64encode(os.urandom(r.count)).decode("ascii")}),
}
