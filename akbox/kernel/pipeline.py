"""The ten stages of an authority call, as an ordered list of objects with one method (design 02).

PARSE, SCHEMA, SEQUENCE, CAPABILITY, POLICY, BUDGET, TAINT, EXECUTE; then, whatever became of those, LOG and RESPOND. A
stage refuses by raising CallError; the entry records where.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from akbox.kernel.budget import BudgetExceeded, Reservation
from akbox.kernel.calls.base import Args, Call
from akbox.kernel.calls.table import CALLS
from akbox.kernel.codes import REFUSALS, CallError, Code
from akbox.kernel.effect import AgentId, Reply
from akbox.kernel.entry import Draft
from akbox.kernel.ops import op_name
from akbox.kernel.strictjson import StrictJSONError, parse
from akbox.store.base import StoreError

if TYPE_CHECKING:
    from akbox.kernel.kernel import Kernel

MAX_REQUEST_BYTES = 1 << 20
LOGGED_VALUE_BYTES = 4096
_ENVELOPE = {"args", "cap", "seq", "op"}
_U64_MAX = 2**64 - 1


class Context:
    """One call on its way through the stages."""

    def __init__(self, kernel: Kernel, subject: AgentId, nr: int, raw: bytes, pid: int) -> None:
        self.kernel, self.subject, self.nr, self.raw, self.pid = kernel, subject, nr, raw, pid
        self.call: Call | None = None
        self.args: dict[str, Any] = {}
        self.cap: object = None
        self.seq: object = None
        self.typed: Any = None  # an instance of call.args
        self.values: list[bytes] = []  # stored forms of the values in them, made by the call's prepare
        self.logged_args: dict[str, Any] = {}
        self.target = ""
        self.rule: str | None = None
        self.reservations: list[Reservation] = []
        self.refunds: dict[str, int] = {}
        self.result: dict[str, Any] | None = None
        self.error: CallError | None = None
        self.refused_at: str | None = None
        self.trace_id = ""
        self.reply = Reply(0, b"")

    def reserve(self, amounts: Mapping[str, int]) -> None:
        """Sets amounts aside until EXECUTE is over. Raises CallError(BUDGET_EXCEEDED)."""
        try:
            self.reservations.append(self.kernel.ledger(self.subject).reserve(amounts))
        except BudgetExceeded as error:
            raise CallError(
                Code.BUDGET_EXCEEDED, str(error), missing_cap=f"budgets.{error.name}", stage="BUDGET",
                suggested_fix=f"raise budgets.{error.name} (now {error.limit})",
                details={"budget": error.name, "limit": error.limit, "used": error.used, "remaining": error.remaining},
            ) from error  # fmt: skip

    def grow(self, amounts: Mapping[str, int]) -> None:
        """What the call holds more (reserved now) or less (given back when it has succeeded)."""
        self.reserve({name: amount for name, amount in amounts.items() if amount > 0})
        for name, amount in amounts.items():
            if amount < 0:
                self.refunds[name] = self.refunds.get(name, 0) - amount


class Stage(Protocol):
    name: str

    def run(self, ctx: Context) -> None:
        """Does the stage's work on `ctx`; raises CallError to refuse."""


class Parse:
    name = "PARSE"

    def run(self, ctx: Context) -> None:
        ctx.call = CALLS.get(ctx.nr)
        if ctx.call is None:
            raise CallError(Code.NOT_IMPLEMENTED, f"no authority call has number {ctx.nr}")
        if len(ctx.raw) > MAX_REQUEST_BYTES:
            raise CallError(
                Code.FRAME_TOO_LARGE, f"a request has at most {MAX_REQUEST_BYTES} bytes, not {len(ctx.raw)}"
            )
        try:
            value = parse(ctx.raw)
        except StrictJSONError as error:
            raise CallError(Code.JSON_INVALID, str(error)) from error
        if not isinstance(value, dict):
            raise CallError(Code.SCHEMA_INVALID, "a request is a JSON object")
        if isinstance(value.get("args"), dict) and value.keys() <= _ENVELOPE:
            ctx.args, ctx.cap, ctx.seq = value["args"], value.get("cap"), value.get("seq")
        else:
            ctx.args = value
        ctx.logged_args = compact(ctx.args)


