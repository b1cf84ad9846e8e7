"""The audit log of one run: append-only, hash-chained, shared fdatasync, checkpoints (design 04).

Not for reading a log somebody else made: that is verify.py. Anything that keeps an entry from being written is an
AuditError, after which nothing can be appended any more: the run must stop, the log stays valid up to where it is.
"""

from __future__ import annotations

import bisect
import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from akbox.kernel.batch import BatchRenderer, Part, admit, scan
from akbox.kernel.checkpoint import Checkpoint, CheckpointWriter
from akbox.kernel.entry import GENESIS, Draft, Entry, render, trace_id
from akbox.kernel.events import Event
from akbox.kernel.flood import FloodFilter
from akbox.kernel.merkle import MerkleTree
from akbox.kernel.redact import Redactor

if TYPE_CHECKING:
    from akbox.kernel.signing import Signer

Durability = Literal["group", "sync", "async"]
RULES_NAME = "rules.json"
CHECKPOINT_ENTRIES = 1000
_INDEX_ENTRIES = 256
CHECKPOINT_NS = 10_000_000_000


class AuditError(Exception):
    """The log can't be written (or opened): the run must stop. `errno` is the system's reason, or 0."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.errno = code


class Receipt(msgspec.Struct, frozen=True):
    """Where an entry is: its number, its hash and its trace id."""

    seq: int
    this_hash: bytes
    trace_id: str


class _Side(msgspec.Struct, frozen=True):
    """What an agent with rules of its own needs to be logged."""

    renderer: BatchRenderer
    flood: FloodFilter


class AuditLog:
    """The one writer of a log file (an exclusive flock holds others off). Thread-safe.

    `durability`: "group" - `wait_durable` shares one fdatasync among all who wait; "sync" - every append waits;
    "async" - nobody does. `checkpoints` defaults to the file `checkpoints` beside the log. An existing log of the same
    run is continued, after it has been verified. Raises AuditError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        run_id: bytes,
        *,
        durability: Durability = "group",
        redact: Iterable[str] = (),
        signer: Signer | None = None,
        rules: Sequence[object] = (),
        checkpoints: str | os.PathLike[str] | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if len(run_id) != 16:
            raise ValueError("a run id has 16 bytes")
        self.path = Path(path)
        self.run_id = run_id
        self.redactor = Redactor(redact)
        self.durability: Durability = durability
        self._clock_ns = clock_ns
        self._renderer = BatchRenderer(run_id, rules)
        self._sides: dict[bytes, _Side] = {}  # agents with rules of their own; guarded by _lock
        self._lock = threading.RLock()
        # Guarded by _lock:
        self._seq = 0
        self._hash = GENESIS
        self._tree = MerkleTree()
        self._size = 0
        self._index: list[tuple[int, int]] = []  # (first seq of a write, its offset): a write holds whole entries
        self._failure: AuditError | None = None
        self._checkpoint_seq = 0
        self._checkpoint_ns = clock_ns()
        self._closed = False
        # Group commit, guarded by _durable_changed:
        self._durable_changed = threading.Condition()
        self._durable_seq = 0
        self._syncing = False

        self._fd = _open_log(self.path)
        try:
            self._resume()
            beside = self.path.with_name("checkpoints") if checkpoints is None else Path(checkpoints)
            self._points = CheckpointWriter(beside, signer)
        except OSError as error:
            os.close(self._fd)
            raise AuditError(f"{self.path}: {error.strerror}", error.errno or 0) from error
        except BaseException:
            os.close(self._fd)
            raise
        self._flood = FloodFilter(self.path.with_name("pending"))

    # ---- writing ------------------------------------------------------------------------------------------------

    def append(self, draft: Draft) -> Receipt:
        """Redacts and appends one entry. With "sync" it is durable on return; else see `wait_durable`."""
        draft.req = self.redactor.value(draft.req)
        draft.res = self.redactor.value(draft.res)
        draft.target = self.redactor.value(draft.target)
        draft.name = self.redactor.value(draft.name)
        with self._lock:
            self._check()
            line, this = render(draft, seq=self._seq + 1, run=self.run_id, prev=self._hash)
            self._write(line, this)
            receipt = Receipt(self._seq, this, trace_id(self.run_id, self._seq))
        if self.durability == "sync":
            self.wait_durable(receipt.seq)
        return receipt

    def set_rules(self, rules: Sequence[object]) -> None:
        """What the rule numbers of events mean: `str(rules[i])` is what entries say. Raises AuditError.

        They are kept in `rules.json` beside the log: events that only the ring holds after a crash can be read then.
        """
        texts = tuple(map(str, rules))
        with self._lock:
            self._renderer = BatchRenderer(self.run_id, texts)
        self._save_rules(self.path.with_name(RULES_NAME), texts)

    def _save_rules(self, path: Path, texts: tuple[str, ...]) -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(msgspec.json.encode(texts))
        except OSError as error:
            raise AuditError(f"{path}: {error.strerror}", error.errno or 0) from error

    def open_side(self, agent: bytes, rules: Sequence[object]) -> None:
        """From now on the rule numbers of this agent's events mean `rules`. They are kept beside the log, as those of
        `set_rules` are. Raises AuditError."""
        name = agent.hex()
        texts = tuple(map(str, rules))
        with self._lock:
            flood = FloodFilter(self.path.with_name(f"pending-{name}"))
            self._sides[agent] = _Side(BatchRenderer(self.run_id, texts), flood)
        self._save_rules(self.path.with_name(f"rules-{name}.json"), texts)

    def close_side(self, agent: bytes) -> None:
        """The agent's last event was appended."""
        with self._lock:
            if agent in self._sides:
                self.tick(agent, everything=True)
                self._sides.pop(agent).flood.close()
                self.path.with_name(f"rules-{agent.hex()}.json").unlink(missing_ok=True)  # all of it is in the log

    def append_records(self, records: bytes, agent: bytes) -> list[tuple[Event, int | None]]:
        """Appends whole ring records in one write, floods of equal denials merged. What is merged reaches the log
        within a second of the next call of this or of `tick`, and is kept on disk meanwhile. Returns what was refused,
        each with the number of its entry, or None where it was merged into another. Raises EventError, with nothing
        written, for bytes that are not whole records."""
        refused = scan(records)
        with self._lock:
            self._check()
            batch = admit(records, refused, self._flood_of(agent))
            first = self._seq + 1
            self._write_parts(batch.parts, agent)
            self._persist(agent)
            head = self._seq
        if self.durability == "sync" and batch.parts:
            self.wait_durable(head)
        return [(event, None if place is None else first + place) for event, place in batch.refused]

    def append_events(self, events: Iterable[Event], agent: bytes) -> None:
        """Appends events in one write as they are, merged ones among them (recovery)."""
        with self._lock:
            self._check()
            self._write_parts([list(events)], agent)
            head = self._seq
        if self.durability == "sync":
            self.wait_durable(head)

    def tick(self, agent: bytes, *, everything: bool = False) -> list[Event]:
        """Writes merged denials whose second is over (or all); to be called now and then when no event comes."""
        with self._lock:
            flood = self._flood_of(agent)
            if flood.idle:
                return []
            self._check()
            due = flood.due(None if everything else self._clock_ns())
            self._write_parts([due], agent)
            self._persist(agent)
            return due

    def _flood_of(self, agent: bytes) -> FloodFilter:
        return self._sides[agent].flood if agent in self._sides else self._flood

    def _write_parts(self, parts: Sequence[Part], agent: bytes) -> None:
        renderer = self._sides[agent].renderer if agent in self._sides else self._renderer
        lines, hashes = renderer.render(parts, agent=agent, seq=self._seq + 1, prev=self._hash)
        if hashes:
            self._write(lines, hashes)

    def _persist(self, agent: bytes) -> None:
        try:
            self._flood_of(agent).persist()
        except OSError as error:
            raise self._fail("the pending counts can't be written", error) from error

    def _write(self, data: bytes, hashes: bytes) -> None:
        """One write of whole entries, whose this_hashes are `hashes`; moves the chain only when all of it is in the
        file."""
        done = 0
        try:
            while done < len(data):
                count = os.write(self._fd, memoryview(data)[done:] if done else data)
                if count <= 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                done += count
        except OSError as error:
            raise self._fail("an entry can't be written", error) from error
        if not self._index or self._seq - self._index[-1][0] >= _INDEX_ENTRIES:
            self._index.append((self._seq + 1, self._size))
        self._size += len(data)
        self._tree.extend(hashes)
        self._seq += len(hashes) // 32
        self._hash = hashes[-32:]
        if self._seq - self._checkpoint_seq >= CHECKPOINT_ENTRIES or (
            self._clock_ns() - self._checkpoint_ns >= CHECKPOINT_NS
        ):
            self._checkpoint()

    def _fail(self, what: str, error: OSError) -> AuditError:
        """From here on nothing is appended. What was written in part is cut off, so that the log still verifies; where
        even that fails, the next open finds the torn tail."""
        failure = AuditError(f"{self.path}: {what}: {error.strerror}", error.errno or 0)
        self._failure = failure
        try:
            os.ftruncate(self._fd, self._size)
        except OSError as second:
            failure.add_note(f"the torn tail could not be cut: {second.strerror}")
        with self._durable_changed:
            self._durable_changed.notify_all()
        return failure

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise AuditError(f"{self.path} is closed")

    # ---- durability ---------------------------------------------------------------------------------------------

    def wait_durable(self, seq: int | None = None) -> None:
        """Returns when entry `seq` (default: the last) is on disk. One thread syncs for all who wait meanwhile."""
        if self.durability == "async":
            return
        wanted = self._seq if seq is None else seq
        with self._durable_changed:
            while self._durable_seq < wanted:
                if self._failure is not None:
                    raise self._failure
                if not self._syncing:
                    self._syncing = True
                    break
                self._durable_changed.wait()
            else:
                return
        reached = 0
        try:
            with self._lock:
                reached = self._seq  # all of these have been given to write(2) by now
            os.fdatasync(self._fd)
        except OSError as error:
            reached = 0
            with self._lock:  # after a failed fsync the kernel may have dropped the pages: never try again
                self._failure = AuditError(f"{self.path}: sync failed: {error.strerror}", error.errno or 0)
            raise self._failure from error
        finally:
            with self._durable_changed:
                self._syncing = False
                self._durable_seq = max(self._durable_seq, reached)
                self._durable_changed.notify_all()

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def checkpoint(self, *, sync: bool = True) -> Checkpoint:
        """Signs the log as it is now, durable on return unless told otherwise."""
        if sync:
            self.wait_durable()
        with self._lock:
            self._check()
            point = self._checkpoint()
        if sync and self.durability != "async":
            self._points.sync()
        return point

    def _checkpoint(self) -> Checkpoint:
        now = self._clock_ns()
        try:
            point = self._points.write(
                run=self.run_id, seq=self._seq, this_hash=self._hash, root=self._tree.root(), now_ns=now
            )
        except OSError as error:
            raise self._fail("a checkpoint can't be written", error) from error
        self._checkpoint_seq, self._checkpoint_ns = self._seq, now
        return point

    # ---- reading back -------------------------------------------------------------------------------------------

    def head(self) -> tuple[int, bytes]:
        """(number, this_hash) of the last entry; (0, 32 zero bytes) for an empty log."""
        with self._lock:
            return self._seq, self._hash

    def entries(self, from_seq: int = 1, to_seq: int | None = None) -> Iterator[Entry]:
        """Entries of this log in order, read from the file."""
        with self._lock:
            last = self._seq if to_seq is None else min(to_seq, self._seq)
            first = max(from_seq, 1)
            if first > last:
                return
            place = bisect.bisect_right(self._index, (first, self._size)) - 1
            start, end = self._index[place][1], self._size
        decode = msgspec.json.Decoder(Entry).decode
        with open(self.path, "rb") as file:
            file.seek(start)
            while file.tell() < end:
                entry = decode(file.readline())
                if entry.seq > last:
                    return
                if entry.seq >= first:
                    yield entry

    def close(self, agent: bytes | None = None) -> None:
        """Writes what is merged, makes the last checkpoint, syncs and closes. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            try:
                if self._failure is None:
                    for side in list(self._sides):
                        self.close_side(side)
                    if agent is not None:
                        self.tick(agent, everything=True)
                    if self._seq > self._checkpoint_seq:
                        self.checkpoint()
                    else:
                        self.wait_durable()
            finally:
                self._closed = True
                self._flood.close()
                self._points.close()
                os.close(self._fd)

    def _resume(self) -> None:
        """Takes up an existing log where it ends; it must verify, and be of this run."""
        if os.fstat(self._fd).st_size == 0:
            return
        from akbox.kernel.verify import scan as scan_log

        offset = 0
        for entry in scan_log(self.path):
            if entry.problem is not None:
                raise AuditError(f"{self.path}: entry {entry.seq}: {entry.problem}; run `akbox audit recover`")
            if entry.run != self.run_id:
                raise AuditError(f"{self.path} is the log of another run")
            if entry.seq % _INDEX_ENTRIES == 1:
                self._index.append((entry.seq, offset))
            offset += entry.length
            self._seq, self._hash = entry.seq, entry.this_hash
            self._tree.append(entry.this_hash)
        self._size = offset
        self._durable_seq = 0


def _open_log(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}", error.errno or 0) from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_nlink != 1:
            raise AuditError(f"{path} is not a plain file of ours", errno.EPERM)
        os.fchmod(fd, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        busy = error.errno == errno.EWOULDBLOCK
        raise AuditError(f"{path}: {'a run is writing it' if busy else error.strerror}", error.errno or 0) from error
    except AuditError:
        os.close(fd)
        raise
    return fd
