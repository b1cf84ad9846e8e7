"""Budgets: a tree of ledgers, one per agent. Reserve, then settle or release; never negative, never past a limit
(INV-3).

Amounts are whole numbers below 2^64 in the unit of the name (`usd` in millionths of a dollar). All ledgers of a tree
share one lock, so that a reservation is taken in a child and in every ledger above it, or nowhere.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import msgspec

U64_MAX = 2**64 - 1
NAMES = (
    "tokens", "output_tokens", "tool_calls", "wall_time_ms", "cpu_ns", "bytes", "heap_objects", "heap_bytes", "usd",
)  # fmt: skip
ALIASES = {"cpu_time_ns": "cpu_ns", "wall_ms": "wall_time_ms", "calls": "tool_calls"}
MICROS_PER_USD = 1_000_000
LASTING = frozenset({"tokens", "output_tokens", "tool_calls", "usd", "bytes"})
"""Kept durably before and after each call that uses them: a crash gives nothing back. What the heap holds is counted in
the store; time is measured."""
NOT_ADDED = frozenset({"wall_time_ms"})
"""Passes for parent and children at once: a child's limit is within its parent's, and takes nothing of it."""


class BudgetExceeded(Exception):
    """A limit would be passed. `agent_limit` is the limit of the ledger that refused, which may be a parent's."""

    def __init__(self, name: str, requested: int, limit: int, used: int, reserved: int) -> None:
        remaining = max(limit - used - reserved, 0)
        super().__init__(f"{name}: {requested} asked for, {remaining} of {limit} left")
        self.name, self.requested, self.limit = name, requested, limit
        self.used, self.reserved, self.remaining = used, reserved, remaining


class Account(msgspec.Struct):
    """One name in one ledger. limit None: unlimited. Always used + reserved <= limit."""

    limit: int | None
    used: int = 0
    reserved: int = 0


class Status(msgspec.Struct, frozen=True):
    """A name as an agent sees it; `remaining` counts what the ledgers above still have as well. None: unlimited."""

    limit: int | None
    used: int
    reserved: int
    remaining: int | None


class Reservation(msgspec.Struct, eq=False):
    """What was set aside in a ledger (and all above it). To be settled or released, once."""

    amounts: dict[str, int]
    open: bool = True


