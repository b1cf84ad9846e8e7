"""The tools of one run, as the kernel calls them: found, checked against their schemas, run, their results judged.

Cheap to make: nothing is read before the first question, and wasmtime is loaded with the first call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from akbox.kernel.calls.tool import ToolAnswer
from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import AgentId, Effect
from akbox.kernel.kernel import Kernel
from akbox.kernel.ops import Op
from akbox.kernel.strictjson import StrictJSONError, parse
from akbox.tools.failure import ToolFailure
from akbox.tools.registry import Registry, Tool, check_signer

if TYPE_CHECKING:
    from akbox.tools.hostcalls import Resolve
    from akbox.tools.mcp_client import Client
    from akbox.tools.runtime import Outcome, Runtime

PARAMS_BYTES_MAX = 1 << 20


class Mounted(msgspec.Struct, frozen=True):
    """An MCP server that runs: what its tools say of themselves, and the names of those that wait for approval."""

    client: Client
    tools: dict[str, dict[str, Any]]
    held: frozenset[str]
    timeout_s: float


class ToolBox:
    """Implements akbox.kernel.calls.tool.Tools. `state`: the state directory; `cwd`: what relative paths of an agent's
    begin at; `resolve`: addresses of a name for an agent, None where names are not served; `extra`: a tool in
    development. Raises ToolFailure for one that is none."""

    def __init__(
        self, kernel: Kernel, state: Path, cwd: str, resolve: Resolve | None, extra: Path | None = None
    ) -> None:
        self.kernel, self.cwd, self.resolve = kernel, cwd, resolve
        self._registry = Registry(state, extra)
        self._cache = state / "tools-cache"
        self._lock = threading.Lock()  # guards what follows
        self._tools: dict[str, Tool] = {}
        self._runtime: Runtime | None = None
        self._validators: dict[tuple[str, str], Any] = {}  # Any: jsonschema has no types
        self._closed = False
        self._at_close: list[Callable[[], None]] = []
        self.mounts: dict[str, Mounted] = {}  # set before the first call

    def describe(self, subject: AgentId) -> Sequence[dict[str, Any]]:
        """Those that the agent may call, by name; one that cannot be read is left out, its call says why."""
        found = []
        for name in filter(lambda name: self._may_call(subject, name), self._registry.names()):
            try:
                manifest = self._tool(name).manifest
            except ToolFailure:
                continue
            found.append(
                {
                    "name": name,
                    "description": manifest.description,
                    "version": manifest.version,
                    "input_schema": manifest.input_schema,
                    "output_schema": manifest.output_schema,
                    "hostcalls": list(manifest.hostcalls),
                    "flags": msgspec.to_builtins(manifest.flags),
                }
            )
        for mount, server in self.mounts.items():
            found += [
                _of_server(f"{mount}.{tool}", said)
                for tool, said in server.tools.items()
                if tool not in server.held and self._may_call(subject, f"{mount}.{tool}")
            ]
        return found

    def _may_call(self, subject: AgentId, name: str) -> bool:
        decision = self.kernel.decide(subject, Effect(op=Op.CALL, target=f"tool:{name}"))
        return decision.allowed or decision.code is Code.APPROVAL_REQUIRED

    def check(self, tool: str, params: dict[str, Any]) -> None:
        """Before anything is decided: do the parameters fit? What cannot be loaded is said when it is called."""
        try:
            found = self._tool(tool)
        except ToolFailure:
            return
        problem = self._misfit(found, "input_schema", params)
        if problem is not None:
            raise CallError(
                Code.SCHEMA_INVALID, f"params{problem[0]}: {problem[1]}"[:1000],
                details={"reason": "params", "path": f"params{problem[0]}"},
            )  # fmt: skip

    def call(self, subject: AgentId, tool: str, params: dict[str, Any], pid: int) -> ToolAnswer:
        """Runs it. Raises CallError: a ToolFailure, or what one of its host calls was refused with when it ended
        because of that."""
        if "." in tool:
            return self._call_server(tool, params)
        found = self._tool(tool)
        self._check_module(subject, found, pid)
        stdin = msgspec.json.encode(params)
        if len(stdin) > PARAMS_BYTES_MAX:
            raise CallError(Code.SCHEMA_INVALID, f"params: at most {PARAMS_BYTES_MAX} bytes")
        from akbox.tools.hostcalls import HostCalls

        runtime = self._running()
        runtime.prepare(found)  # that it is compiled now is no part of its time
        end = time.monotonic() + found.manifest.limits.timeout_ms / 1000
        host = HostCalls(self, subject, found, pid, end)
        try:
            outcome = runtime.run(found, stdin, host.serve, end)
            result = self._result(found, outcome)
        except ToolFailure as failure:
            if host.failure is not None:
                raise host.failure from failure
            if failure.reason == "exit" and host.refusal is not None:
                raise host.refusal from failure
            if failure.reason == "exit" and host.problem is not None:
                raise ToolFailure("exit", f"tool {tool!r}: {host.problem.message}") from failure
            raise
        return ToolAnswer(result, outcome.usage())

    def _call_server(self, tool: str, params: dict[str, Any]) -> ToolAnswer:
        """One of a mounted server's. What it says of itself must be what its user has approved."""
        mount, _, name = tool.partition(".")
        server = self.mounts.get(mount)
        if server is None or name not in server.tools:
            raise ToolFailure("unknown", f"there is no tool {tool!r}")
        if name in server.held:
            raise CallError(
                Code.APPROVAL_REQUIRED, f"tool {tool!r} says something else of itself than what was approved",
                suggested_fix=f"akbox tool approve {tool}, once you have read `akbox tool held`",
                details={"reason": "held"},
            )  # fmt: skip
        began = time.monotonic_ns()
        result = server.client.call(name, params, time.monotonic() + server.timeout_s)
        return ToolAnswer(result, {"duration_us": (time.monotonic_ns() - began) // 1000})

    def close(self) -> None:
        """Ends calls under way; those that come later are refused."""
        with self._lock:
            self._closed = True
            runtime, work = self._runtime, self._at_close
            self._runtime, self._at_close = None, []
        for end in work:
            end()
        if runtime is not None:
            runtime.close()

    def until_closed(self, end: Callable[[], None]) -> Callable[[], None]:
        """`end` is called if the box is closed before what is returned is. Raises ToolFailure when it is closed."""
        with self._lock:
            if self._closed:
                raise ToolFailure("ending", "the run is ending")
            self._at_close.append(end)

        def over() -> None:
            with self._lock:
                if end in self._at_close:
                    self._at_close.remove(end)

        return over

    def _tool(self, name: str) -> Tool:
        with self._lock:
            found = self._tools.get(name)
        if found is None:
            found = self._registry.load(name)
            with self._lock:
                self._tools[name] = found
        return found

    def _check_module(self, subject: AgentId, tool: Tool, pid: int) -> None:
        """A tool that was added also needs its module allowed, and signed where a policy says so."""
        if tool.builtin:
            return
        detail = {"tool": tool.name, "sha256": tool.digest, "signed_by": tool.signer}
        effect = Effect(op=Op.WASM_RUN, target=f"wasm:{tool.name}", detail=detail, pid=pid)
        decision = self.kernel.authorize(subject, effect)
        if not decision.allowed:
            raise CallError(
                decision.code or Code.POLICY_DENY, f"module of tool {tool.name!r}: {decision.reason}",
                missing_cap=decision.missing_cap, suggested_fix=decision.suggested_fix,
                details={"reason": "module_not_allowed"},
            )  # fmt: skip
        for layer in self.kernel.agent(subject).layers:
            if layer.policy.signed_by is not None:
                check_signer(tool, layer.policy.signed_by)

    def _running(self) -> Runtime:
        with self._lock:
            if self._closed:
                raise ToolFailure("ending", "the run is ending")
            if self._runtime is None:
                try:
                    from akbox.tools.runtime import Runtime
                except (ImportError, OSError) as error:
                    raise ToolFailure("unavailable", f"wasmtime cannot be loaded: {error}") from error
                self._runtime = Runtime(self._cache)
            return self._runtime

    def _result(self, tool: Tool, outcome: Outcome) -> Any:
        try:
            value = parse(outcome.stdout)
        except StrictJSONError as error:
            raise ToolFailure("output_json", f"tool {tool.name!r} wrote no JSON: {error}") from error
        problem = self._misfit(tool, "output_schema", value)
        if problem is not None:
            text = f"tool {tool.name!r}: its result{problem[0]}: {problem[1]}"
            raise ToolFailure("output_schema", text[:1000])
        return value

    def _misfit(self, tool: Tool, which: str, value: Any) -> tuple[str, str] | None:
        """(path, message) of the first thing that does not fit the schema."""
        schema = getattr(tool.manifest, which)
        if schema is None:
            return None
        import re

        from referencing.exceptions import Unresolvable

        key = (tool.name, which)
        with self._lock:
            validator = self._validators.get(key)
        if validator is None:
            validator = _validator(schema)
            with self._lock:
                self._validators[key] = validator
        try:
            error = next(validator.iter_errors(value), None)
        except (Unresolvable, RecursionError, re.error) as problem:
            raise ToolFailure(
                "manifest", f"tool {tool.name!r}: its {which} can't be applied: {problem}"[:500]
            ) from None
        if error is None:
            return None
        return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path), error.message


def _of_server(name: str, said: dict[str, Any]) -> dict[str, Any]:
    schema = said.get("inputSchema")
    hints = said.get("annotations")
    hints = hints if isinstance(hints, dict) else {}
    return {
        "name": name,
        "description": str(said.get("description", "")),
        "version": "",
        "input_schema": schema if isinstance(schema, dict) else {"type": "object"},
        "output_schema": None,
        "hostcalls": [],
        "flags": {
            "idempotent": hints.get("idempotentHint") is True,
            "sensitive": False,
            "read_only": hints.get("readOnlyHint") is True,
        },
    }


def _validator(schema: dict[str, Any]) -> Any:
    from jsonschema.validators import validator_for
    from referencing import Registry as Schemas

    return validator_for(schema)(schema, registry=Schemas())  # an empty registry: nothing is ever fetched
