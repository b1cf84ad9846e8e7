"""Model calls are metered to the token, refused before they leave when they would pass a budget, and cut at it."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .kit import PATHS, WIRES, Bench, error_in, events, request_body, text_of, wait_for


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_is_metered_to_the_token(tmp_path: Path, wire: str, streamed: bool) -> None:
    with Bench(tmp_path, cache_tokens=11) as bench:
        for n in (3, 1, 7):
            if streamed:
                seen = bench.stream(wire, f"please reply {n}")
                assert text_of(wire, seen).split() == [f"word{i}" for i in range(n)]
            else:
                assert bench.call(wire, f"please reply {n}")[0] == 200
        assert bench.logged_tokens() == bench.billed() == (3 * (3 + 11), 11)
        assert bench.used() == sum(bench.billed())
        assert bench.used("output_tokens") == 11
        assert bench.reserved() == 0
        assert all(end["ended"] == "complete" and end["status"] == 200 for end in bench.ends())
        begun = [e for e in bench.entries("allow") if "reserved" in e["req"]]
        assert len(begun) == 3
        assert begun[0]["rule"] == ("infer.models claude-*" if wire == "anthropic" else "infer.models gpt-*")
        assert [e["req"]["call"] for e in bench.entries("allow") if "call" in e["req"]] == [e["trace"] for e in begun]


def test_embeddings_are_metered(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        reply = bench.send("/v1/embeddings", {"model": "embed-test", "input": ["three small words", "two more"]})
        assert reply.status == 200
        assert b'"embedding"' in reply.read()
        assert bench.logged_tokens() == bench.billed() == (5, 0)


@pytest.mark.parametrize("wire", WIRES)
def test_over_budget_never_leaves(tmp_path: Path, wire: str) -> None:
    with Bench(tmp_path, budgets={"tokens": 1000}) as bench:
        refused = 0
        for _ in range(200):
            before = bench.upstream.counters.requests
            status, body = bench.call(wire, "please reply 40", 40)
            if status == 429:
                refused += 1
                assert "tokens" in error_in(wire, body)["message"]
                assert bench.upstream.counters.requests == before or wire == "anthropic"
                assert set(bench.upstream.counters.paths[before:]) <= {"/v1/messages/count_tokens"}
                if refused == 3:
                    break
        assert refused == 3
        assert sum(bench.billed()) == bench.used() <= 1000
        assert bench.logged_tokens() == bench.billed()
        denied = bench.entries("deny")
        assert len(denied) == 3
        assert {(e["stage"], e["res"]["code"], e["res"]["errno"]) for e in denied} == {("BUDGET", -4300, 28)}


def test_a_refused_budget_tells_clients_not_to_try_again(tmp_path: Path) -> None:
    with Bench(tmp_path, budgets={"tokens": 0}) as bench:
        reply = bench.send(PATHS["chat"], request_body("chat", "x"))
        assert reply.status == 429
        assert reply.headers["x-should-retry"] == "false"
        assert reply.headers["retry-after"] is None
        assert bench.upstream.counters.requests == 0


@pytest.mark.parametrize("wire", WIRES)
def test_max_tokens_is_made_smaller_to_fit(tmp_path: Path, wire: str) -> None:
    with Bench(tmp_path, budgets={"tokens": 100_000}, infer="max_tokens = 64") as bench:
        assert bench.call(wire, "please reply 500", 4096)[0] == 200
        assert bench.call(wire, "please reply 500", 20)[0] == 200
        assert bench.call(wire, "please reply 500", None)[0] == 200
        fields = ("max_tokens", "max_completion_tokens", "max_output_tokens")
        asked = [max(body.get(f) or 0 for f in fields) for body in bench.upstream.counters.bodies]
        assert asked == [64, 20, 64]
        assert bench.logged_tokens()[1] == 148


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("budget", ["tokens", "output_tokens"])
def test_twenty_streams_at_once_never_pass_the_limit(tmp_path: Path, wire: str, budget: str) -> None:
    """The provider is slow enough that all of them are under way together."""
    limit = 5000
    with Bench(tmp_path, budgets={budget: limit} | ({"tokens": 10_000_000} if budget != "tokens" else {})) as bench:

        def one(n: int) -> int:
            reply = bench.send(PATHS[wire], request_body(wire, f"slow 2 please reply {n}", 150, stream=True))
            if reply.status == 200:
                list(events(reply))
            else:
                reply.read()
            return reply.status

        most = 0
        stop = threading.Event()

        def watch() -> None:
            nonlocal most
            while not stop.is_set():
                status = bench.kernel.budgets.status(budget)
                most = max(most, status.used + status.reserved)

        watcher = threading.Thread(target=watch)
        watcher.start()
        rounds: list[int] = []
        with ThreadPoolExecutor(20) as pool:
            for _ in range(2):
                rounds += pool.map(one, range(91, 111))
        stop.set()
        watcher.join()
        assert set(rounds) <= {200, 429}
        assert 200 in rounds
        assert bench.logged_tokens() == bench.billed()
        assert most <= limit
        spent = bench.billed()[1] if budget == "output_tokens" else sum(bench.billed())
        assert bench.used(budget) == spent <= limit
        assert bench.reserved(budget) == 0
        assert bench.upstream.counters.most_open > 5


@pytest.mark.parametrize("wire", WIRES)
def test_a_stream_is_cut_at_the_limit_and_ends_well_formed(tmp_path: Path, wire: str) -> None:
    """A provider that does not keep to what it was asked for."""
    with Bench(tmp_path, budgets={"output_tokens": 30}) as bench:
        seen = bench.stream(wire, "greedy 500", 4096)
        assert len(text_of(wire, seen).split()) == 30
        assert bench.used("output_tokens") == 30
        assert [end["ended"] for end in bench.ends()] == ["cut"]
        if wire == "chat":
            assert seen[-1] == ("", "[DONE]")
            error_in(wire, seen[-2][1])
        elif wire == "anthropic":
            assert seen[-1][0] == "error"
            error_in(wire, seen[-1][1])
        else:
            assert seen[-1][0] == seen[-1][1]["type"] == "error"
            assert seen[-1][1]["sequence_number"] > seen[-2][1]["sequence_number"]
        assert bench.call(wire, "again")[0] == 429


@pytest.mark.parametrize("wire", WIRES)
def test_a_caller_that_hangs_up_pays_what_came_and_no_more(tmp_path: Path, wire: str) -> None:
    with Bench(tmp_path, budgets={"tokens": 100_000}) as bench:
        connection = bench.connection()
        body = request_body(wire, "slow 20 please reply 2000", 5000, stream=True)
        reply = bench.send(PATHS[wire], body, connection=connection)
        came = 0
        for _, value in events(reply):
            came += bool(text_of(wire, [("", value)]))
            if came == 3:
                break
        assert bench.reserved() > 5000
        reply.close()
        connection.close()
        wait_for(lambda: bench.reserved() == 0)
        wait_for(lambda: bench.upstream.counters.aborted == 1)
        (end,) = bench.ends()
        assert end["ended"] == "aborted"
        assert end["usage"]["estimated"]
        assert 3 <= end["usage"]["output_tokens"] < 300, "about what came, by its bytes"
        assert bench.billed()[1] <= end["usage"]["output_tokens"]
        assert bench.used() < 1000


def test_a_caller_that_hangs_up_before_the_reply_pays_nothing(tmp_path: Path) -> None:
    with Bench(tmp_path, budgets={"tokens": 100_000}) as bench:
        connection = bench.connection()
        data = b'{"model":"gpt-test","messages":[{"role":"user","content":"fault deaf"}]}'
        connection.request("POST", PATHS["chat"], data, {"x-api-key": bench.token})
        wait_for(lambda: bench.upstream.counters.open == 1)
        assert bench.reserved() > 0
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        wait_for(lambda: bench.reserved() == 0)
        assert bench.used() == 0
        wait_for(lambda: bench.upstream.counters.aborted == 1)


def test_dollars(tmp_path: Path) -> None:
    prices = '[infer.prices."gpt-*"]\ninput = 2.5\noutput = 10.0\ncache_read = 1.25\n'
    prices += "[infer.prices.claude-test]\ninput = 3.0\noutput = 15.0"
    with Bench(tmp_path, budgets={"usd": 0.01}, infer=prices, cache_tokens=100) as bench:
        assert bench.call("chat", "please reply 40")[0] == 200
        # 3 plain at 2.5, 100 cached at 1.25, 40 out at 10: in millionths
        assert bench.used("usd") == 533
        assert bench.ends()[0]["usage"]["usd_micros"] == 533
        assert bench.call("anthropic", "please reply 40")[0] == 200
        assert bench.used("usd") == 533 + 103 * 3 + 600
        statuses = [bench.call("chat", "please reply 40")[0] for _ in range(40)]
        assert set(statuses) == {200, 429}
        assert bench.used("usd") <= 10_000


def test_dollars_need_a_price(tmp_path: Path) -> None:
    with Bench(tmp_path, budgets={"usd": 1.0}) as bench:
        status, body = bench.call("chat", "hello")
        assert status == 429
        assert "infer.prices" in error_in("chat", body)["message"]
        assert bench.upstream.counters.requests == 0


@pytest.mark.parametrize(
    ("wire", "field"), [("chat", "service_tier"), ("responses", "service_tier"), ("anthropic", "speed")]
)
def test_dollars_need_the_list_price(tmp_path: Path, wire: str, field: str) -> None:
    price = '[infer.prices."*"]\ninput = 1\noutput = 1'
    with Bench(tmp_path, budgets={"usd": 1.0}, infer=price) as bench:
        assert bench.call(wire, "reply 1", **{field: "standard"})[0] == 200
        status, body = bench.call(wire, "reply 1", **{field: "priority" if field == "service_tier" else "fast"})
        assert status == 429
        assert "list price" in error_in(wire, body)["message"]
        assert bench.upstream.counters.requests == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "resp_1"},
        {"tools": [{"type": "web_search"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
    ],
)
def test_a_prompt_without_a_bound_holds_everything_that_is_left(tmp_path: Path, fields: dict[str, Any]) -> None:
    with Bench(tmp_path, budgets={"tokens": 10_000}) as bench:
        assert bench.call("responses", "please reply 5", 100, **fields)[0] == 200
        (begun,) = [e for e in bench.entries("allow") if "reserved" in e["req"]]
        assert begun["req"]["reserved"]["tokens"] == 10_000
        assert bench.used() == sum(bench.billed())


def test_a_picture_is_not_counted_by_its_bytes(tmp_path: Path) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 400_000}}
    with Bench(tmp_path, budgets={"tokens": 10_000}) as bench:
        body = request_body("anthropic", "x")
        body["messages"][0]["content"] = [{"type": "text", "text": "what is it"}, picture]
        reply = bench.send(PATHS["anthropic"], body)
        assert reply.status == 200, reply.read()
        assert bench.upstream.counters.bodies[-1]["messages"] == body["messages"]
