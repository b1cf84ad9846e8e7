"""A capability that is revoked, or over, stops ordinary system calls: from the next one on, in the C matcher too."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from akbox.linux.sandbox import Run, Sandbox

# Does what each line of its input says, and answers with an errno.
AGENT = """
import os, socket, sys
def do(what, target):
    if what == "read": os.close(os.open(target, os.O_RDONLY))
    elif what == "write": os.close(os.open(target, os.O_WRONLY | os.O_CREAT))
    elif what == "exec": os._exit(os.spawnv(os.P_WAIT, target, [target]))
    elif what == "connect":
        with socket.socket(socket.AF_INET) as s: s.connect(("127.0.0.1", int(target)))
for line in sys.stdin:
    what, target = line.split()
    try:
        do(what, target)
        print(0, flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""
EACCES, ECONNREFUSED = 13, 111


class Talk:
    """A run whose agent is told what to try."""

    def __init__(self, directory: Path, interposer: str, audit: str = "full") -> None:
        self.app = directory / "app"
        self.app.mkdir()
        (self.app / "a").write_text("x")
        (self.app / "out").mkdir()
        policy = directory / "p.toml"
        policy.write_text(
            f'version = "1.0"\nprofiles = ["python"]\n[fs]\nread = ["{self.app}/**"]\nwrite = ["{self.app}/out/**"]\n'
            'exec = ["/usr/**", "/bin/**", "/lib*/**"]\n[net]\nconnect = ["ip:127.0.0.1:1"]\n'
        )
        in_r, in_w = os.pipe()
        out_r, out_w = os.pipe()
        self._in, self._out = os.fdopen(in_w, "w"), os.fdopen(out_r)
        self.state = directory / "state"
        sandbox = Sandbox(policy, cwd=self.app, state_dir=self.state, interposer=interposer, audit=audit)
        self.run: Run = sandbox.start(["/usr/bin/python3", "-c", AGENT], stdio=(in_r, out_w, 2))
        os.close(in_r)
        os.close(out_w)

    def try_(self, what: str, target: object) -> int:
        self._in.write(f"{what} {target}\n")
        self._in.flush()
        answer = self._out.readline()
        return int(answer) if answer else -1

    def tid(self, section: str, pattern: str) -> str:
        held = self.run.kernel.agent(self.run.kernel.root).held()
        return next(h.tid for h in held if h.section == section and h.pattern == pattern)

    def close(self) -> Any:
        self._in.close()
        self._out.close()
        return self.run.wait(60)


@pytest.fixture(params=["auto", "ptrace"])
def talk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Talk]:
    made = Talk(tmp_path, request.param)
    yield made
    made.run.kill()
    made.run.wait(60)


def test_an_open_that_worked_a_moment_ago(talk: Talk) -> None:
    app, kernel = talk.app, talk.run.kernel
    assert [talk.try_("read", app / "a"), talk.try_("read", app / "a")] == [0, 0]  # the second from the quick path
    assert kernel.revoke(talk.tid("fs.read", f"{app}/**"), "test")
    assert [talk.try_("read", app / "a"), talk.try_("read", app / "a")] == [EACCES, EACCES]
    assert talk.try_("write", app / "out/x") == 0
    kernel.revoke(talk.tid("fs.write", f"{app}/out/**"), "test")
    assert talk.try_("write", app / "out/x") == EACCES
    assert talk.try_("connect", 1) == ECONNREFUSED
    kernel.revoke(talk.tid("net.connect", "ip:127.0.0.1:1"), "test")
    assert talk.try_("connect", 1) == EACCES
    result = talk.close()
    assert result.exit_code == 0
    lines = [json.loads(line) for line in (talk.run.run_dir / "audit.jsonl").read_text().splitlines()]
    revoked = [line for line in lines if line["name"] == "revocation"]
    assert [line["rule"].split()[0] for line in revoked] == ["fs.read", "fs.write", "net.connect"]
    after = [line for line in lines if line["seq"] > revoked[0]["seq"] and line["target"] == str(app / "a")]
    assert {line["decision"] for line in after} == {"deny"}


def test_one_that_ends_by_itself(talk: Talk) -> None:
    app, kernel = talk.app, talk.run.kernel
    tid = talk.tid("fs.read", f"{app}/**")
    assert kernel.revoke(tid, "soon", after_ms=400)
    seen = [talk.try_("read", app / "a") for _ in range(3)]
    assert seen[0] == 0
    ended = threading.Event()
    ended.wait(0.45)  # the end of the capability itself: nothing else could be waited for
    assert talk.try_("read", app / "a") == EACCES
    assert talk.close().exit_code == 0


