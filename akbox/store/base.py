"""The storage interface: heap objects with versions, in transactions; snapshots of budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec


class HeapObject(msgspec.Struct, frozen=True):
    """One object of the typed heap. `ptr` and `version` count from 1 and a ptr is never used again; `value` is JSON
    text; `taint` a label of design 02; `owner` a 16-byte agent id."""

    ptr: int
    type: str
    version: int
    value: bytes
    taint: int
    owner: bytes


class Message(msgspec.Struct, frozen=True):
    """One message in a mailbox. `number` counts from 1 over the whole run; `payload` is JSON text."""

    number: int
    sender: bytes
    urgent: bool
    payload: bytes
    correlation: str | None


class StoreError(Exception):
    """The database can't be read or written. What was being done did not happen."""


class Transaction(Protocol):
    """All of it or nothing. What it reads is what it wrote; nobody else writes meanwhile."""

    def get(self, ptr: int) -> HeapObject | None: ...

    def insert(self, *, owner: bytes, type: str, value: bytes, taint: int) -> int:
        """The new object's ptr; its version is 1."""

    def update(self, ptr: int, *, version: int, value: bytes, taint: int) -> bool:
        """Replaces the value of version `version`, making version + 1. False when that is not the version there."""

    def mark(self, ptr: int, taint: int) -> None:
        """Gives an object another label."""

    def delete(self, ptr: int, *, version: int) -> bool:
        """False when that is not the version there."""

    def post(self, recipient: bytes, sender: bytes, payload: bytes, *, urgent: bool, correlation: str | None) -> int:
        """Puts a message into a mailbox; its number."""

    def waiting(self, recipient: bytes) -> int:
        """Messages in a mailbox."""

    def take(self, recipient: bytes, limit: int) -> list[Message]:
        """Takes the oldest out, the urgent ones first."""

    def inherit(self, owner: bytes, heir: bytes, *, taint: int) -> None:
        """Objects of `owner` are `heir`'s from now on, with this label; its mailbox goes."""

    def adopt(self, owner: bytes, *, taint: int) -> None:
        """Every object is `owner`'s from now on, those of others with this label; mailboxes but its own go."""

    def journal(self, draft: Callable[[int], bytes]) -> int:
        """Keeps, with what the transaction changes, the log entry that belongs to it: `draft(number)` as bytes. Until
        `logged(number)` it comes back from `journaled`. Returns the number, never used again."""


class Store(Protocol):
    """Thread-safe. Every method may raise StoreError."""

    @property
    def used(self) -> bool:
        """Is there anything in it, so that closing has something to save?"""

    def get(self, ptr: int) -> HeapObject | None: ...

    def objects(self, owner: bytes, *, type: str | None, after: int, limit: int) -> Sequence[HeapObject]:
        """The owner's objects with ptr > after, in order of ptr."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Commits, durably, when the block ends; rolls back when it raises."""

    def logged(self, number: int) -> None:
        """The entry with this journal number is in the log: it may be forgotten (with the next transaction)."""

    def journaled(self) -> Sequence[tuple[int, bytes]]:
        """Entries that were kept with a change and not known to be in the log, in order."""

    def held(self, owner: bytes) -> tuple[int, int]:
        """(objects, bytes of their values) of an owner."""

    def save_budgets(self, agent: bytes, used: Mapping[str, int]) -> None: ...

    def load_budgets(self, agent: bytes) -> dict[str, int]: ...

    def save_revocation(self, tid: str, why: str) -> None:
        """Durably; `tid` "run" stands for every capability of the run."""

    def save_lineage(self, tid: str, parent: str) -> None: ...

    def load_capabilities(self) -> tuple[dict[str, str], dict[str, str], str | None]:
        """(why by revoked tid, parent by tid, why the run is revoked or None)."""

    def close(self) -> None: ...
