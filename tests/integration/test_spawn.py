"""SPAWN: child agents are real processes, confined by their policy and everybody's above them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from akbox.conformance.services import Services
from akbox.kernel.recover import recover
from akbox.kernel.verify import verify
from akbox.linux.sandbox import Sandbox

PYTHON = "/usr/bin/python3"
PRELUDE = """
import json, os, sys, time
from authority_nanos import AuthorityKernel
from authority_nanos.errors import AuthorityKernelError
ak = AuthorityKernel()
def attempt(path, flags=os.O_RDONLY):
    try: os.close(os.open(path, flags, 0o600)); return 0
    except OSError as e: return e.errno
def say(**what): print(json.dumps(what), flush=True)
def refused(call):
    try: call(); return None
    except AuthorityKernelError as e: return e.name
def spawn(code, **more):
    return ak.spawn("/usr/bin/python3", ["python3", "-c", sys.argv[1] + code, sys.argv[1], sys.argv[2]], **more)
app = sys.argv[2]
"""
POLICY = """
version = "1.0"
profiles = ["python"]
[fs]
read = ["{app}/**"]
write = ["{app}/out/**", "${{tmp}}/**"]
exec = ["/usr/bin/python3*", "/usr/bin/sleep", "/lib*/**", "/usr/lib/**"]
[spawn]
allow = ["/usr/bin/python3*", "/usr/bin/sleep"]
max_agents = {agents}
[budgets]
tool_calls = 100
heap_objects = 50
"""


class World:
    def __init__(self, directory: Path, agents: int = 70, more: str = "") -> None:
        self.app = directory / "app"
        for name in ("sub", "out"):
            (self.app / name).mkdir(parents=True)
        for name in ("a", "sub/b"):
            (self.app / name).write_text(name)
        self.policy = directory / "p.toml"
        self.policy.write_text(POLICY.format(app=self.app, agents=agents) + more)
        self.state = directory / "state"

    def run(self, code: str, timeout: float = 100, interposer: str = "auto") -> tuple[Any, list[dict[str, Any]]]:
        """(result, what was said)."""
        read, write = os.pipe()
        sandbox = Sandbox(self.policy, cwd=self.app, state_dir=self.state, interposer=interposer)
        null = os.open(os.devnull, os.O_RDONLY)
        run = sandbox.start([PYTHON, "-c", PRELUDE + code, PRELUDE, str(self.app)], stdio=(null, write, 2))
        os.close(write)
        os.close(null)
        with open(read) as stream:
            said = [json.loads(line) for line in stream]
        self.dir = run.run_dir
        result = run.wait(timeout)
        found = verify(self.dir / "audit.jsonl", self.dir / "checkpoints")
        assert found.ok, found
        assert not recover(self.dir).changed
        return result, said

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.dir / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


NARROW = """version = "1.0"
profiles = ["python"]
[fs]
read = ["{app}/sub/**", "/etc/shadow"]
write = ["/**"]
exec = ["/usr/bin/python3*", "/lib*/**", "/usr/lib/**"]
"""


@pytest.mark.parametrize("interposer", ["auto", "ptrace"])
def test_a_child_is_confined_by_both_policies(world: World, interposer: str) -> None:
    policy = NARROW.format(app=world.app)
    code = f"""
child = spawn('''
say(who="child", agent=ak.query("context")["agent"], a=attempt(app + "/a"), b=attempt(app + "/sub/b"),
    shadow=attempt("/etc/shadow"), out=attempt(app + "/out/x", os.O_WRONLY | os.O_CREAT),
    etc=attempt("/etc/x", os.O_WRONLY | os.O_CREAT), tmp=attempt(os.environ["TMPDIR"] + "/t", os.O_WRONLY | os.O_CREAT))
ak.send("root", {{"done": True}})
''', policy={policy!r}, name="worker", budgets={{"tool_calls": 40}})
message = ak.recv(timeout_ms=60000)[0]
say(who="root", child=child["child_id"], sender=message["from"], name=message["from_name"], a=attempt(app + "/a"))
"""
    result, said = world.run(code, interposer=interposer)
    assert result.exit_code == 0, result
    by = {s["who"]: s for s in said}
    assert {k: by["child"][k] for k in ("a", "b", "shadow", "out", "etc", "tmp")} == {
        "a": 13, "b": 0, "shadow": 13, "out": 0, "etc": 13, "tmp": 0,
    }  # fmt: skip
    assert by["root"]["a"] == 0
    assert by["root"]["child"] == by["root"]["sender"] == by["child"]["agent"]
    own = [e for e in world.entries() if e["agent"] == by["root"]["child"]]
    shadow = next(e for e in own if e["target"] == "/etc/shadow")
    assert (shadow["decision"], shadow["name"]) == ("deny", "fs.open")
    assert next(e for e in own if e["target"] == f"{world.app}/sub/b")["rule"] == f"fs.read {world.app}/sub/**"
    ends = [e for e in own if e["target"].endswith(":end")]
    assert len(ends) == 1
    assert sorted(p.name for p in world.dir.iterdir() if p.name.startswith(("ring-", "pending-"))) == []


def test_what_is_refused(world: World) -> None:
    code = """