def test_the_command_line(talk: Talk) -> None:
    def akbox(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", ENTRY, *args, "--state-dir", str(talk.state)],
            capture_output=True,
            text=True,
            timeout=60,
        )

    listed = akbox("cap", "list", "last", "--json")
    held = json.loads(listed.stdout)
    tid = next(h["tid"] for h in held if h["resource"] == f"{talk.app}/**" and h["capability"] == "fs.read")
    token = akbox("cap", "mint", "last", "--type", "fs", "--resource", "/app/**", "--ttl", "5m").stdout.strip()
    assert token.startswith("akc1.")
    found = json.loads(akbox("cap", "inspect", token, "--run", "last").stdout)
    assert (found["state"], found["problem"], found["type"]) == ("live", None, "FS")
    assert talk.try_("read", talk.app / "a") == 0
    assert akbox("cap", "revoke", "last", tid, "--reason", "enough").stdout == f"revoked: {tid}\n"
    assert talk.try_("read", talk.app / "a") == EACCES
    assert akbox("cap", "revoke", "last", token).returncode == 0
    assert json.loads(akbox("cap", "inspect", token, "--run", "last").stdout)["problem"].startswith("CAP_REVOKED")
    assert akbox("cap", "revoke", "last", "run").returncode == 0
    assert talk.try_("write", talk.app / "out/x") == EACCES
    talk.close()
    gone = akbox("cap", "list", "last")
    assert (gone.returncode, "not running" in gone.stderr) == (1, True)


ENTRY = "from akbox.cli.main import main; import sys; sys.exit(main())"


KNOCK = """
import os, socket, sys
for path in sys.argv[1:]:
    os.chdir(os.path.dirname(path))  # an address has 108 bytes at most
    with socket.socket(socket.AF_UNIX) as s:
        try: print(s.connect(os.path.basename(path)) or 0)
        except OSError as error: print(error.errno)
"""


@pytest.mark.parametrize("runtime_dir", [True, False])
def test_the_agent_cannot_reach_the_control_socket(
    tmp_path: Path, runtime_dir: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a policy grants: it has the user's uid, and could approve its own requests."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rt").mkdir(mode=0o700)
    if runtime_dir:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "rt"))
    else:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    policy = tmp_path / "p.toml"
    policy.write_text(
        f'version = "1.0"\nprofiles = ["python"]\n[fs]\nread = ["{tmp_path}/**"]\nwrite = ["{tmp_path}/**"]\n'
        f'exec = ["/usr/**", "/lib*/**"]\n[net]\nunix = ["{tmp_path}/**"]\n'
    )
    sandbox = Sandbox(policy, cwd=tmp_path, state_dir=tmp_path / "state")
    stop, hold = os.pipe()
    first = sandbox.start(["/usr/bin/python3", "-c", "import sys; sys.stdin.read()"], stdio=(stop, 1, 2))
    os.close(stop)
    place = tmp_path / "rt/akbox" if runtime_dir else first.run_dir
    sockets = [str(path) for path in place.iterdir() if path.name.endswith(".sock")]
    assert len(sockets) == 1
    from akbox.linux.control import ask

    assert json.loads(ask(first.run_dir, b'{"cmd": "approve.list"}'))["ok"]  # from outside it answers
    with socket.socket(socket.AF_UNIX) as own:
        os.chdir(tmp_path)
        own.bind("own.sock")
        own.listen()
        knocked = sandbox.run(["/usr/bin/python3", "-c", KNOCK, str(tmp_path / "own.sock"), *sockets])
    assert knocked.stdout == b"0\n13\n", knocked.stderr
    os.close(hold)
    first.wait(60)
    assert not Path(sockets[0]).exists()


def test_reads_that_landlock_alone_judges_end_the_run(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "auto", audit="writes")
    assert talk.try_("read", talk.app / "a") == 0
    talk.run.kernel.revoke(talk.tid("fs.read", f"{talk.app}/**"), "test")
    result = talk.close()
    if talk.run.plan.filter.reads_in_kernel:
        assert (result.exit_code, "revoked" in result.reason) == (125, True)
    else:
        assert result.exit_code == 0
