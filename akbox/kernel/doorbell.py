"""What those who wait for messages wait on: a count that grows whenever somebody may have got one."""

from __future__ import annotations

import threading


class Doorbell:
    """Thread-safe. Read `count`, look, and `wait` for it to change: no ring in between is missed."""

    def __init__(self) -> None:
        self._rung = threading.Condition()
        # Guarded by _rung:
        self.count = 0
        self._closed = False

    def ring(self) -> None:
        """Wakes all who wait."""
        with self._rung:
            self.count += 1
            self._rung.notify_all()

    def wait(self, seen: int, timeout_s: float) -> bool:
        """Until `count` is no longer `seen`; False when the time is over first, or the run ends."""
        with self._rung:
            return self._rung.wait_for(lambda: self.count != seen or self._closed, timeout_s) and not self._closed

    def close(self) -> None:
        """The run ends: nobody waits any longer."""
        with self._rung:
            self._closed = True
            self._rung.notify_all()
