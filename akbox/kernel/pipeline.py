"""The ten stages of everything that has an effect, as ordered lists of objects with one method (design 02).

PARSE, SCHEMA, SEQUENCE, CAPABILITY, POLICY, BUDGET, TAINT, EXECUTE; then, whatever became of those, LOG and RESPOND. A
stage refuses by raising CallError. The entry records what each stage said and which one refused. Authority calls, by
whichever door they come, go through all ten (GATES, ALWAYS); what a target or a host call asks about (`authorize`) is
parsed and carried out elsewhere, so it takes the four that decide and LOG (JUDGES, RECORD).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from akbox.kernel.budget import LASTING, BudgetExceeded, Ledger, Reservation
from akbox.kernel.calls.base import Args, Call
from akbox.kernel.calls.table import CALLS
from akbox.kernel.codes import REFUSALS, CallError, Code
from akbox.kernel.effect import AgentId, Decision, Effect, Reply
from akbox.kernel.entry import Draft
from akbox.kernel.events import NEED_NAMES
from akbox.kernel.ops import Op, op_name
from akbox.kernel.strictjson import StrictJSONError, parse
from akbox.store.base import StoreError, Transaction

if TYPE_CHECKING:
    from akbox.kernel.capability import Token
    from akbox.kernel.kernel import Kernel

MAX_REQUEST_BYTES = 1 << 20
LOGGED_VALUE_BYTES = 4096
_ENVELOPE = {"args", "cap", "seq", "op"}
_U64_MAX = 2**64 - 1


class Context:
    """One call on its way through the stages."""

    def __init__(self, kernel: Kernel, subject: AgentId, nr: int, raw: bytes, pid: int, tool: str = "") -> None:
        self.kernel, self.subject, self.nr, self.raw, self.pid, self.tool = kernel, subject, nr, raw, pid, tool
        self.agent = kernel.agent(subject)
        self.call: Call | None = None
        self.effect: Effect | None = None  # what POLICY decides about
        self.decision: Decision | None = None
        self.token: Token | None = None  # of the request, when CAPABILITY has found it good
        self.stages: dict[str, str] = {}  # what each stage said
        self.args: dict[str, Any] = {}
        self.cap: object = None
        self.seq: object = None
        self.typed: Any = None  # an instance of call.args
        self.values: list[tuple[bytes, int]] = []  # stored forms and labels of the values in them, by `prepare`
        self.logged_args: dict[str, Any] = {}
        self.target = ""
        self.rule: str | None = None
        self.reservations: list[tuple[Ledger, Reservation]] = []
        self.refunds: list[tuple[Ledger, str, int]] = []
        self.result: dict[str, Any] | None = None
        self.usage: dict[str, Any] = {}
        self.actual: Mapping[str, int] | None = None  # what of BUDGET's reservation was really used; None: all of it
        self.breakdown_key = ""  # under what the use is broken down ("tool:NAME"); "": the call's name
        self.error: CallError | None = None
        self.refused_at: str | None = None
        self.trace_id = ""
        self.ts_ns = 0
        self.afterwards: list[Callable[[], None]] = []  # done when EXECUTE has succeeded
        self.at_the_end: list[Callable[[], None]] = []  # done when the entry is on disk
        self.journal_number = 0  # of the change that EXECUTE has made, see `journal`
        self.reply = Reply(0, b"")

    @classmethod
    def of_effect(cls, kernel: Kernel, subject: AgentId, effect: Effect) -> Context:
        """An effect on its way through JUDGES."""
        ctx = cls(kernel, subject, effect.op, b"", effect.pid)
        ctx.effect, ctx.target = effect, effect.target
        return ctx

    @property
    def errno(self) -> int:
        """What the caller gets: of a refused effect what the system call would say, of a call its code's."""
        if self.error is None:
            return 0
        if self.call is None and self.effect is not None:
            if self.error.code is Code.BUDGET_EXCEEDED:
                return self.error.code.errno
            return errno.EACCES if self.effect.op < Op.SIGNAL else errno.EPERM
        return self.error.code.errno

    def logged_result(self) -> dict[str, Any]:
        """The result as the log has it."""
        return self.result or {}

    def reserve(self, amounts: Mapping[str, int], ledger: Ledger | None = None) -> None:
        """Sets amounts aside (in the agent's own ledger, or another) until EXECUTE is over. Raises
        CallError(BUDGET_EXCEEDED)."""
        ledger = self.agent.ledger if ledger is None else ledger
        try:
            self.reservations.append((ledger, ledger.reserve(amounts)))
        except BudgetExceeded as error:
            raise CallError(
                Code.BUDGET_EXCEEDED, str(error), missing_cap=f"budgets.{error.name}", stage="BUDGET",
                suggested_fix=f"raise budgets.{error.name} (now {error.limit})",
                details={"budget": error.name, "limit": error.limit, "used": error.used, "remaining": error.remaining},
            ) from error  # fmt: skip

    def journal(self, tx: Transaction, result: dict[str, Any]) -> dict[str, Any]:
        """The last step of every transaction of a call: the entry of what it did is kept with what it did, so that
        after a crash either both are there or neither. Returns `result`."""
        self.result = result
        stages = dict(self.stages)

        def draft(number: int) -> bytes:
            self.journal_number = number
            self.stages = stages | {"EXECUTE": PASS}
            try:
                entry = entry_of(self)
            finally:
                self.stages = stages
            redact = self.kernel.log.redactor.value
            entry.req, entry.res, entry.target = redact(entry.req), redact(entry.res), redact(entry.target)
            return msgspec.json.encode(entry)

        tx.journal(draft)
        return result

    def settle(self) -> None:
        """What was reserved is used; of the first reservation, BUDGET's, what `actual` says."""
        used: dict[str, int] = {}
        reserved, self.reservations = self.reservations, []
        for n, (ledger, reservation) in enumerate(reserved):
            actual = self.actual if n == 0 else None
            ledger.settle(reservation, actual)
            for name, amount in (reservation.amounts if actual is None else actual).items():
                used[name] = used.get(name, 0) + amount
        self._kept(used)
        for ledger, name, amount in self.refunds:
            ledger.refund(name, amount)

    def release(self) -> None:
        """What was reserved and not used is free again."""
        given_back: dict[str, int] = {}
        reserved, self.reservations = self.reservations, []
        for ledger, reservation in reserved:
            ledger.release(reservation)
            given_back |= reservation.amounts
        if given_back:
            self._kept(given_back, used=False)

    def _kept(self, amounts: Mapping[str, int], *, used: bool = True) -> None:
        """The ledger has changed: into the breakdown, and to disk what must last."""
        if used and amounts:
            self.kernel.break_down(self.agent, self.breakdown_key or op_name(self.nr), amounts)
        if LASTING & amounts.keys():
            self.kernel.keep_budgets(self.agent)

    def grow(self, amounts: Mapping[str, int], ledger: Ledger | None = None) -> None:
        """What the call holds more (reserved now) or less (given back when it has succeeded)."""
        ledger = self.agent.ledger if ledger is None else ledger
        self.reserve({name: amount for name, amount in amounts.items() if amount > 0}, ledger)
        self.refunds += [(ledger, name, -amount) for name, amount in amounts.items() if amount < 0]


