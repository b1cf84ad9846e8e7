"""Real SDKs talk to a provider through the gateway of `akbox run`, with no change and no real key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from inference.upstream import FakeUpstream

from akbox.conformance.engine import USERS, environment, run_inside, uid_of, verify
from akbox.conformance.world import World, Worlds
from akbox.linux.sandbox import Sandbox

AGENT = Path(__file__).with_name("agent_models.py")
KEY = "sk-real-0123456789abcdefghij"
POLICY = """
version = "1.0"
profiles = ["base", "workdir", "python"]
[infer]
models = ["claude-*", "gpt-*", "embed-*"]
[infer.upstreams.claude]
type = "anthropic"
base_url = "{url}"
key = "secret:KEY"
[infer.upstreams.gpt]
type = "openai"
base_url = "{url}/v1"
key = "secret:KEY"
[secrets.KEY]
from = "file:{key_file}"
for = ["infer:claude", "infer:gpt"]
[budgets]
tokens = {tokens}
"""


@pytest.fixture(scope="module")
def sdk_python(worlds: Worlds) -> str:
    """A virtual environment with the providers' SDKs, readable by everybody."""
    folder = worlds.root / "sdk-venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [
        str(folder / "bin" / "pip"),
        "install",
        "-q",
        "--disable-pip-version-check",
        "anthropic==2.14.0",
        "openai==3.57.0",
    ]
    subprocess.run(pip, check=True)
    return str(folder / "bin" / "python")


def policy_file(world: World, url: str, tokens: int = 8000) -> str:
    """The policy, with the real key in a file inside the agent's own working directory."""
    key_file = world.W / "key.txt"
    world.write(key_file, KEY + "\n")
    file = world.base / "models.toml"
    file.write_text(POLICY.format(url=url, key_file=key_file, tokens=tokens))
    return str(file)