say(
    spawn=refused(lambda: ak.spawn("/usr/bin/env", ["env"])), relative=refused(lambda: ak.spawn("python3")),
    absent=refused(lambda: ak.spawn("/usr/bin/python3.99")), policy=refused(lambda: spawn("", policy="version = 2")),
    budget=refused(lambda: spawn("", budgets={"tool_calls": 101})),
    negative=refused(lambda: spawn("", budgets={"tokens": -1})),
    huge=refused(lambda: spawn("", budgets={"tokens": 2**64 - 1})),
    text=refused(lambda: spawn("", budgets={"tokens": "5"})),
    name=refused(lambda: spawn("", name="../x")), env=refused(lambda: spawn("", env={"LD_PRELOAD": "/x.so"})),
    caps=refused(lambda: spawn("", caps=["akc1.a.b"])), taken=refused(lambda: spawn("", name="root")),
    agents=len(ak.query("agents")["agents"]),
)
"""
    result, (said,) = world.run(code)
    assert result.exit_code == 0
    assert said == {
        "spawn": "POLICY_DENY", "relative": "SCHEMA_INVALID", "absent": "NOT_FOUND", "policy": "SCHEMA_INVALID",
        "budget": "BUDGET_EXCEEDED", "negative": "SCHEMA_INVALID", "huge": "SCHEMA_INVALID", "text": "SCHEMA_INVALID",
        "name": "SCHEMA_INVALID", "env": "SCHEMA_INVALID", "caps": "CAP_INVALID", "taken": "NAME_EXISTS", "agents": 1,
    }  # fmt: skip


def test_the_end_of_the_parent_is_the_childs(world: World) -> None:
    code = """
spawn('''
spawn("time.sleep(1000)", name="grandchild")
ak.send("root", "up")
time.sleep(1000)
''', name="child", budgets={"heap_objects": 10})
ak.recv(timeout_ms=60000)
say(agents=sorted((a["name"], a["state"]) for a in ak.query("agents")["agents"]),
    left=ak.budget_status("heap_objects")["remaining"])
"""
    result, (said,) = world.run(code)
    assert result.exit_code == 0
    assert said == {"agents": [["child", "running"], ["grandchild", "running"], ["root", "running"]], "left": 40}
    ends = [e["req"]["agent_name"] for e in world.entries() if e["target"].endswith(":end")]
    assert sorted(ends) == ["child", "grandchild"]


def test_orphans(world: World) -> None:
    """A detached child outlives its parent, not the run; one that is not goes with it."""
    code = """
spawn('''
spawn("ak.recv(timeout_ms=60000); time.sleep(1000)", name="kept", detach=True)
spawn("time.sleep(1000)", name="taken")
''', name="middle")
while {a["name"]: a["state"] for a in ak.query("agents")["agents"]}.get("middle") != "ended": time.sleep(0.02)
say(agents={a["name"]: a["state"] for a in ak.query("agents")["agents"]})
"""
    result, (said,) = world.run(code)
    assert result.exit_code == 0
    assert said["agents"] == {"root": "running", "middle": "ended", "kept": "running", "taken": "ended"}


def test_a_childs_limit_ends_the_child_only(world: World) -> None:
    code = """