class Ledger:
    """One agent's budgets. Thread-safe. Names that are not in `limits` are counted without a limit."""

    def __init__(self, limits: Mapping[str, int | None], parent: Ledger | None = None) -> None:
        for name, limit in limits.items():
            if name not in NAMES:
                raise ValueError(f"no budget is called {name!r}")
            if limit is not None:
                _checked(limit)
        self._parent = parent
        self._lock: threading.RLock = threading.RLock() if parent is None else parent._lock
        self._accounts = {name: Account(limits.get(name)) for name in NAMES}
        self._share: Reservation | None = None  # of a child: what it holds of its parent
        self._overrun: dict[str, int] = {}

    # ---- the life of an amount ------------------------------------------------------------------------------------

    def reserve(self, amounts: Mapping[str, int]) -> Reservation:
        """Sets all the amounts aside, or none. Raises BudgetExceeded."""
        wanted = {_known(name): _checked(amount) for name, amount in amounts.items() if amount}
        with self._lock:
            for name, amount in wanted.items():
                for ledger in self._path(name):
                    a = ledger._accounts[name]
                    if a.used + a.reserved + amount > (U64_MAX if a.limit is None else a.limit):
                        raise BudgetExceeded(name, amount, U64_MAX if a.limit is None else a.limit, a.used, a.reserved)
            for name, amount in wanted.items():
                for ledger in self._path(name):
                    ledger._accounts[name].reserved += amount
            return Reservation(wanted)

    def settle(self, reservation: Reservation, actual: Mapping[str, int] | None = None) -> None:
        """Turns a reservation into use: `actual` amounts where given, the whole of it else. What was used beyond the
        reservation is taken too, as far as there is any; the rest is kept as an overrun and the name counts as
        exceeded."""
        with self._lock:
            self._take_back(reservation)
            for name, amount in (reservation.amounts if actual is None else actual).items():
                self._use(_known(name), _checked(amount))

    def release(self, reservation: Reservation) -> None:
        """Gives a reservation back: nothing was used."""
        with self._lock:
            self._take_back(reservation)

    def charge(self, name: str, amount: int) -> bool:
        """Counts what was used already (CPU, bytes). False when that met or passed the limit; used never passes it."""
        with self._lock:
            self._use(_known(name), _checked(amount))
            return not self.exceeded(name)

    def refund(self, name: str, amount: int) -> None:
        """Gives back what is held rather than spent (a deleted object's bytes); never below zero."""
        with self._lock:
            for ledger in self._path(_known(name)):
                account = ledger._accounts[name]
                account.used -= min(_checked(amount), account.used)

    # ---- children -------------------------------------------------------------------------------------------------

    def child(self, limits: Mapping[str, int | None]) -> Ledger:
        """A ledger whose limits are set aside here until `close`: parent and children together never pass this one's.
        A name without a limit of its own draws on this ledger as it goes. Raises BudgetExceeded."""
        with self._lock:
            for name, limit in limits.items():
                left = self.status(name).remaining if name in NOT_ADDED else None
                if left is not None and limit is not None and limit > left:
                    status = self.status(name)
                    raise BudgetExceeded(name, limit, status.limit or 0, status.used, status.reserved)
            share = self.reserve({n: v for n, v in limits.items() if v is not None and n not in NOT_ADDED})
            ledger = Ledger(limits, self)
            ledger._share = share
            return ledger

    def close(self) -> None:
        """Ends a child: what it used becomes its parent's use, the rest is free again. Once."""
        with self._lock:
            if self._parent is None or self._share is None:
                return
            share, self._share = self._share, None
            own = {n: self._accounts[n].used for n in share.amounts}
            self._parent.settle(share, {n: used for n, used in own.items() if used})

    # ---- questions ------------------------------------------------------------------------------------------------

    def limit(self, name: str) -> int | None:
        return self._accounts[_known(name)].limit

    def used(self, name: str) -> int:
        return self._accounts[_known(name)].used

    def exceeded(self, name: str) -> bool:
        """Is nothing left of a limited name (or was more used than there was)?"""
        account = self._accounts[_known(name)]
        return bool(self._overrun.get(name)) or (account.limit is not None and account.used >= account.limit)

    def status(self, name: str) -> Status:
        name = _known(name)
        with self._lock:
            a = self._accounts[name]
            left = [
                ledger._accounts[name].limit - ledger._accounts[name].used - ledger._accounts[name].reserved  # type: ignore[operator]
                for ledger in self._path(name)
                if ledger._accounts[name].limit is not None
            ]
            return Status(a.limit, a.used, a.reserved, max(min(left), 0) if left else None)

    def overrun(self, name: str) -> int:
        """What was used past the limit and could not be counted: what a measurement after the fact found."""
        return self._overrun.get(_known(name), 0)

    def restore(self, used: Mapping[str, int]) -> None:
        """Takes up what was used before a restart; what is over a limit by now counts as all of it."""
        with self._lock:
            for name, amount in used.items():
                if name in self._accounts:
                    self._use(name, _checked(amount))

    def committed(self) -> dict[str, int]:
        """Used and set aside: what a restart has to assume was used."""
        with self._lock:
            return {name: account.used + account.reserved for name, account in self._accounts.items()}

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return {name: account.used for name, account in self._accounts.items()}

    # ---- inside, with the lock held ----------------------------------------------------------------------------

    def _path(self, name: str) -> list[Ledger]:
        """This ledger and those above that have to agree: up to the first with a limit, whose share is the parent's."""
        out: list[Ledger] = [self]
        while out[-1]._parent is not None and out[-1]._accounts[name].limit is None:
            out.append(out[-1]._parent)
        return out

    def _use(self, name: str, amount: int) -> None:
        path = self._path(name)
        room = min((U64_MAX if (a := x._accounts[name]).limit is None else a.limit) - a.used - a.reserved for x in path)
        taken = min(amount, max(room, 0))
        for ledger in path:
            ledger._accounts[name].used += taken
        if amount > taken:
            self._overrun[name] = self._overrun.get(name, 0) + amount - taken

    def _take_back(self, reservation: Reservation) -> None:
        if not reservation.open:
            raise ValueError("this reservation was settled or released before")
        reservation.open = False
        for name, amount in reservation.amounts.items():
            for ledger in self._path(name):
                ledger._accounts[name].reserved -= amount


def limits_of(budgets: Mapping[str, int | float | None]) -> dict[str, int | None]:
    """A policy's budgets in ledger units: dollars become millionths, rounded down (a limit is never widened)."""
    out: dict[str, int | None] = {}
    for name, value in budgets.items():
        name = _known(name)
        out[name] = None if value is None else int(value * MICROS_PER_USD) if name == "usd" else int(value)
    return out


def _known(name: str) -> str:
    name = ALIASES.get(name, name)
    if name not in NAMES:
        raise ValueError(f"no budget is called {name!r}")
    return name


def _checked(amount: int) -> int:
    if not isinstance(amount, int) or isinstance(amount, bool) or not 0 <= amount <= U64_MAX:
        raise ValueError(f"{amount!r} is not an amount")
    return amount
