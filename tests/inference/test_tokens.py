"""The API key is a capability: of one run, of one agent, and no wider than its holder made it."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import pytest

from akbox.kernel.capability import Caveat, Type, derive, new_tid

from .kit import PATHS, Bench, request_body


def ask(bench: Bench, token: str, model: str = "gpt-test") -> int:
    reply = bench.send(PATHS["chat"], request_body("chat", "reply 1") | {"model": model}, token=token)
    reply.read()
    return reply.status


def last_refusal(bench: Bench) -> tuple[str, int]:
    entry = bench.entries("deny")[-1]
    return entry["stage"], entry["res"]["code"]


def test_of_another_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with Bench(tmp_path / "a") as one, Bench(tmp_path / "b") as other:
        assert ask(one, one.token) == 200
        assert ask(one, other.token) == 401
        assert last_refusal(one) == ("CAPABILITY", -4106)


def test_of_another_kind_and_forged(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        assert ask(bench, bench.kernel.caps.mint(Type.TOOL, "*")) == 401
        assert last_refusal(bench) == ("CAPABILITY", -4103)
        body, mac = bench.token.rsplit(".", 1)
        assert ask(bench, f"{body}.{'A' * len(mac)}") == 401


def test_narrowed_by_its_holder(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        narrow = derive(bench.token, Caveat(tid=new_tid(), resource="gpt-*"))
        assert ask(bench, narrow) == 200
        reply = bench.send(PATHS["anthropic"], request_body("anthropic", "x"), token=narrow)
        assert reply.status == 403
        assert last_refusal(bench) == ("CAPABILITY", -4103)
        assert bench.upstream.counters.requests == 1


def test_revoked(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        token = bench.kernel.caps.mint(Type.INFERENCE, "*")
        narrow = derive(token, Caveat(tid=new_tid()))
        assert ask(bench, narrow) == 200
        bench.kernel.revoke(bench.kernel.caps.verify(token).tids[0], "enough")
        assert ask(bench, narrow) == ask(bench, token) == 401
        assert ask(bench, bench.token) == 200


def test_a_rate(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        slow = derive(bench.token, Caveat(tid=new_tid(), rate_limit=2, rate_window_ms=600_000))
        assert [ask(bench, slow) for _ in range(4)] == [200, 200, 429, 429]
        assert last_refusal(bench) == ("CAPABILITY", -4105)
        assert ask(bench, bench.token) == 200


@pytest.mark.parametrize("agent", ["00" * 16, "root"])
def test_an_agent_that_the_holder_has_made_up(tmp_path: Path, agent: str) -> None:
    with Bench(tmp_path) as bench:
        name = bench.kernel.root.hex() if agent == "root" else agent
        first = derive(bench.token, Caveat(tid=new_tid(), agent=name))
        assert ask(bench, first) == (200 if agent == "root" else 401)
        second = derive(first, Caveat(tid=new_tid(), agent="11" * 16))
        assert ask(bench, second) == 401


def test_a_person_is_asked(tmp_path: Path) -> None:
    policy = 'version = "1.0"\napprove.effects = ["infer.models gpt-*"]\n[infer]\nmodels = ["gpt-*"]\n'
    policy += '[infer.upstreams.o]\ntype = "openai"\nbase_url = "{url}"\n'
    with Bench(tmp_path, policy=policy) as bench:
        assert ask(bench, bench.token) == 403, "nobody can be asked"
        asked: queue.Queue[int] = queue.Queue()
        bench.kernel.enable_approvals(lambda request: asked.put(request.id))
        answers: list[int] = []
        caller = threading.Thread(target=lambda: answers.append(bench.call("chat", "reply 2")[0]))
        caller.start()
        number = asked.get(timeout=20)
        assert bench.upstream.counters.requests == 0
        approvals = bench.kernel.approvals
        assert approvals is not None
        approvals.decide(number, True, "a test")
        caller.join()
        assert answers == [200]
