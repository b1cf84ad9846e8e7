"""`approve` rules hold trapped calls up until a person answers: real opens, renames, connects and execs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from akbox.conformance.services import Services
from akbox.kernel.approvals import Request
from akbox.linux.result import RunResult
from akbox.linux.sandbox import Run, Sandbox

EACCES, ECONNREFUSED = 13, 111
AGENT = """
import os, socket, sys
def attempt(work):
    try: return work() or 0
    except OSError as e: return e.errno
d = sys.argv[1]
def connect():
    with socket.socket() as s: s.connect(("127.0.0.1", 1))
steps = {
    "create": lambda: os.close(os.open(d + "/deploy/x", os.O_WRONLY | os.O_CREAT, 0o600)),
    "rename": lambda: os.rename(d + "/out/a", d + "/deploy/a"),
    "connect": connect,
    "exec": lambda: os.waitstatus_to_exitcode(os.spawnv(os.P_WAIT, "/usr/bin/true", ["true"]) << 8),
    "plain": lambda: os.close(os.open(d + "/out/b", os.O_WRONLY | os.O_CREAT, 0o600)),
}
for name in sys.argv[2:]:
    print(name, attempt(steps[name]), flush=True)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    for name in ("deploy", "out"):
        (tmp_path / "app" / name).mkdir(parents=True)
    (tmp_path / "app/out/a").write_text("a")
    return tmp_path / "app"


def run(app: Path, steps: list[str], on_request: Callable[..., None], kind: str = "auto") -> tuple[RunResult, dict]:
    policy = app.parent / "p.toml"
    policy.write_text(
        f'version = "1.0"\nprofiles = ["python"]\n[fs]\nread = ["{app}/**"]\nwrite = ["{app}/out/**"]\n'
        'exec = ["/usr/bin/python3*", "/lib*/**", "/usr/lib/**"]\n'
        f'[approve]\ntimeout_ms = 30000\neffects = ["fs.write {app}/deploy/**", "net.connect ip:127.0.0.1:1", '
        '"fs.exec /usr/bin/true"]\n'
    )
    read, write = os.pipe()
    holder: list[object] = []
    sandbox = Sandbox(policy, cwd=app, state_dir=app.parent / "state", interposer=kind)
    started = threading.Event()

    def told(request: Request) -> None:
        assert started.wait(30)
        on_request(holder[0], request)

    started_run = sandbox.start(
        ["/usr/bin/python3", "-c", AGENT, str(app), *steps], stdio=(os.open(os.devnull, os.O_RDONLY), write, 2),
        on_request=told,
    )  # fmt: skip
    holder.append(started_run)
    started.set()
    os.close(write)
    with open(read) as stream:
        seen = {name: int(code) for name, code in (line.split() for line in stream)}
    return started_run.wait(60), seen


@pytest.mark.parametrize("interposer", ["auto", "ptrace"])
@pytest.mark.parametrize("allow", [True, False])
def test_trapped_calls_wait_for_the_answer(app: Path, interposer: str, allow: bool) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def answer(run: object, request: Request) -> None:
        asked.append((request.op, request.target, request.target2))
        assert not (app / "deploy/x").exists() or request.op != "fs.open"  # nothing has happened before the answer
        run.kernel.approvals.decide(request.id, allow, "test")  # type: ignore[attr-defined]

    result, seen = run(app, ["create", "rename", "connect", "exec", "plain"], answer, interposer)
    assert result.exit_code == 0
    if allow:
        assert seen == {"create": 0, "rename": 0, "connect": ECONNREFUSED, "exec": 0, "plain": 0}
        assert sorted(p.name for p in (app / "deploy").iterdir()) == ["a", "x"]
    else:
        assert seen == {"create": EACCES, "rename": EACCES, "connect": EACCES, "exec": 127, "plain": 0}
        assert list((app / "deploy").iterdir()) == []
    assert asked == [
        ("fs.open", f"{app}/deploy/x", None), ("fs.rename", f"{app}/out/a", f"{app}/deploy/a"),
        ("net.connect", "ip:127.0.0.1:1", None), ("exec", "/usr/bin/true", None),
    ]  # fmt: skip
    lines = [
        json.loads(line) for line in next((app.parent / "state/runs").glob("*/audit.jsonl")).read_text().splitlines()
    ]
    own = [e for e in lines if e["target"] == f"{app}/deploy/x"]
    assert [e["decision"] for e in own] == ["allow" if allow else "ask"]
    assert own[0]["rule"] == f"approve fs.write {app}/deploy/**"


