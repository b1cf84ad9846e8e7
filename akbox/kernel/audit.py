"""The audit log of one run: append-only, hash-chained, shared fdatasync, checkpoints (design 04).

Not for reading a log somebody else made: that is verify.py. Anything that keeps an entry from being written is an
AuditError, after which nothing can be appended any more: the run must stop, the log stays valid up to where it is.
"""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from akbox.kernel.batch import BatchRenderer, Part, admit, scan
from akbox.kernel.checkpoint import Checkpoint
from akbox.kernel.checkpointer import Checkpointer
from akbox.kernel.entry import GENESIS, Draft, Entry, render, trace_id
from akbox.kernel.events import Event
from akbox.kernel.flood import FloodFilter
from akbox.kernel.logfiles import log_files, rotated_name
from akbox.kernel.logwriter import AuditError, LogWriter, sync_directory
from akbox.kernel.merkle import HASH_BYTES, MerkleTree
from akbox.kernel.redact import Redactor

if TYPE_CHECKING:
    from akbox.kernel.signing import Signer

__all__ = ["AuditError", "AuditLog", "Durability", "Receipt"]

Durability = Literal["group", "sync", "async"]
RULES_NAME = "rules.json"
ROTATE_BYTES = 1 << 28
_INDEX_PLACES = 4096


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
    """The one writer of a log (an exclusive flock holds others off). Thread-safe.

    `durability`: "group" - `wait_durable` shares one fdatasync among all who wait; "sync" - every append waits;
    "async" - nobody does. `checkpoints` defaults to the file `checkpoints` beside the log. A file of `rotate_bytes` is
    put beside and the next one goes on from it. An existing log of the same run is continued, after it has been
    verified. Raises AuditError.
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
        rotate_bytes: int = ROTATE_BYTES,
        clock_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if len(run_id) != 16:
            raise ValueError("a run id has 16 bytes")
        self.path = Path(path)
        self.run_id = run_id
        self.redactor = Redactor(redact)
        self.durability: Durability = durability
        self._clock_ns = clock_ns
        self._rotate_bytes = rotate_bytes
        self._renderer = BatchRenderer(run_id, rules)
        self._sides: dict[bytes, _Side] = {}  # agents with rules of their own; guarded by _lock
        self._lock = threading.RLock()
        # Guarded by _lock:
        self._seq = 0
        self._hash = GENESIS
        self._tree = MerkleTree()
        self._starts = [1]  # the first entry of each file, the present one last
        self._index: list[tuple[int, int]] = []  # (first seq of a write, its offset in its file), not of every write
        self._stride = 256
        self._failure: AuditError | None = None
        self._closing = self._closed = False
        # Group commit, guarded by _durable_changed:
        self._durable_changed = threading.Condition()
        self._durable_seq = 0
        self._syncing = False
        self._names_synced = False

        self._file = LogWriter(self.path)
        try:
            self._resume()
            beside = self.path.with_name("checkpoints") if checkpoints is None else Path(checkpoints)
            self._points = Checkpointer(beside, self, signer, clock_ns, monotonic_ns)
        except OSError as error:
            self._file.close()
            raise AuditError(f"{self.path}: {error.strerror}", error.errno or 0) from error
        except BaseException:
            self._file.close()
            raise
        self._points.seq = self._seq
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
            raise self.fail("the pending counts can't be written", error) from error

    def _write(self, data: bytes, hashes: bytes) -> None:
        """One write of whole entries, whose this_hashes are `hashes`; moves the chain only when all of it is in the
        file."""
        try:
            if self._file.size >= self._rotate_bytes:
                self._file.rotate(self._seq + 1)
                self._starts.append(self._seq + 1)
            offset = self._file.size
            self._file.write(data)
        except OSError as error:
            raise self.fail("an entry can't be written", error) from error
        self._note_place(self._seq + 1, offset)
        self._tree.extend(hashes)
        self._seq += len(hashes) // HASH_BYTES
        self._hash = hashes[-HASH_BYTES:]
        self._points.written(self._seq)

    def _note_place(self, seq: int, offset: int) -> None:
        """Bounded: when it is full, every other place is forgotten."""
        if self._index and seq - self._index[-1][0] < self._stride and offset:
            return
        self._index.append((seq, offset))
        if len(self._index) > _INDEX_PLACES:
            del self._index[1::2]
            self._stride *= 2

    def fail(self, what: str, error: OSError) -> AuditError:
        """From here on nothing is appended. What was written in part is cut off, so that the log still verifies; where
        even that fails, the next open finds the torn tail. Returns the error to raise."""
        failure = AuditError(f"{self.path}: {what}: {error.strerror}", error.errno or 0)
        with self._lock:
            if self._failure is not None:
                return self._failure
            self._failure = failure
            try:
                self._file.cut()
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
                reached, fd = self._seq, self._file.dup()  # all of these were written by now, to this file or before it
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
            if not self._names_synced:
                sync_directory(self.path.parent)
                sync_directory(self.path.parent.parent)
                self._names_synced = True
        except OSError as error:
            reached = 0  # after a failed fsync the kernel may have dropped the pages: never try again
            raise self.fail("sync failed", error) from error
        finally:
            with self._durable_changed:
                self._syncing = False
                self._durable_seq = max(self._durable_seq, reached)
                self._durable_changed.notify_all()

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Signs the log as it is now; entries and checkpoint are durable on return (not with "async")."""
        return self._points.now(sync=self.durability != "async")

    def on_checkpoint(self, deliver: Callable[[Checkpoint], None]) -> None:
        """`deliver` gets every checkpoint from now on, when its entries are on disk."""
        self._points.deliver = deliver

    def snapshot(self) -> tuple[int, bytes, bytes]:
        """(number, this_hash of the last entry, Merkle root over all). Raises AuditError after a failure."""
        with self._lock:
            self._check()
            return self._seq, self._hash, self._tree.root()

    # ---- reading back -------------------------------------------------------------------------------------------

    def head(self) -> tuple[int, bytes]:
        """(number, this_hash) of the last entry; (0, 32 zero bytes) for an empty log."""
        with self._lock:
            return self._seq, self._hash

    def entries(self, from_seq: int = 1, to_seq: int | None = None) -> Iterator[Entry]:
        """Entries of this log in order, read from its files."""
        with self._lock:
            last = self._seq if to_seq is None else min(to_seq, self._seq)
            first = max(from_seq, 1)
            if first > last:
                return
            place, offset = self._index[bisect.bisect_right(self._index, first, key=lambda p: p[0]) - 1]
            number = bisect.bisect_right(self._starts, place) - 1
        decode = msgspec.json.Decoder(Entry).decode
        while True:
            with self._lock:  # the present file has its name only as long as it is not rotated
                present = number == len(self._starts) - 1
                name = self.path if present else self.path.with_name(rotated_name(self._starts[number]))
                file = open(name, "rb")  # noqa: SIM115
            with file:
                file.seek(offset)
                while line := file.readline():
                    entry = decode(line)
                    if entry.seq >= first:
                        yield entry
                    if entry.seq >= last:
                        return
            number, offset = number + 1, 0

    def close(self, agent: bytes | None = None) -> None:
        """Writes what is merged, makes the last checkpoint, syncs and closes. Safe to call twice."""
        self._points.stop()
        with self._lock:
            if self._closing:
                return
            self._closing = True
        try:
            if self._failure is None:
                for side in list(self._sides):
                    self.close_side(side)
                if agent is not None:
                    self.tick(agent, everything=True)
                if self._seq > self._points.seq:
                    self.checkpoint()
                else:
                    self.wait_durable()
        finally:
            with self._lock:
                self._closed = True
                self._flood.close()
                self._points.close()
                self._file.close()

    def _resume(self) -> None:
        """Takes up an existing log where it ends; it must verify, and be of this run."""
        files = log_files(self.path)
        if self._file.size == 0 and len(files) == 1:
            return
        from akbox.kernel.verify import scan as scan_log

        file = files[0]
        for part in scan_log(files):
            if part.problem is not None:
                raise AuditError(f"{self.path}: entry {part.seq}: {part.problem}; run `akbox audit recover`")
            if part.run != self.run_id:
                raise AuditError(f"{self.path} is the log of another run")
            if part.file != file:
                file = part.file
                self._starts.append(part.seq)
            self._note_place(part.seq, part.offset)
            self._tree.extend(part.hashes)
            self._seq, self._hash = part.last, part.hashes[-HASH_BYTES:]
        if file != self.path:  # killed right after it was rotated: nothing is in it yet
            self._starts.append(self._seq + 1)
        self._file.first_seq = self._starts[-1]
