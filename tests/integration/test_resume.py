"""`akbox run --resume`: after an orderly end and after kill -9, the run goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from akbox.kernel.verify import verify

ENTRY = "from akbox.cli.main import main; import sys; sys.exit(main())"
AGENT = """
import json, os, sys, time
from authority_nanos import AuthorityKernel
from authority_nanos.errors import AuthorityKernelError
ak = AuthorityKernel()
def attempt(path):
    try: os.close(os.open(path, os.O_RDONLY)); return 0
    except OSError as e: return e.errno
objects = ak.query("objects")["objects"]
out = {"objects": [(o["ptr"], o["value"]) for o in objects if o["type"] != "$type"],
       "used": ak.budget_status("heap_objects")["used"], "wall": ak.budget_status("wall_time_ms")["used"],
       "mail": [m["payload"] for m in ak.recv()], "file": attempt("FILE")}
if not objects:
    ak.alloc("$type", {"name": "small", "schema": {"type": "integer", "maximum": 5}})
    ak.alloc("small", 3)
    held = next(c for c in ak.capabilities() if c["resource"].endswith("/secret/**"))
    ak.cap_revoke(held["tid"], "once only")
    out["child"] = ak.spawn("/usr/bin/python3", ["python3", "-c", "import authority_nanos as a; "
        "k = a.AuthorityKernel(); k.alloc('t', 'of the child'); k.send('root', 'up'); import time; time.sleep(100)"],
        name="child")["name"]
    assert ak.recv(1, timeout_ms=60000)[0]["payload"] == "up"
    for _ in range(2): ak.send("root", {"to": "the next one"})
try: ak.alloc("small", 6)
except AuthorityKernelError as e: out["checked"] = e.name
print(json.dumps(out), flush=True)
if "wait" in sys.argv: time.sleep(100)
"""


def akbox(state: Path, *args: str) -> list[str]:
    return [sys.executable, "-c", ENTRY, *args[:1], "--state-dir", str(state), *args[1:]]


class World:
    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        (directory / "secret").mkdir()
        (directory / "secret/x").write_text("x")
        self.agent = directory / "agent.py"
        self.agent.write_text(AGENT.replace("FILE", str(directory / "secret/x")))
        self.policy = directory / "p.toml"
        self.policy.write_text(
            f'version = "1.0"\nprofiles = ["python"]\n[fs]\nread = ["{self.agent}", "{directory}/secret/**"]\n'
            'exec = ["/usr/bin/python3*", "/lib*/**", "/usr/lib/**"]\n[spawn]\nallow = ["/usr/bin/python3*"]\n'
            "[budgets]\nwall_time_ms = 90000\n"
        )
        self.cwd = directory

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(akbox(self.state, "run", *args), cwd=self.cwd, stdout=subprocess.PIPE, text=True)

    def entries(self) -> list[dict[str, Any]]:
        (log,) = (self.state / "runs").glob("*/audit.jsonl")
        assert verify(log, log.with_name("checkpoints")).ok
        return [json.loads(line) for line in log.read_text().splitlines()]


FIRST = {"objects": [], "used": 0, "mail": [], "file": 0, "child": "child", "checked": "SCHEMA_INVALID"}
SECOND = {
    "objects": [[2, 3], [3, "of the child"]], "used": 3, "mail": [{"to": "the next one"}] * 2, "file": 13,
    "checked": "SCHEMA_INVALID",
}  # fmt: skip


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    out: dict[str, Any] = json.loads(process.stdout.readline())
    return out


def test_after_an_orderly_end(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = world.start("-p", str(world.policy), "--", "/usr/bin/python3", str(world.agent))
    out = said(first)
    assert first.wait(60) == 0
    wall = out.pop("wall")
    assert out == FIRST
    second = world.start("--resume", "last")
    out = said(second)
    assert second.wait(60) == 0
    assert out.pop("wall") > wall
    assert out == SECOND
    names = [e["target"] for e in world.entries() if e["name"] == "lifecycle" and e["target"].count(":") == 1]
    assert names == ["run:start", "run:finish", "run:resume", "run:finish"]


def test_after_kill_9(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = world.start("-p", str(world.policy), "--", "/usr/bin/python3", str(world.agent), "wait")
    out = said(first)
    out.pop("wall")
    assert out == FIRST
    busy = subprocess.run(akbox(world.state, "run", "--resume", "last"), capture_output=True, text=True, cwd=tmp_path)
    assert (busy.returncode, "writing it" in busy.stderr) == (125, True)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(60)
    second = world.start("--resume", "last", "--", "/usr/bin/python3", str(world.agent))
    out = said(second)
    assert second.wait(60) == 0
    out.pop("wall")
    assert out == SECOND
    names = [e["target"] for e in world.entries() if e["name"] == "lifecycle" and e["target"].count(":") == 1]
    assert [n for n in names if n != "run:recovered"] == ["run:start", "run:resume", "run:finish"]


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    world = World(tmp_path)
    for args, code in ((("--resume", "last"), 125), (("--resume", "last", "-p", "default"), 2)):
        done = subprocess.run(
            akbox(world.state, "run", *args), capture_output=True, text=True, cwd=tmp_path, timeout=60
        )
        assert done.returncode == code, done.stderr
