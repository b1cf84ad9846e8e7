"""What a model call may cost and what it did cost: reserved before it is sent, settled with the provider's own count.

The decision and the reservation are one entry of the log, what became of the call is another that names the first. All
amounts of one call are reserved together or not at all, so calls side by side never pass a limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from akbox.inference.callers import Caller, admit
from akbox.inference.prices import Prices
from akbox.inference.wire import Facts, Usage
from akbox.kernel.budget import BudgetExceeded, Ledger, Reservation
from akbox.kernel.codes import CallError, Code
from akbox.kernel.effect import AgentId, Decision, Denial, Effect
from akbox.kernel.entry import Draft
from akbox.kernel.kernel import Kernel
from akbox.kernel.ops import Op, op_name

OUTPUT_WITHOUT_LIMIT = 128_000
"""Reserved for an answer whose length nobody limits, if that much is left: the longest that the big models give."""
_TRIES = 16


class Ticket:
    """One call that may be sent: the most output tokens it may ask for, and what it holds of the budgets. To be closed
    once, by `settle` or `release`."""

    def __init__(
        self,
        meter: Meter,
        subject: AgentId,
        facts: Facts,
        trace_id: str,
        reservation: Reservation | None,
        output: int,
        write_cap: bool,
    ) -> None:
        self._meter, self._subject, self._facts = meter, subject, facts
        self._reservation = reservation
        self.trace_id = trace_id
        self.output = output
        """For one answer; 0: the call makes none."""
        self.write_cap = write_cap
        """Does the request have to say so? Else it does, or the model makes no longer ones."""

    @property
    def output_all(self) -> int:
        return self.output * self._facts.copies

    def settle(self, usage: Usage, result: dict[str, Any]) -> None:
        """The call used this much; `result` is what the entry says besides. A second time does nothing."""
        self._meter.close(self, usage, result)

    def release(self, result: dict[str, Any]) -> None:
        """The call used nothing."""
        self._meter.close(self, None, result)

    def guess(self, stream_usage: Usage | None, characters: int) -> Usage:
        """A bound on what a call used whose provider has not told (all of it): the prompt as it was reserved, and no
        token for less than a byte that came."""
        known = stream_usage or Usage(prompt=self._facts.prompt or 0)
        output = max(known.output, min(characters, self.output_all))
        return Usage(
            prompt=known.prompt, output=output, cache_read=known.cache_read, cache_write=known.cache_write,
            cache_write_long=known.cache_write_long, estimated=True,
        )  # fmt: skip


class Meter:
    """Thread-safe. One per run."""

    def __init__(self, kernel: Kernel, prices: Prices, most_output: int | None) -> None:
        self._kernel = kernel
        self._prices = prices
        self._most_output = most_output
        self.changed: Callable[[AgentId], None] = lambda _subject: None
        """Told of each agent whose ledger was settled, so that it is kept."""

    def open(
        self,
        caller: Caller,
        facts: Facts,
        decision: Decision,
        detail: dict[str, Any],
        *,
        metered: bool,
        secrets: str = "",
    ) -> Ticket:
        """Admits one call to `facts.model`, about which the policy has said `decision`, and reserves what it may use;
        `secrets`: what it must not be sent for. Raises CallError (CAP_…, POLICY_DENY, DLP_BLOCK, BUDGET_EXCEEDED);
        either way there is an entry."""
        subject = caller.agent
        effect = Effect(op=Op.INFER, target=f"model:{facts.model}")
        req = dict(detail)
        try:
            admit(self._kernel, caller, effect.target)
        except CallError as error:
            raise self._refuse(
                subject, effect, decision, req, error.code, error.message, "CAPABILITY", error.suggested_fix
            ) from error
        if not decision.allowed:
            code = decision.code or Code.POLICY_DENY
            raise self._refuse(subject, effect, decision, req, code, decision.reason, "POLICY")
        if secrets:
            message = f"the request holds what looks like a secret: {secrets}"
            raise self._refuse(
                subject, effect, decision, req, Code.DLP_BLOCK, message, "TAINT", 'infer.detect = "redact", or "off"'
            )
        if not metered:
            return Ticket(self, subject, facts, self._entry(subject, effect, decision, req), None, 0, False)
        try:
            reservation, output, free = self._reserve(self._kernel.ledger(subject), facts)
        except BudgetExceeded as error:
            fix = f"raise budgets.{error.name} (now {error.limit})"
            raise self._refuse(
                subject, effect, decision, req, Code.BUDGET_EXCEEDED, str(error), "BUDGET", fix, f"budgets.{error.name}"
            ) from error
        except NoPrice as error:
            fix = f'[infer.prices."{facts.model}"] with input and output, in dollars for a million tokens'
            raise self._refuse(
                subject, effect, decision, req, Code.BUDGET_EXCEEDED, str(error), "BUDGET", fix, "infer.prices"
            ) from error
        req["reserved"] = dict(reservation.amounts)
        if output:
            req["max_tokens"] = output
        write_cap = facts.generates and output != facts.output and not free
        trace = self._entry(subject, effect, decision, req)
        return Ticket(self, subject, facts, trace, reservation, output, write_cap)

    def left(self, subject: AgentId) -> int | None:
        """Tokens that nobody has used or reserved; None: no limit."""
        return self._kernel.ledger(subject).status("tokens").remaining

    def close(self, ticket: Ticket, usage: Usage | None, result: dict[str, Any]) -> None:
        """See Ticket.settle and Ticket.release."""
        reservation, ticket._reservation = ticket._reservation, None
        if reservation is None or not reservation.open:
            return
        ledger = self._kernel.ledger(ticket._subject)
        res = dict(result)
        if usage is None:
            ledger.release(reservation)
        else:
            spent = {"tokens": usage.prompt + usage.output, "output_tokens": usage.output}
            res["usage"] = _usage_entry(usage)
            micros = self._prices.cost_micros(ticket._facts.model, usage)
            if micros is not None:
                spent["usd"] = micros
                res["usage"]["usd_micros"] = micros
            ledger.settle(reservation, spent)
            self._kernel.break_down(self._kernel.agent(ticket._subject), f"model:{ticket._facts.model}", spent)
        self._append(ticket._subject, f"model:{ticket._facts.model}", {"call": ticket.trace_id}, res)
        self.changed(ticket._subject)

    def note(self, subject: AgentId, target: str, req: dict[str, Any], res: dict[str, Any]) -> None:
        """An entry for what costs nothing and was allowed."""
        self._append(subject, target, req, res)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _reserve(self, ledger: Ledger, facts: Facts) -> tuple[Reservation, int, bool]:
        """The most that fits: the output is made smaller before the call is refused. Others may reserve meanwhile, so
        what is left is only a hint."""
        refused: BudgetExceeded | None = None
        for _ in range(_TRIES):
            amounts, output, free = self._fitting(ledger, facts)
            try:
                return ledger.reserve(amounts), output, free
            except BudgetExceeded as error:
                refused = error
                if output <= facts.least:
                    break
        assert refused is not None
        raise refused

    def _fitting(self, ledger: Ledger, facts: Facts) -> tuple[dict[str, int], int, bool]:
        """Amounts; the most output of one answer; and whether nothing but the model itself limits it."""
        left = {name: ledger.status(name).remaining for name in ("tokens", "output_tokens", "usd")}
        price = self._prices.find(facts.model)
        if price is None and left["usd"] is not None:
            raise NoPrice(f"budgets.usd is limited, and the price of {facts.model} is not known")
        if facts.dearer and left["usd"] is not None:
            raise NoPrice(f"budgets.usd is limited, and {facts.model} with {facts.dearer} is not at its list price")
        least = facts.least * facts.copies if facts.generates else 0
        longest = (price and price.most_output) or OUTPUT_WITHOUT_LIMIT
        most = min((v for v in (facts.output, self._most_output) if v is not None), default=longest)
        prompt = facts.prompt
        if prompt is None:  # nothing bounds it: everything that is left, so that nobody else passes the limit meanwhile
            prompt = max((left["tokens"] or 0) - max(most * facts.copies, least), 0)
        prompt_micros = 0 if price is None else price.prompt_bound_micros(prompt)
        if facts.prompt is None and left["usd"] is not None:
            prompt_micros = min(prompt_micros, left["usd"])
        output = 0
        if facts.generates:
            rooms = [most]
            if left["tokens"] is not None:
                rooms.append((left["tokens"] - prompt) // facts.copies)
            if left["output_tokens"] is not None:
                rooms.append(left["output_tokens"] // facts.copies)
            if left["usd"] is not None and price is not None and price.output:
                rooms.append(int((left["usd"] - prompt_micros) / price.output) // facts.copies)
            output = max(min(rooms), facts.least)
        whole = max(output * facts.copies, least)
        amounts = {"tokens": prompt + whole, "output_tokens": whole}
        if price is not None:
            amounts["usd"] = prompt_micros + price.output_micros(whole)
        return amounts, output, facts.output is None and self._most_output is None and output >= longest

    def _refuse(
        self,
        subject: AgentId,
        effect: Effect,
        decision: Decision,
        req: dict[str, Any],
        code: Code,
        message: str,
        stage: str,
        fix: str | None = None,
        missing: str | None = None,
    ) -> CallError:
        """Entry and report; returns the error to raise."""
        kernel, now = self._kernel, self._kernel.clock_ns()
        fix, missing = fix or decision.suggested_fix, missing or decision.missing_cap
        receipt = kernel.log.append(
            Draft(
                ts_ns=now, agent=subject, op=effect.op, name=op_name(effect.op), target=effect.target, decision="deny",
                stage=stage, rule=decision.rule, req=req | ({"missing": missing} if missing else {}),
                res={"errno": code.errno, "code": int(code), "message": message},
            )
        )  # fmt: skip
        kernel.refusals.note(
            subject,
            Denial(
                op=op_name(effect.op), target=effect.target, count=1, rule=decision.rule, missing_cap=missing,
                suggested_fix=fix, errno=code.errno, first_ts_ns=now, last_ts_ns=now, trace_id=receipt.trace_id,
                message=message, code=code,
            ),
        )  # fmt: skip
        error = CallError(code, message, missing_cap=missing, suggested_fix=fix, stage=stage)
        return error

    def _entry(self, subject: AgentId, effect: Effect, decision: Decision, req: dict[str, Any]) -> str:
        return self._append(subject, effect.target, req, {"errno": 0}, decision.rule)

    def _append(
        self, subject: AgentId, target: str, req: dict[str, Any], res: dict[str, Any], rule: str | None = None
    ) -> str:
        draft = Draft(
            ts_ns=self._kernel.clock_ns(), agent=subject, op=Op.INFER, name=op_name(Op.INFER), target=target,
            decision="allow", rule=rule, req=req, res=res,
        )  # fmt: skip
        return self._kernel.log.append(draft).trace_id


class NoPrice(Exception):
    """Dollars are limited and nobody knows what the model costs."""


def _usage_entry(usage: Usage) -> dict[str, Any]:
    entry: dict[str, Any] = {"prompt_tokens": usage.prompt, "output_tokens": usage.output}
    for name in ("cache_read", "cache_write"):
        if getattr(usage, name):
            entry[f"{name}_tokens"] = getattr(usage, name)
    if usage.estimated:
        entry["estimated"] = True
    return entry
