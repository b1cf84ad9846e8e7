"""`akbox run` as a program among programs: exit codes, streams, arguments, signals, the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AKBOX = [sys.executable, "-c", "import sys; from akbox.cli.main import main; sys.exit(main())"]


class Place:
    """A working directory and a state directory of the test's own."""

    def __init__(self, tmp_path: Path) -> None:
        self.work = tmp_path / "work"
        self.work.mkdir()
        self.state = tmp_path / "state"
        self.env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        self.env["XDG_STATE_HOME"] = str(self.state)

    def argv(self, *args: str) -> list[str]:
        return [*AKBOX, "run", *args]

    def run(self, *args: str, stdin: bytes = b"", **more: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            self.argv(*args),
            cwd=self.work,
            env=self.env,
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
            **more,
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_goes_in_comes_out_and_nothing_else(place: Place) -> None:
    done = place.run("--", "sh", "-c", "cat; echo err >&2", stdin=bytes(range(256)) * 1000)
    assert (done.returncode, done.stdout, done.stderr) == (0, bytes(range(256)) * 1000, b"err\n")


def test_arguments_arrive_to_the_byte(place: Place) -> None:
    words = ["-x", "--", "a b", "q\"'", "new\nline", "", "--read", "\udcff", "$HOME", "*", "é"]
    code = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    done = place.run("--", "/usr/bin/python3", "-I", "-c", code, *words)
    assert done.stdout == b"\0".join(map(os.fsencode, words)), done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -TERM $$"), 128 + 15),
        (("sh", "-c", "kill -KILL $$"), 128 + 9),
        (("no-such-program",), 127),
        (("./no-such-program",), 127),
        (("/etc/hostname",), 126),
        (("/usr",), 126),
    ],
)
def test_exit_codes(place: Place, command: tuple[str, ...], code: int) -> None:
    assert place.run("--", *command).returncode == code


def test_125_and_a_sentence_when_it_cannot_be_run(place: Place) -> None:
    (place.work / "akbox.toml").write_text('version = "1.0"\n')
    done = place.run("--", "true")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"akbox policy trust" in done.stderr
    assert place.run("-p", "default", "--", "true").returncode == 0
    assert place.run("-p", "default", "--budget", "nothing=1", "--", "true").returncode == 125
    assert place.run("-p", "default", "--allow-degraded", "gravity", "--", "true").returncode == 125
    assert place.run("-p", "default", "--keep-fd", "77", "--", "true").returncode == 125


def test_124_when_a_budget_ends_it(place: Place) -> None:
    done = place.run("--budget", "wall_time_ms=300", "--", "sleep", "60")
    assert done.returncode == 124
    assert b"wall_time_ms is spent" in done.stderr


def test_closed_streams_stay_closed_and_null_is_null(place: Place) -> None:
    code = "import os\nfor n in (0, 1, 2):\n  try: os.fstat(n); print(n)\n  except OSError: pass\n"
    script = f"exec \"$@\" -- /usr/bin/python3 -I -c '{code}' <&-"
    done = subprocess.run(
        ["bash", "-c", script, "bash", *place.argv()],
        cwd=place.work, env=place.env, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"1\n2\n" in done.stdout


def test_a_kept_descriptor_is_the_agents_and_others_are_not(place: Place) -> None:
    read, write = os.pipe()
    other = os.dup(write)
    script = f"echo kept >&{write}; echo lost 2>/dev/null >&{other} || echo closed"
    done = place.run("--keep-fd", str(write), "--", "bash", "-c", script, pass_fds=(write, other))
    os.close(write)
    os.close(other)
    with open(read, "rb") as pipe:
        assert pipe.read() == b"kept\n"
    assert done.stdout == b"closed\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_signals_reach_the_agent(place: Place, number: signal.Signals) -> None:
    code = (
        "import os, signal, sys\n"
        f"signal.signal({int(number)}, lambda n, _: (os.write(1, b'got %d\\n' % n), sys.exit(5)))\n"
        "print('ready', flush=True)\nwhile True: signal.pause()\n"
    )
    with subprocess.Popen(
        place.argv("--", "/usr/bin/python3", "-I", "-c", code),
        cwd=place.work, env=place.env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == f"got {int(number)}\n".encode()
        assert process.wait(60) == 5


def test_when_akbox_dies_the_tree_dies(place: Place) -> None:
    """Everybody of the tree holds the write end of a pipe: its end is the end of the last of them."""
    script = "sleep 1000 & setsid sleep 1000 & echo ready; wait"
    with subprocess.Popen(
        place.argv("--", "sh", "-c", script),
        cwd=place.work,
        env=place.env,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        assert process.stdout.read() == b""


def test_the_report_as_words_and_as_data(place: Place) -> None:
    script = "cat /root/x /etc/shadow; cat /root/x; echo > /etc/new; true"
    done = place.run("--json", "report.json", "--", "sh", "-c", script)
    assert done.returncode == 0
    text = done.stderr.decode()
    assert 'fix: fs.write = ["/etc/new"]' in text
    assert "or:  akbox run --write /etc/new …" in text
    assert text.count("/etc/shadow\n") >= 1
    data = json.loads((place.work / "report.json").read_text())
    by_target = {item["target"]: item for item in data["denials"]}
    assert by_target["/etc/new"]["missing_cap"] == "fs.write"
    assert data["exit_code"] == 0
    assert data["policy"] == "preset default"
    assert Path(data["run_dir"]).parent == place.state / "akbox" / "runs"

    quiet = place.run("-q", "--", "sh", "-c", "echo > /etc/new 2>/dev/null; true")
    assert b"akbox" not in quiet.stderr
    verbose = place.run("-v", "--", "true")
    assert b"policy preset default" in verbose.stderr


def test_the_json_file_is_opened_before_the_agent_can_put_a_link_there(place: Place, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept")
    script = f"rm -f report.json; ln -s {target} report.json"
    assert place.run("--json", "report.json", "--", "sh", "-c", script).returncode == 0
    assert target.read_text() == "kept"


def test_an_agent_cannot_widen_its_next_run(place: Place) -> None:
    done = place.run("--", "sh", "-c", "echo 'version = \"1.0\"' > akbox.toml")
    assert done.returncode != 0
    assert not (place.work / "akbox.toml").exists()
