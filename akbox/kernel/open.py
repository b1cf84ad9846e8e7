"""Puts a run's kernel together from its directory (design 08, "State"): log, checkpoints, store, signing key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from akbox.kernel.audit import AuditLog
from akbox.kernel.kernel import Kernel
from akbox.kernel.redact import stored_policy
from akbox.kernel.signing import Signer
from akbox.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from akbox.policy.compile import CompiledPolicy


def open_kernel(
    policy: CompiledPolicy,
    run_dir: str | os.PathLike[str],
    *,
    run_id: bytes,
    keys_dir: str | os.PathLike[str] | None = None,
    root: bytes | None = None,
) -> Kernel:
    """A kernel whose log, checkpoints and store are in `run_dir` (which exists, 0700), with `policy.json` beside them.
    `root`: the first agent's id when an earlier run is continued.
    `keys_dir` holds the user's signing key, made on first use; None leaves checkpoints unsigned. Raises AuditError,
    SigningKeyError or OSError; then nothing stays open."""
    directory = Path(run_dir)
    signer = None if keys_dir is None else Signer.of_user(keys_dir)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(directory / "policy.json", flags, 0o600), "wb") as file:
        file.write(stored_policy(policy))
    log = AuditLog(
        directory / "audit.jsonl",
        run_id,
        durability=policy.audit.durability or "group",
        redact=policy.audit.redact,
        signer=signer,
    )
    try:
        return Kernel(policy, run_id=run_id, store=SqliteStore(directory / "kernel.db"), log=log, root=root)
    except BaseException:
        log.close()
        raise
