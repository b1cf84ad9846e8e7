"""Signed checkpoints of a log: which entry was last, its hash, and the Merkle root over all until it (design 04)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from akbox.kernel.canonical import canonical
from akbox.kernel.entry import timestamp

if TYPE_CHECKING:
    from akbox.kernel.signing import Signer


class Checkpoint(msgspec.Struct, forbid_unknown_fields=True):
    """One line of the checkpoints file. `sig` is over the canonical JSON of {hash, merkle_root, run, seq, time}; a log
    without a signer has null for both `key` and `sig`. All binary values are lower-case hex."""

    run: str
    seq: int
    hash: str
    merkle_root: str
    time: str
    key: str | None
    sig: str | None

    def signed_bytes(self) -> bytes:
        return canonical(
            {"hash": self.hash, "merkle_root": self.merkle_root, "run": self.run, "seq": self.seq, "time": self.time}
        )


class CheckpointWriter:
    """Appends checkpoints to a file. Not thread-safe: the log's lock is held."""

    def __init__(self, path: str | os.PathLike[str], signer: Signer | None) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        self._signer = signer
        self._key: str | None = None

    def write(self, *, run: bytes, seq: int, this_hash: bytes, root: bytes, now_ns: int) -> Checkpoint:
        """Signs and appends one. Raises OSError when it can't be written whole."""
        point = Checkpoint(run.hex(), seq, this_hash.hex(), root.hex(), timestamp(now_ns), None, None)
        if self._signer is not None:
            if self._key is None:
                self._key = self._signer.public_hex()
            point.key = self._key
            point.sig = self._signer.sign(point.signed_bytes()).hex()
        line = msgspec.json.encode(point) + b"\n"
        if os.write(self._fd, line) != len(line):
            raise OSError(28, "short write of a checkpoint")
        return point

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def read_checkpoints(data: bytes) -> Iterator[Checkpoint]:
    """The checkpoints of a file's bytes; a last line without a newline was never finished and is passed over.

    Raises ValueError (msgspec's errors among them) for a line that is no checkpoint.
    """
    for line in data.split(b"\n")[:-1]:
        yield msgspec.json.decode(line, type=Checkpoint)
