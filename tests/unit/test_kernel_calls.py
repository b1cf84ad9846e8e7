"""Every authority call: golden replies, and every error it can give."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_kit import Box, event

from akbox.kernel.codes import ERRNO, Code
from akbox.kernel.effect import Effect
from akbox.kernel.ops import ALIASES, BY_NAME, NAMES, Op, effect_op, op_name
from akbox.kernel.pipeline import ALWAYS, GATES, JUDGES, RECORD
from akbox.kernel.verify import verify

STAGES = ["PARSE", "SCHEMA", "SEQUENCE", "CAPABILITY", "POLICY", "BUDGET", "TAINT", "EXECUTE", "LOG", "RESPOND"]
READ, ALLOC, WRITE, DELETE, QUERY, BATCH, COMMIT = range(1024, 1031)
BUDGET_STATUS, BUDGET_HISTORY, LAST_ERROR, TRACE, SUGGEST = range(1038, 1043)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.close()
    found = verify(tmp_path / "audit.jsonl", tmp_path / "checkpoints")
    assert found.ok, found


def test_golden_replies(box: Box) -> None:
    """The exact bytes of design 02's shapes."""

    def reply(nr: int, request: str) -> str:
        return box.kernel.call(box.kernel.root, nr, request.encode()).body.decode()

    assert (
        reply(ALLOC, '{"args":{"type":"counter","value":{"value":0}}}') == '{"ok":true,"result":{"ptr":1,"version":1}}'
    )
    assert reply(READ, '{"ptr":1}') == (
        '{"ok":true,"result":{"ptr":1,"type":"counter","version":1,"value":{"value":0},"taint":0}}'
    )
    assert reply(WRITE, '{"ptr":1,"patch":[{"op":"set","path":"/value","value":1}]}') == (
        '{"ok":true,"result":{"version":2}}'
    )
    trace = f"{box.run_id[:4].hex()}00000004"
    assert reply(WRITE, '{"ptr":1,"version":1,"patch":[]}') == (
        '{"ok":false,"error":{"code":-4400,"name":"CONFLICT","message":"object 1 has version 2, not 1",'
        f'"details":{{"version":2}},"trace_id":"{trace}"}}}}'
    )
    assert reply(DELETE, '{"args":{"ptr":1},"seq":1}') == '{"ok":true,"result":{"deleted":true}}'
    assert reply(QUERY, '{"check":"READ","target":"/app/x"}') == '{"ok":true,"result":{"allowed":true}}'