def no_file_has(what: str, directory: Path) -> None:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert any(path.name == "audit.jsonl" for path in files)
    assert [path for path in files if what.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("user", USERS)
def test_the_sdks_of_the_providers(worlds: Worlds, sdk_python: str, user: str) -> None:
    with worlds.lend(uid_of(user)) as world, FakeUpstream() as upstream:
        world.write(world.W / "agent.py", AGENT.read_text())
        policy = policy_file(world, upstream.url)
        world.give()
        result = run_inside(world, (sdk_python, "agent.py", KEY[::-1]), preset=policy, timeout_s=120)
        assert result.exit == 0, str(result)
        seen = json.loads(result.stdout)
        words = [f"word{i} " for i in range(6)]
        assert seen["message"] == ["".join(words[:5]).strip(), 3, 5]
        assert seen["message stream"] == ["".join(words), 6, 6]
        assert seen["message tool"] == ["tool_use", "look", {"x": 1}]
        assert seen["count"] == 3
        assert seen["chat"] == ["".join(words[:3]).strip(), 6]
        assert seen["chat stream"] == ["".join(words[:4]), 0]
        assert seen["chat stream usage"] == 4
        assert seen["response"] == ["".join(words[:2]).strip(), 5]
        assert seen["response stream"] == "response.completed"
        assert seen["embedding"] == 2
        assert seen["models"] == [["claude-test", "claude-other"], ["gpt-test", "embed-test"]]
        assert seen["denied"] == ["PermissionDeniedError", 403]
        assert seen["over budget"] == [["RateLimitError", 429]] * 2
        assert seen["key"] == [False, False]
        assert seen["names"] == [
            "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "CODEX_API_KEY", "CODEX_HOME",
            "OPENAI_API_BASE", "OPENAI_API_KEY", "OPENAI_BASE_URL",
        ]  # fmt: skip
        assert set(upstream.counters.keys) == {KEY}

        usages = [e["res"]["usage"] for e in result.entries if e["name"] == "infer" and "usage" in e["res"]]  # type: ignore[index, operator]
        assert sum(u["prompt_tokens"] for u in usages) == upstream.counters.prompt_tokens
        assert sum(u["output_tokens"] for u in usages) == upstream.counters.output_tokens
        assert result.log is not None
        assert KEY not in result.stderr
        no_file_has(KEY, world.STATE)
        verify(world, result.log)


def test_unix_sockets_on_both_sides(worlds: Worlds) -> None:
    """The provider at a socket, and the agent at the gateway's own; a child agent, too."""
    ask = (
        "import http.client, json, os, socket\n"
        "def ask(key):\n"
        "    there = http.client.HTTPConnection('localhost')\n"
        "    there.sock = socket.socket(socket.AF_UNIX)\n"
        "    there.sock.connect(os.environ['AKBOX_MODELS_SOCKET'])\n"
        "    body = {'model': 'claude-test', 'max_tokens': 9, 'messages': [{'role': 'user', 'content': 'reply 3'}]}\n"
        "    there.request('POST', '/v1/messages', json.dumps(body), {'x-api-key': key})\n"
        "    reply = there.getresponse()\n"
        "    return [reply.status, json.loads(reply.read()).get('content', [{}])[0].get('text')]\n"
        "key = os.environ['ANTHROPIC_API_KEY']\n"
        "print(json.dumps([ask(key), ask('sk-other')]), flush=True)\n"
    )
    spawn = (
        "import sys, time\nfrom authority_nanos import AuthorityKernel\nak = AuthorityKernel()\n"
        "if 'root' in sys.argv:\n    ak.spawn('/usr/bin/python3', ['python3', 'agent.py'])\n"
        "    while len(ak.query('agents')['agents']) < 2 or any(\n"
        "        a['name'] != 'root' and a['state'] == 'running' for a in ak.query('agents')['agents']\n"
        "    ):\n        time.sleep(0.02)\n"
    )
    with worlds.lend(uid_of("user")) as world:
        place = world.base / "model.sock"
        with FakeUpstream(unix=str(place)) as upstream:
            world.write(world.W / "agent.py", ask + spawn)
            policy = policy_file(world, upstream.url)
            text = Path(policy).read_text().replace("/model.sock/v1", "/model.sock")
            Path(policy).write_text(text + '[spawn]\nallow = ["/usr/bin/python3*"]\n')
            world.give()
            result = run_inside(world, ("/usr/bin/python3", "agent.py", "root"), preset=policy)
            assert result.exit == 0, str(result)
            assert [json.loads(line) for line in result.stdout.splitlines()] == [
                [[200, "word0 word1 word2"], [401, None]]
            ] * 2
            assert upstream.counters.keys == [KEY] * 2
        of = {e["agent"] for e in result.entries if e["name"] == "infer" and "usage" in e["res"]}  # type: ignore[operator]
        assert len(of) == 2
        assert sum(e["target"] == "gateway" and e["decision"] == "deny" for e in result.entries) >= 1


def test_the_key_file_and_the_port_without_the_gateway(worlds: Worlds) -> None:
    """A secret's file is nobody's to read, and with --no-gateway there is no port, no token and no key."""
    script = (
        'import os\ntry:\n    open("key.txt").read()\nexcept PermissionError: print("refused")\n'
        'print([n for n in os.environ if "API_KEY" in n or "BASE_URL" in n])\n'
    )
    with worlds.lend(uid_of("user")) as world, FakeUpstream() as upstream:
        world.write(world.W / "agent.py", script)
        policy = policy_file(world, upstream.url)
        world.give()
        result = run_inside(world, ("/usr/bin/python3", "agent.py"), preset=policy, options=("--no-gateway",))
        assert result.stdout.split("\n")[:2] == ["refused", "[]"], str(result)


def test_a_key_that_is_not_there_is_said_before_anything_runs(worlds: Worlds) -> None:
    with worlds.lend(uid_of("user")) as world:
        policy = policy_file(world, "http://127.0.0.1:1")
        (world.W / "key.txt").unlink()
        world.give()
        result = run_inside(world, ("/bin/echo", "ran"), preset=policy)
        assert (result.exit, result.stdout) == (125, "")
        assert 'secret "KEY"' in result.stderr
        assert "No such file" in result.stderr


def test_another_runs_token(worlds: Worlds) -> None:
    """One agent's token at another's gateway: two runs at once, the second told the address of the first."""
    first = "import os, sys\nprint(os.environ['OPENAI_BASE_URL'], flush=True)\nsys.stdin.read()\n"
    second = (
        "import os, sys, urllib.request, urllib.error\n"
        "def ask(key):\n"
        "    request = urllib.request.Request(sys.argv[1] + '/models', headers={'Authorization': 'Bearer ' + key})\n"
        "    try:\n        return urllib.request.urlopen(request, timeout=20).status\n"
        "    except urllib.error.HTTPError as error:\n        return error.code\n"
        "print(ask(os.environ['OPENAI_API_KEY']))\n"
    )
    with worlds.lend(os.geteuid()) as world, FakeUpstream() as upstream:
        world.write(world.W / "first.py", first)
        world.write(world.W / "second.py", second)
        policy = policy_file(world, upstream.url)
        world.give()
        akbox = [str(Path(sys.executable).parent / "akbox"), "run", "-q", "-p", policy]
        env = environment(world)
        other = subprocess.Popen(
            [*akbox, "--json", str(world.base / "first.json"), "--", "/usr/bin/python3", "first.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=world.W, env=env, text=True,
        )  # fmt: skip
        assert other.stdout is not None
        url = other.stdout.readline().strip()
        port = url.rpartition(":")[2].removesuffix("/v1")
        done = subprocess.run(
            [*akbox, "--connect", f"ip:127.0.0.1:{port}", "--", "/usr/bin/python3", "second.py", url],
            cwd=world.W, env=env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.stdout == "401\n", done.stderr
        other.communicate("", timeout=30)
        report = json.loads((world.base / "first.json").read_text())
        log = next(world.STATE.glob(f"akbox/runs/{report['run_id']}/audit.jsonl"))
        refused = [e for e in map(json.loads, log.read_text().splitlines()) if e["target"] == "gateway"]
        assert [(e["decision"], e["stage"], e["res"]["why"]) for e in refused] == [
            ("deny", "CAPABILITY", "CAP_RUN_MISMATCH")
        ]
        assert upstream.counters.requests == 0


@pytest.mark.parametrize(("door", "interposer"), [("_prctl", "auto"), ("_raw", "auto"), ("_raw", "ptrace")])
def test_inference_from_the_sdk_holds_nobody_up(worlds: Worlds, door: str, interposer: str) -> None:
    """Three answers that take seconds; meanwhile other calls are served and processes start."""
    with worlds.lend(uid_of("user")) as world, FakeUpstream() as upstream:
        world.write(world.W / "agent.py", Path(__file__).with_name("agent_inference.py").read_text())
        policy = policy_file(world, upstream.url)
        world.give()
        result = run_inside(world, ("/usr/bin/python3", "agent.py", door), preset=policy, interposer=interposer)
        assert result.exit == 0, str(result)
        assert json.loads(result.stdout) == [20, "forked\n", 0, ["word19"] * 3, "BUDGET_EXCEEDED"]
        assert upstream.counters.most_open == 3
        assert [e["stage"] for e in result.entries if e["name"] == "INFERENCE"] == [None] * 3 + ["BUDGET"]
        assert result.log is not None
        verify(world, result.log)


def test_a_run_that_ends_does_not_wait_for_its_model(worlds: Worlds) -> None:
    """The agent exits while a call of another of its threads has no answer."""
    script = (
        "import os, threading, time\nfrom authority_nanos import AuthorityKernel\nak = AuthorityKernel()\n"
        "threading.Thread(target=lambda: ak.inference('claude-test', 'fault deaf'), daemon=True).start()\n"
        "while ak.budget_status('tokens')['reserved'] == 0:\n    time.sleep(0.01)\n"
        "os._exit(7)\n"
    )
    with worlds.lend(uid_of("user")) as world, FakeUpstream() as upstream:
        world.write(world.W / "agent.py", script)
        policy = policy_file(world, upstream.url)
        world.give()
        result = run_inside(world, ("/usr/bin/python3", "agent.py"), preset=policy)
        assert result.exit == 7, str(result)
        ends = [e["res"] for e in result.entries if e["name"] == "infer" and "ended" in e["res"]]  # type: ignore[operator]
        assert [end["ended"] for end in ends] == ["failed"]
        assert result.log is not None
        verify(world, result.log)


def test_a_child_agent_has_a_token_and_a_budget_of_its_own(tmp_path: Path) -> None:
    """What it asks is in its name, paid from its share, and over when that is."""
    child = (
        "import json, os, sys, urllib.error, urllib.request\n"
        "messages = [{'role': 'user', 'content': 'reply 20'}]\n"
        "body = json.dumps({'model': 'claude-test', 'max_tokens': 20, 'messages': messages})\n"
        "def ask():\n"
        "    headers = {'x-api-key': os.environ['ANTHROPIC_API_KEY'], 'content-type': 'application/json'}\n"
        "    url = os.environ['ANTHROPIC_BASE_URL'] + '/v1/messages'\n"
        "    request = urllib.request.Request(url, body.encode(), headers)\n"
        "    try:\n        return urllib.request.urlopen(request, timeout=30).status\n"
        "    except urllib.error.HTTPError as error:\n        return error.code\n"
    )
    root = child + (
        "import time\nfrom authority_nanos import AuthorityKernel\nak = AuthorityKernel()\n"
        "started = ak.spawn('/usr/bin/python3', ['python3', 'child.py'], budgets={'tokens': 100})\n"
        "def living():\n"
        "    return [a for a in ak.query('agents')['agents'] if a['name'] != 'root' and a['state'] == 'running']\n"
        "while living():\n    time.sleep(0.02)\n"
        "print('root', ask(), started['child_id'])\n"
    )
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "child.py").write_text(child + "print('child', [ask() for _ in range(8)], flush=True)\n")
    (tmp_path / "w" / "root.py").write_text(root)
    (tmp_path / "key").write_text(KEY)
    policy = tmp_path / "policy.toml"
    with FakeUpstream() as upstream:
        text = POLICY.format(url=upstream.url, key_file=tmp_path / "key", tokens=8000)
        policy.write_text(text + '[spawn]\nallow = ["/usr/bin/python3*"]\n')
        sandbox = Sandbox(policy, cwd=tmp_path / "w", state_dir=tmp_path / "state")
        result = sandbox.run(["/usr/bin/python3", "root.py"], timeout=100)
    log = tmp_path / "state" / "runs" / result.run_id / "audit.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    said = dict(line.split(maxsplit=1) for line in result.stdout.decode().splitlines())
    assert set(said) == {"child", "root"}, (said, [e for e in entries if e["decision"] == "deny"])
    statuses = json.loads(said["child"])
    assert statuses[:2] == [200, 200]
    assert statuses[-1] == 429
    status, child_id = said["root"].split()
    assert status == "200"
    usages = [(e["agent"], e["res"]["usage"]) for e in entries if e["name"] == "infer" and "usage" in e["res"]]
    of_child = [u["prompt_tokens"] + u["output_tokens"] for agent, u in usages if agent == child_id]
    assert len(of_child) == statuses.count(200)
    assert sum(of_child) <= 100
    assert len(usages) == statuses.count(200) + 1
