"""One call of a tool: a fresh instance, its streams and host calls, and what came of it as data or as a ToolFailure.

Only the module's code runs here: native code never does for a tool. What holds it is wasmtime's sandbox (bounds of
memory, typed calls, its mitigations against speculation, https://docs.wasmtime.dev/security.html), its fuel and epochs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import wasmtime

from akbox.tools import engine as engines
from akbox.tools import wasi
from akbox.tools.failure import ToolFailure
from akbox.tools.manifest import HOST_CALLS, Limits
from akbox.tools.registry import Tool

HOST_MODULE = "ak"
REPLY = "reply"
REQUEST_BYTES_MAX = 4 << 20
MAX_KEPT = 64  # compiled modules of one run
_MASKS = {"i32": 0xFFFF_FFFF, "i64": (1 << 64) - 1}

HostCall = Callable[[str, bytes], tuple[bool, bytes]]
"""(name, request as JSON) -> (went well, reply as JSON). Must not raise."""


class Outcome(msgspec.Struct, frozen=True):
    """What a tool wrote, and what that took."""

    stdout: bytes
    stderr: bytes
    duration_us: int
    fuel: int
    memory_bytes: int

    def usage(self) -> dict[str, int]:
        return {"duration_us": self.duration_us, "fuel": self.fuel, "memory_bytes": self.memory_bytes}


class _Call:
    """What a call's way out of WebAssembly needs to know of it; of one thread."""

    def __init__(self, streams: wasi.Streams, host: HostCall) -> None:
        self.streams, self.host = streams, host
        self.reply = b""
        self.stop: wasi.Stop | None = None


