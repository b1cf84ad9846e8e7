"""Why a tool cannot be used: one exception, with a word for each of the ways."""

from __future__ import annotations

from akbox.kernel.codes import CallError, Code

# reason -> code. The word is in the error's details and in the log; docs/tools.md explains each.
REASONS: dict[str, Code] = {
    "unknown": Code.TOOL_NOT_FOUND,
    "manifest": Code.TOOL_FAIL,
    "module": Code.TOOL_FAIL,
    "hash": Code.TOOL_FAIL,
    "signature": Code.TOOL_FAIL,
    "import": Code.TOOL_FAIL,
    "hostcall_not_in_manifest": Code.TOOL_FAIL,
    "trap": Code.TOOL_FAIL,
    "exit": Code.TOOL_FAIL,
    "fuel": Code.TOOL_FAIL,
    "memory": Code.TOOL_FAIL,
    "output_size": Code.TOOL_FAIL,
    "output_json": Code.TOOL_FAIL,
    "output_schema": Code.TOOL_FAIL,
    "busy": Code.QUOTA_EXCEEDED,
    "ending": Code.TOOL_FAIL,
    "unavailable": Code.TOOL_FAIL,
    "timeout": Code.TOOL_TIMEOUT,
}


class ToolFailure(CallError):
    """A tool cannot be used, or did not do what a tool does. `reason` is one of REASONS."""

    def __init__(self, reason: str, message: str, *, fix: str | None = None) -> None:
        super().__init__(REASONS[reason], message, suggested_fix=fix, details={"reason": reason})
        self.reason = reason