@pytest.mark.parametrize(
    ("nr", "request_bytes", "code", "words"),
    [
        (READ, b"", Code.JSON_INVALID, "Expecting value"),
        (READ, b"{", Code.JSON_INVALID, ""),
        (READ, b'{"ptr":1} x', Code.JSON_INVALID, "Extra data"),
        (READ, b'{"ptr":1}\0', Code.JSON_INVALID, "Extra data"),
        (READ, b'{"ptr":1,"ptr":2}', Code.JSON_INVALID, "duplicate key 'ptr'"),
        (READ, b'{"ptr":NaN}', Code.JSON_INVALID, "NaN"),
        (READ, b'{"ptr":' + b"[" * 65 + b"]" * 65 + b"}", Code.JSON_INVALID, "deeper than 64"),
        (READ, b"[1]", Code.SCHEMA_INVALID, "object"),
        (READ, b" " * (1 << 20) + b"{}", Code.FRAME_TOO_LARGE, "1048576"),
        (READ, b"{}", Code.SCHEMA_INVALID, "ptr"),
        (READ, b'{"ptr":"1"}', Code.SCHEMA_INVALID, "ptr: "),
        (READ, b'{"ptr":1.5}', Code.SCHEMA_INVALID, "ptr: "),
        (READ, b'{"ptr":1,"foo":2}', Code.SCHEMA_UNKNOWN, "`foo`"),
        (READ, b'{"args":{"ptr":1},"pid":"me"}', Code.SCHEMA_UNKNOWN, "args"),
        (READ, b'{"ptr":0}', Code.NOT_FOUND, "no object 0"),
        (READ, b'{"ptr":-1}', Code.NOT_FOUND, "no object -1"),
        (READ, b'{"ptr":18446744073709551615}', Code.NOT_FOUND, "no object"),
        (READ, b'{"args":{"ptr":1},"cap":"akc1.a.b"}', Code.CAP_INVALID, "token"),
        (READ, b'{"args":{"ptr":1},"seq":0}', Code.SCHEMA_INVALID, "seq"),
        (READ, b'{"args":{"ptr":1},"seq":true}', Code.SCHEMA_INVALID, "seq"),
        (ALLOC, b'{"type":"t"}', Code.SCHEMA_INVALID, "value"),
        (ALLOC, b'{"type":5,"value":1}', Code.SCHEMA_INVALID, "type"),
        (ALLOC, b'{"type":"","value":1}', Code.SCHEMA_INVALID, "type"),
        (ALLOC, b'{"type":"counter","value":{}}', Code.SCHEMA_INVALID, "'value' is a required property"),
        (ALLOC, b'{"type":"counter","value":{"value":"x"}}', Code.SCHEMA_INVALID, "value/value: 'x' is not of type"),
        (WRITE, b'{"ptr":1}', Code.SCHEMA_INVALID, "patch"),
        (WRITE, b'{"ptr":1,"patch":{}}', Code.SCHEMA_INVALID, "patch"),
        (WRITE, b'{"ptr":1,"patch":[{"op":"frob","path":""}]}', Code.SCHEMA_INVALID, "patch[0].op"),
        (WRITE, b'{"ptr":1,"patch":[{"op":"add","value":1}]}', Code.SCHEMA_INVALID, "patch[0].path"),
        (WRITE, b'{"ptr":1,"patch":[{"op":"add","path":"/a"}]}', Code.SCHEMA_INVALID, "patch[0].value"),
        (WRITE, b'{"ptr":1,"patch":[{"op":"move","path":"/a"}]}', Code.SCHEMA_INVALID, "patch[0].from"),
        (WRITE, b'{"ptr":1,"patch":[{"op":"remove","path":"a"}]}', Code.SCHEMA_INVALID, "pointer"),
        (WRITE, b'{"ptr":1,"patch":[],"version":1,"expected_version":1}', Code.SCHEMA_INVALID, "version"),
        (WRITE, b'{"ptr":7,"patch":[]}', Code.NOT_FOUND, "7"),
        (DELETE, b'{"ptr":7}', Code.NOT_FOUND, "7"),
        (QUERY, b"{}", Code.SCHEMA_INVALID, "what"),
        (QUERY, b'{"what":"weather"}', Code.SCHEMA_INVALID, "weather"),
        (QUERY, b'{"what":"objects","query":"tools"}', Code.SCHEMA_INVALID, "what and query"),
        (QUERY, b'{"what":"objects","limit":0}', Code.SCHEMA_INVALID, "limit"),
        (QUERY, b'{"what":"objects","limit":1001}', Code.SCHEMA_INVALID, "limit"),
        (QUERY, b'{"what":"objects","colour":1}', Code.SCHEMA_UNKNOWN, "`colour`"),
        (QUERY, b'{"what":"audit","op":"frob"}', Code.SCHEMA_INVALID, "frob"),
        (QUERY, b'{"what":"authorize","op":"frob","target":"/x"}', Code.SCHEMA_INVALID, "frob"),
        (QUERY, b'{"what":"authorize","op":1025,"target":"/x"}', Code.SCHEMA_INVALID, "1025"),
        (QUERY, b'{"what":"authorize","op":"READ"}', Code.SCHEMA_INVALID, "target"),
        (QUERY, b'{"what":"budget","resource":"love"}', Code.SCHEMA_INVALID, "love"),
        (QUERY, b'{"query":"last_denial"}', Code.NOT_FOUND, "nothing was refused"),
        (BATCH, b'{"operations":[]}', Code.SCHEMA_INVALID, "1 to 100"),
        (BATCH, b'{"operations":{}}', Code.SCHEMA_INVALID, "operations"),
        (BATCH, b'{"operations":[{"op":"alloc","type":"t"}]}', Code.SCHEMA_INVALID, "operations[0]"),
        (BATCH, b'{"operations":[{"op":"read","ptr":1}]}', Code.SCHEMA_INVALID, "operations[0].op"),
        (BATCH, b'{"operations":[{"op":"delete","ptr":1,"x":1}]}', Code.SCHEMA_UNKNOWN, "operations[0]"),
        (BATCH, b'{"operations":[{"op":"delete","ptr":9}]}', Code.NOT_FOUND, "operations[0]"),
        (BATCH, b'{"ops":[{"op":"delete","ptr":1,"version":1,"expected_version":1}]}', Code.SCHEMA_INVALID, "both"),
        (COMMIT, b'{"x":1}', Code.SCHEMA_UNKNOWN, "`x`"),
        (LAST_ERROR, b"{}", Code.NOT_FOUND, "nothing was refused"),
        (TRACE, b'{"limit":-1}', Code.SCHEMA_INVALID, "limit"),
        (SUGGEST, b'{"limit":"all"}', Code.SCHEMA_INVALID, "limit"),
        (BUDGET_STATUS, b'{"resource":"love"}', Code.SCHEMA_INVALID, "love"),
        (BUDGET_HISTORY, b'{"count":61}', Code.SCHEMA_INVALID, "count"),
        (1031, b"{}", Code.SCHEMA_INVALID, "tool"),
        (1031, b'{"anything":1}', Code.SCHEMA_UNKNOWN, "anything"),
        (1045, b"{}", Code.NOT_IMPLEMENTED, "1045"),
        (1100, b"{}", Code.NOT_IMPLEMENTED, "1100"),
    ],
)  # fmt: skip
def test_errors(box: Box, nr: int, request_bytes: bytes, code: Code, words: str) -> None:
    number, body = box.raw(nr, request_bytes)
    error = body["error"]
    assert (error["code"], error["name"], number) == (int(code), code.name, ERRNO[code]), error
    assert words in error["message"]
    entry = box.entries()[-1]  # refused, and said so, before the reply left
    assert (entry["op"], entry["decision"], entry["trace"]) == (nr, "deny", error["trace_id"])
    stages = entry["res"].pop("stages")
    assert entry["res"] == {"code": int(code), "errno": number, "message": error["message"]}
    assert (stages[entry["stage"]], list(stages.values()).count("deny")) == ("deny", 1)
    assert entry["stage"] in ("PARSE", "SCHEMA", "SEQUENCE", "CAPABILITY", "EXECUTE")