spawn("while True: pass", name="busy", budgets={"cpu_ns": 300_000_000})
while {a["name"]: a["state"] for a in ak.query("agents")["agents"]}["busy"] == "running": time.sleep(0.02)
while not ak.budget_status("cpu_ns")["used"]: time.sleep(0.02)
say(used=ak.budget_status("cpu_ns")["used"] > 0)
"""
    result, (said,) = world.run(code)
    assert (result.exit_code, said) == (0, {"used": True})
    entry = next(e for e in world.entries() if e["target"] == "run:budget:cpu_ns")
    assert entry["stage"] == "BUDGET"


def test_grants_reach_the_child(world: World) -> None:
    code = """
h = ak.alloc("t", {"secret": 1})
heap = next(c for c in ak.query("capabilities")["capabilities"] if c["type"] == "HEAP")
token = ak.syscall(1043, {"op": "derive", "cap": heap["tid"], "resource": "heap:%d" % h.id,
                         "methods": ["read"]})["token"]
spawn('''
cap = json.loads(os.environ["AKBOX_CAPS"])[0]
ak.send("root", {"with": ak.syscall(1024, {"ptr": 1}, cap=cap)["value"], "without": refused(lambda: ak.read(1)),
    "write": refused(lambda: ak.syscall(1026, {"ptr": 1, "patch": []}, cap=cap))})
''', caps=[token])
say(**ak.recv(timeout_ms=60000)[0]["payload"])
"""
    result, (said,) = world.run(code)
    assert result.exit_code == 0
    assert said == {"with": {"secret": 1}, "without": "CAP_MISSING", "write": "CAP_SCOPE"}


def test_a_tree_of_64(tmp_path: Path) -> None:
    """Seven children with eight below each: 63 processes and the first."""
    world = World(tmp_path, agents=64)
    code = """
branch = '''
for n in range(8):
    spawn("me = os.environ['AKBOX_AGENT']; ak.send(%r, 1); time.sleep(1000)" % os.environ["AKBOX_AGENT"])
got = 0
while got < 8: got += len(ak.recv(8, timeout_ms=60000))
ak.send("root", got)
time.sleep(1000)
'''
for n in range(7): spawn(branch)
got = 0
while got < 56: got += sum(m["payload"] for m in ak.recv(timeout_ms=90000))
agents = ak.query("agents")["agents"]
say(living=sum(a["state"] == "running" for a in agents), got=got)
"""
    result, (said,) = world.run(code, timeout=200)
    assert (result.exit_code, said) == (0, {"living": 64, "got": 56})
    assert len([e for e in world.entries() if e["target"].endswith(":end")]) == 63


def test_names_need_every_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child's rules on names open nothing that its parent's do not, and its answers count for it alone."""
    with Services() as services:
        listed, unlisted = services.places["P2"], services.places["P1"]
        monkeypatch.setenv("AKBOX_RESOLVER", services.environment["AKBOX_RESOLVER"])
        ours = f'connect = ["dns:listed.test:{listed}"]\nprivate = ["listed.test", "other.test"]'
        world = World(tmp_path, more=f"[net]\n{ours}\n")
        ends = ", ".join(f'"dns:{name}.test:*"' for name in ("listed", "other"))
        policy = NARROW.format(app=world.app) + f'[net]\nconnect = [{ends}]\nprivate = ["*.test.test", "listed.test"]\n'
        code = f"""
import socket
def connect(name, port):
    try: socket.create_connection((name, port), 10).close(); return "made"
    except socket.gaierror: return "no name"
    except OSError as e: return e.errno
child = spawn('''
import socket
def connect(name, port):
    try: socket.create_connection((name, port), 10).close(); return "made"
    except socket.gaierror: return "no name"
    except OSError as e: return e.errno
say(who="child", before=connect("127.0.0.1", {listed}), listed=connect("listed.test", {listed}),
    port=connect("listed.test", {unlisted}), other=connect("other.test", {listed}))
ak.send("root", {{"done": True}})
''', policy={policy!r}, name="worker")
ak.recv(timeout_ms=60000)
say(who="root", listed=connect("listed.test", {listed}))
"""
        result, said = world.run(code)
        assert result.exit_code == 0, result
        by = {s.pop("who"): s for s in said}
        assert by["child"] == {"before": 13, "listed": "made", "port": 13, "other": "no name"}
        assert by["root"] == {"listed": "made"}
        assert services.heard("P1") == []
