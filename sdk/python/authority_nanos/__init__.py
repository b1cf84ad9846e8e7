"""The Python SDK for agents that run under akbox: typed heap, authorization, budgets, the log.

from authority_nanos import AuthorityKernel

ak = AuthorityKernel()
handle = ak.alloc("counter", b'{"value": 0}')
"""

from __future__ import annotations

from .errors import (
    AuthorityKernelError,
    BudgetExceededError,
    BufferOverflowError,
    CapabilityError,
    ConflictError,
    InferenceError,
    InvalidArgumentError,
    LibakError,
    NotFoundError,
    NotSupportedError,
    NotUnderAkboxError,
    OperationDeniedError,
    OutOfMemoryError,
    RateLimitError,
    TimeoutError,
    ToolError,
)
from .kernel import AuthorityKernel
from .types import AuthorizationDetails, DenialInfo, Handle, Syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .aio import AsyncAuthorityKernel

__version__ = "0.1.0"
__all__ = [
    "AsyncAuthorityKernel",
    "AuthorityKernel",
    "AuthorityKernelError",
    "AuthorizationDetails",
    "BudgetExceededError",
    "BufferOverflowError",
    "CapabilityError",
    "ConflictError",
    "DenialInfo",
    "Handle",
    "InferenceError",
    "InvalidArgumentError",
    "LibakError",
    "NotFoundError",
    "NotSupportedError",
    "NotUnderAkboxError",
    "OperationDeniedError",
    "OutOfMemoryError",
    "RateLimitError",
    "Syscall",
    "TimeoutError",
    "ToolError",
]


def __getattr__(name: str) -> object:
    if name == "AsyncAuthorityKernel":  # asyncio is slow to import; most agents don't need it
        from .aio import AsyncAuthorityKernel

        return AsyncAuthorityKernel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
