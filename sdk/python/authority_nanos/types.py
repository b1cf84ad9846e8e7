"""Plain values of the SDK's interface."""

from __future__ import annotations

from collections import namedtuple
from enum import IntEnum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Syscall(IntEnum):
    """Numbers of the authority calls."""

    READ = 1024
    ALLOC = 1025
    WRITE = 1026
    DELETE = 1027
    QUERY = 1028
    BATCH = 1029
    COMMIT = 1030
    CALL = 1031
    SPAWN = 1032
    SEND = 1033
    RECV = 1034
    RESPOND = 1035
    ASSERT = 1036
    INFERENCE = 1037
    BUDGET_STATUS = 1038
    BUDGET_HISTORY = 1039
    LAST_ERROR = 1040
    TRACE = 1041
    POLICY_SUGGEST = 1042
    CAP = 1043
    APPROVAL = 1044


class Handle(namedtuple("Handle", ("id", "version"))):
    """A heap object: its id, and the version it had when the handle was made. A value; nothing changes it."""

    __slots__ = ()
    id: int
    version: int


class _Record:
    """A value object made from the kernel's JSON; `raw` is that JSON."""

    __slots__ = ("raw",)

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.raw})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.raw == other.raw

    __hash__ = None  # type: ignore[assignment]


class DenialInfo(_Record):
    """The last refusal."""

    __slots__ = ()

    @property
    def reason(self) -> str:
        return str(self.raw["reason"])

    @property
    def operation(self) -> str:
        return str(self.raw["operation"])

    @property
    def target(self) -> str:
        return str(self.raw["target"])

    @property
    def capability_required(self) -> str | None:
        return self.raw.get("missing_cap")

    missing_cap = capability_required

    @property
    def suggestion(self) -> str | None:
        return self.raw.get("suggested_fix")

    suggested_fix = suggestion

    @property
    def trace_id(self) -> str:
        return str(self.raw["trace_id"])

    @property
    def errno(self) -> int:
        return int(self.raw["errno"])


class AuthorizationDetails(_Record):
    """What the policy says about an effect, and why."""

    __slots__ = ()

    @property
    def authorized(self) -> bool:
        return bool(self.raw["authorized"])

    @property
    def operation(self) -> str:
        return str(self.raw["op"])

    @property
    def target(self) -> str:
        return str(self.raw["target"])

    @property
    def reason(self) -> str:
        return str(self.raw["reason"])

    @property
    def rule(self) -> str | None:
        return self.raw.get("rule")

    @property
    def capability_name(self) -> str | None:
        return self.raw.get("capability_name")

    @property
    def missing_cap(self) -> str | None:
        return self.raw.get("missing_cap")

    @property
    def suggested_fix(self) -> str | None:
        return self.raw.get("suggested_fix")

    @property
    def ttl_ms(self) -> int:
        return int(self.raw.get("ttl_ms") or 0)

    def __bool__(self) -> bool:
        return self.authorized
