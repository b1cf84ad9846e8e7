"""RESPOND, ASSERT, APPROVAL and approvals, in the kernel."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_kit import POLICY, Box

from akbox.kernel.approvals import Request
from akbox.kernel.codes import CallError, Code
from akbox.kernel.control import answer
from akbox.kernel.effect import Decision, Effect
from akbox.kernel.ops import Op

ALLOC, READ, RESPOND, ASSERT, APPROVAL = 1025, 1024, 1035, 1036, 1044
KEY = "sk-ant-api03-Zx81kQp4LmNv7RtYw2Bc9DfGh3Jk6Ls0AqEe5Uu"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path, POLICY)
    yield made
    made.close()


def test_respond(box: Box) -> None:
    reply = box.kernel.call(box.kernel.root, RESPOND, b'{"args":{"content":"42"}}').body
    assert reply == b'{"ok":true,"result":{"acknowledged":true,"taint":0,"label":"TRUSTED"}}'
    assert box.kernel.answer == {"content": "42", "taint": 0}
    ptr = box.call(ALLOC, type="t", value="from afar", taint="UNTRUSTED")["ptr"]
    assert box.call(RESPOND, content={"a": [1]}, **{"from": [ptr]})["label"] == "UNTRUSTED"


@pytest.mark.parametrize(
    "content",
    [KEY, {"k": [f"use {KEY}"]}, "Authorization: Bearer Zx81kQp4LmNv7RtYw2Bc9DfGh3", "4012 8888 8888 1881",
     {KEY: 1}, {"n": 4012888888881881}, "postgres://u:x7Gh-29Kq@db/x"],
)  # fmt: skip
def test_a_secret_does_not_leave(box: Box, content: Any) -> None:
    error = box.fail(RESPOND, content=content)
    assert (error["code"], error["errno"], error["name"]) == (Code.DLP_BLOCK, errno.EPERM, "DLP_BLOCK")
    assert error["details"]["findings"][0]["kind"] in error["message"]
    assert box.entries()[-1]["stage"] == "TAINT"
    assert box.kernel.answer is None
    everything = (box.directory / "audit.jsonl").read_text() + json.dumps(error)
    for secret in (KEY, "Zx81kQp4LmNv7RtYw2Bc9DfGh3", "4012 8888 8888 1881", "4012888888881881", "x7Gh-29Kq"):
        assert secret not in everything


def test_assert(box: Box) -> None:
    halted: list[str] = []
    box.kernel.halt = halted.append
    assert box.call(ASSERT, name="tests pass", value=True) == {"recorded": True, "value": True, "halted": False}
    assert box.call(ASSERT, name="n", value=False)["halted"] is False
    assert box.call(ASSERT, event="deployed", details={"to": "x"})["recorded"] is True
    assert not halted
    assert box.call(ASSERT, predicate="safe", value=False, message="it is not", halt=True)["halted"] is True
    assert halted == ["assertion failed: safe: it is not"]
    assert box.entries()[-1]["target"] == "assert:safe"
    for bad in ({}, {"name": ""}, {"name": "x", "value": "yes"}, {"name": "x", "colour": 1}):
        assert box.fail(ASSERT, **bad)["code"] in (Code.SCHEMA_INVALID, Code.SCHEMA_UNKNOWN)


DEPLOY = Effect(op=Op.FS_OPEN, target="/app/deploy/x", need=2)


class Asker:
    """Asks for something on a thread of its own."""

    def __init__(self, box: Box, effect: Effect = DEPLOY) -> None:
        self.got: list[Decision] = []
        self._thread = threading.Thread(target=lambda: self.got.append(box.kernel.authorize(box.kernel.root, effect)))
        self._thread.start()

    def answer(self) -> Decision:
        self._thread.join(30)
        return self.got[0]


@pytest.fixture
def told(box: Box) -> Any:
    """Waits for the next request; the requests that were told of."""
    requests: list[Request] = []
    came = threading.Semaphore(0)

    def tell(request: Request) -> None:
        requests.append(request)
        came.release()

    box.kernel.enable_approvals(tell)

    def wait() -> Request:
        assert came.acquire(timeout=30)
        return requests[-1]

    return wait


def ask_control(box: Box, **command: Any) -> Any:
    return json.loads(answer(box.kernel, json.dumps(command).encode()))


def test_a_person_approves(box: Box, told: Any) -> None:
    asker = Asker(box)
    request = told()
    assert (request.op, request.target, request.need, request.rule) == (
        "fs.open", "/app/deploy/x", "write", "approve fs.write /app/deploy/**",
    )  # fmt: skip
    assert box.call(APPROVAL, op="list")["requests"][0]["state"] == "waiting"
    assert ask_control(box, cmd="approve.decide", id=request.id, allow=True)["ok"] is True
    decision = asker.answer()
    assert (decision.allowed, decision.rule) == (True, "approve fs.write /app/deploy/**")
    again = ask_control(box, cmd="approve.decide", id=request.id, allow=False)
    assert (again["ok"], "approved already" in again["error"]) == (False, True)  # one decision per request
    assert ask_control(box, cmd="approve.decide", id=99, allow=True)["error"].startswith("NOT_FOUND")
    names = [e["target"] for e in box.entries()]
    assert names.index("run:approval:1:approved") < names.index("/app/deploy/x")
    assert box.call(APPROVAL, id=1)["by"] == "the command line"
    assert box.fail(APPROVAL, id=2)["code"] == Code.NOT_FOUND


def test_a_person_refuses(box: Box, told: Any) -> None:
    asker = Asker(box)
    box.kernel.approvals.decide(told().id, False, "me")  # type: ignore[union-attr]
    decision = asker.answer()
    assert (decision.allowed, decision.code, decision.errno) == (False, Code.APPROVAL_REQUIRED, errno.EACCES)
    assert "denied by me" in decision.reason


def test_equal_requests_are_one(box: Box, told: Any) -> None:
    askers = [Asker(box), Asker(box)]
    first = told()
    approvals = box.kernel.approvals
    assert approvals is not None
    while approvals.get(first.id).waiters < 2:  # type: ignore[union-attr]
        threading.Event().wait(0.001)
    approvals.decide(first.id, True, "me", always=True)
    assert [a.answer().allowed for a in askers] == [True, True]
    assert len(approvals.all()) == 1
    assert Asker(box).answer().allowed  # --always
    other = Asker(box, Effect(op=Op.FS_OPEN, target="/app/deploy/y", need=2))
    approvals.decide(told().id, False, "me")
    assert not other.answer().allowed


def test_nobody_answers(tmp_path: Path) -> None:
    box = Box(tmp_path, POLICY.replace("[approve]\n", "[approve]\ntimeout_ms = 30\n"))
    box.kernel.enable_approvals(lambda _request: None)
    decision = Asker(box).answer()
    assert (decision.allowed, "timed out" in decision.reason) == (False, True)
    box.close()


def test_the_end_of_the_run_denies(box: Box, told: Any) -> None:
    asker = Asker(box)
    told()
    assert box.kernel.approvals is not None
    box.kernel.approvals.close()
    assert not asker.answer().allowed
    assert not Asker(box).answer().allowed


def test_a_caller_that_is_gone(box: Box, told: Any) -> None:
    agent = box.kernel.agent(box.kernel.root)
    asked = box.kernel.decide(box.kernel.root, DEPLOY)
    assert box.kernel.ask(agent, DEPLOY, asked, alive=lambda: False).allowed is False
    assert told().state == "denied"
    with pytest.raises(CallError, match="denied already"):
        box.kernel.approvals.decide(1, True, "late")  # type: ignore[union-attr]
