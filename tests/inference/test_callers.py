"""Who may call, what for, and what the gateway leaves alone."""

from __future__ import annotations

import gzip
import http.client
import json
from pathlib import Path

import pytest

from akbox.inference.gateway import MAX_CONNECTIONS

from .kit import KEY, PATHS, WIRES, Bench, error_in, request_body, wait_for

OTHER = """
version = "1.0"
[infer]
models = ["claude-*", "gpt-4*", "llama", "fast-real"]
aliases = {{ fast = "fast-real", sneaky = "forbidden" }}
[infer.upstreams.hosted]
type = "openai"
base_url = "{url}/v1"
models = ["gpt-*"]
[infer.upstreams.local]
type = "openai"
base_url = "{url}"
[infer.upstreams.unused]
type = "anthropic"
base_url = "http://127.0.0.1:1"
retries = 0
[secrets]
"""


@pytest.mark.parametrize(
    "headers", [{}, {"x-api-key": "sk-x"}, {"authorization": "Bearer of-another-run"}, {"api-key": "k"}]
)
@pytest.mark.parametrize("path", [*PATHS.values(), "/v1/models", "/other"])
def test_without_the_runs_token(tmp_path: Path, headers: dict[str, str], path: str) -> None:
    with Bench(tmp_path) as bench:
        reply = bench.send(path, {"model": "claude-test"}, headers=headers, token="")
        assert reply.status == 401
        json.loads(reply.read())
        assert bench.upstream.counters.requests == 0
        (entry,) = bench.entries()
        assert (entry["decision"], entry["stage"], entry["target"]) == ("deny", "CAPABILITY", "gateway")
        assert entry["req"]["call"] == f"POST {path}"
        assert entry["res"]["why"] == ("CAP_INVALID" if headers else "CAP_MISSING")


def test_strangers_cannot_fill_the_log(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        for _ in range(300):
            assert bench.send("/v1/messages", None, method="GET", token="no").status == 401
    found = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]
    counts = [e["req"]["count"] for e in found if e["name"] == "infer"]
    assert sum(counts) == 300
    assert len(counts) < 30


@pytest.mark.parametrize("wire", WIRES)
def test_fields_the_gateway_does_not_know_stay_as_they_are(tmp_path: Path, wire: str) -> None:
    odd = {"tools": [{"type": "custom", "name": "look", "x": [1, 2.5, None]}], "new_field": {"a": ["é", 1e-7, True]}}
    headers = {
        "anthropic-beta": "some-beta",
        "x-stainless-lang": "python",
        "x-forwarded-for": "1.2.3.4",
        "cookie": "c=1",
    }
    with Bench(tmp_path) as bench:
        body = request_body(wire, "call-tool look", 500, **odd)
        reply = bench.send(PATHS[wire] + "?beta=true", body, headers=headers)
        answer = json.loads(reply.read())
        assert reply.status == 200, answer
        assert bench.upstream.counters.bodies == [body]
        assert "look" in json.dumps(answer)
        assert bench.upstream.counters.keys == [KEY]


def test_gzip_on_both_sides(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        body = gzip.compress(json.dumps(request_body("chat", "reply 7")).encode())
        reply = bench.send(PATHS["chat"], body, headers={"content-encoding": "gzip", "accept-encoding": "gzip"})
        assert reply.status == 200
        assert reply.headers["content-encoding"] is None, "the provider's compression ends here"
        assert json.loads(reply.read())["usage"]["completion_tokens"] == 7


def test_connections_are_kept_on_both_sides(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        connection = bench.connection()
        for n in range(12):
            stream = n % 2 == 1
            reply = bench.send(PATHS["chat"], request_body("chat", "reply 2", stream=stream), connection=connection)
            assert reply.status == 200
            reply.read()
        assert bench.upstream.connections <= 2


def test_models_are_those_of_the_policy(tmp_path: Path) -> None:
    with Bench(tmp_path, infer='aliases = { mine = "claude-test" }') as bench:
        reply = bench.send("/v1/models", None, method="GET", headers={"anthropic-version": "2023-06-01"})
        assert [m["id"] for m in json.loads(reply.read())["data"]] == ["claude-test", "claude-other", "mine"]
        reply = bench.send("/v1/models/mine", None, method="GET", headers={"anthropic-version": "2023-06-01"})
        assert json.loads(reply.read())["id"] == "mine"
        reply = bench.send(
            "/v1/models", None, method="GET", token="", headers={"authorization": f"Bearer {bench.token}"}
        )
        assert [m["id"] for m in json.loads(reply.read())["data"]] == ["gpt-test", "embed-test"]


def test_count_tokens_costs_nothing(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        body = request_body("anthropic", "one two three", None)
        reply = bench.send("/v1/messages/count_tokens", body)
        assert json.loads(reply.read()) == {"input_tokens": 3}
        assert bench.used() == 0
        refused = bench.send("/v1/messages/count_tokens", body | {"model": "other"})
        assert refused.status == 403


def test_routing_and_aliases(tmp_path: Path) -> None:
    with Bench(tmp_path, policy=OTHER) as bench:
        for model, status, upstream in (
            ("gpt-4o", 200, "hosted"),
            ("llama", 200, "local"),
            ("fast", 200, "local"),
            ("sneaky", 403, "local"),
            ("gpt-3", 403, "hosted"),
        ):
            reply = bench.send(PATHS["chat"], request_body("chat", "reply 1") | {"model": model})
            assert (model, reply.status) == (model, status)
            reply.read()
            assert bench.entries()[-1 if status == 403 else -2]["req"]["upstream"] == upstream
        assert [b["model"] for b in bench.upstream.counters.bodies] == ["gpt-4o", "llama", "fast-real"]
        assert bench.upstream.counters.keys == [""] * 3, "no key was stated"
        reply = bench.send(PATHS["anthropic"], request_body("anthropic", "x"))
        assert reply.status == 502
        error_in("anthropic", json.loads(reply.read()))


def test_an_upstream_on_a_unix_socket(tmp_path: Path) -> None:
    with Bench(tmp_path, unix=str(tmp_path / "model.sock")) as bench:
        assert bench.call("chat", "reply 2")[0] == 200
        assert len(bench.stream("anthropic", "reply 2")) > 3


def test_what_the_gateway_does_not_have(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        for method, path in (("POST", "/v1/files"), ("GET", "/v1/messages"), ("POST", "/"), ("DELETE", "/v1/models/x")):
            reply = bench.send(path, None, method=method)
            assert (path, reply.status) == (path, 404)
            assert "this gateway has no" in json.loads(reply.read())["error"]["message"]
        assert bench.upstream.counters.requests == 0


def test_connections_are_bounded(tmp_path: Path) -> None:
    """Their descriptors are the supervisor's, who needs some of its own."""
    with Bench(tmp_path) as bench:
        assert bench.call("chat", "reply 1")[0] == 200
        held = [bench.connection() for _ in range(MAX_CONNECTIONS + 20)]
        refused = 0
        for connection in held:
            try:
                bench.send("/v1/nothing", None, method="GET", connection=connection).read()
            except (ConnectionError, http.client.HTTPException):
                refused += 1
        assert 18 <= refused <= 22
        for connection in held:
            connection.close()

        def served() -> bool:
            try:
                return bench.call("chat", "reply 1")[0] == 200
            except (ConnectionError, http.client.HTTPException):
                return False  # the other side has not yet seen that they are closed

        wait_for(served)
