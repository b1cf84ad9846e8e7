"""`infer.log_bodies`: what was asked and answered, kept in the run's directory beside the log, secrets masked.

The log holds hashes of what passed; these files are for people who want to read it. Both are the supervisor's own: no
agent can reach them.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from pathlib import Path
from typing import Any

from akbox.kernel.redact import Redactor

MAX_BODY_BYTES = 4 << 20
MAX_RUN_BYTES = 1 << 30


class BodiesError(Exception):
    """A body cannot be kept: the run ends, as it does when its log can't be written."""


class Bodies:
    """Thread-safe."""

    def __init__(self, directory: Path, redactor: Redactor) -> None:
        self._directory, self._redactor = directory, redactor
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._left = MAX_RUN_BYTES  # guarded by _lock

    def keep(self, kind: str, data: bytes) -> dict[str, Any]:
        """Stores a body and returns what its entry says: file and hash of what was stored, or why it was not.
        Raises BodiesError."""
        if len(data) > MAX_BODY_BYTES:
            return {"body": None, "why": f"over {MAX_BODY_BYTES} bytes"}
        text = self._redactor.text(data.decode("utf-8", "replace")).encode()
        with self._lock:
            if len(text) > self._left:
                return {"body": None, "why": f"over {MAX_RUN_BYTES} bytes in this run"}
            self._left -= len(text)
            name = f"{next(self._numbers):06d}.{kind}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            with open(os.open(self._directory / name, flags, 0o600), "wb") as file:
                file.write(text)
        except OSError as error:
            raise BodiesError(f"{self._directory / name}: {error.strerror}") from error
        return {"body": f"{self._directory.name}/{name}", "body_sha256": hashlib.sha256(text).hexdigest()}