PASS, NOTHING, REFUSED = "pass", "none", "deny"


class Stage(Protocol):
    name: str

    def run(self, ctx: Context) -> str:
        """Does the stage's work on `ctx`: PASS, or NOTHING when there was none. Raises CallError to refuse."""


class Parse:
    name = "PARSE"

    def run(self, ctx: Context) -> str:
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
        return PASS


class Schema:
    name = "SCHEMA"

    def run(self, ctx: Context) -> str:
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
        if call.effect is not None:
            ctx.effect = call.effect(ctx.typed)
            ctx.target = ctx.effect.target
        return PASS


class Sequence:
    """Only requests that carry `seq` (framed channels always do): each number once."""

    name = "SEQUENCE"

    def run(self, ctx: Context) -> str:
        if ctx.seq is None:
            return NOTHING
        if not isinstance(ctx.seq, int) or isinstance(ctx.seq, bool) or not 0 < ctx.seq <= _U64_MAX:
            raise CallError(Code.SCHEMA_INVALID, "seq: a whole number from 1")
        if not ctx.kernel.replay_window(ctx.subject).admit(ctx.seq):
            raise CallError(Code.REPLAY, f"seq {ctx.seq} was used before")
        return PASS


class Capability:
    """What the agent holds must not be revoked or over, and a token that the request carries has to cover it as well,
    never instead. What it holds by a rule of its policy is POLICY's to find: a rule whose capability is over decides
    nothing."""

    name = "CAPABILITY"

    def run(self, ctx: Context) -> str:
        from akbox.kernel.uses import check_token, check_uses

        agent, checked = ctx.agent, False
        if not agent.alive:
            raise CallError(Code.CAP_REVOKED, f"agent {agent.name} has ended, and what it held with it")
        if ctx.kernel.capabilities_in_use:
            if ctx.kernel.caps.run_revoked:
                raise CallError(Code.CAP_REVOKED, "every capability of this run was revoked")
            checked = True
        uses = () if ctx.call is None or ctx.call.uses is None else ctx.call.uses(ctx.typed)
        if uses:
            check_uses(ctx, uses)
        if ctx.cap is not None:
            check_token(ctx, uses)
        return PASS if checked or uses or ctx.cap is not None else NOTHING


