"""The SQLite store: private files, real transactions, nothing before it is needed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from akbox.store.base import StoreError
from akbox.store.sqlite import SqliteStore

ME, OTHER = b"m" * 16, b"o" * 16


def test_no_file_before_the_first_use(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kernel.db")
    assert not store.used
    store.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="closed"):
        store.get(1)


def test_files_are_private_and_durable(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kernel.db")
    with store.transaction() as tx:
        assert tx.insert(owner=ME, type="t", value=b"1", taint=0) == 1
    assert {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {
        "kernel.db": 0o600, "kernel.db-wal": 0o600, "kernel.db-shm": 0o600,
    }  # fmt: skip
    assert store.used
    assert store._db is not None
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
    store.close()
    again = SqliteStore(tmp_path / "kernel.db")
    found = again.get(1)
    assert found is not None
    assert (found.value, found.version, found.owner) == (b"1", 1, ME)
    again.close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kernel.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        SqliteStore(tmp_path / "kernel.db").get(1)
    assert not (tmp_path / "elsewhere").exists()


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kernel.db")

    def half() -> None:
        with store.transaction() as tx:
            ptr = tx.insert(owner=ME, type="t", value=b"1", taint=0)
            assert tx.get(ptr) is not None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert store.objects(ME, type=None, after=0, limit=10) == []
    with store.transaction() as tx:
        ptr = tx.insert(owner=ME, type="t", value=b"1", taint=5)
        assert tx.update(ptr, version=1, value=b"2", taint=6)
        assert not tx.update(ptr, version=1, value=b"3", taint=6)
        assert not tx.delete(ptr, version=1)
    found = store.get(ptr)
    assert found is not None
    assert (found.version, found.value, found.taint) == (2, b"2", 6)
    with store.transaction() as tx:
        assert tx.delete(ptr, version=2)
    assert store.get(ptr) is None
    assert [store.get(p) for p in (0, -1, 2**63, 2**64)] == [None] * 4
    store.close()


def test_pages_are_the_owners(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kernel.db")
    with store.transaction() as tx:
        for n in range(6):
            tx.insert(owner=OTHER if n % 3 == 0 else ME, type="ab"[n % 2], value=b"1", taint=0)
    assert [o.ptr for o in store.objects(ME, type=None, after=0, limit=10)] == [2, 3, 5, 6]
    assert [o.ptr for o in store.objects(ME, type="b", after=2, limit=10)] == [6]
    assert [o.ptr for o in store.objects(ME, type=None, after=2, limit=2)] == [3, 5]
    assert store.objects(ME, type=None, after=2**64, limit=2) == []
    store.close()


def test_budgets_hold_u64(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kernel.db")
    assert store.load_budgets(ME) == {}
    store.save_budgets(ME, {"tokens": 2**64 - 1, "usd": 0})
    store.save_budgets(ME, {"usd": 5})
    assert store.load_budgets(ME) == {"tokens": 2**64 - 1, "usd": 5}
    assert store.load_budgets(OTHER) == {}
    store.close()


def test_threads_take_turns(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kernel.db")
    with store.transaction() as tx:
        tx.insert(owner=ME, type="t", value=b"0", taint=0)

    def work() -> None:
        for _ in range(10):
            with store.transaction() as tx:
                found = tx.get(1)
                assert found is not None
                assert tx.update(1, version=found.version, value=b"%d" % (int(found.value) + 1), taint=0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = store.get(1)
    assert found is not None
    assert (found.value, found.version) == (b"40", 41)
    store.close()


def test_what_was_committed_survives_sigkill(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from akbox.store.sqlite import SqliteStore
store = SqliteStore({str(tmp_path / "kernel.db")!r})
while True:
    with store.transaction() as tx:
        ptr = tx.insert(owner=b"m" * 16, type="t", value=b"1", taint=0)
        tx.insert(owner=b"m" * 16, type="t", value=b"1", taint=0)
    print(ptr + 1, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(5):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().splitlines()
    acknowledged = int(rest[-1]) if rest else 10
    store = SqliteStore(tmp_path / "kernel.db")
    count = len(store.objects(ME, type=None, after=0, limit=10_000))
    assert count >= acknowledged
    assert count % 2 == 0  # never half a transaction
    store.close()


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kernel.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
    store = SqliteStore(tmp_path / "kernel.db")
    with pytest.raises(StoreError):
        store.get(1)
    store.close()
