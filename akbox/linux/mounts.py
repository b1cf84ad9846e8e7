"""MCP servers that a policy mounts: each is a run of its own, with its own policy and log, beside the run that
has its tools. What it may do says its policy alone; the agent that calls it lends it nothing.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from akbox.kernel.kernel import Kernel
from akbox.linux.errors import CannotRun
from akbox.linux.run import Run
from akbox.policy.check import PolicyError
from akbox.policy.model import McpServer
from akbox.tools.box import Mounted
from akbox.tools.failure import ToolFailure
from akbox.tools.mcp_client import Client
from akbox.tools.pins import Pins

TIMEOUT_MS = 30_000
_GRACE_S = 5.0


class Mounts:
    """All of one run. Made before its agent starts, closed after nobody calls any more."""

    def __init__(self, kernel: Kernel, state: Path, cwd: str) -> None:
        self._kernel, self._state, self._cwd = kernel, state, cwd
        self._undo = contextlib.ExitStack()

    def start(self, servers: dict[str, McpServer]) -> dict[str, Mounted]:
        """Raises CannotRun naming the server that does not start; then none runs."""
        try:
            return {name: self._start(name, server) for name, server in servers.items()}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._undo.close()

    def _start(self, name: str, server: McpServer) -> Mounted:
        from akbox.linux.sandbox import Sandbox

        if not server.command:
            raise CannotRun(f"tools.mcp.{name}.command is empty", "name the program of the server")
        timeout_s = (TIMEOUT_MS if server.timeout_ms is None else server.timeout_ms) / 1000
        with contextlib.ExitStack() as ends:
            theirs_in, ours_out = os.pipe2(os.O_CLOEXEC)
            ends.callback(os.close, theirs_in)
            ours_in, theirs_out = os.pipe2(os.O_CLOEXEC)
            ends.callback(os.close, theirs_out)
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            ends.callback(os.close, null)
            client = Client(name, ours_out, ours_in)
            self._undo.callback(client.close)
            try:
                sandbox = Sandbox(server.policy, cwd=self._cwd, state_dir=self._state, name=f"mcp:{name}")
                run = sandbox.start(list(server.command), stdio=(theirs_in, theirs_out, null))
            except (CannotRun, PolicyError) as error:
                os.close(ours_in)
                raise CannotRun(f"MCP server {name!r}: {error}") from error
        self._undo.callback(_end, run)
        try:
            tools = client.start(timeout_s)
            held = Pins(self._state).admit(name, server.command, tools)
        except (ToolFailure, OSError) as error:
            raise CannotRun(f"MCP server {name!r}: {error}", f"its log: akbox audit show {run.run_dir.name}") from error
        self._kernel.note(
            f"mcp:{name}:start", {"command": list(server.command)},
            {"mounted_run": run.run_dir.name, "tools": len(tools), "held": held[:100]},
        )  # fmt: skip
        return Mounted(client, tools, frozenset(held), timeout_s)


def _end(run: Run) -> None:
    run.kill()
    with contextlib.suppress(CannotRun):
        run.wait()