class Runtime:
    """Compiles and runs tools. Thread-safe. `cache`: a directory for compiled modules, or None."""

    def __init__(self, cache: Path | None) -> None:
        self._cache = cache
        self._engine = engines.make_engine()
        self._clock = engines.Clock(self._engine)
        self._local = threading.local()
        self._slots = threading.BoundedSemaphore(engines.MAX_INSTANCES)
        self._linker = self._link()
        self._lock = threading.Lock()
        self._ready: dict[tuple[str, tuple[str, ...]], wasmtime.InstancePre] = {}  # guarded by _lock

    def prepare(self, tool: Tool) -> wasmtime.InstancePre:
        """Compiled, its imports checked and bound. Raises ToolFailure."""
        key = (tool.digest, tool.manifest.hostcalls)
        with self._lock:
            found = self._ready.get(key)
        if found is not None:
            return found
        module = engines.compile_module(self._engine, tool.module, tool.digest, self._cache, tool.name)
        check_shape(module, tool.name, tool.manifest.hostcalls)
        try:
            made = self._linker.instantiate_pre(module)
        except wasmtime.WasmtimeError as error:
            raise ToolFailure("import", f"tool {tool.name!r}: {engines.first_line(error)}") from error
        with self._lock:
            if len(self._ready) >= MAX_KEPT:
                self._ready.pop(next(iter(self._ready)))
            self._ready[key] = made
        return made

    def run(self, tool: Tool, stdin: bytes, host: HostCall, end: float) -> Outcome:
        """Calls the tool once; it ends at `end` (time.monotonic()). Raises ToolFailure."""
        ready = self.prepare(tool)
        if not self._slots.acquire(timeout=max(end - time.monotonic(), 0)):
            raise ToolFailure("busy", f"{engines.MAX_INSTANCES} tools run already")
        try:
            return self._run(tool, ready, _Call(wasi.Streams(stdin, tool.manifest.limits.output_bytes), host), end)
        finally:
            self._slots.release()

    def close(self) -> None:
        """Ends what runs."""
        self._clock.stop()

    def _run(self, tool: Tool, ready: wasmtime.InstancePre, call: _Call, end: float) -> Outcome:
        limits = tool.manifest.limits
        began = time.monotonic_ns()
        store = engines.new_store(self._engine, limits)
        self._local.call = call
        try:
            self._clock.enter(store, end)
            size = 0
            try:
                instance = ready.instantiate(store)
                exports = instance.exports(store)
                memory = exports["memory"]
                assert isinstance(memory, wasmtime.Memory)
                start = exports["_start"]
                assert isinstance(start, wasmtime.Func)
                try:
                    start(store)
                finally:
                    size = memory.data_len(store)
            except Exception as error:  # wasmtime's edge: traps, and (from any thread's call, see _out) Stop
                self._judge(tool, call, error, store, size, end)
            finally:
                self._clock.leave()
            return Outcome(
                stdout=bytes(call.streams.stdout),
                stderr=bytes(call.streams.stderr),
                duration_us=(time.monotonic_ns() - began) // 1000,
                fuel=limits.fuel - store.get_fuel(),
                memory_bytes=size,
            )
        finally:
            self._local.call = None
            store.close()

    def _judge(self, tool: Tool, call: _Call, error: Exception, store: wasmtime.Store, size: int, end: float) -> None:
        """Why the call ended. The exception says so only if it is a trap: wasmtime-py keeps what a callback raised in
        one place for all threads, so which call a Stop is of is read from the call itself."""
        name, limits = tool.name, tool.manifest.limits
        if call.stop is not None:
            if call.stop.reason == "done":
                return
            message = f"tool {name!r}: {call.stop.message}"
            if call.stop.reason == "exit":
                message += _said(call.streams)
            raise ToolFailure(call.stop.reason, message) from None
        code = error.trap_code if isinstance(error, wasmtime.Trap) else None
        if code is wasmtime.TrapCode.INTERRUPT or time.monotonic() >= end:
            if time.monotonic() < end:
                raise ToolFailure("ending", "the run is ending") from None
            raise ToolFailure("timeout", f"tool {name!r} ran longer than its {limits.timeout_ms} ms") from None
        if code is wasmtime.TrapCode.OUT_OF_FUEL or store.get_fuel() == 0:
            raise ToolFailure("fuel", f"tool {name!r} used up its fuel ({limits.fuel})") from None
        if size > limits.memory_bytes * 3 // 4:  # a grow that is refused is no trap: what comes after it is
            text = f"tool {name!r} trapped with {size} of its {limits.memory_bytes} bytes of memory taken"
            raise ToolFailure("memory", text) from None
        if not size and isinstance(error, wasmtime.WasmtimeError):
            text = engines.first_line(error)
            reason = "memory" if "memory" in text else "module"
            raise ToolFailure(reason, f"tool {name!r} cannot be set up: {text}") from None
        what = code.name.lower().replace("_", " ") if code is not None else "it stopped"
        raise ToolFailure("trap", f"tool {name!r} trapped: {what}{_said(call.streams)}") from None

    def _link(self) -> wasmtime.Linker:
        linker = wasmtime.Linker(self._engine)
        kinds = {"i32": wasmtime.ValType.i32, "i64": wasmtime.ValType.i64}

        def define(module: str, name: str, params: tuple[str, ...], work: Callable[..., int], *, returns: bool) -> None:
            kind = wasmtime.FuncType([kinds[p]() for p in params], [wasmtime.ValType.i32()] if returns else [])
            masks = tuple(_MASKS[p] for p in params)
            linker.define_func(module, name, kind, _out(self._local, name, masks, work, returns), access_caller=True)

        for name, params in wasi.FUNCTIONS.items():
            define(wasi.MODULE, name, params, _to_wasi, returns=name != "proc_exit")
        for name in HOST_CALLS:
            define(HOST_MODULE, name, ("i32", "i32"), _to_host, returns=True)
        define(HOST_MODULE, REPLY, ("i32", "i32"), _fetch, returns=True)
        return linker