class Schema:
    name = "SCHEMA"

    def run(self, ctx: Context) -> None:
        call = ctx.call
        assert call is not None
        args = dict(ctx.args)
        for old, new in call.aliases.items():
            if old in args:
                if new in args:
                    raise CallError(Code.SCHEMA_INVALID, f"both {old} and {new}: they mean the same")
                args[new] = args.pop(old)
        if call.normalise is not None:
            args = call.normalise(args)
        ctx.typed = convert(args, call.args)
        if call.target is not None:
            ctx.target = call.target(ctx.typed)
        if call.prepare is not None:
            call.prepare(ctx, ctx.typed)


class Sequence:
    """Only requests that carry `seq` (framed channels always do): each number once."""

    name = "SEQUENCE"

    def run(self, ctx: Context) -> None:
        if ctx.seq is None:
            return
        if not isinstance(ctx.seq, int) or isinstance(ctx.seq, bool) or not 0 < ctx.seq <= _U64_MAX:
            raise CallError(Code.SCHEMA_INVALID, "seq: a whole number from 1")
        if not ctx.kernel.replay_window(ctx.subject).admit(ctx.seq):
            raise CallError(Code.REPLAY, f"seq {ctx.seq} was used before")


class Capability:
    """A token is checked as well as the policy, never instead. This version issues none, so it can vouch for none."""

    name = "CAPABILITY"

    def run(self, ctx: Context) -> None:
        if ctx.cap is not None:
            raise CallError(
                Code.CAP_INVALID, "the capability token can't be verified",
                suggested_fix="leave `cap` out: what the policy grants needs no token",
            )  # fmt: skip


class Policy:
    name = "POLICY"

    def run(self, ctx: Context) -> None:
        assert ctx.call is not None
        if ctx.call.effect is None:
            return
        effect = ctx.call.effect(ctx.typed)
        ctx.target = effect.target
        decision = ctx.kernel.decide(ctx.subject, effect)
        ctx.rule = decision.rule
        if not decision.allowed:
            raise CallError(
                decision.code or Code.POLICY_DENY, decision.reason, missing_cap=decision.missing_cap,
                suggested_fix=decision.suggested_fix,
            )  # fmt: skip


class Budget:
    name = "BUDGET"

    def run(self, ctx: Context) -> None:
        assert ctx.call is not None
        if ctx.call.cost is not None:
            ctx.reserve(ctx.call.cost(ctx, ctx.typed))


class Taint:
    """No call of this version has a sink; labels are kept with the objects."""

    name = "TAINT"

    def run(self, ctx: Context) -> None:
        return


class Execute:
    """Runs the call; the reservations are settled when it succeeded and released when it did not."""

    name = "EXECUTE"

    def run(self, ctx: Context) -> None:
        assert ctx.call is not None
        try:
            ctx.result = ctx.call.execute(ctx, ctx.typed)
        except StoreError as error:
            raise CallError(Code.LOG_FULL, f"the store failed: {error}") from error
        ledger = ctx.kernel.ledger(ctx.subject)
        for reservation in ctx.reservations:
            ledger.settle(reservation)
        ctx.reservations.clear()
        for name, amount in ctx.refunds.items():
            ledger.refund(name, amount)


class Log:
    """The entry is on disk before the reply leaves (INV-4). An AuditError goes through: the run ends."""

    name = "LOG"

    def run(self, ctx: Context) -> None:
        error = ctx.error
        req: dict[str, Any] = {"args": ctx.logged_args}
        if ctx.seq is not None:
            req["seq"] = ctx.seq
        if error is not None and not ctx.args:
            req |= {"bytes": len(ctx.raw), "sha256": sha256(ctx.raw).hexdigest()}
        res: dict[str, Any] = {"errno": 0, "result": compact(ctx.result or {})}
        if error is not None:
            res = {"errno": error.code.errno, "code": int(error.code), "message": error.message}
        receipt = ctx.kernel.log.append(
            Draft(
                ts_ns=ctx.kernel.clock_ns(), agent=ctx.subject, op=ctx.nr & 0xFFFF, name=op_name(ctx.nr),
                target=ctx.target, decision="allow" if error is None else "deny", stage=ctx.refused_at,
                rule=ctx.rule, pid=ctx.pid, req=req, res=res,
            )
        )  # fmt: skip
        ctx.trace_id = receipt.trace_id
        ctx.kernel.log.wait_durable(receipt.seq)
        if error is not None and error.code in REFUSALS:
            ctx.kernel.note_call_refusal(ctx, error)


