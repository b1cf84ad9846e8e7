"""CrewAI, the real package, under `akbox run`. Not part of `scripts/test`, because it installs a gigabyte:
`scripts/check-agents` runs it."""

from __future__ import annotations

from akbox.conformance.world import Worlds

from .test_frameworks import REFUSED, install, run_framework

REQUIREMENTS = ("crewai==1.15.30",)


def test_crewai(worlds: Worlds) -> None:
    seen, _, upstream = run_framework(worlds, install(worlds, "crewai-venv", *REQUIREMENTS), "crewai")
    told = [str(m["content"]) for m in upstream.counters.bodies[-1]["messages"] if m["role"] == "tool"]
    assert "5" in told[0]
    assert REFUSED in told[1]
    assert '{"value": "text"}' in told[2]
    assert "POLICY_DENY: no rule allows it" in told[3]
    assert [name for name, _ in seen["seen"]] == ["wipe", "file_read"]  # CrewAI's own record of what failed
    assert seen["answer"].startswith("word0 word1")
