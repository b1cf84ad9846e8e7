"""What a run came to, as data: for the library, the report and `--json`."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from akbox.kernel.effect import Denial


class RunResult(Struct, frozen=True):
    """exit_code: the agent's own, 128+n for signal n, 124 a budget ended it, 125 akbox could not hold it.

    reason: "exited", "signalled", "budget NAME", "limit NAME" (memory: exit_code 137; file_size: 153), or what failed
    (exit_code 125). usage: wall_time_ms, cpu_ns; memory_peak_bytes and bytes where they are limited.
    not_anchored: why an anchor does not have the log's last checkpoint, None when all have.
    stdout and stderr: what the agent wrote, when Sandbox.run() captured it. denials: each distinct refusal once.
    """

    exit_code: int
    signal: int | None
    reason: str
    usage: dict[str, Any]
    denials: list[Denial]
    run_id: str
    stdout: bytes = b""
    stderr: bytes = b""
    not_anchored: str | None = None

    def __repr__(self) -> str:
        """Without the output, which may be 64 MiB."""
        return f"RunResult(exit_code={self.exit_code}, reason={self.reason!r}, run_id={self.run_id!r})"
