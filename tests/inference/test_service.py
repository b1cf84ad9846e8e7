"""The gateway's life: nothing of it is loaded before somebody calls, and nothing is left at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .kit import PATHS, Bench, request_body, wait_for

RUN = """
import json, sys
from akbox.cli.main import main
sys.argv = ["akbox", "run", "-q", "-p", sys.argv[2], "--state-dir", sys.argv[1], "--", *sys.argv[3:]]
code = main()
print(json.dumps(sorted(sys.modules)))
sys.exit(code)
"""
POLICY = 'version = "1.0"\n[infer.upstreams.a]\ntype = "openai"\nbase_url = "http://127.0.0.1:1"\n'
HEAVY = {"aiohttp", "asyncio", "ssl", "logging", "akbox.inference.gateway", "akbox.inference.prices"}


def modules_of_a_run(tmp_path: Path, *command: str) -> set[str]:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "state"), str(policy), *command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_run_that_asks_no_model_loads_no_gateway(tmp_path: Path) -> None:
    assert not HEAVY & modules_of_a_run(tmp_path, "true")
    assert "akbox.linux.gateway" in modules_of_a_run(tmp_path, "true"), "else this test would see nothing"


def test_the_port_does_not_fill_what_is_kept_of_compiled_policies(tmp_path: Path) -> None:
    for _ in range(3):
        modules_of_a_run(tmp_path, "true")
        assert len(list((tmp_path / "state" / "compiled").iterdir())) <= 2


def test_nothing_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for n in range(3):
        directory = tmp_path / str(n)
        directory.mkdir()
        with Bench(directory) as bench:
            if n:
                assert bench.call("chat", "hello")[0] == 200
            if n == 2:
                assert bench.box.call(1037, model="gpt-test", prompt="reply 1")["content"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_closed_twice_and_asked_after_the_end(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        bench.service.close()
        bench.service.close()
        assert bench.box.fail(1037, model="gpt-test", prompt="x")["name"] == "INFERENCE_FAIL"


@pytest.mark.parametrize("streamed", [False, True])
def test_what_was_used_is_on_disk(tmp_path: Path, streamed: bool) -> None:
    """A supervisor that is killed gives no token back."""
    with Bench(tmp_path) as bench:
        if streamed:
            bench.stream("chat", "reply 7")
        else:
            assert bench.call("chat", "reply 7")[0] == 200
        wait_for(lambda: bench.box.store.load_budgets(bench.kernel.root).get("tokens") == 9)


def test_what_a_call_holds_is_on_disk_while_it_lasts(tmp_path: Path) -> None:
    with Bench(tmp_path) as bench:
        reply = bench.send(PATHS["chat"], request_body("chat", "slow 100 reply 20", 500, stream=True))
        reply.read(1)
        wait_for(lambda: bench.box.store.load_budgets(bench.kernel.root).get("tokens", 0) > 500)
        reply.read()