def test_the_stage_that_refused_is_recorded(box: Box) -> None:
    for request, stage in (
        (b"{", "PARSE"),
        (b'{"a":1}', "SCHEMA"),
        (b'{"args":{"ptr":1},"seq":5}', "EXECUTE"),
        (b'{"args":{"ptr":1},"seq":5}', "SEQUENCE"),
        (b'{"args":{"ptr":1},"cap":"x"}', "CAPABILITY"),
        (b'{"ptr":1}', "EXECUTE"),
    ):
        box.raw(READ, request)
        entry = box.entries()[-1]
        assert entry["stage"] == stage
        said = entry["res"]["stages"]
        assert list(said) == sorted(said)  # canonical JSON
        passed = STAGES[: STAGES.index(stage)]
        assert said == {stage: "deny"} | {name: said[name] for name in passed}
        assert {said[name] for name in passed} <= {"pass", "none"}


def test_the_stages_are_ten_in_order() -> None:
    assert [stage.name for stage in (*GATES, *ALWAYS)] == STAGES
    assert [stage.name for stage in (*JUDGES, *RECORD)] == ["CAPABILITY", "POLICY", "BUDGET", "TAINT", "LOG"]


def test_a_sequence_number_is_used_once(box: Box) -> None:
    ptr = box.call(ALLOC, type="t", value=1)["ptr"]

    def use(seq: int) -> int:
        errno_, _ = box.raw(READ, json.dumps({"args": {"ptr": ptr}, "seq": seq}).encode())
        return errno_

    assert [use(n) for n in (1, 2, 2, 10, 5, 5, 10)] == [0, 0, errno.EPROTO, 0, 0, errno.EPROTO, errno.EPROTO]
    assert box.kernel.replay_window(box.kernel.root).gaps == 6
    assert [use(n) for n in (2000, 977, 976, 2**64 - 1, 2**64 - 2, 2000)] == [0, 0, errno.EPROTO, 0, 0, errno.EPROTO]


