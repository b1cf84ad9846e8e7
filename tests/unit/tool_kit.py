"""What the tests of tools share: a kernel with tools on a temporary state directory, and modules written for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from kernel_kit import Box

from akbox.tools.box import ToolBox
from akbox.tools.hostcalls import Names

CALL = 1031

# Reads its parameters and gives them back. Also the trivial tool of scripts/bench-tools.
ECHO = """(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const 65536))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.store (i32.const 4) (i32.load (i32.const 8)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"""


def wat(body: str, *, imports: str = "", memory: str = "1", data: str = "") -> str:
    """A module whose _start has `body`, with fd_write as $write and proc_exit as $exit."""
    return f"""(module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      {imports}
      (memory (export "memory") {memory})
      {f'(data (i32.const 1024) "{data}")' if data else ""}
      (func (export "_start") {body}))"""


def says(text: str) -> str:
    """Instructions that write `text`, the module's data at 1024, to standard output."""
    size = len(text)
    return (
        f"(i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const {size})) "
        "(drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))"
    )


def make_tool(directory: Path, name: str, module: str | bytes, /, **fields: Any) -> Path:
    """A tool's directory; `fields` go into the manifest, None leaves one out."""
    folder = directory / name
    folder.mkdir(parents=True)
    data = module.encode() if isinstance(module, str) else module
    file = "tool.wasm" if data.startswith(b"\0asm") else "tool.wat"
    (folder / file).write_bytes(data)
    manifest = {
        "name": name, "version": "1", "description": "of a test", "module": file, "sha256": sha256(data).hexdigest(),
        **fields,
    }  # fmt: skip
    (folder / "tool.json").write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))
    return folder


class Bench:
    """A kernel whose agent has tools. `policy`: TOML besides the version; `names`: what names lead to."""

    def __init__(
        self, directory: Path, policy: str, names: Callable[[bytes, str], Names] | None = None, **log_options: Any
    ) -> None:
        self.state = directory / "state"
        self.work = directory / "work"
        for folder in (self.state, self.work, directory / "run"):
            folder.mkdir(mode=0o700, exist_ok=True)
        text = 'version = "1.0"\n' + policy.replace("$W", str(self.work))
        self.box = Box(directory / "run", text, **log_options)
        self.tools = ToolBox(self.box.kernel, self.state, str(self.work), names)
        self.box.kernel.tools = self.tools

    def add(self, name: str, module: str | bytes, **fields: Any) -> None:
        """Puts a tool where added ones are, as `akbox tool add` does."""
        make_tool(self.state / "tools", name, module, **fields)

    def call(self, tool: str, **params: Any) -> Any:
        return self.box.call(CALL, tool=tool, params=params)

    def fail(self, tool: str, **params: Any) -> dict[str, Any]:
        return self.box.fail(CALL, tool=tool, params=params)

    def used(self) -> tuple[int, int]:
        """(used, set aside) of tool_calls."""
        status = self.box.call(1038, resource="tool_calls")
        return status["used"], status["reserved"]

    def close(self) -> None:
        self.tools.close()
        self.box.close()
