"""Secrets of all three sources, planted for real: their consumers get them, and an agent that looks everywhere finds
none in its environment, in /proc, in replies, in the log or in the state directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from inference.upstream import FakeUpstream

ENTRY = "from akbox.cli.main import main; import sys; sys.exit(main())"
ENV, FILE, EXEC = "env-planted-4f1c09b7", "file-planted-8a2d55e1", "exec-planted-c93b7712"
AGENT = r"""
import glob, json, os, sys, urllib.error, urllib.request
from authority_nanos import AuthorityKernel
from authority_nanos.errors import AuthorityKernelError
app, state, key_file = sys.argv[1:4]
found = {"environ": repr(dict(os.environ))}
def look(name, path):
    try:
        with open(path, "rb") as f: found[name] = f.read(1 << 20).decode("latin-1")
    except OSError as e: found[name] = f"errno {e.errno}"
for pid in [p for p in os.listdir("/proc") if p.isdigit()] + ["self"]:
    for name in ("environ", "cmdline", "maps", "mem", "fd", "cwd/key", "root" + key_file):
        look(f"/proc/{pid}/{name}", f"/proc/{pid}/{name}")
look("key", key_file)
for path in glob.glob(state + "/**", recursive=True): look(path, path)
for top, _, names in os.walk(app):
    for name in names: look(f"{top}/{name}", f"{top}/{name}")
asked = 0
def ask(model, text, path, key):
    global asked
    base = os.environ["ANTHROPIC_BASE_URL" if key else "OPENAI_BASE_URL"]
    kind = "x-api-key" if key else "authorization"
    token = os.environ["ANTHROPIC_API_KEY"] if key else "Bearer " + os.environ["OPENAI_API_KEY"]
    body = {"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": text}], "input": text}
    headers = {"content-type": "application/json", kind: token}
    try:
        with urllib.request.urlopen(urllib.request.Request(base + path, json.dumps(body).encode(), headers)) as r:
            found[f"{model} {text}"] = repr(dict(r.headers)) + r.read().decode(); asked += 1
    except urllib.error.HTTPError as e:
        found[f"{model} {text}"] = f"HTTP {e.code} {dict(e.headers)} " + e.read().decode()
for text in ("reply 2", "fault echo-key", "fault 401"):
    ask("claude-test", text, "/v1/messages", True)
    ask("gpt-test", text, "/chat/completions", False)
    ask("gpt-other", text, "/chat/completions", False)
ak = AuthorityKernel()
def call(name, work):
    try: found[name] = repr(work())
    except AuthorityKernelError as e: found[name] = repr(e) + repr(e.details)
for model in ("claude-test", "gpt-test", "gpt-other"):
    call("INFERENCE " + model, lambda: ak.inference(model, "reply 2"))
    call("INFERENCE echo " + model, lambda: ak.inference(model, "fault echo-key"))
call("tools", lambda: ak.call_tool("secret_get", {"name": "BY_ENV"}))
for what in ("audit", "capabilities", "tools", "agents", "budget", "objects"): call(what, lambda: ak.query(what))
call("trace", lambda: ak.trace(1000)); call("last", ak.get_last_denial); call("suggest", ak.policy_suggest)
child = "import os, sys; print('CHILD', dict(os.environ), open('/proc/self/environ').read())"
call("spawn", lambda: ak.spawn("/usr/bin/python3", ["python3", "-c", child]))
call("wait", lambda: [ak.recv(timeout_ms=100) for _ in iter(lambda: ak.query("agents")["agents"][1]["state"], "ended")])
print(json.dumps({"asked": asked, "found": found}))
"""
POLICY = """version = "1.0"
profiles = ["python"]
[fs]
read = ["{app}/**", "/proc/**", "{state}/**"]
exec = ["/usr/bin/python3*", "/usr/lib/**", "/lib*/**"]
[spawn]
allow = ["/usr/bin/python3*"]
[infer]
models = ["claude-*", "gpt-*"]
[infer.upstreams.a]
type = "anthropic"
base_url = "{url}"
key = "secret:BY_ENV"
[infer.upstreams.b]
type = "openai"
base_url = "{url}/v1"
key = "secret:BY_FILE"
models = ["gpt-test"]
[infer.upstreams.c]
type = "openai"
base_url = "{url}/v1"
key = "secret:BY_EXEC"
models = ["gpt-other"]
[secrets.BY_ENV]
from = "env:PLANTED"
for = ["infer:a"]
[secrets.BY_FILE]
from = "file:{key}"
for = ["infer:b"]
[secrets.BY_EXEC]
from = "exec:/bin/cat {exec_key}"
for = ["infer:c"]
[secrets.FOR_NOBODY]
from = "env:ABSENT"
"""


@pytest.mark.parametrize("interposer", ["auto", "ptrace"])
def test_planted_secrets_are_found_nowhere(tmp_path: Path, interposer: str) -> None:
    app, state, key = tmp_path / "app", tmp_path / "state", tmp_path / "app/key"
    app.mkdir()
    key.write_text(FILE + "\n")
    hidden = tmp_path / "elsewhere"  # what the policy does not grant, for the command alone
    hidden.write_text(EXEC + "\n")
    policy = tmp_path / "p.toml"
    values = {"app": app, "state": state, "key": key, "exec_key": hidden}
    with FakeUpstream() as upstream:
        policy.write_text(POLICY.format(url=upstream.url, **values))
        command = [sys.executable, "-c", ENTRY, "run", "-v", "-p", str(policy), "--state-dir", str(state)]
        command += ["--interposer", interposer, "--", "/usr/bin/python3", "-c", AGENT, str(app), str(state), str(key)]
        env = {**os.environ, "PLANTED": ENV}
        done = subprocess.run(command, cwd=app, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert set(upstream.counters.keys) == {ENV, FILE, EXEC}  # each consumer has its own
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["asked"] == 3, said
    assert len(said["found"]) > 50
    assert said["found"]["key"] == "errno 13"  # although the policy grants the directory
    assert "CHILD" in done.stdout
    environs = {k: v for k, v in said["found"].items() if k.startswith("/proc/") and k.endswith("/environ")}
    assert any(text.startswith("errno") for text in environs.values())  # akbox's own, where PLANTED is
    for secret in (ENV, FILE, EXEC):
        assert secret not in done.stderr
        assert [name for name, text in said["found"].items() if secret in text] == []
        assert secret not in done.stdout
        files = [path for path in state.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        assert files == []
    log = next(state.glob("runs/*/audit.jsonl")).read_text()
    entries = [json.loads(line) for line in log.splitlines()]
    uses = {(e["req"]["which"], e["req"]["consumer"]) for e in entries if e["name"] == "secret"}
    assert uses == {("BY_ENV", "infer:a"), ("BY_FILE", "infer:b"), ("BY_EXEC", "infer:c")}
