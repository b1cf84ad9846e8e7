"""Secrets that are planted wherever an agent and its user handle them are in no file of the state directory."""

from __future__ import annotations

import subprocess
from pathlib import Path

from e2e.audit_crash import AKBOX, ROOT, SDK

AGENT = """
import os, sys
sys.path.insert(0, os.environ["AKBOX_TEST_SDK"])
import authority_nanos
k = authority_nanos.AuthorityKernel()
def attempt(call, **args):
    try:
        return k.syscall(call, args)
    except Exception:
        return None
headers = {"Authorization": "Bearer SECRET-bearer-0123456789", "X-Api-Key": "SECRET-header-key"}
headers["Cookie"] = "id=SECRET-cookie"
urls = ["https://bob:SECRET-userinfo@example.com/x", "https://example.com/?access_token=SECRET-query&x=1"]
argv = ["curl", "--token", "SECRET-flag-1", "--api-key=SECRET-flag-2", "-H", "Authorization: Basic SECRET-flag-3abc"]
body = {"password": "SECRET-body-1", "nested": [{"client_secret": "SECRET-body-2"}]}
body["text"] = "key sk-SECRETabcdefghijklmnop"
everything = {"headers": headers, "urls": urls, "argv": argv, "body": body, "env": {"DB_PASSWORD": "SECRET-in-call"}}
attempt(1031, tool="fetch", params=everything)          # CALL
attempt(1032, program="/bin/true", argv=argv, env={"MY_TOKEN": "SECRET-spawn-env"})
attempt(1033, to="nobody", payload=everything)          # SEND
attempt(1037, model="m", messages=[{"role": "user", "content": "password: SECRET-prompt"}], api_key="SECRET-inference")
attempt(1026, ptr=1, patch=[{"op": "set", "path": "/token", "value": "SECRET-patch"}], token="SECRET-unknown-argument")
attempt(1036, predicate="p", value=False, message="token=SECRET-assert")
attempt(1028, what="authorize", op="net.connect", target="https://bob:SECRET-target@example.com:443/")
os.system("true --password SECRET-shell-flag")
"""
POLICY = """version = "1.0"
[fs]
read = ["${{workdir}}/**", "{sdk}/**"]
[env]
pass = ["PASSED_TOKEN", "AKBOX_TEST_SDK"]
set = {{ SET_API_KEY = "SECRET-policy-set" }}
[budgets]
tool_calls = 10
"""


def test_no_planted_secret_is_in_the_state_directory(tmp_path: Path) -> None:
    work, state = tmp_path / "work", tmp_path / "state"
    work.mkdir()
    (tmp_path / "policy.toml").write_text(POLICY.format(sdk=SDK))
    env = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PASSED_TOKEN": "SECRET-passed",
        "AKBOX_TEST_SDK": str(SDK), "NOT_PASSED_PASSWORD": "SECRET-not-passed",
    }  # fmt: skip
    (work / "agent.py").write_text(AGENT)
    program = [
        *("/usr/bin/python3", "agent.py", "-d", '{"api_key": "SECRET-argv-0", "n": 1}', "--token", "SECRET-argv-1"),
        *("--db-password=SECRET-argv-2", "https://bob:SECRET-argv-3@example.com/?token=SECRET-argv-4"),
    ]
    options = ["--state-dir", str(state), "--env", "CLI_SECRET=SECRET-cli-env", "--json", str(tmp_path / "report.json")]
    argv = [*AKBOX, "run", "-p", str(tmp_path / "policy.toml"), *options, "--", *program]
    done = subprocess.run(argv, cwd=work, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    files = [path for path in state.rglob("*") if path.is_file()]
    assert {"audit.jsonl", "policy.json", "summary.json", "ring"} <= {path.name for path in files}
    log = next(path for path in files if path.name == "audit.jsonl").read_bytes()
    assert log.count(b"[redacted]") > 15
    assert b'"name":"CALL"' in log
    found = {}
    for path in files:
        data = path.read_bytes()
        if b"SECRET-" in data or b"SECRETabc" in data:
            at = data.index(b"SECRET")
            found[path.name] = data[max(0, at - 60) : at + 40]
    assert found == {}
