"""Tools that real agents call under `akbox run`, by the Python SDK; a DNS server of the test's own knows the names."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from akbox.conformance import services as kit
from akbox.conformance.engine import USERS, environment, run_inside, uid_of, verify
from akbox.conformance.world import Worlds

NAMES = {
    "listed.tools.test": {"A": ["127.0.0.1"]},
    "private.tools.test": {"A": ["127.0.0.1"]},
    "other.tools.test": {"A": ["127.0.0.1"]},
}
POLICY = """
version = "1.0"
profiles = ["base", "workdir", "python"]
[net]
connect = ["dns:listed.tools.test:{port}", "dns:private.tools.test:{port}"]
private = ["listed.tools.test"]
[tools]
allow = ["*"]
deny = ["http_post"]
[wasm]
hostcalls = ["*"]
[budgets]
tool_calls = 20
"""
AGENT = """
import json, sys
import authority_nanos as sdk

ak, port = sdk.AuthorityKernel(), sys.argv[1]
seen = {}

def attempt(name, work):
    try:
        seen[name] = work()
    except sdk.AuthorityKernelError as error:
        seen[name] = [type(error).__name__, error.name, error.missing_cap, error.suggested_fix, error.message]

def get(host, path="/"):
    return ak.call_tool("http_get", {"url": f"http://{host}:{port}{path}"})["body"]

attempt("listed", lambda: get("listed.tools.test", "/hello"))
attempt("sdk", lambda: ak.http_request("GET", f"http://listed.tools.test:{port}/sdk")["body"])
attempt("other", lambda: get("other.tools.test"))
attempt("redirect", lambda: get("listed.tools.test", f"/to/http://other.tools.test:{port}/"))
attempt("private", lambda: get("private.tools.test"))
attempt("address", lambda: get("127.0.0.1"))
attempt("denied", lambda: ak.http_request("POST", "http://x", "body"))
attempt("unknown", lambda: ak.call_tool("nothing"))
attempt("schema", lambda: ak.call_tool("http_get", {"url": 7}))
attempt("write", lambda: ak.call_tool("file_write", {"path": "made", "content": "by a tool"}))
attempt("read", lambda: ak.call_tool("file_read", {"path": "made"})["content"])
attempt("shadow", lambda: ak.call_tool("file_read", {"path": "/etc/shadow"}))
attempt("tools", lambda: [tool["name"] for tool in ak.query("tools")["tools"]])
attempt("used", lambda: ak.budget_status("tool_calls")["used"])
print(json.dumps(seen))
"""


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        there = self.path.startswith("/to/")
        self.send_response(302 if there else 200)
        if there:
            self.send_header("location", self.path[4:])
        data = b"" if there else self.path.encode()
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def names() -> Iterator[kit.Services]:
    kit.ZONE.update(NAMES)
    with kit.Services() as made:
        yield made


@pytest.mark.parametrize("user", USERS)
def test_an_agent_calls_tools(worlds: Worlds, names: kit.Services, port: int, user: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        world.write(world.W / "agent.py", AGENT)
        file = world.base / "tools.toml"
        file.write_text(POLICY.format(port=port))
        world.give()
        result = run_inside(
            world, ("python3", "agent.py", str(port)), preset=str(file), env=environment(world) | names.environment
        )
        assert result.exit == 0, str(result)
        seen = json.loads(result.stdout)
        assert seen["listed"] == "/hello"
        assert seen["sdk"] == "/sdk"
        assert seen["other"][1:4] == ["POLICY_DENY", "net.connect", f'net.connect = ["dns:other.tools.test:{port}"]']
        assert seen["redirect"][1:4] == seen["other"][1:4]
        assert seen["private"][1] == "POLICY_DENY"
        assert "127.0.0.1 (loopback)" in seen["private"][4]
        assert seen["address"][1:4] == ["POLICY_DENY", "net.connect", f'net.connect = ["ip:127.0.0.1:{port}"]']
        assert seen["denied"][1:3] == ["POLICY_DENY", "tools.allow"]
        assert seen["unknown"][1] == "TOOL_NOT_FOUND"
        assert seen["schema"][1] == "SCHEMA_INVALID"
        assert "params.url" in seen["schema"][4]
        assert (seen["write"], seen["read"]) == ({"written": 9}, "by a tool")
        assert (world.W / "made").read_text() == "by a tool"
        assert seen["shadow"][1] == "POLICY_DENY" or "TOOL_FAIL" in seen["shadow"][1]
        assert seen["tools"] == ["file_list", "file_read", "file_write", "http_get", "json_query", "text_grep"]
        assert seen["used"] == 4
        connects = [e for e in result.entries if e["name"] == "net.connect" and "detail" in e["req"]]
        assert {e["req"]["detail"]["tool"] for e in connects} == {"http_get"}
        refused = [e["target"] for e in connects if e["decision"] == "deny"]
        assert refused == [
            f"dns:other.tools.test:{port}", f"dns:other.tools.test:{port}", f"dns:private.tools.test:{port}",
            f"ip:127.0.0.1:{port}",
        ]  # fmt: skip
        assert result.log is not None
        verify(world, result.log)