def test_query_objects(box: Box) -> None:
    for n in range(5):
        box.call(ALLOC, type="a" if n % 2 else "b", value={"n": n, "deep": {"x": [n, True]}})
    assert [o["ptr"] for o in box.call(QUERY, what="objects")["objects"]] == [1, 2, 3, 4, 5]
    assert [o["ptr"] for o in box.call(QUERY, what="objects", type="b")["objects"]] == [1, 3, 5]
    assert [o["ptr"] for o in box.call(QUERY, what="objects", where={"n": 3})["objects"]] == [4]
    assert [
        o["ptr"] for o in box.call(QUERY, what="objects", where={"/deep/x/0": 1, "/deep/x/1": True})["objects"]
    ] == [2]
    assert box.call(QUERY, what="objects", where={"/deep/x/1": 1})["objects"] == []  # true is not 1
    assert box.call(QUERY, what="objects", where={"/deep/y": 1, "m": 2})["objects"] == []
    page = box.call(QUERY, what="objects", limit=2)
    assert [o["ptr"] for o in page["objects"]] == [1, 2]
    page = box.call(QUERY, what="objects", limit=2, after=page["next"])
    assert [o["ptr"] for o in page["objects"]] == [3, 4]
    page = box.call(QUERY, what="objects", limit=2, after=page["next"])
    assert ([o["ptr"] for o in page["objects"]], page["next"]) == ([5], None)


def test_query_in_every_dialect(box: Box) -> None:
    new = box.call(QUERY, what="authorize", op="READ", target="/etc/passwd")
    assert new["authorized"] is new["allowed"] is False
    assert (new["op"], new["missing_cap"], new["rule"]) == ("fs.open", "fs.read", None)
    assert "/etc/passwd" in new["suggested_fix"]
    assert box.call(QUERY, query="auth", op=0x100, target="/app/x")["rule"] == "fs.read /app/**"
    assert box.call(QUERY, check=0x100, target="/etc/passwd") == {"allowed": False}
    assert box.call(QUERY, query="budget", resource="tokens")["remaining"] == 1_000_000
    assert box.call(QUERY, query="tools") == {"tools": []}
    assert box.call(QUERY, query="context")["run_id"] == box.run_id.hex()
    assert box.call(QUERY, what="agents")["agents"][0]["id"] == box.kernel.root.hex()
    held = box.call(QUERY, what="capabilities")["capabilities"]
    plain = [{key: h[key] for key in ("capability", "resource", "approval", "origin", "state")} for h in held]
    assert {
        "capability": "fs.read", "resource": "/app/**", "approval": False, "origin": "policy", "state": "live",
    } in plain  # fmt: skip
    assert not [h for h in held if "deny" in h["capability"] or h["origin"] == "builtin"]
    assert [e["seq"] for e in box.call(QUERY, from_seq=2, to_seq=3)["entries"]] == [2, 3]
    old = box.call(QUERY, start_seq=1, end_seq=2, limit=1)
    assert (old["count"], old["entries"][0]["seq"], old["entries"][0]["hash"]) == (1, 1, box.entries()[0]["this_hash"])
    assert {e["name"] for e in box.call(QUERY, what="audit", op="query")["entries"]} == {"QUERY"}


