"""wasmtime, set up for tools: compilation, its cache on disk, and the clock that ends what runs too long.

Imported with the first call of a tool: wasmtime's library is thirty megabytes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from hashlib import sha256
from pathlib import Path

import wasmtime

from akbox.rundir import own_directory
from akbox.tools.failure import ToolFailure
from akbox.tools.manifest import Limits

MAX_INSTANCES = 32  # calls at one time; each has its slot in the pool
MAX_TABLES, MAX_TABLE_ELEMENTS = 4, 20_000
MAX_MEMORY_BYTES = 256 << 20
STACK_BYTES = 512 << 10
POOL_BYTES = 2 * MAX_INSTANCES * (8 << 30)  # 4 GiB and as much around it for each, and as much again
_MAP_NORESERVE = 0x4000
TICK_S = 0.005
_MAGIC = b"akbox cwasm 1\n"
_CACHE_FILES = 256


def make_engine() -> wasmtime.Engine:
    """Fuel and epochs on; what no tool needs off: threads (shared memory), 64-bit and several memories, GC."""
    return wasmtime.Engine(_config(pooled=_has_room()))


def _has_room() -> bool:
    """Is there address space for a pool? wasmtime's C API ends the process where there is none (a limit on it, many
    runs in one process), so it is asked for here first; without, instances get their memory one by one."""
    try:
        mmap.mmap(-1, POOL_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, prot=0).close()
    except (OSError, ValueError):
        return False
    return True


def _config(*, pooled: bool) -> wasmtime.Config:
    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    config.max_wasm_stack = STACK_BYTES
    config.wasm_threads = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_gc = False
    config.wasm_function_references = False
    config.wasm_exceptions = False
    config.wasm_tail_call = False
    config.wasm_relaxed_simd = False
    if pooled:
        _pool(config)
    return config


def _pool(config: wasmtime.Config) -> None:
    """Instances from a pool (wasmtime's C API; its Python classes have no words for it): a call neither maps nor unmaps
    memory, and what one call leaves in a slot the next does not see."""
    from wasmtime import _bindings as c_api

    pool = c_api.wasmtime_pooling_allocation_config_new()
    c_api.wasmtime_pooling_allocation_config_total_core_instances_set(pool, MAX_INSTANCES)
    c_api.wasmtime_pooling_allocation_config_total_memories_set(pool, MAX_INSTANCES)
    c_api.wasmtime_pooling_allocation_config_total_tables_set(pool, MAX_INSTANCES * MAX_TABLES)
    c_api.wasmtime_pooling_allocation_config_max_tables_per_module_set(pool, MAX_TABLES)
    c_api.wasmtime_pooling_allocation_config_table_elements_set(pool, MAX_TABLE_ELEMENTS)
    c_api.wasmtime_pooling_allocation_config_max_memory_size_set(pool, MAX_MEMORY_BYTES)
    c_api.wasmtime_pooling_allocation_strategy_set(config.ptr(), pool)
    c_api.wasmtime_pooling_allocation_config_delete(pool)


def compile_module(
    engine: wasmtime.Engine, module: bytes, digest: str, cache: Path | None, name: str
) -> wasmtime.Module:
    """The module, compiled; from the cache when it is there. `digest`: its SHA-256. Raises ToolFailure."""
    found = None if cache is None else _cached(engine, digest, cache)
    if found is not None:
        return found
    try:
        code = module if module.startswith(b"\0asm") else bytes(wasmtime.wat2wasm(module))
        compiled = wasmtime.Module(engine, code)
    except (wasmtime.WasmtimeError, ValueError) as error:
        raise ToolFailure("module", f"tool {name!r}: not a WebAssembly module: {first_line(error)}") from error
    if cache is not None:
        _keep(compiled, digest, cache)
    return compiled


def _cached(engine: wasmtime.Engine, digest: str, cache: Path) -> wasmtime.Module | None:
    """What is in the cache is native code that wasmtime would run as it stands: it comes from a directory that is ours
    alone, and a file that is not whole, or of another wasmtime, is compiled again."""
    try:
        os.close(own_directory(cache, None))
        with open(_file(cache, digest), "rb") as file:
            info = os.fstat(file.fileno())
            data = file.read()
    except OSError:
        return None
    head, body = data[: len(_MAGIC) + 32], data[len(_MAGIC) + 32 :]
    if info.st_uid != os.geteuid() or head != _MAGIC + sha256(body).digest():
        return None
    try:
        return wasmtime.Module.deserialize(engine, body)
    except wasmtime.WasmtimeError:
        return None


def _keep(compiled: wasmtime.Module, digest: str, cache: Path) -> None:
    """A cache that cannot be written is no reason for a tool to fail."""
    path = _file(cache, digest)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    body = bytes(compiled.serialize())
    with contextlib.suppress(OSError):
        os.close(own_directory(cache, None))
        _prune(cache)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(_MAGIC + sha256(body).digest() + body)
        os.rename(temporary, path)


def _prune(cache: Path) -> None:
    files = sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in files[: max(len(files) - _CACHE_FILES, 0)]:
        path.unlink(missing_ok=True)


def _file(cache: Path, digest: str) -> Path:
    return cache / f"{digest}.cwasm"  # of which wasmtime it is, it says itself


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def new_store(engine: wasmtime.Engine, limits: Limits) -> wasmtime.Store:
    """A store for one call, with all of its limits but the deadline."""
    store = wasmtime.Store(engine)
    store.set_limits(limits.memory_bytes, MAX_TABLE_ELEMENTS, 1, MAX_TABLES, 1)
    store.set_fuel(limits.fuel)
    return store


class Clock:
    """Advances the engine's epoch while a call runs. `stop` makes every deadline pass."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._running = 0  # guarded by _changed, as the rest
        self._stopped = False
        self._thread: threading.Thread | None = None

    def enter(self, store: wasmtime.Store, end: float) -> None:
        """The store's code ends at `end` (time.monotonic()). Raises ToolFailure when the clock was stopped."""
        with self._changed:
            if self._stopped:
                raise ToolFailure("ending", "the run is ending")
            store.set_epoch_deadline(max(int((end - time.monotonic()) / TICK_S), 0) + 2)
            self._running += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._tick, name="akbox-tool-clock", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Returns when no call is in WebAssembly code any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            while self._running:
                for _ in range(1000):
                    self._engine.increment_epoch()
                self._changed.wait(TICK_S)
        if self._thread is not None:
            self._thread.join()

    def _tick(self) -> None:
        while True:
            with self._changed:
                if self._stopped:
                    return
                if not self._running:
                    self._changed.wait()
                    continue
                self._changed.wait(TICK_S)
                if self._stopped:
                    return
            self._engine.increment_epoch()
