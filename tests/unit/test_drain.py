"""The way from the ring to the log: what is counted there does not stay, and a log that fails ends the run."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_kit import Box

from akbox import _native
from akbox.kernel.audit import AuditError
from akbox.kernel.kernel import Kernel
from akbox.linux import drain
from akbox.linux.drain import Drain

RING_BYTES = 1 << 16
ALLOW, DENY, EACCES, NO_RULE = 1, 0, 13, -1
LONG_S = 10.0


class Watched(Kernel):
    """A kernel that tells when it has recorded something, and can be made to fail."""

    recorded: threading.Condition
    broken = False

    def record(self, *args: Any) -> None:
        if self.broken:
            raise AuditError("no space left")
        super().record(*args)
        with self.recorded:
            self.recorded.notify_all()


class Rig:
    """A kernel, a ring and the drain between them."""

    def __init__(self, directory: Path) -> None:
        self.box = Box(directory)
        self.kernel = Watched(self.box.kernel.policy, run_id=self.box.run_id, store=self.box.store, log=self.box.log)
        self.kernel.recorded = threading.Condition()
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the fixture)
        self.ring = _native.Ring(self.file.fileno(), RING_BYTES, self.box.run_id)
        self._next, self._counts = 1, list[int]()
        self.reasons: list[str] = []
        self.failed = threading.Event()
        self.drain = Drain(self.ring, self.kernel, self.kernel.root, self._fail)
        self.drain.start()

    def _fail(self, reason: str) -> None:
        self.reasons.append(reason)
        self.failed.set()

    def put(self, target: bytes, decision: int = DENY) -> None:
        error, missing_rule = (EACCES, NO_RULE) if decision == DENY else (0, 0)
        self.ring.put(0x100, decision, 1, 5, 7, 257, error, missing_rule, 0, target, b"")

    def counts(self) -> list[int]:
        """How many refusals each entry of one stands for. What was looked at once is not looked at again."""
        for entry in self.box.log.entries(self._next):
            self._next = entry.seq + 1
            if entry.decision == "deny":
                self._counts.append(entry.req.get("count", 1))
        return self._counts

    def await_counts(self, total: int) -> None:
        with self.kernel.recorded:
            assert self.kernel.recorded.wait_for(lambda: sum(self.counts()) == total, LONG_S), self.counts()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.drain.close()
    rig.ring.close()
    rig.file.close()
    rig.kernel.close()


def test_merged_refusals_reach_the_log_although_nothing_more_happens(rig: Rig) -> None:
    for _ in range(20):
        rig.put(b"/etc/passwd")
    rig.await_counts(20)
    assert len(rig.counts()) < 20


def test_merged_refusals_reach_the_log_among_others_that_never_stop(rig: Rig) -> None:
    for _ in range(20):
        rig.put(b"/etc/passwd")
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            rig.put(b"/app/a", ALLOW)

    writer = threading.Thread(target=busy)
    writer.start()
    try:
        rig.await_counts(20)
    finally:
        stop.set()
        writer.join()


def test_a_log_that_fails_ends_the_run_once_and_shuts_the_ring(rig: Rig) -> None:
    rig.kernel.broken = True
    assert rig.failed.wait(LONG_S)
    with pytest.raises(OSError):
        rig.put(b"/app/a", ALLOW)
    rig.drain.flush()
    assert rig.reasons == ["the audit log cannot be written: no space left"]
    rig.kernel.broken = False


def test_the_end_of_a_run_waits_for_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "_WAIT_MS", 1_000_000)
    rig = Rig(tmp_path)
    rig.put(b"/app/last", ALLOW)
    closer = threading.Thread(target=rig.drain.close, daemon=True)
    closer.start()
    closer.join(LONG_S)
    assert not closer.is_alive()
    assert [e.target for e in rig.box.log.entries()] == ["/app/last"]
    rig.ring.close()
    rig.file.close()
    rig.kernel.close()
