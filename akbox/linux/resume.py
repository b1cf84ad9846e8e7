"""Takes a run up again after its supervisor ended or was killed (`akbox run --resume RUN`): the same run id, log, heap,
mailbox, ledgers and revocations, a new process of the same command.

What is not taken up: the agent's processes, child agents (their objects are the first agent's now), tokens (their keys
were in memory only) and requests that waited for a person.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import msgspec

from akbox.kernel.audit import AuditError
from akbox.kernel.entry import Entry
from akbox.kernel.logfiles import log_files
from akbox.kernel.recover import recover
from akbox.kernel.redact import MASK
from akbox.kernel.signing import Signer
from akbox.linux.errors import CannotRun
from akbox.policy.load import load
from akbox.policy.model import Policy

_STALE = ("ring", "pending", "ring-*", "pending-*", "rules-*.json")


class Resumed(msgspec.Struct, frozen=True):
    """What an earlier supervisor has left. `wall_ms` and `cpu_ns`: what the run has used so far."""

    run_dir: Path
    run_id: bytes
    root: bytes
    policy: Policy
    argv: tuple[str, ...]
    cwd: str
    wall_ms: int
    cpu_ns: int


def take_up(run_dir: Path, keys_dir: Path) -> Resumed:
    """Completes the log of what was left and reads it. Raises CannotRun: when the run still runs, when its log does not
    verify, or when nothing was logged; PolicyError, SigningKeyError."""
    try:
        recover(run_dir, signer=Signer.of_user(keys_dir))
        policy = _unmasked(load(run_dir / "policy.json"))
        entries = _lifecycle(run_dir / "audit.jsonl")
    except AuditError as error:
        raise CannotRun(f"run {run_dir.name[:8]} cannot be taken up: {error}", "is it still running?") from error
    except OSError as error:
        message = f"run {run_dir.name[:8]} cannot be taken up: {error.filename}: {error.strerror}"
        raise CannotRun(message) from error
    starts = [e for e in entries if e.target in ("run:start", "run:resume")]
    if not starts:
        raise CannotRun(f"run {run_dir.name[:8]} has never started", "start it anew")
    for pattern in _STALE:  # all of it is in the log
        for path in run_dir.glob(pattern):
            path.unlink()
    first = starts[0]
    used = [e.res.get("usage", {}) for e in entries if e.target == "run:finish"]
    return Resumed(
        run_dir=run_dir, run_id=bytes.fromhex(first.run), root=bytes.fromhex(first.agent), policy=policy,
        argv=tuple(map(str, first.req["argv"])), cwd=str(first.req["cwd"]), wall_ms=_wall_ms(entries),
        cpu_ns=sum(int(u.get("cpu_ns", 0)) for u in used if isinstance(u, dict)),
    )  # fmt: skip


def _unmasked(policy: Policy) -> Policy:
    """Secrets that the policy sets in the environment are in no file of the run: they come from the caller's. Raises
    CannotRun."""
    given = dict(policy.env.set)
    for name, value in given.items():
        if MASK in value:
            if name not in os.environ:
                message = f"the run's policy sets {name}, and secrets are not kept with a run"
                raise CannotRun(message, f"give {name} its value in the environment and try again")
            given[name] = os.environ[name]
    return msgspec.structs.replace(policy, env=msgspec.structs.replace(policy.env, set=given))


def _lifecycle(path: Path) -> list[Entry]:
    """The first and last entries of each time that the run ran, in order."""
    decode = msgspec.json.Decoder(Entry).decode
    found: list[Entry] = []
    last: Entry | None = None
    for name in log_files(path):
        with open(name, "rb") as file:
            for line in file:
                entry = decode(line)
                if entry.target in ("run:start", "run:resume") and entry.name == "lifecycle":
                    if last is not None and last is not (found[-1] if found else None):
                        found.append(last)
                    found.append(entry)
                elif entry.target == "run:finish" and entry.name == "lifecycle":
                    found.append(entry)
                last = entry
    if last is not None and (not found or last is not found[-1]):
        found.append(last)
    return found


def _wall_ms(entries: list[Entry]) -> int:
    """From each start to the last that was logged before the next one."""
    total, began = 0.0, None
    for n, entry in enumerate(entries):
        is_start = entry.target in ("run:start", "run:resume")
        if is_start:
            began = entry
        elif began is not None and (n + 1 == len(entries) or entries[n + 1].target == "run:resume"):
            if entry.target != "run:recovered":
                total += (_time(entry) - _time(began)).total_seconds()
            began = None
    return int(total * 1000)


def _time(entry: Entry) -> datetime:
    return datetime.fromisoformat(entry.ts[:26])
