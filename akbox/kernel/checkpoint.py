"""Signed checkpoints of a log (design 04), as the notes that transparency logs use: C2SP tlog-checkpoint and
signed-note, so that tools of others read them.

    akbox/run/<32 hex>                  origin: the run; also the name of the key
    1000                                entries
    <base64>                            RFC 6962 root over their this_hashes
    hash <64 hex>                       this_hash of the last
    time 2026-01-01T00:00:00.000000000Z
    key <64 hex>                        the Ed25519 key below (absent without a signer)

    — akbox/run/<32 hex> <base64 of key id[4] and signature[64]>
"""

from __future__ import annotations

import os
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import msgspec

from akbox.kernel.digest import sha256
from akbox.kernel.entry import timestamp

if TYPE_CHECKING:
    from akbox.kernel.signing import Signer

ORIGIN = "akbox/run/"
ED25519 = b"\x01"  # signed-note: signature types
MAX_LINE_BYTES = 8192
MAX_SIGNATURES = 100
_DASH = "\u2014 "
_NUMBER = r"(0|[1-9][0-9]{0,18})"
_TEXT = re.compile(
    rf"akbox/run/([0-9a-f]{{32}})\n{_NUMBER}\n([A-Za-z0-9+/]{{43}}=)\nhash ([0-9a-f]{{64}})\n"
    r"time ([0-9TZ:.-]{30})\n(?:key ([0-9a-f]{64})\n)?"
)


class Checkpoint(msgspec.Struct, frozen=True):
    """What a checkpoint says (binary values in lower-case hex), and the whole note. `signature` is what its key's line
    has, None without one."""

    run: str
    seq: int
    hash: str
    merkle_root: str
    time: str
    key: str | None
    note: str
    signature: str | None = None

    def text(self) -> str:
        """What is signed: the note without its signatures."""
        return self.note.partition("\n\n")[0] + "\n"


def key_id(name: str, public: bytes) -> bytes:
    """The four bytes that name an Ed25519 key in a note."""
    return sha256(name.encode() + b"\n" + ED25519 + public)[:4]


def verifier_key(run: str, public_hex: str) -> str:
    """The run's key as tools for signed notes want it: `name+id+base64`."""
    public = bytes.fromhex(public_hex)
    name = ORIGIN + run
    return f"{name}+{key_id(name, public).hex()}+{b64encode(ED25519 + public).decode()}"


def make(*, run: bytes, seq: int, this_hash: bytes, root: bytes, time_ns: int, signer: Signer | None) -> Checkpoint:
    """Signs a checkpoint (without a signer: leaves it unsigned)."""
    name, key, lines, signature = ORIGIN + run.hex(), None, "", None
    text = f"{name}\n{seq}\n{b64encode(root).decode()}\nhash {this_hash.hex()}\ntime {timestamp(time_ns)}\n"
    if signer is not None:
        key = signer.public_hex()
        text += f"key {key}\n"
        made = signer.sign(text.encode())
        signature = made.hex()
        lines = f"{_DASH}{name} {b64encode(key_id(name, bytes.fromhex(key)) + made).decode()}\n"
    note = f"{text}\n{lines}"
    return Checkpoint(run.hex(), seq, this_hash.hex(), root.hex(), timestamp(time_ns), key, note, signature)


def parse(note: str) -> Checkpoint:
    """Reads one note of ours; signatures of others (witnesses) may stand beside its own. Nothing is verified. Raises
    ValueError."""
    text, blank, signatures = note.partition("\n\n")
    found = _TEXT.fullmatch(text + "\n")
    if found is None or not blank:
        raise ValueError("not a checkpoint of a run")
    run, seq, root, this_hash, time, key = found.groups()
    if b64encode(b64decode(root)).decode() != root:
        raise ValueError("the root is not in canonical base64")
    lines = signatures.split("\n")[:-1]
    if len(lines) > MAX_SIGNATURES or (signatures and not signatures.endswith("\n")):
        raise ValueError("not the signatures of a note")
    signature = None
    for line in lines:
        name, found_id, made = _signature(line)
        if key and name == ORIGIN + run and found_id == key_id(name, bytes.fromhex(key)) and signature is None:
            signature = made.hex()
    return Checkpoint(run, int(seq), this_hash, b64decode(root).hex(), time, key, note, signature)


def _signature(line: str) -> tuple[str, bytes, bytes]:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not name or not encoded:
        raise ValueError("not a signature line of a note")
    made = b64decode(encoded, validate=True)  # binascii.Error is a ValueError
    if len(made) < 5 or b64encode(made).decode() != encoded:
        raise ValueError("a signature is not in canonical base64")
    return name, made[:4], made[4:]


def read_checkpoints(file: IO[bytes], *, whole: bool = False) -> Iterator[Checkpoint]:
    """The checkpoints of a file, one after another, each followed by an empty line (after the last it may be missing).
    One that was never finished, as after a crash, ends it; in a file that must be `whole` it is an error, and so is
    that there is none. Raises ValueError for what is no checkpoint."""
    end = 0
    for note, after in _notes(file):
        yield parse(note)
        end = after
    if whole and (end == 0 or end != file.tell()):
        raise ValueError("it holds no whole checkpoint" if end == 0 else "its last checkpoint is not whole")


def _notes(file: IO[bytes]) -> Iterator[tuple[str, int]]:
    """(note, offset of its end) of all that are whole."""
    parts: list[list[str]] = [[]]
    offset = 0
    while line := file.readline(MAX_LINE_BYTES):
        offset += len(line)
        if not line.endswith(b"\n"):
            if len(line) == MAX_LINE_BYTES:
                raise ValueError("a line is too long for a checkpoint")
            return  # never finished
        if line != b"\n":
            parts[-1].append(line.decode())
            if len(parts[-1]) > MAX_SIGNATURES:
                raise ValueError("a checkpoint has too many lines")
        elif len(parts) == 1:
            parts.append([])
        else:
            yield "".join(parts[0]) + "\n" + "".join(parts[1]), offset
            parts = [[]]
    if len(parts) == 2 and parts[1]:
        yield "".join(parts[0]) + "\n" + "".join(parts[1]), offset


class CheckpointWriter:
    """Appends checkpoints to a file; one that was not finished is cut off. Not thread-safe. Raises OSError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        try:
            size = os.fstat(self._fd).st_size
            if size and (whole := _whole_bytes(self._fd)) < size:
                os.ftruncate(self._fd, whole)
        except OSError:
            os.close(self._fd)
            raise

    def append(self, point: Checkpoint) -> None:
        data = point.note.encode() + b"\n"
        if os.write(self._fd, data) != len(data):
            raise OSError(28, "short write of a checkpoint")

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def _whole_bytes(fd: int) -> int:
    """Where the last finished checkpoint ends. A file that holds something else is left alone: verify says so."""
    end = 0
    with open(os.dup(fd), "rb") as file:
        file.seek(0)
        try:
            for _, after in _notes(file):
                end = after
        except (ValueError, UnicodeDecodeError):
            return os.fstat(fd).st_size
        if end == file.tell() and os.pread(fd, 2, max(end - 2, 0)) != b"\n\n":
            os.write(fd, b"\n")  # finished but for its empty line
            return end + 1
    return end
