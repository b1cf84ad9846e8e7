"""What the kernel's unit tests share: a kernel on a temporary directory, and calls to it as an agent would make
them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from akbox.kernel.audit import AuditLog
from akbox.kernel.events import ALLOW, DENY, NO_RULE, Event
from akbox.kernel.kernel import Kernel
from akbox.kernel.signing import Signer
from akbox.policy.compile import CompiledPolicy, Context, compile_policy
from akbox.policy.load import parse
from akbox.store.sqlite import SqliteStore

POLICY = """
version = "1.0"
[fs]
read = ["/app/**"]
write = ["/app/out/**"]
deny = ["**/.env"]
[net]
connect = ["dns:api.example.com:443"]
[approve]
effects = ["fs.write /app/deploy/**"]
[heap.types.counter]
type = "object"
required = ["value"]
properties.value = {type = "integer"}
"""
EPOCH_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z


def compiled(text: str = POLICY) -> CompiledPolicy:
    policy = parse(text, syntax="toml", name="test.toml")
    return compile_policy(policy, Context(workdir="/app", home="/home/u", tmp="/tmp/run", prefix="/usr"))


class Box:
    """A kernel and the ways into it. Close with `close`, which verifies nothing."""

    def __init__(self, directory: Path, text: str = POLICY, **log_options: Any) -> None:
        self.directory = directory
        self.run_id = os.urandom(16)
        self.log = AuditLog(
            directory / "audit.jsonl", self.run_id, signer=Signer.of_user(directory / "keys"), **log_options
        )
        self.store = SqliteStore(directory / "kernel.db")
        self.kernel = Kernel(compiled(text), run_id=self.run_id, store=self.store, log=self.log)

    def raw(self, nr: int, request: bytes, agent: bytes | None = None) -> tuple[int, dict[str, Any]]:
        reply = self.kernel.call(agent or self.kernel.root, nr, request, pid=4242)
        return reply.errno, json.loads(reply.body)

    def call(self, nr: int, /, *, by: bytes | None = None, token: str | None = None, **args: Any) -> Any:
        """The result of a call that succeeds. by: the agent (default: the root); token: a capability."""
        errno, body = self.raw(nr, _request(args, token), by)
        assert errno == 0, body
        assert body["ok"] is True
        return body["result"]

    def fail(self, nr: int, /, *, by: bytes | None = None, token: str | None = None, **args: Any) -> dict[str, Any]:
        """The error of a call that fails, with its errno."""
        errno, body = self.raw(nr, _request(args, token), by)
        assert body["ok"] is False, body
        return {**body["error"], "errno": errno}

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "audit.jsonl").read_bytes().splitlines()]

    def close(self) -> None:
        self.kernel.close()


def _request(args: dict[str, Any], token: str | None) -> bytes:
    return json.dumps(args if token is None else {"args": args, "cap": token}).encode()


def event(target: str | bytes = "/app/a", *, allow: bool = True, ts: int = 0, tid: int = 7, **fields: Any) -> Event:
    """A plain event `ts` ns after EPOCH_NS."""
    values: dict[str, Any] = {
        "op": 0x100, "decision": ALLOW if allow else DENY, "need": 1, "ts_ns": EPOCH_NS + ts, "tgid": 5, "tid": tid,
        "nr": 257, "error": 0 if allow else 13, "rule": 0 if allow else NO_RULE, "missing": 0 if allow else 1, "arg": 0,
        "target": target.encode() if isinstance(target, str) else target, "target2": b"",
    }  # fmt: skip
    return Event(**(values | fields))
