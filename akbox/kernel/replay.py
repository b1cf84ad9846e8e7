"""Which sequence numbers of an agent (or of a channel) were used."""

from __future__ import annotations

import threading


class ReplayWindow:
    """Which sequence numbers were used: all of the last 1,024, and everything older counts as used. Thread-safe."""

    SIZE = 1024

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._top = 0
        self._bits = 0  # bit i: top - i was used
        self.gaps = 0

    def admit(self, seq: int) -> bool:
        with self._lock:
            if seq > self._top:
                shift = seq - self._top
                self.gaps += shift - 1
                self._bits = ((self._bits << min(shift, self.SIZE)) | 1) & ((1 << self.SIZE) - 1)
                self._top = seq
                return True
            age = self._top - seq
            if age >= self.SIZE or self._bits >> age & 1:
                return False
            self._bits |= 1 << age
            self.gaps -= 1
            return True
