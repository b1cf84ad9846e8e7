"""Rules on content, off by default: secrets that would go out, and bodies kept beside the log."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from .kit import KEY, WIRES, Bench, error_in

SECRET = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"
TEXT = f"my token is {SECRET}, please reply 3"


@pytest.mark.parametrize("wire", WIRES)
def test_a_secret_goes_out_unless_the_policy_says_no(tmp_path: Path, wire: str) -> None:
    with Bench(tmp_path) as bench:
        assert bench.call(wire, TEXT)[0] == 200
        assert SECRET in json.dumps(bench.upstream.counters.bodies)


@pytest.mark.parametrize("wire", WIRES)
def test_blocked(tmp_path: Path, wire: str) -> None:
    with Bench(tmp_path, infer='detect = "block"', budgets={"tokens": 300}) as bench:
        status, body = bench.call(wire, TEXT)
        assert status == 403
        message = error_in(wire, body)["message"]
        assert "api key (github)" in message
        assert SECRET not in message
        assert bench.upstream.counters.requests == 0, "not even to be counted"
        (entry,) = bench.entries()
        assert (entry["decision"], entry["stage"], entry["res"]["code"]) == ("deny", "TAINT", -4204)
        assert SECRET not in (tmp_path / "audit.jsonl").read_text()
        assert bench.call(wire, "nothing of the kind, reply 2", 20)[0] == 200
        assert bench.box.fail(1037, model="gpt-test", prompt=TEXT)["name"] == "DLP_BLOCK"


@pytest.mark.parametrize("wire", WIRES)
def test_redacted(tmp_path: Path, wire: str) -> None:
    with Bench(tmp_path, infer='detect = "redact"') as bench:
        assert bench.call(wire, TEXT)[0] == 200
        sent = json.dumps(bench.upstream.counters.bodies)
        assert SECRET not in sent
        assert "my token is [secret removed], please reply 3" in sent
        begun = next(e for e in bench.entries("allow") if "reserved" in e["req"])
        assert begun["req"]["removed"].startswith("api key (github) at ")
        assert bench.logged_tokens()[1] == 3


@pytest.mark.parametrize("wire", WIRES)
def test_bodies_are_kept_beside_the_log_when_asked(tmp_path: Path, wire: str) -> None:
    with Bench(tmp_path, infer="log_bodies = true") as bench:
        assert bench.call(wire, f"{TEXT} {KEY}")[0] == 200
        bench.stream(wire, "please reply 2")
        begun = [e["req"] for e in bench.entries("allow") if "reserved" in e["req"]]
        ends = bench.ends()
        for said in (*begun, *ends):
            stored = (tmp_path / said["body"]).read_bytes()
            assert hashlib.sha256(stored).hexdigest() == said["body_sha256"]
            assert SECRET.encode() not in stored
            assert KEY.encode() not in stored
        assert b"please reply 3" in (tmp_path / begun[0]["body"]).read_bytes()
        assert b"word1" in (tmp_path / ends[1]["body"]).read_bytes()
        assert (tmp_path / "bodies").stat().st_mode & 0o777 == 0o700


def test_no_bodies_by_default(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        assert bench.call("chat", "please reply 2")[0] == 200
    assert not (tmp_path / "bodies").exists()


def test_a_body_that_cannot_be_kept_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "bodies").write_text("in the way")
    with Bench(tmp_path, infer="log_bodies = true") as bench:
        assert bench.call("chat", "please reply 2")[0] == 500
        assert bench.upstream.counters.requests == 0
        assert len(bench.failures) == 1
        assert bench.reserved() == 0
        bench.failures.clear()