class Policy:
    name = "POLICY"

    def run(self, ctx: Context) -> str:
        if ctx.effect is None:
            return NOTHING
        decision = ctx.kernel.decide(ctx.subject, ctx.effect)
        if decision.code is Code.APPROVAL_REQUIRED:
            decision = ctx.kernel.ask(ctx.agent, ctx.effect, decision)
        ctx.decision, ctx.rule = decision, decision.rule
        if not decision.allowed:
            raise CallError(
                decision.code or Code.POLICY_DENY, decision.reason, missing_cap=decision.missing_cap,
                suggested_fix=decision.suggested_fix,
            )  # fmt: skip
        return PASS


class Budget:
    name = "BUDGET"

    def run(self, ctx: Context) -> str:
        amounts: Mapping[str, int] = {}
        if ctx.call is not None and ctx.call.cost is not None:
            amounts = ctx.call.cost(ctx, ctx.typed)
        elif ctx.call is None and ctx.effect is not None:
            amounts = ctx.effect.cost
        if not amounts:
            return NOTHING
        ctx.reserve(amounts)
        if LASTING & amounts.keys():
            ctx.kernel.keep_budgets(ctx.agent)
        return PASS


class Taint:
    """What an agent got from outside does not go where the call would interpret it, unless it was sanitised for
    that."""

    name = "TAINT"

    def run(self, ctx: Context) -> str:
        if ctx.call is None or ctx.call.sinks is None:
            return NOTHING
        from akbox.kernel.taint import check_sinks

        return PASS if check_sinks(ctx, ctx.call.sinks(ctx, ctx.typed)) else NOTHING


class Execute:
    """Runs the call; the reservations are settled when it succeeded and released when it did not."""

    name = "EXECUTE"

    def run(self, ctx: Context) -> str:
        assert ctx.call is not None
        try:
            ctx.result = ctx.call.execute(ctx, ctx.typed)
        except StoreError as error:
            ctx.journal_number = 0
            raise CallError(Code.LOG_FULL, f"the store failed: {error}") from error
        except CallError:
            ctx.journal_number = 0  # rolled back
            raise
        ctx.settle()
        for work in ctx.afterwards:
            work()
        return PASS


class Log:
    """The entry is on disk before the reply leaves (INV-4). An AuditError goes through: the run ends."""

    name = "LOG"

    def run(self, ctx: Context) -> str:
        error = ctx.error
        receipt = ctx.kernel.log.append(entry_of(ctx))
        if ctx.journal_number:
            ctx.kernel.log.wait_durable(receipt.seq)
            ctx.kernel.store.logged(ctx.journal_number)
        ctx.trace_id = receipt.trace_id
        if ctx.call is not None or ctx.effect is None:
            ctx.kernel.log.wait_durable(receipt.seq)
        if error is not None and error.code in REFUSALS:
            ctx.kernel.note_refusal(ctx, error)
        return PASS


def entry_of(ctx: Context) -> Draft:
    """The entry that says what became of a call or an effect."""
    error = ctx.error
    req = _effect_request(ctx) if ctx.call is None and ctx.effect is not None else _call_request(ctx)
    res: dict[str, Any] = {"errno": 0, "stages": ctx.stages}
    if error is not None:
        res |= {"errno": ctx.errno, "code": int(error.code), "message": error.message}
    elif ctx.call is not None:
        res["result"] = compact(ctx.logged_result())
    if ctx.journal_number:
        res["tx"] = ctx.journal_number
    ctx.ts_ns = ctx.ts_ns or ctx.kernel.clock_ns()
    return Draft(
        ts_ns=ctx.ts_ns, agent=ctx.subject, op=ctx.nr & 0xFFFF, name=op_name(ctx.nr), target=ctx.target,
        decision="allow" if error is None else "deny", stage=ctx.refused_at, rule=ctx.rule, pid=ctx.pid, req=req,
        res=res,
    )  # fmt: skip