@pytest.mark.parametrize(
    ("op", "target", "allowed"),
    [
        ("fs.read", "/app/x", True), ("FS.READ", "/app/.env", False), ("write", "/app/out/x", True),
        ("WRITE", "/app/x", False),
        ("fs.unlink", "/app/out/x", True), ("fs.unlink", "/app/x", False), ("fs.write", "/app/deploy/x", False),
        ("net.connect", "dns:api.example.com:443", True), ("connect", "dns:api.example.com:80", False),
        ("tool", "tool:shell", False), ("infer", "model:gpt", False), ("secret", "secret:KEY", False),
        ("read", "/app/../etc/passwd", False), ("read", "relative", False), ("read", "", False),
        ("read", "/app/\x00", False),
    ],
)  # fmt: skip
def test_authorize_and_the_query_agree(box: Box, op: str, target: str, allowed: bool) -> None:
    answer = box.call(QUERY, what="authorize", op=op, target=target)
    number, need = effect_op(op)
    decision = box.kernel.authorize(
        box.kernel.root, Effect(op=number, target=target, need=need, detail={"why": "test"})
    )
    assert (answer["allowed"], decision.allowed) == (allowed, allowed)
    entry = box.entries()[-1]
    assert (entry["decision"], entry["trace"]) == ("allow" if allowed else "deny", decision.trace_id)
    assert entry["stage"] == (None if allowed else "POLICY")
    assert decision.errno == (0 if allowed else errno.EPERM if number >= Op.SIGNAL else errno.EACCES)
    if not allowed:
        last = box.call(LAST_ERROR)
        assert (last["op"], last["target"], last["trace_id"]) == (op_name(number), target, decision.trace_id)
        assert last["errno"] == decision.errno


def test_what_needs_approval_is_refused_as_such(box: Box) -> None:
    effect = Effect(op=Op.FS_OPEN, target="/app/deploy/x", need=2)
    decision = box.kernel.authorize(box.kernel.root, effect)
    assert (decision.allowed, decision.code, decision.errno) == (False, Code.APPROVAL_REQUIRED, errno.EACCES)
    assert "approval" in decision.reason


def test_last_error_trace_and_suggestions_see_the_ring_first(box: Box) -> None:
    """Refusals that C took reach the kernel through pre_query before the question is answered."""
    waiting = [event("/etc/shadow", allow=False)]

    def drain() -> None:
        if waiting:
            box.kernel.record(box.kernel.root, [waiting.pop()])

    box.kernel.pre_query = drain
    last = box.call(LAST_ERROR)
    assert (last["operation"], last["target"], last["errno"], last["missing_cap"]) == (
        "fs.open", "/etc/shadow", errno.EACCES, "fs.read",
    )  # fmt: skip
    assert last["suggested_fix"] == last["suggested_snippet"] == last["suggestion"]
    assert last["capability_required"] == "fs.read"
    (suggestion,) = box.call(SUGGEST)["suggestions"]
    assert (suggestion["target"], suggestion["count"]) == ("/etc/shadow", 1)
    trace = box.call(TRACE, decision="deny")["entries"]
    assert [(e["name"], e["target"], e["trace"]) for e in trace] == [("fs.open", "/etc/shadow", last["trace_id"])]
    assert [e["name"] for e in box.call(TRACE, limit=2)["entries"]] == ["POLICY_SUGGEST", "TRACE"]


def test_call_refusals_are_denials_and_mistakes_are_not(box: Box) -> None:
    box.fail(READ, ptr=99)
    box.fail(READ, nonsense=1)
    assert box.kernel.denials() == []
    box.raw(READ, b'{"args":{"ptr":1},"cap":"x"}')
    (denial,) = box.kernel.denials()
    assert (denial.op, denial.code, denial.target, denial.count) == ("READ", Code.CAP_INVALID, "heap:1", 1)


def test_commit_is_signed_and_verifies(box: Box) -> None:
    box.call(ALLOC, type="t", value=1)
    done = box.call(COMMIT)
    assert done["seq"] == 1
    assert done["hash"] == box.entries()[0]["this_hash"] == done["checkpoint"]["hash"]
    assert done["checkpoint"]["note"].startswith(f"akbox/run/{box.run_id.hex()}\n1\n")
    assert len(done["checkpoint"]["signature"]) == 128
    assert verify(box.directory / "audit.jsonl", box.directory / "checkpoints").checkpoints == 1


def test_entries_hold_arguments_but_not_secrets_nor_bulk(box: Box) -> None:
    box.call(ALLOC, type="t", value={"password": "hunter2", "n": 2**63})
    box.call(ALLOC, type="t", value={"blob": "x" * 5000})
    small, large = (e["req"]["args"]["value"] for e in box.entries())
    assert small == {"password": "[redacted]", "n": str(2**63)}
    assert set(large) == {"bytes", "sha256"}
    assert large["bytes"] == 5011
    assert box.call(READ, ptr=1)["value"] == {"password": "hunter2", "n": 2**63}  # the heap has what was given
    assert "hunter2" not in (box.directory / "audit.jsonl").read_text()


