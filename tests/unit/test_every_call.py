"""What holds for every authority call, by whichever door: one row of GOOD for each, and the same questions to all."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_kit import Box

from akbox.kernel.calls.table import CALLS
from akbox.kernel.codes import ERRNO, Code
from akbox.kernel.frames import MAX_REQUEST, REQUEST, Conversation, FrameError, pack, read_frame
from akbox.kernel.ops import Op
from akbox.kernel.pipeline import LOGGED_VALUE_BYTES
from akbox.kernel.verify import verify

TOKEN = "a" * 64
GOOD: dict[Op, tuple[dict[str, Any], set[str]]] = {  # arguments that are right on an empty heap, and the result's keys
    Op.READ: ({"ptr": 1}, {"ptr", "type", "version", "value", "taint"}),
    Op.ALLOC: ({"type": "t", "value": 1}, {"ptr", "version"}),
    Op.WRITE: ({"ptr": 1, "patch": []}, {"version"}),
    Op.DELETE: ({"ptr": 1}, {"deleted"}),
    Op.QUERY: ({"what": "agents"}, {"agents"}),
    Op.BATCH: ({"operations": [{"op": "alloc", "type": "t", "value": 1}]}, {"results", "committed"}),
    Op.COMMIT: ({}, {"seq", "hash", "checkpoint"}),
    Op.SPAWN: ({"program": "/usr/bin/true"}, {"child_id", "name", "pid"}),
    Op.SEND: ({"to": "root", "payload": 1}, {"queued", "to", "seq"}),
    Op.RECV: ({}, {"messages"}),
    Op.RESPOND: ({"content": 1}, {"acknowledged", "taint", "label"}),
    Op.ASSERT: ({"name": "x", "value": True}, {"recorded", "value", "halted"}),
    Op.INFERENCE: ({"model": "m", "prompt": "x"}, {"content"}),
    Op.BUDGET_STATUS: ({}, {"budgets"}),
    Op.BUDGET_HISTORY: ({}, {"snapshots", "breakdown"}),
    Op.LAST_ERROR: ({}, set()),
    Op.TRACE: ({}, {"entries"}),
    Op.POLICY_SUGGEST: ({}, {"suggestions"}),
    Op.CAP: ({"op": "derive", "cap": "HEAP"}, {"token", "tid"}),
    Op.APPROVAL: ({}, {"requests"}),
}
every = pytest.mark.parametrize("op", list(GOOD), ids=lambda op: op.name)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """Object 1, a refusal to be asked about, and a target that starts agents and asks models."""
    made = Box(tmp_path, 'version = "1.0"\n[fs]\nread = ["/usr/bin/**"]\n[spawn]\nallow = ["/usr/bin/true"]\n')
    made.call(Op.ALLOC, type="t", value=1)
    made.fail(Op.SPAWN, program="/usr/bin/false")
    made.kernel.spawner = lambda _agent, _args: {"child_id": "00", "name": "x", "pid": 5}
    made.kernel.infer = lambda _agent, _args: {"content": "word"}
    yield made
    made.close()
    found = verify(tmp_path / "audit.jsonl", tmp_path / "checkpoints")
    assert found.ok, found


def arguments(box: Box, op: Op) -> dict[str, Any]:
    heap = box.kernel.agent(box.kernel.root).heap_tid
    return {key: heap if value == "HEAP" else value for key, value in GOOD[op][0].items()}


def held(box: Box) -> list[tuple[int, bytes]]:
    return [(o.version, o.value) for o in box.store.objects(box.kernel.root, type=None, after=0, limit=99)]


def test_there_is_a_row_for_each() -> None:
    assert set(GOOD) | {Op.CALL} == {Op(nr) for nr in CALLS}  # CALL has tests of its own


@every
def test_it_answers_and_is_logged_before(box: Box, op: Op) -> None:
    errno, body = box.raw(op, json.dumps({"args": arguments(box, op)}).encode())
    assert errno == 0, body
    assert body["ok"] is True
    assert GOOD[op][1] <= body["result"].keys()
    entry = box.entries()[-1]
    assert (entry["op"], entry["decision"], entry["stage"]) == (op, "allow", None)
    assert set(entry["res"]["stages"]) == {
        "PARSE", "SCHEMA", "SEQUENCE", "CAPABILITY", "POLICY", "BUDGET", "TAINT", "EXECUTE",
    }  # fmt: skip
    assert entry["res"]["stages"]["EXECUTE"] == "pass"


@every
def test_what_is_refused_has_no_effect(box: Box, op: Op) -> None:
    args = arguments(box, op)
    before = held(box)
    used = {name: box.kernel.budget(name)["used"] for name in ("heap_objects", "heap_bytes", "tool_calls", "tokens")}
    too_large = json.dumps(args).encode() + b" " * (1 << 20)
    unknown = json.dumps({"args": args | {"love": 1}}).encode()
    wrong_type = json.dumps({"args": args | {key: [[]] for key in list(args)[:1]} if args else [1]}).encode()
    no_token = json.dumps({"args": args, "cap": "akc1.e30.e30"}).encode()
    for request, code, words in (
        (too_large, Code.FRAME_TOO_LARGE, "1048576"), (b"", Code.JSON_INVALID, ""), (b"\xff", Code.JSON_INVALID, ""),
        (b'{"args":{},"args":{}}', Code.JSON_INVALID, "duplicate key 'args'"), (unknown, Code.SCHEMA_UNKNOWN, "love"),
        (wrong_type, (Code.SCHEMA_INVALID, Code.SCHEMA_UNKNOWN), next(iter(args), "args")),
        (no_token, Code.CAP_INVALID, "token"), (b'{"args":{},"seq":-1}', None, ""),
    ):  # fmt: skip
        if op == Op.RESPOND and request is wrong_type:
            continue  # content is any value
        errno, body = box.raw(op, request)
        error = body["error"]
        assert code is None or error["code"] in (code if isinstance(code, tuple) else (code,)), error
        assert errno == ERRNO[Code(error["code"])]
        assert words in error["message"], error
        entry = box.entries()[-1]
        assert (entry["op"], entry["decision"], entry["trace"]) == (op, "deny", error["trace_id"])
    assert held(box) == before
    assert {name: box.kernel.budget(name)["used"] for name in used} == used


@every
def test_a_number_is_used_once(box: Box, op: Op) -> None:
    request = json.dumps({"args": arguments(box, op), "seq": 7}).encode()
    assert box.raw(op, request)[0] == 0
    after = held(box)
    errno, body = box.raw(op, request)
    assert (errno, body["error"]["name"]) == (ERRNO[Code.REPLAY], "REPLAY")
    assert held(box) == after


@every
def test_an_ended_agent_and_a_stranger_get_nothing(box: Box, op: Op) -> None:
    child = box.kernel.tree.add(box.kernel.root, "child", None, {})
    box.kernel.tree.end(child)
    args = arguments(box, op)
    _, body = box.raw(op, json.dumps({"args": args}).encode(), child.id)
    assert body["error"]["name"] == "CAP_REVOKED", body
    with pytest.raises(KeyError):
        box.kernel.call(b"x" * 16, op, json.dumps({"args": args}).encode())


@every
def test_bulk_is_in_the_log_by_its_hash(box: Box, op: Op) -> None:
    args = arguments(box, op) | {"love": "x" * (LOGGED_VALUE_BYTES + 1)}
    box.raw(op, json.dumps({"args": args}).encode())
    logged = box.entries()[-1]["req"]["args"]["love"]
    assert logged["bytes"] > LOGGED_VALUE_BYTES
    assert len(logged["sha256"]) == 64


@every
def test_over_the_channel(box: Box, op: Op) -> None:
    talk = Conversation(box.kernel, lambda token: box.kernel.root if token == TOKEN else None)

    def say(data: bytes) -> Any:
        frame = read_frame(io.BytesIO(data).read)
        assert frame is not None
        return json.loads(talk.answer(frame)[20:])

    say(pack(REQUEST, 1, json.dumps({"op": "HELLO", "token": TOKEN}).encode()))
    whole = pack(REQUEST, 2, json.dumps({"op": op.name, "args": arguments(box, op)}).encode())
    for cut in range(1, len(whole)):  # a torn frame is no frame, wherever it is cut
        with pytest.raises(FrameError) as torn:
            read_frame(io.BytesIO(whole[:cut]).read)
        assert torn.value.code == Code.FRAME_INCOMPLETE
    before = len(box.entries())
    assert say(whole)["ok"] is True
    assert len(box.entries()) > before
    after = held(box)
    with pytest.raises(FrameError) as again:
        say(whole)
    assert again.value.code == Code.REPLAY
    assert held(box) == after
    header = pack(REQUEST, 3, b"")[:4] + (MAX_REQUEST + 1).to_bytes(4, "little") + bytes(12)
    with pytest.raises(FrameError) as large:
        read_frame(io.BytesIO(header).read)
    assert large.value.code == Code.FRAME_TOO_LARGE