def _out(
    local: threading.local, name: str, masks: tuple[int, ...], work: Callable[..., int], returns: bool
) -> Callable[..., int | None]:
    """A way out of WebAssembly. What is raised in one reaches wasmtime as a trap. wasmtime-py keeps it in a table of
    its own, so it must not hold the runtime, which would never end then."""

    def out(caller: wasmtime.Caller, *numbers: int) -> int | None:
        call: _Call = local.call
        try:
            value = work(name, call, _memory(caller), tuple(n & m for n, m in zip(numbers, masks, strict=True)))
        except wasi.Stop as stop:
            call.stop = stop
            raise
        return value - (1 << 32) if value > 0x7FFF_FFFF else value if returns else None

    return out


def check_shape(module: wasmtime.Module, name: str, hostcalls: tuple[str, ...]) -> None:
    """What a tool may import, and has to export. Raises ToolFailure."""
    for item in module.imports:
        what = f"{item.module}.{item.name}"
        if not isinstance(item.type, wasmtime.FuncType):
            raise ToolFailure("import", f"tool {name!r} imports {what}, which is no function")
        if item.module == wasi.MODULE and item.name in wasi.FUNCTIONS:
            continue
        if item.module == HOST_MODULE and (item.name == REPLY or item.name in hostcalls):
            continue
        if item.module == HOST_MODULE and item.name in HOST_CALLS:
            raise ToolFailure(
                "hostcall_not_in_manifest", f"tool {name!r} imports {what}, which its manifest does not ask for",
                fix=f'hostcalls = ["{item.name}"] in its manifest',
            )  # fmt: skip
        raise ToolFailure("import", f"tool {name!r} imports {what}, which no tool gets")
    exports = {item.name: item.type for item in module.exports}
    start = exports.get("_start")
    if not isinstance(exports.get("memory"), wasmtime.MemoryType):
        raise ToolFailure("module", f"tool {name!r} exports no memory")
    if not isinstance(start, wasmtime.FuncType) or start.params or start.results:
        raise ToolFailure("module", f"tool {name!r} exports no _start without parameters and results")


def _memory(caller: wasmtime.Caller) -> wasi.Memory:
    memory = caller.get("memory")
    if not isinstance(memory, wasmtime.Memory):
        raise wasi.Stop("module", "its memory is gone")

    def read(start: int, stop: int) -> bytes:
        return bytes(memory.read(caller, start, stop))

    def write(data: bytes, start: int) -> None:
        memory.write(caller, data, start)

    return wasi.Memory(read, write, memory.data_len(caller))


def _to_wasi(name: str, call: _Call, memory: wasi.Memory, numbers: tuple[int, ...]) -> int:
    return wasi.serve(name, memory, call.streams, numbers)


def _to_host(name: str, call: _Call, memory: wasi.Memory, numbers: tuple[int, ...]) -> int:
    """The reply's length; negative (as 32 bits) when the reply says what went wrong."""
    address, size = numbers
    if size > REQUEST_BYTES_MAX:
        raise wasi.Stop("trap", f"a request of {size} bytes to {name}: at most {REQUEST_BYTES_MAX}")
    try:
        request = memory.read(address, size)
    except wasi.Fault:
        raise wasi.Stop("trap", f"a request to {name} outside its memory") from None
    well, call.reply = call.host(name, request)
    return len(call.reply) if well else (1 << 32) - len(call.reply)


def _fetch(_name: str, call: _Call, memory: wasi.Memory, numbers: tuple[int, ...]) -> int:
    """Copies the last reply, as far as there is room; its length."""
    address, room = numbers
    data = call.reply[:room]
    try:
        memory.write(address, data)
    except wasi.Fault:
        raise wasi.Stop("trap", "a reply's buffer outside its memory") from None
    return len(data)


def _said(streams: wasi.Streams) -> str:
    """What it wrote of it on standard error."""
    text = streams.stderr.decode("utf-8", "replace").strip()
    return f": {text[:500]}" if text else ""


def first_error(stdout: bytes) -> Any:
    """The `error` of what a failing tool wrote, if it wrote JSON with one."""
    try:
        value = msgspec.json.decode(stdout)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value.get("error") if isinstance(value, dict) else None


__all__ = ["HostCall", "Limits", "Outcome", "Runtime", "check_shape"]
