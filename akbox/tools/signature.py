"""Who vouches for a tool: an Ed25519 signature (RFC 8032) over its manifest and its module, in `tool.sig` beside them.

What is signed is text: a line that says what it is, then the SHA-256 of the manifest's bytes and of the module's.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import msgspec

from akbox.tools.failure import ToolFailure

NAME = "tool.sig"
_BYTES_MAX = 4096


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Both in hex."""

    key: str
    signature: str


def message(manifest: bytes, module: bytes) -> bytes:
    """What a tool's signature is over."""
    return f"akbox tool signature v1\n{sha256(manifest).hexdigest()}\n{sha256(module).hexdigest()}\n".encode()


def read(directory: Path) -> Signature | None:
    """The signature in a tool's directory, not yet checked. Raises ToolFailure for a file that is none."""
    path = directory / NAME
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(_BYTES_MAX), type=Signature)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ToolFailure("signature", f"{path} is no signature: {error}") from error


def check(found: Signature, manifest: bytes, module: bytes, name: str) -> None:
    """Raises ToolFailure when the signature is not of these bytes by this key."""
    from akbox.kernel.signing import verify_signature

    try:
        raw = bytes.fromhex(found.signature)
    except ValueError:
        raw = b""
    if not verify_signature(found.key, raw, message(manifest, module)):
        raise ToolFailure("signature", f"the signature of tool {name!r} is not of its manifest and module")
