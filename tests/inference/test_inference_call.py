"""INFERENCE (1037): the gateway's own path, from inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .kit import KEY, Bench

NR = 1037
MODELS = ("claude-test", "gpt-test")
TOOL = {"name": "look", "description": "looks", "input_schema": {"type": "object", "properties": {}}}


@pytest.mark.parametrize("model", MODELS)
def test_an_answer(tmp_path: Path, model: str) -> None:
    with Bench(tmp_path) as bench:
        result = bench.box.call(NR, model=model, prompt="please reply 4", max_tokens=20)
        assert result["content"].split() == ["word0", "word1", "word2", "word3"]
        assert result["finish_reason"] == "stop"
        assert result["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        assert bench.used() == 7
        assert bench.upstream.counters.keys == [KEY]
        names = [e["name"] for e in bench.box.entries()]
        assert names == ["infer", "infer", "INFERENCE"]


@pytest.mark.parametrize("model", MODELS)
def test_messages_tools_and_the_limit(tmp_path: Path, model: str) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"x": 2}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "seen"},
        {"role": "user", "content": "call-tool look reply 1"},
    ]  # fmt: skip
    with Bench(tmp_path) as bench:
        result = bench.box.call(NR, model=model, messages=messages, tools=[TOOL], temperature=0.5, max_tokens=30)
        assert result["finish_reason"] == "tool_calls"
        assert result["tool_calls"] == [
            {"id": "toolu_1" if model == "claude-test" else "call_1", "name": "look", "arguments": {"x": 1}}
        ]
        body = bench.upstream.counters.bodies[-1]
        assert body["temperature"] == 0.5
        assert (body["tools"][0].get("function") or body["tools"][0])["name"] == "look"
        if model == "claude-test":
            assert body["system"] == "be brief"
            assert body["messages"][1]["content"] == [
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"x": 2}}
            ]
            assert body["messages"][2]["content"][0]["type"] == "tool_result"
        cut = bench.box.call(NR, model=model, prompt="reply 50", max_tokens=5)
        assert (len(cut["content"].split()), cut["finish_reason"]) == (5, "length")


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ({"model": "gpt-test"}, "SCHEMA_INVALID"),
        ({"model": "gpt-test", "prompt": "x", "messages": []}, "SCHEMA_INVALID"),
        ({"model": "", "prompt": "x"}, "SCHEMA_INVALID"),
        ({"model": "gpt-test", "prompt": "x", "max_tokens": 0}, "SCHEMA_INVALID"),
        ({"model": "gpt-test", "prompt": "x", "odd": 1}, "SCHEMA_UNKNOWN"),
        ({"model": "gpt-test", "messages": [{"content": "x"}]}, "SCHEMA_INVALID"),
        ({"model": "gpt-test", "prompt": "x", "tools": [{}]}, "SCHEMA_INVALID"),
        ({"model": "other", "prompt": "x"}, "POLICY_DENY"),
        ({"model": "gpt-test", "prompt": "fault 401"}, "INFERENCE_FAIL"),
        ({"model": "claude-test", "prompt": "fault 500"}, "INFERENCE_FAIL"),
        ({"model": "gpt-test", "prompt": "fault reset"}, "INFERENCE_FAIL"),
        ({"model": "gpt-test", "prompt": "fault malformed"}, "INFERENCE_FAIL"),
        ({"model": "claude-test", "prompt": "fault half"}, "INFERENCE_FAIL"),
    ],
)
def test_errors(tmp_path: Path, args: dict[str, Any], name: str) -> None:
    with Bench(tmp_path) as bench:
        error = bench.box.fail(NR, **args)
        assert error["name"] == name
        assert bench.reserved() == 0
        assert bench.box.entries()[-1]["name"] == "INFERENCE"
        if name in ("SCHEMA_INVALID", "SCHEMA_UNKNOWN", "POLICY_DENY"):
            assert bench.upstream.counters.requests == 0
        assert bench.box.call(NR, model="gpt-test", prompt="still there?")["content"]


def test_over_budget(tmp_path: Path) -> None:
    with Bench(tmp_path, budgets={"tokens": 300}) as bench:
        assert bench.box.call(NR, model="gpt-test", prompt="please reply 4", max_tokens=20)["content"]
        error = bench.box.fail(NR, model="gpt-test", prompt="word " * 100)
        assert (error["name"], error["errno"]) == ("BUDGET_EXCEEDED", 28)
        assert "budgets.tokens" in error["suggested_fix"]
        assert bench.upstream.counters.requests == 1
        assert bench.box.entries()[-1]["stage"] == "BUDGET"


def test_a_cut_answer_is_an_error(tmp_path: Path) -> None:
    with Bench(tmp_path, budgets={"output_tokens": 10}) as bench:
        assert bench.box.fail(NR, model="gpt-test", prompt="greedy 500")["name"] == "BUDGET_EXCEEDED"
        assert bench.used("output_tokens") == 10


def test_without_a_gateway(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        bench.kernel.infer = None
        assert bench.box.fail(NR, model="gpt-test", prompt="x")["name"] == "NO_UPSTREAM"
