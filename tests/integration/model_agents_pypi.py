"""Agents from PyPI, unmodified, at the gateway of `akbox run`. Not part of `scripts/test`, because their installation
takes minutes: `scripts/check-agents` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from inference.upstream import FakeUpstream

from akbox.conformance.engine import uid_of
from akbox.conformance.world import Worlds

from .test_model_agents import run_agent

HERE = Path(__file__).parent
PYPI = ("langchain-openai==1.7.4", "langchain-anthropic==1.7.10", "mini-swe-agent==2.4.6")


def test_agents_from_pypi(worlds: Worlds) -> None:
    """LangChain, and mini-swe-agent, which makes a file by what its model tells it."""
    place = worlds.root / "model-agents-pypi"
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pip = [str(place / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", *PYPI]
    subprocess.run(pip, check=True)
    uid = uid_of("user")
    with worlds.lend(uid) as world, FakeUpstream() as upstream:
        world.write(world.W / "agent.py", (HERE / "agent_langchain.py").read_text())
        result = run_agent(world, upstream, place, "python", (str(place / "bin" / "python"), "agent.py"))
        assert json.loads(result.stdout) == ["word0 word1 word2", "word0 word1 word2 word3 "] * 2
    tasks = ("echo made > made.txt && cat made.txt", "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && cat made.txt")
    calls = [("bash", {"command": task}) for task in tasks]
    with worlds.lend(uid) as world, FakeUpstream(calls=calls) as upstream:
        command = (
            str(place / "bin" / "mini"),
            "-m",
            "openai/gpt-4o-mini",
            "-t",
            "make a file",
            "-y",
            "--exit-immediately",
        )
        result = run_agent(world, upstream, place, "python", command)
        assert (world.W / "made.txt").read_text() == "made\n", str(result)
        assert upstream.counters.requests == 2