def _call_request(ctx: Context) -> dict[str, Any]:
    req: dict[str, Any] = {"args": ctx.logged_args}
    if ctx.tool:
        req["tool"] = ctx.tool
    if ctx.seq is not None:
        req["seq"] = ctx.seq
    if ctx.token is not None:
        req["cap"] = ctx.token.tids[-1]
    if ctx.error is not None and not ctx.args:
        req |= {"bytes": len(ctx.raw), "sha256": sha256(ctx.raw).hexdigest()}
    return req


def _effect_request(ctx: Context) -> dict[str, Any]:
    effect = ctx.effect
    assert effect is not None
    req: dict[str, Any] = {"need": NEED_NAMES[effect.need & 7]}
    if effect.target2 is not None:
        req["target2"] = effect.target2
    if effect.detail is not None:
        req["detail"] = effect.detail
    if effect.cost:
        req["cost"] = dict(effect.cost)
    if ctx.error is not None and ctx.error.missing_cap:
        req["missing"] = ctx.error.missing_cap
    return req


class Respond:
    name = "RESPOND"

    def run(self, ctx: Context) -> str:
        if ctx.error is None:
            body: dict[str, Any] = {"ok": True, "result": ctx.result}
            if ctx.usage:
                body["usage"] = ctx.usage
            ctx.reply = Reply(0, msgspec.json.encode(body))
        else:
            ctx.reply = error_reply(ctx.error, ctx.trace_id)
        return PASS


_CAPABILITY, _POLICY, _BUDGET, _TAINT, _LOG = Capability(), Policy(), Budget(), Taint(), Log()
GATES: tuple[Stage, ...] = (
    Parse(), Schema(), Sequence(), _CAPABILITY, _POLICY, _BUDGET, _TAINT, Execute(),
)  # fmt: skip
ALWAYS: tuple[Stage, ...] = (_LOG, Respond())
JUDGES: tuple[Stage, ...] = (_CAPABILITY, _POLICY, _BUDGET, _TAINT)
RECORD: tuple[Stage, ...] = (_LOG,)


def run(ctx: Context) -> Reply:
    """Takes a call through all stages. Raises AuditError when it can't be logged: nothing may be answered then."""
    _through(ctx, GATES)
    for stage in ALWAYS:
        stage.run(ctx)
    for work in ctx.at_the_end:
        work()
    return ctx.reply


def judge(ctx: Context) -> Decision:
    """Takes an effect through the stages that decide, and logs what they said. What it costs is used when it is
    allowed. Raises AuditError."""
    _through(ctx, JUDGES, spend=True)
    for stage in RECORD:
        stage.run(ctx)
    return _decision_of(ctx)


def refused(ctx: Context, error: CallError) -> Decision:
    """Logs an effect that is refused with `error`, whatever the policy says. Raises AuditError."""
    ctx.error, ctx.refused_at = error, error.stage or "POLICY"
    ctx.stages[ctx.refused_at] = REFUSED
    for stage in RECORD:
        stage.run(ctx)
    return _decision_of(ctx)


def _decision_of(ctx: Context) -> Decision:
    error, decision = ctx.error, ctx.decision
    if error is None:
        assert decision is not None
        return msgspec.structs.replace(decision, trace_id=ctx.trace_id)
    return Decision(
        allowed=False, reason=error.message, rule=ctx.rule, code=error.code, errno=ctx.errno,
        missing_cap=error.missing_cap, suggested_fix=error.suggested_fix, trace_id=ctx.trace_id,
    )  # fmt: skip


def _through(ctx: Context, stages: tuple[Stage, ...], *, spend: bool = False) -> None:
    try:
        for stage in stages:
            try:
                ctx.stages[stage.name] = stage.run(ctx)
            except CallError as error:
                ctx.error, ctx.refused_at = error, error.stage or stage.name
                ctx.stages[ctx.refused_at] = REFUSED
                break
        if spend and ctx.error is None:
            ctx.settle()
    finally:
        ctx.release()  # left over only when EXECUTE was not reached or failed


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
