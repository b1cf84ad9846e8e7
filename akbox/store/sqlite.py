"""The default store: one SQLite file in the run's directory, opened when it is first needed.

WAL with synchronous=FULL: a commit is on disk when it returns. One connection, one lock: the transactions are short,
and SQLite has one writer anyway.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akbox.store.base import HeapObject, Message, StoreError

if TYPE_CHECKING:
    import sqlite3

_SCHEMA = """
CREATE TABLE IF NOT EXISTS heap (
    ptr INTEGER PRIMARY KEY AUTOINCREMENT,
    type TEXT NOT NULL, version INTEGER NOT NULL, value BLOB NOT NULL, taint INTEGER NOT NULL, owner BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS heap_owner ON heap (owner, ptr);
CREATE TABLE IF NOT EXISTS budgets (
    agent BLOB NOT NULL, name TEXT NOT NULL, used TEXT NOT NULL, PRIMARY KEY (agent, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS heap_type ON heap (owner, type, ptr);
CREATE TABLE IF NOT EXISTS journal (number INTEGER PRIMARY KEY AUTOINCREMENT, draft BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS mail (
    number INTEGER PRIMARY KEY AUTOINCREMENT, recipient BLOB NOT NULL, sender BLOB NOT NULL, urgent INTEGER NOT NULL,
    payload BLOB NOT NULL, correlation TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS mail_recipient ON mail (recipient, urgent DESC, number);
CREATE TABLE IF NOT EXISTS revocations (tid TEXT PRIMARY KEY, why TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lineage (tid TEXT PRIMARY KEY, parent TEXT NOT NULL) STRICT, WITHOUT ROWID;
PRAGMA user_version = 2;
"""
_COLUMNS = "ptr, type, version, value, taint, owner"
_MAX_PTR = 2**63 - 1


class SqliteStore:
    """`path` need not exist; the file is made 0600. `close` before the directory goes away."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None  # guarded by _lock
        self._closed = False
        self._logged: set[int] = set()  # journal numbers whose entries are in the log; guarded by _lock

    def get(self, ptr: int) -> HeapObject | None:
        with self._connection() as db:
            return _Transaction(db).get(ptr)

    def objects(self, owner: bytes, *, type: str | None, after: int, limit: int) -> Sequence[HeapObject]:
        with self._connection() as db:
            condition = "owner = ? AND ptr > ?" if type is None else "owner = ? AND ptr > ? AND type = ?"
            values = (owner, min(after, _MAX_PTR), *(() if type is None else (type,)), limit)
            rows = db.execute(f"SELECT {_COLUMNS} FROM heap WHERE {condition} ORDER BY ptr LIMIT ?", values)
            return [HeapObject(*row) for row in rows]

    @contextmanager
    def transaction(self) -> Iterator[_Transaction]:
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            done = list(self._logged)
            try:
                db.executemany("DELETE FROM journal WHERE number = ?", [(number,) for number in done])
                yield _Transaction(db)
                db.execute("COMMIT")
                self._logged.difference_update(done)
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def logged(self, number: int) -> None:
        with self._lock:
            self._logged.add(number)

    def journaled(self) -> Sequence[tuple[int, bytes]]:
        with self._connection() as db:
            rows = db.execute("SELECT number, draft FROM journal ORDER BY number").fetchall()
            return [(number, draft) for number, draft in rows if number not in self._logged]

    def held(self, owner: bytes) -> tuple[int, int]:
        with self._connection() as db:
            sql = "SELECT count(*), coalesce(sum(length(value)), 0) FROM heap WHERE owner = ?"
            count, size = db.execute(sql, (owner,)).fetchone()
            return count, size

    def save_budgets(self, agent: bytes, used: Mapping[str, int]) -> None:
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "INSERT OR REPLACE INTO budgets VALUES (?, ?, ?)", [(agent, k, str(v)) for k, v in used.items()]
            )
            db.execute("COMMIT")

    def load_budgets(self, agent: bytes) -> dict[str, int]:
        with self._connection() as db:
            return {k: int(v) for k, v in db.execute("SELECT name, used FROM budgets WHERE agent = ?", (agent,))}

    def save_revocation(self, tid: str, why: str) -> None:
        with self._connection() as db:
            db.execute("INSERT OR REPLACE INTO revocations VALUES (?, ?)", (tid, why))

    def save_lineage(self, tid: str, parent: str) -> None:
        with self._connection() as db:
            db.execute("INSERT OR REPLACE INTO lineage VALUES (?, ?)", (tid, parent))

    def load_capabilities(self) -> tuple[dict[str, str], dict[str, str], str | None]:
        with self._connection() as db:
            revoked = dict(db.execute("SELECT tid, why FROM revocations"))
            return revoked, dict(db.execute("SELECT tid, parent FROM lineage")), revoked.pop("run", None)

    @property
    def used(self) -> bool:
        """Has anything been asked of it, so that a file is there?"""
        return self._db is not None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._db is not None:
                if self._logged:
                    self._db.executemany("DELETE FROM journal WHERE number = ?", [(n,) for n in self._logged])
                self._db.close()
                self._db = None

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """The connection, with the lock held; the database's errors become StoreError."""
        import sqlite3

        with self._lock:
            if self._closed:
                raise StoreError(f"{self._path} is closed")
            try:
                if self._db is None:
                    self._db = _open(self._path)
                yield self._db
            except (sqlite3.Error, OSError) as error:
                raise StoreError(f"{self._path}: {error}") from error


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def get(self, ptr: int) -> HeapObject | None:
        if not 0 < ptr <= _MAX_PTR:
            return None
        row: tuple[Any, ...] | None = self._db.execute(f"SELECT {_COLUMNS} FROM heap WHERE ptr = ?", (ptr,)).fetchone()
        return None if row is None else HeapObject(*row)

    def insert(self, *, owner: bytes, type: str, value: bytes, taint: int) -> int:
        cursor = self._db.execute(
            "INSERT INTO heap (type, version, value, taint, owner) VALUES (?, 1, ?, ?, ?)", (type, value, taint, owner)
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def update(self, ptr: int, *, version: int, value: bytes, taint: int) -> bool:
        sql = "UPDATE heap SET value = ?, taint = ?, version = version + 1 WHERE ptr = ? AND version = ?"
        return self._db.execute(sql, (value, taint, ptr, version)).rowcount == 1

    def mark(self, ptr: int, taint: int) -> None:
        self._db.execute("UPDATE heap SET taint = ? WHERE ptr = ?", (taint, ptr))

    def delete(self, ptr: int, *, version: int) -> bool:
        return self._db.execute("DELETE FROM heap WHERE ptr = ? AND version = ?", (ptr, version)).rowcount == 1

    def post(self, recipient: bytes, sender: bytes, payload: bytes, *, urgent: bool, correlation: str | None) -> int:
        cursor = self._db.execute(
            "INSERT INTO mail (recipient, sender, urgent, payload, correlation) VALUES (?, ?, ?, ?, ?)",
            (recipient, sender, int(urgent), payload, correlation),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def waiting(self, recipient: bytes) -> int:
        count: int = self._db.execute("SELECT count(*) FROM mail WHERE recipient = ?", (recipient,)).fetchone()[0]
        return count

    def take(self, recipient: bytes, limit: int) -> list[Message]:
        sql = (
            "SELECT number, sender, urgent, payload, correlation FROM mail WHERE recipient = ?"
            " ORDER BY urgent DESC, number LIMIT ?"
        )
        found = [Message(n, s, bool(u), p, c) for n, s, u, p, c in self._db.execute(sql, (recipient, limit))]
        self._db.executemany("DELETE FROM mail WHERE number = ?", [(m.number,) for m in found])
        return found

    def inherit(self, owner: bytes, heir: bytes, *, taint: int) -> None:
        self._db.execute("UPDATE heap SET owner = ?, taint = ? WHERE owner = ?", (heir, taint, owner))
        self._db.execute("DELETE FROM mail WHERE recipient = ?", (owner,))

    def adopt(self, owner: bytes, *, taint: int) -> None:
        self._db.execute("UPDATE heap SET owner = ?, taint = ? WHERE owner <> ?", (owner, taint, owner))
        self._db.execute("DELETE FROM mail WHERE recipient <> ?", (owner,))

    def journal(self, draft: Callable[[int], bytes]) -> int:
        cursor = self._db.execute("INSERT INTO journal (draft) VALUES (x'')")
        number = cursor.lastrowid
        assert number is not None
        self._db.execute("UPDATE journal SET draft = ? WHERE number = ?", (draft(number), number))
        return number


def _open(path: Path) -> sqlite3.Connection:
    import sqlite3

    # SQLite gives the -wal and -shm files the mode of the database, so the mode is settled before it opens it.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA trusted_schema = OFF")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
