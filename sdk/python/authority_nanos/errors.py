"""What can go wrong, as one tree under AuthorityKernelError."""

from __future__ import annotations

import builtins
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class AuthorityKernelError(Exception):
    """An authority call that failed.

    code: the kernel's number (-4201), 0 when there was no reply; name: its name ("POLICY_DENY"); errno: the positive
    errno; missing_cap, suggested_fix: what would have allowed it, or None; trace_id: finds the entry in the log;
    details: more, by error (a conflict's "version", a budget's "limit").
    """

    def __init__(
        self,
        message: str = "",
        *,
        code: int = 0,
        name: str = "",
        errno: int = 0,
        missing_cap: str | None = None,
        suggested_fix: str | None = None,
        trace_id: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.name = name
        self.errno = errno
        self.missing_cap = missing_cap
        self.suggested_fix = suggested_fix
        self.trace_id = trace_id
        self.details: dict[str, Any] = details or {}

    def __str__(self) -> str:
        text = f"{self.name}: {self.message}" if self.name else self.message
        return f"{text} (fix: {self.suggested_fix})" if self.suggested_fix else text


class OperationDeniedError(AuthorityKernelError):
    """The policy refuses it, or it waits for an approval nobody gives."""


class CapabilityError(AuthorityKernelError):
    """A capability is missing, invalid, expired, revoked or out of scope."""


class BudgetExceededError(AuthorityKernelError):
    """A limit would be passed; nothing was done. details: budget, limit, used, remaining."""


class RateLimitError(AuthorityKernelError):
    """Too often; try again later."""


class InvalidArgumentError(AuthorityKernelError, ValueError):
    """The kernel does not understand the request; the message says which argument."""


class NotFoundError(AuthorityKernelError, LookupError):
    """There is no such object, path in an object, tool or recipient."""


class ConflictError(AuthorityKernelError):
    """Somebody else changed the object first (details["version"] is what it has now), or a patch's test failed."""


class BufferOverflowError(AuthorityKernelError):
    """Too large: a message, a file, a reply."""


class TimeoutError(AuthorityKernelError, builtins.TimeoutError):  # type: ignore[misc]  # OSError has an errno, too
    """It took longer than it may."""


class OutOfMemoryError(AuthorityKernelError, MemoryError):
    """The kernel has no room (a full mailbox or log)."""


class ToolError(AuthorityKernelError):
    """A tool failed."""


class InferenceError(AuthorityKernelError):
    """A model could not be asked."""


class NotSupportedError(AuthorityKernelError):
    """This akbox does not have the call."""


class NotUnderAkboxError(AuthorityKernelError):
    """There is no authority kernel here."""

    def __init__(self) -> None:
        super().__init__("not running under akbox; start the agent with: akbox run -- python your_agent.py", name="")


LibakError = AuthorityKernelError

_BY_CODE: dict[int, type[AuthorityKernelError]] = {
    -4001: BufferOverflowError,
    -4105: RateLimitError,
    -4300: BudgetExceededError,
    -4301: RateLimitError,
    -4302: TimeoutError,
    -4303: BudgetExceededError,
    -4400: ConflictError,
    -4401: ToolError,
    -4402: TimeoutError,
    -4403: NotFoundError,
    -4404: OutOfMemoryError,
    -4406: NotSupportedError,
    -4407: NotFoundError,
    -4408: InferenceError,
    -4409: InferenceError,
    -4503: TimeoutError,
    -4504: OutOfMemoryError,
    -4505: NotFoundError,
    -4506: ConflictError,
    -4507: BufferOverflowError,
}
_BY_RANGE = (
    (-4099, -4001, InvalidArgumentError),
    (-4199, -4100, CapabilityError),
    (-4299, -4200, OperationDeniedError),
)


def error_class(code: int) -> type[AuthorityKernelError]:
    """The exception for a code of the kernel."""
    if code in _BY_CODE:
        return _BY_CODE[code]
    for low, high, kind in _BY_RANGE:
        if low <= code <= high:
            return kind
    return AuthorityKernelError


def error_from_reply(error: dict[str, Any], errno: int) -> AuthorityKernelError:
    """The exception for the "error" object of a reply."""
    code = int(error.get("code") or 0)
    return error_class(code)(
        str(error.get("message") or os.strerror(errno)),
        code=code,
        name=str(error.get("name") or ""),
        errno=errno,
        missing_cap=error.get("missing_cap"),
        suggested_fix=error.get("suggested_fix"),
        trace_id=str(error.get("trace_id") or ""),
        details=error.get("details"),
    )
