"""Error codes of the authority calls (design 02), each with its name and the errno the raw call returns."""

import errno
from enum import IntEnum


class Code(IntEnum):
    FRAME_TOO_LARGE = -4001
    SCHEMA_INVALID = -4002
    SCHEMA_UNKNOWN = -4003
    JSON_INVALID = -4004
    FRAME_INCOMPLETE = -4005
    CAP_MISSING = -4100
    CAP_INVALID = -4101
    CAP_EXPIRED = -4102
    CAP_SCOPE = -4103
    CAP_REVOKED = -4104
    CAP_RATE = -4105
    CAP_RUN_MISMATCH = -4106
    REPLAY = -4200
    POLICY_DENY = -4201
    APPROVAL_REQUIRED = -4202
    TAINT = -4203
    DLP_BLOCK = -4204
    BUDGET_EXCEEDED = -4300
    RATE_LIMIT = -4301
    DEADLINE = -4302
    QUOTA_EXCEEDED = -4303
    CONFLICT = -4400
    TOOL_FAIL = -4401
    TOOL_TIMEOUT = -4402
    TOOL_NOT_FOUND = -4403
    LOG_FULL = -4404
    LOG_CORRUPT = -4405
    NOT_IMPLEMENTED = -4406
    NOT_FOUND = -4407
    INFERENCE_FAIL = -4408
    NO_UPSTREAM = -4409
    IPC_INVALID = -4500
    SEQ_GAP = -4501
    TIMEOUT = -4503
    MAILBOX_FULL = -4504
    NO_RECIPIENT = -4505
    NAME_EXISTS = -4506
    MSG_TOO_LARGE = -4507

    @property
    def errno(self) -> int:
        """What the raw call returns, negated, for this code."""
        return ERRNO[self]


ERRNO: dict[Code, int] = {
    **dict.fromkeys((c for c in Code if -4099 <= c <= -4001), errno.EINVAL),
    **dict.fromkeys((c for c in Code if -4199 <= c <= -4100), errno.EACCES),
    Code.CAP_RATE: errno.EAGAIN,
    Code.REPLAY: errno.EPROTO,
    Code.POLICY_DENY: errno.EPERM,
    Code.APPROVAL_REQUIRED: errno.EPERM,
    Code.TAINT: errno.EPERM,
    Code.DLP_BLOCK: errno.EPERM,
    Code.BUDGET_EXCEEDED: errno.ENOSPC,
    Code.RATE_LIMIT: errno.EAGAIN,
    Code.DEADLINE: errno.ETIMEDOUT,
    Code.QUOTA_EXCEEDED: errno.ENOSPC,
    Code.CONFLICT: errno.ECANCELED,
    Code.TOOL_FAIL: errno.EIO,
    Code.TOOL_TIMEOUT: errno.ETIMEDOUT,
    Code.TOOL_NOT_FOUND: errno.ENOENT,
    Code.LOG_FULL: errno.EIO,
    Code.LOG_CORRUPT: errno.EIO,
    Code.NOT_IMPLEMENTED: errno.ENOSYS,
    Code.NOT_FOUND: errno.ENOENT,
    Code.INFERENCE_FAIL: errno.EIO,
    Code.NO_UPSTREAM: errno.EIO,
    Code.IPC_INVALID: errno.EINVAL,
    Code.SEQ_GAP: errno.EPROTO,
    Code.TIMEOUT: errno.ETIMEDOUT,
    Code.MAILBOX_FULL: errno.ENOBUFS,
    Code.NO_RECIPIENT: errno.ENOENT,
    Code.NAME_EXISTS: errno.EEXIST,
    Code.MSG_TOO_LARGE: errno.EMSGSIZE,
}

# Codes that say "you may not", as against "that did not work": these are what LAST_ERROR and the report show.
REFUSALS = frozenset(c for c in Code if -4399 <= c <= -4100)


class CallError(Exception):
    """An authority call that ends in an error reply. `stage` names the stage when it is not the one that was
    running."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        missing_cap: str | None = None,
        suggested_fix: str | None = None,
        stage: str | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.missing_cap = missing_cap
        self.suggested_fix = suggested_fix
        self.stage = stage
        self.details = details or {}
