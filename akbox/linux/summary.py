"""`summary.json` in a run's directory: how the run ended, for people and programs that look at many runs.

It is written last and proves nothing: the log has it all. After a crash there is none.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from akbox.kernel.kernel import Kernel
from akbox.linux.result import RunResult

NAME = "summary.json"


def result_document(result: RunResult) -> dict[str, Any]:
    """exit_code, signal, reason, usage and each distinct refusal with its count."""
    return {
        "exit_code": result.exit_code,
        "signal": result.signal,
        "reason": result.reason,
        "usage": result.usage,
        "denials": result.denials,
        **({"not_anchored": result.not_anchored} if result.not_anchored else {}),
    }


def write_summary(run_dir: Path, kernel: Kernel, document: dict[str, Any]) -> None:
    """`document`, the run's id, and the number of entries and the head of its log. Precondition: the log is closed.

    Whole or not at all. A disk that is full by now does not change how the run ended.
    """
    entries, head = kernel.log.head()
    data = msgspec.json.encode({"run_id": kernel.run_id.hex(), "entries": entries, "head": head.hex(), **document})
    fresh = run_dir / f".{NAME}"
    with contextlib.suppress(OSError):
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.format(data) + b"\n")
        os.rename(fresh, run_dir / NAME)
