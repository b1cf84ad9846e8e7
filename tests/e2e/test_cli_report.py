"""The report after a run: what it says of each refusal, and that the line and the flag it offers do allow it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
AKBOX = [sys.executable, "-c", "import sys; from akbox.cli.main import main; sys.exit(main())"]
AGENT = """
import ctypes, os, socket, subprocess, sys
what, name = sys.argv[1:3]
port = int(sys.argv[3], 0) if len(sys.argv) > 3 else 0
if what == "read": open(name).read()
if what == "list": os.open(name, os.O_RDONLY)
if what == "append": open(name, "a").write("x")
if what == "update": open(name, "r+").read()
if what == "exec": subprocess.run([name], check=True)
if what == "connect": socket.create_connection((name, port)).close()
if what == "bind": socket.socket(socket.AF_INET6 if ":" in name else socket.AF_INET).bind((name, port))
if what == "call": sys.exit(-getattr(ctypes.CDLL(None), name)(port))
if what == "raw": sys.exit(-ctypes.CDLL(None).syscall(int(name), 1, 0))
if what == "unix": socket.socket(socket.AF_UNIX).connect(name)
"""
BASE = 'version = "1.0"\nprofiles = ["base"]\n'
LIST = 'version = "1.0"\nruntime = "auto"\n[fs]\nread = ["/**"]\nexec = ["/usr/bin/python3*"]\n'
SYS_REFUSED = ("sys.refused", "syscall:unshare")


class Desk:
    """A working directory with an agent in it, and beside it things that the policy does not grant."""

    def __init__(self, tmp_path: Path) -> None:
        self.work, self.out = tmp_path / "work", tmp_path / "out side"
        self.work.mkdir()
        self.out.mkdir()
        self.file = tmp_path / "policy.toml"
        self.env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        self.env["XDG_STATE_HOME"] = str(tmp_path / "state")

    def run(self, policy: str, agent: tuple[str, ...], *flags: str) -> tuple[int, list[dict[str, Any]], str]:
        """(exit code, denials of the JSON report, what akbox said)."""
        report = self.work.parent / "report.json"
        self.file.write_text(policy)
        argv = [*AKBOX, "run", "-p", str(self.file), "--json", str(report), *flags, "--"]
        argv += ["/usr/bin/python3", "-I", "-c", AGENT, *agent]
        done = subprocess.run(
            argv, cwd=self.work, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, json.loads(report.read_text())["denials"], done.stderr.partition("akbox: ")[2]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def program(path: Path) -> str:
    shutil.copy("/bin/true", path)
    return str(path)


def listening(family: socket.AddressFamily, address: Any) -> socket.socket:  # Any: as each family has it
    server = socket.socket(family)
    server.bind(address)
    server.listen()
    return server


def round_trip(desk: Desk, policy: str, agent: tuple[str, ...], section: str, flag: bool = False) -> str:
    """Refused under the policy; not with the line added to it, nor with the flag, where there is one. Returns the
    line."""
    code, denials, said = desk.run(policy, agent)
    assert code, said
    (denial,) = denials
    fix = str(denial["suggested_fix"])
    assert fix.splitlines()[-1].startswith(f"{section} = [")
    assert f"fix: {fix.splitlines()[0]}" in said
    assert desk.run(f"{policy}{fix}\n", agent) == (0, [], "")
    option = re.search(r"or:  akbox run (.*) …", said)
    assert (option is not None) == flag
    if option is not None:
        assert desk.run(policy, agent, *shlex.split(option[1])) == (0, [], "")
    return fix


@pytest.mark.parametrize(("what", "section"), [("read", "fs.read"), ("append", "fs.write"), ("update", "fs.write")])
def test_the_line_and_the_flag_allow_a_file(desk: Desk, what: str, section: str) -> None:
    (desk.out / "file").write_text("x")
    round_trip(desk, BASE, (what, str(desk.out / "file")), section, flag=True)


def test_the_line_for_a_directory_does_not_open_what_is_in_it(desk: Desk) -> None:
    (desk.out / "file").write_text("x")
    fix = round_trip(desk, BASE, ("list", str(desk.out)), "fs.read")
    assert desk.run(f"{BASE}{fix}\n", ("read", str(desk.out / "file")))[0]


def test_the_line_allows_a_program(desk: Desk) -> None:
    agent = ("exec", program(desk.out / "tool"))
    round_trip(desk, BASE, agent, "fs.read", flag=True)
    round_trip(desk, 'version = "1.0"\nprofiles = ["base", "workdir"]\n', agent, "fs.exec")


def test_what_may_be_written_is_executed_only_by_name(desk: Desk) -> None:
    policy = f'{BASE}fs.read = ["${{workdir}}/**"]\nfs.write = ["${{workdir}}/**"]\n'
    fix = round_trip(desk, policy, ("exec", program(desk.work / "tool")), "fs.exec")
    assert desk.run(f"{policy}{fix}\n", ("exec", program(desk.work / "other")))[0]


def test_a_line_for_a_list_that_is_there_says_so(desk: Desk) -> None:
    _, denials, said = desk.run(LIST, ("exec", program(desk.work / "tool")))
    assert [d["suggested_fix"] for d in denials] == [f'fs.exec = ["{desk.work}/tool"]']
    assert f'tool"]   # join it with the list at {desk.file}:5' in said


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_line_and_the_flag_allow_a_connection(desk: Desk, address: str) -> None:
    with listening(socket.AF_INET6 if ":" in address else socket.AF_INET, (address, 0)) as server:
        round_trip(desk, BASE, ("connect", address, str(server.getsockname()[1])), "net.connect", flag=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_line_allows_an_address(desk: Desk, address: str) -> None:
    round_trip(desk, BASE, ("bind", address, "0"), "net.bind")


def test_the_line_allows_a_unix_socket(desk: Desk) -> None:
    with listening(socket.AF_UNIX, str(desk.out / "s")):
        round_trip(desk, BASE, ("unix", str(desk.out / "s")), "net.unix")


def test_a_deny_rule_is_named_with_its_place(desk: Desk) -> None:
    (desk.work / "x").write_text("x")
    policy = f'{BASE}fs.read = ["${{workdir}}/**"]\nfs.deny = ["*/x"]\n'
    _, _, said = desk.run(policy, ("read", str(desk.work / "x")))
    assert f'fix: remove "*/x" from fs.deny ({desk.file}:4), or narrow it\n' in said
    _, _, said = desk.run(BASE, ("read", "/etc/shadow"))
    assert "why: refused by fs.deny /etc/shadow*; the profile base denies this on purpose (" in said
    assert "fix:" not in said


def test_a_refused_call_is_explained_in_words(desk: Desk) -> None:
    code, denials, said = desk.run(BASE, ("call", "unshare", "0x10000000"))
    assert code
    assert [(d["op"], d["target"], d["falls_back"]) for d in denials] == [(*SYS_REFUSED, False)]
    assert "sys.refused syscall:unshare\n      why: new namespaces give capabilities" in said
    assert "no policy allows it\n  the log" in said
    assert "fix:" not in said


def test_calls_that_programs_do_without_are_counted_only(desk: Desk) -> None:
    _, denials, said = desk.run(BASE, ("raw", "425"))  # io_uring_setup
    assert [(d["target"], d["falls_back"]) for d in denials] == [("syscall:io_uring_setup", True)]
    assert said == ""
    assert "; 1 refused that programs try and do without" in desk.run(BASE, ("raw", "425"), "-v")[2]
