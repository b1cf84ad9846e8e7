"""Agent frameworks, real packages, under `akbox run`: their tools are used as the policy says, and what it refuses is
their own tool error. CrewAI has a gigabyte of dependencies: frameworks_crewai.py, by `scripts/check-agents`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from inference.upstream import FakeUpstream

from akbox.conformance.engine import Result, uid_of
from akbox.conformance.world import Worlds

from .test_model_agents import run_agent

AGENT = Path(__file__).with_name("agent_frameworks.py")
REQUIREMENTS = ("langchain-core==1.8.3", "openai-agents==0.24.0")
WANTED = (
    ("add", {"a": 2, "b": 3}), ("wipe", {"path": "/"}), ("file_read", {"path": "/app/x"}),
    ("file_read", {"path": "/etc/shadow"}),
)  # fmt: skip
REFUSED = "POLICY_DENY: tool wipe: refused by tools.deny wipe"


def install(worlds: Worlds, name: str, *requirements: str) -> Path:
    """A virtual environment readable by everybody."""
    place = worlds.root / name
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pip = [str(place / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", *requirements]
    subprocess.run(pip, check=True)
    return place


@pytest.fixture(scope="module")
def place(worlds: Worlds) -> Path:
    return install(worlds, "frameworks-venv", *REQUIREMENTS)


def run_framework(worlds: Worlds, place: Path, framework: str) -> tuple[Any, Result, FakeUpstream]:
    """What the agent printed; the log says the same of the uses of its tools."""
    with worlds.lend(uid_of("user")) as world, FakeUpstream(calls=WANTED) as upstream:
        world.write(world.W / "agent.py", AGENT.read_text())
        command = (str(place / "bin" / "python"), "agent.py", framework)
        result = run_agent(world, upstream, place, "python", command, '[tools]\nallow = ["add"]\ndeny = ["wipe"]\n')
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["done"] == ["add"], str(result)  # the function of the refused tool was never reached
    events = [e["req"]["args"] for e in result.entries if e["name"] == "ASSERT"]  # type: ignore[index]
    assert [(e["event"], e["details"]["tool"], e["details"]["allowed"]) for e in events] == [
        ("tool", "add", True), ("tool", "wipe", False),
    ]  # fmt: skip
    assert {e["details"]["framework"] for e in events} == {framework}
    return seen, result, upstream


def test_langchain(worlds: Worlds, place: Path) -> None:
    seen, _, _ = run_framework(worlds, place, "langchain")
    (added, wiped, read, shadow, invalid) = seen["seen"]
    assert added == ["add", "success", "5"]
    assert wiped[:2] == ["wipe", "error"]
    assert wiped[2].startswith(REFUSED)
    assert read == ["file_read", "success", '{"value": "text"}']
    assert shadow == ["file_read", "error", "POLICY_DENY: no rule allows it"]
    assert invalid[:2] == ["add", "invalid"]  # the guard keeps the tool's own schema
    assert seen["answer"] == "done"


def test_openai_agents(worlds: Worlds, place: Path) -> None:
    seen, _, upstream = run_framework(worlds, place, "openai-agents")
    added, wiped, read, shadow = (output for _, output in seen["seen"])
    assert (added, read) == ("5", '{"value": "text"}')
    assert wiped.startswith(REFUSED)
    assert shadow == "The tool failed: POLICY_DENY: no rule allows it"
    assert seen["answer"].startswith("word0 word1")
    told = [m["content"] for m in upstream.counters.bodies[-1]["messages"] if m["role"] == "tool"]
    assert told == [added, wiped, read, shadow]  # and the model was told
