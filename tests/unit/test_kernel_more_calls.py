"""SPAWN, SEND, RECV, RESPOND, ASSERT, CAP, APPROVAL: golden replies, and every way to get the arguments wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_kit import Box

from akbox.kernel.codes import ERRNO, Code
from akbox.kernel.verify import verify

SPAWN, SEND, RECV, RESPOND, ASSERT, CAP, APPROVAL = 1032, 1033, 1034, 1035, 1036, 1043, 1044
INVALID, UNKNOWN = Code.SCHEMA_INVALID, Code.SCHEMA_UNKNOWN


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.close()
    found = verify(tmp_path / "audit.jsonl", tmp_path / "checkpoints")
    assert found.ok, found


def test_golden_replies(box: Box) -> None:
    def reply(nr: int, request: str) -> str:
        return box.kernel.call(box.kernel.root, nr, request.encode()).body.decode()

    me = box.kernel.root.hex()
    assert reply(SEND, '{"args":{"to":"root","payload":{"n":1},"correlation":"c"}}') == (
        f'{{"ok":true,"result":{{"queued":true,"to":"{me}","seq":1}}}}'
    )
    assert reply(RECV, '{"limit":5}') == (
        f'{{"ok":true,"result":{{"messages":[{{"from":"{me}","from_name":"root","seq":1,"payload":{{"n":1}},'
        '"correlation":"c","urgent":false,"taint":100}]}}'
    )
    assert reply(RECV, "{}") == '{"ok":true,"result":{"messages":[]}}'
    assert reply(RESPOND, '{"content":[1]}') == '{"ok":true,"result":{"acknowledged":true,"taint":0,"label":"TRUSTED"}}'
    assert (
        reply(ASSERT, '{"name":"x","value":false}')
        == '{"ok":true,"result":{"recorded":true,"value":false,"halted":false}}'
    )
    assert reply(APPROVAL, "{}") == '{"ok":true,"result":{"requests":[]}}'
    tid = box.kernel.agent(box.kernel.root).heap_tid
    assert reply(CAP, f'{{"op":"revoke","cap":"{tid}"}}') == f'{{"ok":true,"result":{{"revoked":true,"tid":"{tid}"}}}}'
    assert reply(CAP, f'{{"op":"revoke","cap":"{tid}"}}') == f'{{"ok":true,"result":{{"revoked":false,"tid":"{tid}"}}}}'
    assert '"code":-4104,"name":"CAP_REVOKED"' in reply(1025, '{"type":"t","value":1}')


@pytest.mark.parametrize(
    ("nr", "request_bytes", "code", "words"),
    [
        (SPAWN, b"{}", INVALID, "program"),
        (SPAWN, b'{"program":"x"}', INVALID, "program: an absolute path"),
        (SPAWN, b'{"program":"/x","argv":[1]}', INVALID, "argv[0]"),
        (SPAWN, b'{"program":"/x","colour":1}', UNKNOWN, "`colour`"),
        (SPAWN, b'{"program":"/x","budgets":{"love":1}}', INVALID, "budgets.love"),
        (SPAWN, b'{"program":"/x","budgets":{"tokens":-1}}', INVALID, "budgets.tokens"),
        (SPAWN, b'{"program":"/x","budgets":{"tokens":1.5}}', INVALID, "budgets.tokens"),
        (SPAWN, b'{"program":"/x","budgets":{"tokens":"5"}}', INVALID, "budgets"),
        (SPAWN, b'{"program":"/x","budgets":{"tokens":18446744073709551615}}', INVALID, "budgets.tokens"),
        (SPAWN, b'{"program":"/x","name":"a b"}', INVALID, "name"),
        (SPAWN, b'{"program":"/x","stdio":"tty"}', INVALID, "stdio"),
        (SPAWN, b'{"program":"/x\\u0000"}', INVALID, "NUL"),
        (SPAWN, b'{"program":"/x","env":{"LD_X":"1"}}', INVALID, "LD_X"),
        (SPAWN, b'{"program":"/usr/bin/true"}', Code.POLICY_DENY, "no rule"),
        (SEND, b"{}", INVALID, "to"),
        (SEND, b'{"to":"root"}', INVALID, "payload"),
        (SEND, b'{"to":"","payload":1}', INVALID, "to"),
        (SEND, b'{"to":"root","payload":1,"urgent":1}', INVALID, "urgent"),
        (SEND, b'{"to":"x","payload":1}', Code.NO_RECIPIENT, "'x'"),
        (SEND, b'{"to":"root","payload":1,"x":1}', UNKNOWN, "`x`"),
        (RECV, b'{"limit":0}', INVALID, "limit"),
        (RECV, b'{"limit":101}', INVALID, "limit"),
        (RECV, b'{"timeout_ms":-1}', INVALID, "timeout"),
        (RECV, b'{"timeout_ms":1e9}', INVALID, "timeout"),
        (RECV, b'{"x":1}', UNKNOWN, "`x`"),
        (RESPOND, b"{}", INVALID, "content"),
        (RESPOND, b'{"content":1,"x":1}', UNKNOWN, "`x`"),
        (RESPOND, b'{"content":1,"from":[9]}', Code.NOT_FOUND, "9"),
        (RESPOND, b'{"content":1,"taint":"SQL"}', INVALID, "taint"),
        (ASSERT, b"{}", INVALID, "name"),
        (ASSERT, b'{"name":"x","predicate":"y"}', INVALID, "both"),
        (ASSERT, b'{"name":"x","value":1}', INVALID, "value"),
        (ASSERT, b'{"name":"x","y":1}', UNKNOWN, "`y`"),
        (CAP, b"{}", INVALID, "op"),
        (CAP, b'{"op":"fly"}', INVALID, "fly"),
        (CAP, b'{"op":"derive"}', INVALID, "cap"),
        (CAP, b'{"op":"derive","cap":"x"}', Code.CAP_INVALID, "token"),
        (CAP, b'{"op":"derive","cap":"akc1.e30.e30"}', Code.CAP_INVALID, ""),
        (CAP, b'{"op":"derive","cap":"x","ttl_ms":-1}', INVALID, "ttl_ms"),
        (CAP, b'{"op":"inspect","cap":"x"}', Code.NOT_FOUND, "holds"),
        (CAP, b'{"op":"revoke","cap":"00"}', Code.CAP_SCOPE, "holds"),
        (CAP, b'{"op":"revoke","cap":"x","y":1}', UNKNOWN, "`y`"),
        (APPROVAL, b'{"id":"1"}', INVALID, "id"),
        (APPROVAL, b'{"id":1}', Code.NOT_FOUND, "1"),
        (APPROVAL, b'{"op":"fly"}', INVALID, "fly"),
        *((nr, b"[" * 70, Code.JSON_INVALID, "deeper") for nr in (SPAWN, SEND, RECV, RESPOND, ASSERT, CAP, APPROVAL)),
        *(
            (nr, b" " * (1 << 20) + b"{}", Code.FRAME_TOO_LARGE, "1048576")
            for nr in (SPAWN, SEND, RECV, RESPOND, ASSERT, CAP, APPROVAL)
        ),
    ],
)
def test_errors(box: Box, nr: int, request_bytes: bytes, code: Code, words: str) -> None:
    number, body = box.raw(nr, request_bytes)
    error = body["error"]
    assert (error["code"], error["name"], number) == (int(code), code.name, ERRNO[code]), error
    assert words in error["message"]
    entry = box.entries()[-1]
    assert (entry["op"], entry["decision"], entry["trace"]) == (nr, "deny", error["trace_id"])


def test_types_sanitizers_and_labels(box: Box) -> None:
    alloc, read, write = 1025, 1024, 1026
    box.call(alloc, type="$type", value={"name": "age", "schema": {"type": "integer", "minimum": 0}})
    assert box.fail(alloc, type="age", value=-1)["message"].startswith("value: -1")
    assert box.fail(alloc, type="$type", value={"name": "age", "schema": {}})["code"] == Code.NAME_EXISTS
    assert (
        box.fail(alloc, type="$type", value={"name": "b", "schema": {"properties": {"x": {"pattern": "(a+)+"}}}})[
            "code"
        ]
        == INVALID
    )
    assert box.fail(write, ptr=1, patch=[])["code"] == Code.POLICY_DENY
    child = box.kernel.tree.add(box.kernel.root, "child", None, {}).id
    assert box.fail(alloc, by=child, type="$type", value={"name": "c", "schema": {}})["code"] == Code.POLICY_DENY
    url = box.call(alloc, type="t", value="https://example.org/a", taint="UNTRUSTED")["ptr"]
    clean = box.call(alloc, type="t", sanitize="url", **{"from": [url]})["ptr"]
    html = box.call(alloc, type="t", sanitize="html", **{"from": [url]})["ptr"]
    assert [box.call(read, ptr=p)["taint"] for p in (url, clean, html)] == [100, 10, 14]
    both = box.call(alloc, type="t", value="x", **{"from": [clean, html]})["ptr"]
    assert box.call(read, ptr=both)["taint"] == 100  # fit for neither sink
    same = box.call(alloc, type="t", value="x", **{"from": [clean]})["ptr"]
    assert box.call(read, ptr=same)["taint"] == 10
    for name, bad in (("url", "javascript:alert(1)"), ("url", "https://u:p@h/"), ("path", "/a/../b"), ("sql", "a\\'b")):
        ptr = box.call(alloc, type="t", value=bad, taint=100)["ptr"]
        assert box.fail(alloc, type="t", sanitize=name, **{"from": [ptr]})["code"] == Code.TAINT
    ptr = box.call(alloc, type="t", value="a'; rm -rf /", taint=100)["ptr"]
    quoted = box.call(alloc, type="t", sanitize="cmd", **{"from": [ptr]})["ptr"]
    assert box.call(read, ptr=quoted) | {"value": None} == {
        "ptr": quoted,
        "type": "t",
        "version": 1,
        "value": None,
        "taint": 13,
    }