def test_a_patch_does_not_change_what_is_logged(box: Box) -> None:
    box.call(ALLOC, type="t", value={})
    patch = [{"op": "add", "path": "/a", "value": {}}, {"op": "add", "path": "/a/b", "value": 1}]
    box.call(WRITE, ptr=1, patch=patch)
    assert box.entries()[-1]["req"]["args"]["patch"] == patch
    assert box.call(READ, ptr=1)["value"] == {"a": {"b": 1}}


def test_lifecycle_and_summary(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.kernel.start({"command": ["python", "agent.py", "--token", "abc"]})
    box.kernel.budget_exceeded("wall_time_ms")
    box.kernel.finish({"exit_code": 124, "reason": "budget wall_time_ms"})
    summary = box.kernel.summary()
    box.close()
    box.close()
    first, limit, last = box.entries()
    assert (first["op"], first["target"]) == (0xFFFD, "run:start")
    assert first["req"]["command"] == ["python", "agent.py", "--token", "[redacted]"]
    assert len(first["req"]["policy_hash"]) == 64
    assert (limit["target"], limit["decision"], limit["stage"]) == ("run:budget:wall_time_ms", "deny", "BUDGET")
    assert last["res"] == {"exit_code": 124, "reason": "budget wall_time_ms"}
    assert (summary["entries"], summary["head"]) == (3, last["this_hash"])


def test_a_stranger_gets_nothing(box: Box) -> None:
    with pytest.raises(KeyError):
        box.kernel.call(bytes(16), READ, b"{}")
    with pytest.raises(KeyError):
        box.kernel.authorize(bytes(16), Effect(op=Op.FS_OPEN, target="/app/x", need=1))


def test_no_reply_without_an_entry(tmp_path: Path) -> None:
    from akbox.kernel.audit import AuditError

    box = Box(tmp_path)
    box.log._failure = AuditError("disk full", errno.ENOSPC)
    with pytest.raises(AuditError):
        box.kernel.call(box.kernel.root, READ, b'{"ptr":1}')
    with pytest.raises(AuditError):
        box.kernel.authorize(box.kernel.root, Effect(op=Op.FS_OPEN, target="/app/x", need=1))
    with pytest.raises(AuditError):
        box.kernel.record(box.kernel.root, [event()])
    with pytest.raises(AuditError, match="ring is damaged"):
        box.kernel.record(box.kernel.root, b"rubbish!")


def test_ops_and_codes_are_those_of_the_design() -> None:
    assert (Op.FS_OPEN, Op.FS_TRUNCATE, Op.NET_SEND, Op.SIGNAL, Op.SECRET_GET) == (0x100, 0x108, 0x205, 0x301, 0x504)
    assert (Op.READ, Op.INFERENCE, Op.APPROVAL, Op.LIFECYCLE, Op.REVOCATION) == (1024, 1037, 1044, 0xFFFD, 0xFFFF)
    assert all(BY_NAME[NAMES[op]] == op for op in Op)
    assert op_name(0x999) == "op:0x999"
    assert set(ERRNO) == set(Code)
    assert (Code.CAP_RATE.errno, Code.CAP_SCOPE.errno, Code.TAINT.errno, Code.REPLAY.errno) == (
        errno.EAGAIN, errno.EACCES, errno.EPERM, errno.EPROTO,
    )  # fmt: skip
    assert all(isinstance(op, Op) and 0 <= need <= 7 for op, need in ALIASES.values())


def test_importing_the_kernel_is_cheap_and_pulls_in_no_target() -> None:
    import subprocess
    import sys

    program = "import sys, akbox.kernel.kernel; print(*sorted(sys.modules))"
    loaded: Any = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = (
        "cryptography",
        "jsonpatch",
        "jsonpointer",
        "jsonschema",
        "sqlite3",
        "akbox.linux",
        "akbox.cli",
        "akbox._native",
    )
    assert not [m for m in loaded if m.startswith(heavy)]
