"""The commands that start nothing: usage errors, policy, audit. Exit codes and words are a contract."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_call import Cli

from akbox import __version__
from akbox.kernel.audit import AuditLog
from akbox.kernel.entry import Draft
from akbox.kernel.ops import Op, op_name
from akbox.rundir import new_run_dir, state_root

RUN = "ab" * 16
GOOD = 'version = "1.0"\nfs.read = ["/srv/**"]\n'


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capfd)


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version") == (0, f"akbox {__version__}\n", "")
    code, out, _ = cli("--help")
    assert code == 0
    assert all(name in out for name in ("run", "policy", "audit", "doctor"))
    for args in (("run", "--help"), ("run", "-p", "x", "-h")):
        code, out, _ = cli(*args)
        assert (code, "--allow-degraded LAYER" in out, "--record FILE" in out) == (0, True, True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("rum",), 'there is no command "rum" (did you mean "run"?)'),
        (("run",), "there is no command to run"),
        (("run", "--"), "there is no command to run"),
        (("run", "--target", "nanos", "--", "true"), "--target nanos is not in this version of akbox"),
        (("run", "--target", "moon", "--", "true"), 'there is no target "moon"'),
        (("run", "-q", "-v", "--", "true"), "-q and -v exclude each other"),
        (("run", "--keep-fd", "2", "--", "true"), "--keep-fd"),
        (("run", "--name", "a\nb", "--", "true"), "--name has 1 to 64 printable characters"),
        (("run", "--budget", "tool_calls", "--", "true"), "is not NAME=VALUE"),
        (("run", "--no-such-flag", "--", "true"), "--no-such-flag"),
        (("policy", "check"), "FILE"),
        (("policy", "check", "missing.toml"), "cannot read missing.toml"),
        (("policy", "explain", "default", "--op", "fs.read"), "--op and --target go together"),
        (("audit", "show", "--since", "yesterday"), "is not a time"),
    ],
)
def test_wrong_usage_is_2_and_a_sentence(cli: Cli, args: tuple[str, ...], words: str) -> None:
    if args[:2] == ("audit", "show"):
        write_log(state_root())
    code, out, err = cli(*args)
    assert (code, out) == (2, "")
    assert words in err


def test_the_command_line_starts_light() -> None:
    """Imports are start-up time: `run` loads neither click nor rich, and a usage error no kernel."""
    code = (
        "import sys; from akbox.cli.main import main; sys.argv = ['akbox', 'run', '-q', '-v', 'x']; main()\n"
        "heavy = {'click', 'rich', 'cryptography', 'sqlite3', 'asyncio', 'akbox._native'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "[]\n"


# ---- policy ----------------------------------------------------------------------------------------------------------


def test_check_names_line_column_key_and_fix(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "bad.json").write_text('{"version": "1.0",\n  "fs": {"raed": ["/x"]}}')
    assert cli("policy", "check", "good.toml") == (0, "good.toml: ok\n", "")
    code, out, _ = cli("policy", "check", "good.toml", "bad.json")
    assert code == 1
    assert out == 'good.toml: ok\nbad.json:2:10: fs.raed: unknown key "raed" (did you mean "read"?)\n'
    code, out, _ = cli("policy", "check", "--json", "bad.json", "good.toml")
    assert code == 1
    first, second = json.loads(out)
    assert (first["valid"], first["problems"][0]["line"], first["problems"][0]["key"]) == (False, 2, "fs.raed")
    assert (second["valid"], second["problems"]) == (True, [])


def test_init_writes_a_preset_once(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("policy", "init", "--preset", "readonly")
    assert (code, out) == (0, "")
    assert "akbox policy trust akbox.toml" in err
    assert cli("policy", "check", "akbox.toml")[0] == 0
    code, _, err = cli("policy", "init")
    assert code == 1
    assert "akbox.toml exists" in err
    code, _, err = cli("policy", "init", "--preset", "readnly", "-o", "x.toml")
    assert code == 2
    assert 'did you mean "readonly"?' in err
    assert not (tmp_path / "x.toml").exists()


def test_init_does_not_write_through_a_link(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "akbox.toml").symlink_to("elsewhere")
    assert cli("policy", "init")[0] == 1
    assert not (tmp_path / "elsewhere").exists()


def test_init_lists_the_presets(cli: Cli) -> None:
    code, out, _ = cli("policy", "init", "--list", "--json")
    presets = {item["name"]: item["summary"] for item in json.loads(out)}
    assert code == 0
    assert {"default", "python-agent", "node-agent", "readonly"} <= set(presets)
    assert all(presets.values())


def test_trust_refuses_what_is_not_valid(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "akbox.toml").write_text("nonsense")
    assert cli("policy", "trust", "akbox.toml")[0] == 125
    (tmp_path / "akbox.toml").write_text(GOOD)
    code, _, err = cli("policy", "trust", "akbox.toml")
    assert code == 0
    assert f"trusted as it is now: {tmp_path}/akbox.toml" in err
    (tmp_path / "other.toml").write_text(GOOD)
    assert "has to be named: -p other.toml" in cli("policy", "trust", "other.toml")[2]


# ---- audit -----------------------------------------------------------------------------------------------------------


def write_log(root: Path) -> Path:
    """A log of three entries, closed as a run would close it."""
    path = new_run_dir(RUN, root) / "audit.jsonl"
    log = AuditLog(path, bytes.fromhex(RUN))
    for n, (op, target, decision) in enumerate(
        [
            (Op.FS_OPEN, "/srv/a", "allow"),
            (Op.FS_OPEN, "/etc/shadow\x1b[31m", "deny"),
            (Op.NET_CONNECT, "ip:1.2.3.4:5", "deny"),
        ]
    ):
        log.append(
            Draft(
                ts_ns=1_800_000_000_000_000_000 + n, agent=bytes(16), op=op, name=op_name(op), target=target,
                decision=decision, rule=None, req={"nr": n}, res={"errno": 0},
            )
        )  # fmt: skip
    log.close()
    return path


def test_verify_says_ok_and_where_not(cli: Cli) -> None:
    path = write_log(state_root())
    code, out, _ = cli("audit", "verify")
    assert (code, out.split(" (")[0]) == (0, "audit verify: ok")
    assert cli("audit", "verify", RUN[:6])[0] == 0
    assert cli("audit", "verify", str(path))[0] == 0

    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"shadow", b"passwd") + lines[2])
    code, out, _ = cli("audit", "verify", "last")
    assert code == 1
    assert out.startswith("audit verify: FAILED at entry 2: ")
    code, out, _ = cli("audit", "verify", "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["first_bad_seq"], found["entries"]) == (1, False, 2, 1)

    path.write_bytes(lines[0] + lines[1])
    code, out, _ = cli("audit", "verify")
    assert code == 1
    assert "cut tail" in out


def test_verify_without_a_run(cli: Cli) -> None:
    for args, words in [
        (("last",), "there is no run"),
        (("ffff",), "no run 'ffff'"),
        (("./missing.jsonl",), "cannot read"),
    ]:
        code, out, err = cli("audit", "verify", *args)
        assert (code, out) == (1, "")
        assert words in err


def test_show_filters(cli: Cli) -> None:
    write_log(state_root())

    def targets(*args: str) -> list[str]:
        code, out, _ = cli("audit", "show", "--json", *args)
        assert code == 0
        return [json.loads(line)["target"] for line in out.splitlines()]

    assert len(targets()) == 3
    assert targets("--op", "net.*") == ["ip:1.2.3.4:5"]
    assert targets("--decision", "allow") == ["/srv/a"]
    assert targets("--target", "/etc/*", "--decision", "deny") == ["/etc/shadow\x1b[31m"]
    assert targets("--tail", "1") == ["ip:1.2.3.4:5"]
    assert targets("--agent", "00") == targets()
    assert targets("--agent", "11") == []
    assert targets("--since", "2100-01-01T00:00:00Z") == []
    assert targets("--until", "2000-01-01") == []
    assert len(targets("--since", "2027-01-01T00:00:00+00:00", "--until", "2027-12-31")) == 3


def test_show_lets_no_name_reach_the_terminal_raw(cli: Cli) -> None:
    write_log(state_root())
    _, out, _ = cli("audit", "show")
    assert "\x1b" not in out
    assert r"/etc/shadow\x1b[31m" in out


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "XDG_STATE_HOME": str(tmp_path)}
    path = write_log(state_root(tmp_path / "akbox"))
    path.write_bytes(path.read_bytes() * 20_000)
    script = "import sys; from akbox.cli.main import main; sys.exit(main())"
    command = f'{sys.executable} -c "{script}" audit show --json | head -n 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
