"""What goes wrong upstream: the agent sees the right thing in its provider's own shape, budgets are right, the gateway
lives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .kit import KEY, PATHS, WIRES, Bench, error_in, request_body, text_of


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("status", [401, 429, 500, 529])
def test_a_refusal_is_passed_on_in_the_providers_words(tmp_path: Path, wire: str, status: int) -> None:
    with Bench(tmp_path) as bench:
        reply = bench.send(PATHS[wire], request_body(wire, f"fault {status}", stream=True))
        assert reply.status == status
        error = error_in(wire, json.loads(reply.read()))
        assert error["message"] == f"fault {status}"
        assert reply.headers["request-id"] == "req_test"
        assert (bench.used(), bench.reserved()) == (0, 0)
        assert [(e["ended"], e["status"]) for e in bench.ends()] == [("refused", status)]
        assert bench.call(wire, "still there?")[0] == 200


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("fault", ["429", "500", "reset"])
@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_tried_again_is_charged_once(tmp_path: Path, wire: str, fault: str, streamed: bool) -> None:
    with Bench(tmp_path, retries=1) as bench:
        text = f"fault {fault} once reply 4"
        if streamed:
            assert len(text_of(wire, bench.stream(wire, text)).split()) == 4
        else:
            assert bench.call(wire, text)[0] == 200
        assert bench.upstream.counters.requests == 2
        assert bench.logged_tokens() == bench.billed() == (5, 4)
        assert (bench.used(), bench.reserved()) == (9, 0)
        assert [end["tries"] for end in bench.ends()] == [2]


def test_when_trying_again_did_not_help_clients_are_told_not_to(tmp_path: Path) -> None:
    with Bench(tmp_path, retries=1) as bench:
        reply = bench.send(PATHS["chat"], request_body("chat", "fault 500"))
        assert (reply.status, reply.headers["x-should-retry"]) == (500, "false")
        assert bench.upstream.counters.requests == 2


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("fault", ["reset", "deaf", "half"])
def test_no_whole_reply(tmp_path: Path, wire: str, fault: str) -> None:
    with Bench(tmp_path, timeout_ms=400) as bench:
        status, body = bench.call(wire, f"fault {fault} reply 30")
        assert status == (504 if fault == "deaf" else 502)
        error_in(wire, body)
        assert bench.reserved() == 0
        (end,) = bench.ends()
        if fault == "half":  # the provider did the work and will bill it
            assert end["ended"] == "broken"
            assert end["usage"]["estimated"]
            assert bench.used() > 33
        else:
            assert end["ended"] == "failed"
            assert bench.used() == 0
        assert bench.call(wire, "still there?")[0] == 200


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("fault", ["half", "malformed", "silence"])
def test_a_stream_that_breaks_off_ends_well_formed(tmp_path: Path, wire: str, fault: str) -> None:
    with Bench(tmp_path, timeout_ms=400) as bench:
        seen = bench.stream(wire, f"fault {fault} slow 30 reply 30")
        assert text_of(wire, seen).split() == (["word0", "word1"] if fault == "half" else ["word0"])
        last = seen[-2][1] if wire == "chat" else seen[-1][1]
        if wire == "responses":
            assert last["type"] == "error"
            code = last["code"]
        else:
            code = error_in(wire, last)["type" if wire == "anthropic" else "code"]
        silent = {"anthropic": "timeout_error"}.get(wire, "upstream_timeout")
        broken = {"anthropic": "api_error"}.get(wire, "upstream_error")
        assert code == (silent if fault == "silence" else broken)
        assert bench.reserved() == 0
        (end,) = bench.ends()
        assert end["ended"] == "broken"
        assert end["usage"]["estimated"]
        assert bench.used() >= sum(bench.billed())
        assert len(bench.stream(wire, "still there?")) > 3


def test_a_reply_that_says_the_key_does_not_say_it_to_the_agent(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        for wire in WIRES:
            reply = bench.send(PATHS[wire], request_body(wire, "fault echo-key"))
            text = reply.read().decode()
            assert reply.status == 400
            assert "bad key [redacted]" in text
        assert bench.upstream.counters.keys == [KEY] * 3
        assert KEY not in (tmp_path / "audit.jsonl").read_text()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"model": 7}', 400),
        (b'{"messages": []}', 400),
        (b'{"model": "claude-test", "max_tokens": -1}', 400),
        (b'{"model": "claude-test", "max_tokens": 1e400}', 400),
        (b'{"model": "claude-test", "max_tokens": "8"}', 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"model": "other-model", "max_tokens": 5}', 403),
    ],
)
def test_a_request_that_is_none_goes_nowhere(tmp_path: Path, body: bytes, status: int) -> None:
    with Bench(tmp_path) as bench:
        reply = bench.send(PATHS["anthropic"], body)
        assert reply.status == status
        error_in("anthropic", json.loads(reply.read()))
        assert bench.upstream.counters.requests == 0
        assert bench.call("anthropic", "still there?")[0] == 200


def test_a_body_means_one_thing(tmp_path: Path) -> None:
    """What one parser reads as the allowed model another may read as the other."""
    with Bench(tmp_path) as bench:
        body = b'{"model": "secret-model", "model": "claude-test", "max_tokens": 5, "messages": []}'
        assert bench.send(PATHS["anthropic"], body).status == 200
        assert bench.upstream.counters.bodies[-1] == {"model": "claude-test", "max_tokens": 5, "messages": []}
        body = b'{"model": "claude-test", "model": "secret-model", "max_tokens": 5, "messages": []}'
        assert bench.send(PATHS["anthropic"], body).status == 403


def test_a_body_that_is_too_large(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        connection = bench.connection()
        connection.putrequest("POST", PATHS["anthropic"])
        connection.putheader("x-api-key", bench.token)
        connection.putheader("content-length", str(40 << 20))
        connection.endheaders()
        try:
            for _ in range(40):
                connection.send(b"x" * (1 << 20))
        except ConnectionError:
            pass  # answered before all of it was sent
        reply = connection.getresponse()
        assert reply.status == 413
        assert error_in("anthropic", json.loads(reply.read()))["type"] == "request_too_large"
        assert bench.call("anthropic", "still there?")[0] == 200