def test_the_command_line_answers(app: Path) -> None:
    said: list[str] = []

    def answer(_run: object, request: Request) -> None:
        entry = "from akbox.cli.main import main; import sys; sys.exit(main())"
        for args in (["last"], ["last", str(request.id)], ["last", str(request.id)]):
            command = [sys.executable, "-c", entry, "approve", *args, "--state-dir", str(app.parent / "state")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            said.append(done.stdout + done.stderr)

    threads: list[threading.Thread] = []

    def aside(run: object, request: Request) -> None:
        threads.append(threading.Thread(target=answer, args=(run, request)))
        threads[-1].start()

    _, seen = run(app, ["create"], aside)
    threads[0].join(120)
    assert seen == {"create": 0}
    assert f"fs.open  {app}/deploy/x" in said[0]
    assert said[1] == f"approved: fs.open {app}/deploy/x\n"


NAMED = """
import socket, sys
def reach(name):
    try:
        with socket.create_connection((name, int(sys.argv[1])), 30) as s:
            s.sendall(b"x")
            data = s.recv(100)
            return data.split()[1].decode() if data else "cut"
    except socket.gaierror: return "no name"
    except OSError as e: return str(e.errno)
print(reach("listed.test"), reach("sub.wild.test"), reach("a.b.wild.test"))
"""


@pytest.mark.parametrize(
    ("interposer", "sni", "allow"),
    [("auto", "off", True), ("auto", "off", False), ("auto", "enforce", True), ("ptrace", "off", True)],
)
def test_a_connect_by_name_waits_for_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interposer: str, sni: str, allow: bool
) -> None:
    """A name is looked up without a question, one below a wildcard if net.dns has it; the connection waits."""
    policy = tmp_path / "p.toml"
    with Services() as services:
        monkeypatch.setenv("AKBOX_RESOLVER", services.environment["AKBOX_RESOLVER"])
        port = services.places["P2"]
        policy.write_text(
            'version = "1.0"\nprofiles = ["python"]\n[net]\ndns = ["sub.wild.test"]\n'
            f'private = ["listed.test", "**.wild.test"]\nsni = "{sni}"\n[approve]\ntimeout_ms = 30000\n'
            f'effects = ["net.connect dns:listed.test:{port}", "net.connect dns:**.wild.test:{port}"]\n'
        )
        asked: list[tuple[str, str]] = []
        holder: list[Run] = []
        started = threading.Event()

        def answer(request: Request) -> None:
            assert started.wait(30)
            asked.append((request.op, request.target))
            before = len(asked) - 1 if allow else 0
            assert len(services.heard("P2")) == before  # nothing has happened before the answer
            holder[0].kernel.approvals.decide(request.id, allow, "test")

        read, write = os.pipe()
        with open(os.devnull) as nothing, open(read) as said:
            sandbox = Sandbox(policy, cwd=tmp_path, state_dir=tmp_path / "state", interposer=interposer)
            holder.append(
                sandbox.start(
                    ["/usr/bin/python3", "-c", NAMED, port], stdio=(nothing.fileno(), write, 2), on_request=answer
                )
            )
            started.set()
            os.close(write)
            answered = said.read()
        ended = holder[0].wait(60)
        assert ended.exit_code == 0, ended
        assert answered == ("200 200 no name\n" if allow else "13 13 no name\n")
        # The two share an address, about which is asked by the name that has the first rule.
        assert asked == [("net.connect", f"dns:listed.test:{port}")] * 2
        assert len(services.heard("P2")) == (2 if allow else 0)
        assert {q.split()[0] for q in services.heard("DNS")} == {"listed.test", "sub.wild.test"}
    lines = next((tmp_path / "state/runs").glob("*/audit.jsonl")).read_text().splitlines()
    own = [e for e in map(json.loads, lines) if e["target"] == f"dns:listed.test:{port}"]
    assert {(e["decision"], e["rule"]) for e in own if e["name"] == "net.connect"} == {
        ("allow" if allow else "deny", f"approve net.connect dns:listed.test:{port}")
    }


def test_killing_the_run_ends_the_wait(app: Path) -> None:
    result, seen = run(app, ["create"], lambda run, _request: run.kill())
    assert (result.exit_code, seen) == (137, {})
    assert list((app / "deploy").iterdir()) == []