class Respond:
    name = "RESPOND"

    def run(self, ctx: Context) -> None:
        if ctx.error is None:
            ctx.reply = Reply(0, msgspec.json.encode({"ok": True, "result": ctx.result}))
        else:
            ctx.reply = error_reply(ctx.error, ctx.trace_id)


GATES: tuple[Stage, ...] = (
    Parse(), Schema(), Sequence(), Capability(), Policy(), Budget(), Taint(), Execute(),
)  # fmt: skip
ALWAYS: tuple[Stage, ...] = (Log(), Respond())


def run(ctx: Context) -> Reply:
    """Takes the call through all stages. Raises AuditError when it can't be logged: nothing may be answered then."""
    try:
        for stage in GATES:
            try:
                stage.run(ctx)
            except CallError as error:
                ctx.error, ctx.refused_at = error, error.stage or stage.name
                break
    finally:
        for reservation in ctx.reservations:  # left over only when EXECUTE was not reached or failed
            ctx.kernel.ledger(ctx.subject).release(reservation)
    for stage in ALWAYS:
        stage.run(ctx)
    return ctx.reply


def convert(args: dict[str, Any], kind: type[Args]) -> Args:
    """The typed arguments. Raises CallError(SCHEMA_INVALID), or SCHEMA_UNKNOWN for a key there is none of, with the
    path."""
    try:
        return msgspec.convert(args, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        place = place.rstrip("`").lstrip(".").removeprefix("question").lstrip(".")  # `question` is QUERY's own wrapping
        unknown = message.startswith("Object contains unknown field")
        message = message.replace("Object contains unknown field", "unknown argument")
        text = f"{place}: {message}" if place else message
        raise CallError(Code.SCHEMA_UNKNOWN if unknown else Code.SCHEMA_INVALID, text) from None


def error_reply(error: CallError, trace_id: str) -> Reply:
    """The reply of design 02 for an error."""
    body: dict[str, Any] = {"code": int(error.code), "name": error.code.name, "message": error.message}
    if error.missing_cap is not None:
        body["missing_cap"] = error.missing_cap
    if error.suggested_fix is not None:
        body["suggested_fix"] = error.suggested_fix
    if error.details:
        body["details"] = error.details
    body["trace_id"] = trace_id
    return Reply(error.code.errno, msgspec.json.encode({"ok": False, "error": body}))


def compact(value: dict[str, Any]) -> dict[str, Any]:
    """A copy for the log in which a large member is its length and SHA-256 instead: the log is bounded, yet what was
    said can be shown to be what was said."""
    out: dict[str, Any] = {}
    for key, item in value.items():
        data = msgspec.json.encode(item)
        if len(data) > LOGGED_VALUE_BYTES:
            out[key] = {"bytes": len(data), "sha256": sha256(data).hexdigest()}
        else:
            out[key] = msgspec.json.decode(data)
    return out


class ReplayWindow:
    """Which sequence numbers were used: all of the last 1,024, and everything older counts as used. Thread-safe."""

    SIZE = 1024

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._top = 0
        self._bits = 0  # bit i: top - i was used
        self.gaps = 0

    def admit(self, seq: int) -> bool:
        with self._lock:
            if seq > self._top:
                shift = seq - self._top
                self.gaps += shift - 1
                self._bits = ((self._bits << min(shift, self.SIZE)) | 1) & ((1 << self.SIZE) - 1)
                self._top = seq
                return True
            age = self._top - seq
            if age >= self.SIZE or self._bits >> age & 1:
                return False
            self._bits |= 1 << age
            self.gaps -= 1
            return True
