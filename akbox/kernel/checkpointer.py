"""Makes the checkpoints of a living log: what is signed is on disk first, so that no crash leaves a checkpoint of
entries that are gone.

Those that come by themselves are made on a thread of their own, which starts with the first: signing and syncing must
not keep the writer.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from akbox.kernel.checkpoint import Checkpoint, CheckpointWriter, make
from akbox.kernel.logwriter import AuditError

if TYPE_CHECKING:
    from akbox.kernel.audit import AuditLog
    from akbox.kernel.signing import Signer

EVERY_ENTRIES = 1000
EVERY_NS = 10_000_000_000


class Checkpointer:
    """Of one log, which hands its own state out by `snapshot`. Thread-safe. `deliver` gets each checkpoint once it is
    in the file (anchors). Raises OSError when `path` can't be opened."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        log: AuditLog,
        signer: Signer | None,
        clock_ns: Callable[[], int],
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._log = log
        self._signer = signer
        self._clock_ns = clock_ns
        self._monotonic_ns = monotonic_ns
        self._file = CheckpointWriter(path)
        self.deliver: Callable[[Checkpoint], None] | None = None
        self.seq = 0  # of the last checkpoint
        self._at_ns = monotonic_ns()
        self._order = threading.Lock()  # one checkpoint at a time: they are in the file in the order of their entries
        self._wanted = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def written(self, seq: int) -> None:
        """The log has grown to entry `seq`: it may be time. Precondition: the log's lock is held."""
        if seq - self.seq < EVERY_ENTRIES and self._monotonic_ns() - self._at_ns < EVERY_NS:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="akbox-checkpoints", daemon=True)
            self._thread.start()
        self._wanted.set()

    def now(self, *, sync: bool = True) -> Checkpoint:
        """Signs the log as it is, durable on return if `sync`. Raises AuditError."""
        with self._order:
            seq, this_hash, root = self._log.snapshot()
            self._log.wait_durable(seq)
            point = make(
                run=self._log.run_id, seq=seq, this_hash=this_hash, root=root, time_ns=self._clock_ns(),
                signer=self._signer,
            )  # fmt: skip
            try:
                self._file.append(point)
                if sync:
                    self._file.sync()
            except OSError as error:
                raise self._log.fail("a checkpoint can't be written", error) from error
            self.seq, self._at_ns = seq, self._monotonic_ns()
            if self.deliver is not None:
                self.deliver(point)
            return point

    def stop(self) -> None:
        """Ends the thread. Precondition: the log's lock is not held."""
        self._closing = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        self._file.close()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._closing:
                return
            try:
                if self._log.head()[0] > self.seq:
                    self.now(sync=False)
            except AuditError:
                return  # the log has it: whoever appends next hears of it
