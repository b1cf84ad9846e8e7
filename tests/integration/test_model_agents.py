"""Agents from npm, unmodified, at the gateway of `akbox run`: nothing is configured but what it sets. Those from PyPI
take minutes to install: model_agents_pypi.py, by `scripts/check-agents`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference.upstream import FakeUpstream

from akbox.conformance.engine import Result, run_inside, uid_of, verify
from akbox.conformance.world import World, Worlds

from .test_models import no_file_has

HERE = Path(__file__).parent
KEY = "sk-real-0123456789abcdefghij"
NPM = ("@anthropic-ai/sdk@1.10.0", "openai@7.55.0", "@anthropic-ai/claude-code@2.1.328", "@openai/codex@0.169.0")
POLICY = """
version = "1.0"
profiles = ["base", "workdir", "{language}"]
[fs]
read = ["{place}/**"]
exec = ["/usr/**", "/bin/**", "{place}/**"]
[env]
set = {{ MSWEA_CONFIGURED = "1", HOME = "${{tmp}}" }}
[infer]
models = ["claude-*", "gpt-*"]
[infer.upstreams.claude]
type = "anthropic"
base_url = "{url}"
key = "secret:KEY"
[infer.upstreams.gpt]
type = "openai"
base_url = "{url}"
key = "secret:KEY"
[secrets.KEY]
from = "file:{key_file}"
for = ["infer:claude", "infer:gpt"]
[budgets]
tokens = 300_000
"""


def run_agent(
    world: World, upstream: FakeUpstream, place: Path, language: str, argv: Sequence[str], more: str = ""
) -> Result:
    """The agent as an ordinary user; it went well, and the key was nowhere but at the provider. `more` of a policy."""
    key_file = world.base / "key.txt"
    world.write(key_file, KEY)
    policy = world.base / "agent.toml"
    policy.write_text(POLICY.format(url=upstream.url, place=place, language=language, key_file=key_file) + more)
    world.give()
    result = run_inside(world, argv, preset=str(policy), timeout_s=120)
    assert result.exit == 0, str(result)
    assert set(upstream.counters.keys) == ({KEY} if upstream.counters.requests else set()), str(result)
    assert KEY not in result.stdout + result.stderr
    assert result.log is not None
    no_file_has(KEY, world.STATE)
    verify(world, result.log)
    usages: list[Any] = [e["res"]["usage"] for e in result.entries if e["name"] == "infer" and "usage" in e["res"]]  # type: ignore[index, operator]
    assert sum(u["prompt_tokens"] for u in usages) == upstream.counters.prompt_tokens
    assert sum(u["output_tokens"] for u in usages) == upstream.counters.output_tokens
    return result


def test_agents_from_npm(worlds: Worlds) -> None:
    """The Node SDKs, Claude Code and Codex."""
    place = worlds.root / "model-agents-npm"
    place.mkdir()
    (place / "package.json").write_text('{"private": true, "type": "module"}')
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", *NPM],
        cwd=place,
        check=True,
    )
    (place / "agent.mjs").write_text((HERE / "agent_models.mjs").read_text())
    words = "".join(f"word{i} " for i in range(5))
    uid = uid_of("user")
    with worlds.lend(uid) as world, FakeUpstream() as upstream:
        result = run_agent(world, upstream, place, "node", ("node", str(place / "agent.mjs")))
        assert json.loads(result.stdout) == {
            "message": [words.strip(), 5],
            "message stream": [words[:24], 4],
            "chat": [words[:18].strip(), 6],
            "response stream": words[:12],
            "denied": ["PermissionDeniedError", 403],
            "over budget": ["RateLimitError", 429],
        }
    with worlds.lend(uid) as world, FakeUpstream() as upstream:
        (binary,) = place.glob("node_modules/@anthropic-ai/claude-code-linux-*/claude")
        result = run_agent(world, upstream, place, "node", (str(binary), "-p", "please reply 5"))
        assert result.stdout.split()[:5] == words.split()
        assert "/v1/messages" in upstream.counters.paths
    with worlds.lend(uid) as world, FakeUpstream() as upstream:
        codex = place / "node_modules" / ".bin" / "codex"
        command = (str(codex), "exec", "--skip-git-repo-check", "please reply 5")
        result = run_agent(world, upstream, place, "node", command)
        assert result.stdout.split() == words.split(), str(result)
        assert upstream.counters.paths == ["/v1/responses"]
