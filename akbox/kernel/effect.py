"""What someone wants to do, and what the kernel says to it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from akbox.kernel.codes import Code
from akbox.kernel.ops import Op

AgentId = bytes
"""16 bytes; the first agent of a run is the root agent."""


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """One thing somebody wants to do. `target` is canonical (design 02: absolute path, `ip:…:443`, `dns:host:443`,
    `tool:name`, …); `need` are the bits of native/policy.h (1 read, 2 write, 4 exec); `target2` is the other end of a
    rename or link; `detail` goes into the log as it is, redacted; `cost` is what it uses of budgets when allowed."""

    op: Op
    target: str
    need: int = 0
    target2: str | None = None
    detail: dict[str, Any] | None = None
    pid: int = 0
    cost: Mapping[str, int] = {}


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel's answer. `errno` is what the caller of a refused system call gets; `trace_id` finds the log entry."""

    allowed: bool
    reason: str
    rule: str | None = None
    code: Code | None = None
    errno: int = 0
    missing_cap: str | None = None
    suggested_fix: str | None = None
    trace_id: str = ""


class Denial(msgspec.Struct, kw_only=True):
    """One distinct refusal of a run, with how often it happened: what the report after a run shows. Times in ns."""

    op: str
    target: str
    count: int
    rule: str | None
    missing_cap: str | None
    suggested_fix: str | None
    errno: int
    first_ts_ns: int
    last_ts_ns: int
    trace_id: str
    message: str
    code: Code = Code.POLICY_DENY
    harmless: bool = False  # programs try it and do without: for the log, not for people


class Reply(msgspec.Struct, frozen=True):
    """An authority call's answer: errno 0 and the body, or a positive errno and the error body (JSON, not
    terminated)."""

    errno: int
    body: bytes
