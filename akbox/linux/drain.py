"""From the event ring to the log: what the enforcer decided in C becomes entries, at most 50 ms later. Equal denials
that are only counted get theirs when their second is over.

One thread per run. A log that cannot be written ends the run (fail closed): `on_failure` is called once with the
reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from akbox._native import Ring
from akbox.kernel.audit import AuditError
from akbox.kernel.effect import AgentId
from akbox.kernel.kernel import Kernel

_WAIT_MS = 50
_CHUNK_BYTES = 1 << 16  # some 700 events: a write, a turn of the GIL and at most one checkpoint for all of them


class Drain:
    """Moves records from `ring` to `kernel.record`. `flush()` may be called by anyone who is about to read the log."""

    def __init__(self, ring: Ring, kernel: Kernel, agent: AgentId, on_failure: Callable[[str], None]) -> None:
        self._ring = ring
        self._agent = agent
        self._kernel = kernel
        self._on_failure = on_failure
        self._lock = threading.Lock()  # one reader at a time: guards read..consume, _failed and _closed
        self._failed = False
        self._closed = False  # the ring may be gone: whoever asks about a child that is just ending finds it so
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="akbox-drain", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def flush(self) -> None:
        """Every event that is in the ring now is in the log on return (or the run is ending because it cannot be)."""
        with self._lock:
            while not self._failed and not self._closed and self._move():
                pass

    def close(self) -> None:
        """Ends the thread after the last event. Precondition: nothing writes to the ring any more."""
        self._closing.set()
        self._ring.shut()  # ends the thread's wait
        self._thread.join()
        self.flush()
        with self._lock:
            self._closed = True

    def _run(self) -> None:
        while not self._closing.is_set():
            if self._ring.wait(_WAIT_MS):
                self.flush()
            else:
                with self._lock:
                    self._tick()

    def _move(self) -> bool:
        records = self._ring.read(_CHUNK_BYTES)
        if not records or not self._record(records):
            return False
        self._ring.consume(len(records))
        self._tick()  # here, too: an agent that is never idle would keep flush() going
        return True

    def _tick(self) -> None:
        """Equal denials that were counted go into the log when their second is over. Precondition: _lock is held."""
        if not self._failed:
            self._record(b"")

    def _record(self, records: bytes) -> bool:
        """Precondition: _lock is held."""
        try:
            self._kernel.record(self._agent, records)
        except (AuditError, OSError) as error:
            self._failed = True
            self._ring.shut()  # writers deny from here on
            self._on_failure(f"the audit log cannot be written: {error}")
            return False
        return True
