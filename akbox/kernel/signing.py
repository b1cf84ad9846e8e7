"""The Ed25519 key that signs checkpoints: one per user, in the state directory, readable by its owner only.

`cryptography` is imported when a signature is made or checked, not before: most starts need neither.
"""

import contextlib
import os
import stat
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_LIBRARY = "cryptography.hazmat.primitives.asymmetric.ed25519"
KEY_NAME, PUBLIC_NAME = "audit-ed25519.key", "audit-ed25519.pub"


class SigningKeyError(Exception):
    """The signing key can't be used: not ours, readable by others, or not a key."""


class Signer:
    """Signs with a 32-byte Ed25519 seed."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise SigningKeyError("an Ed25519 seed has 32 bytes")
        self._seed = seed
        self._private: Ed25519PrivateKey | None = None  # made when it is first needed

    @classmethod
    def of_user(cls, directory: str | os.PathLike[str]) -> "Signer":
        """The key in `directory` (made, 0700 and 0600, on first use). Raises SigningKeyError or OSError."""
        folder = Path(directory)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / KEY_NAME
        if not os.path.lexists(path):
            with contextlib.suppress(FileExistsError):
                _create(path, os.urandom(32).hex().encode() + b"\n")
        signer = cls(_read_seed(path))
        if not os.path.lexists(folder / PUBLIC_NAME):
            with contextlib.suppress(FileExistsError):
                _create(folder / PUBLIC_NAME, signer.public_hex().encode() + b"\n")
        return signer

    @staticmethod
    def prepare() -> None:
        """Imports `cryptography` on a thread beside the caller's: it takes some milliseconds, which a short run would
        otherwise wait for at its end."""
        if _LIBRARY not in sys.modules:
            threading.Thread(target=import_module, args=(_LIBRARY,), name="akbox-signing", daemon=True).start()

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature (RFC 8032, pure Ed25519)."""
        return self._key().sign(message)

    def public_hex(self) -> str:
        return self._key().public_key().public_bytes_raw().hex()

    def _key(self) -> "Ed25519PrivateKey":
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if self._private is None:
            self._private = Ed25519PrivateKey.from_private_bytes(self._seed)
        return self._private


def verify_signature(public_hex: str, signature: bytes, message: bytes) -> bool:
    """Does `signature` belong to `message` under this public key? False for anything malformed."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _create(path: Path, content: bytes) -> None:
    """Publishes a whole file or none: another process may be making it at the same moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        os.unlink(temporary)


def _read_seed(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o077 or not stat.S_ISREG(info.st_mode):
            raise SigningKeyError(f"{path} must be a file of yours with mode 0600")
        try:
            return bytes.fromhex(file.read(200).decode("ascii").strip())
        except ValueError as error:
            raise SigningKeyError(f"{path} does not hold a key") from error
