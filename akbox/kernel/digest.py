"""SHA-256 by the extension, which a run has loaded anyway: hashlib's comes with OpenSSL, which takes milliseconds to
load. Like all of the extension it is imported when it is first used: the kernel itself needs no target."""


def sha256(data: bytes) -> bytes:
    """The 32-byte digest (FIPS 180-4)."""
    from akbox._native import sha256 as digest

    return digest(data)
