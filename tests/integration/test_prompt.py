"""The terminal prompt for `approve` rules: real ptys, a real run, a person who is the test."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from akbox.linux.prompt import GRACE_S

ENTRY = "from akbox.cli.main import main; import sys; sys.exit(main())"
DEADLINE_S = 60.0
AGENT = """
import os, sys, threading
d = sys.argv[1]
def create(name):
    try: os.close(os.open(d + "/deploy/" + name, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as e: return e.errno
    return 0
for name in sys.argv[2:]:
    if name == "read": print("got", input(), flush=True)
    elif name == "child":
        if os.fork() == 0:
            print("x", create("x"), flush=True)
            os._exit(0)
        os.wait()
    elif name == "both":
        threads = [threading.Thread(target=lambda n=n: print(n, create(n), flush=True)) for n in ("p", "q")]
        [t.start() for t in threads]; [t.join() for t in threads]
    else: print(name, create(name), flush=True)
"""


class Person:
    """Somebody at a terminal on which a shell command runs."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.execvpe(argv[0], argv, {**os.environ, "TERM": "xterm"})
            finally:
                os._exit(127)
        self.seen = ""

    def sees(self, pattern: str) -> str:
        """Reads until it shows; what was seen up to its end is not looked at again."""
        end = time.monotonic() + DEADLINE_S
        while (found := re.search(pattern, self.seen)) is None:
            left = end - time.monotonic()
            assert left > 0, f"{pattern!r} did not show: {self.seen!r}"
            if select.select([self.fd], [], [], left)[0]:
                try:
                    self.seen += os.read(self.fd, 65536).decode(errors="replace")
                except OSError as error:
                    raise AssertionError(f"ended before {pattern!r}: {self.seen!r}") from error
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def answers(self, word: str) -> None:
        """Answers once keys count: what is typed too early is not even echoed."""
        self.sees("Enter: ")
        end = time.monotonic() + DEADLINE_S
        while "~" not in self.seen:
            assert time.monotonic() < end, self.seen
            self.type("~")
            if select.select([self.fd], [], [], GRACE_S / 5)[0]:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
        self.type(f"\x15{word}\r")

    def rest(self) -> str:
        while True:
            assert select.select([self.fd], [], [], DEADLINE_S)[0], self.seen
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                return self.seen
            if not data:
                return self.seen
            self.seen += data.decode(errors="replace")

    def modes(self) -> int:
        return int(termios.tcgetattr(self.fd)[3])


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app/deploy").mkdir(parents=True)
    return tmp_path / "app"


def command(app: Path, *steps: str, timeout_ms: int = 60_000, quiet: bool = False) -> list[str]:
    policy = app.parent / "p.toml"
    policy.write_text(
        f'version = "1.0"\nprofiles = ["python"]\n[fs]\nread = ["{app}/**"]\n'
        f'[approve]\ntimeout_ms = {timeout_ms}\neffects = ["fs.write {app}/deploy/**"]\n'
    )
    flags = ["-p", str(policy), "--state-dir", str(app.parent / "state"), *(["-q"] if quiet else [])]
    return [sys.executable, "-c", ENTRY, "run", *flags, "--", "/usr/bin/python3", "-c", AGENT, str(app), *steps]


@contextmanager
def at_terminal(argv: list[str]) -> Iterator[Person]:
    person = Person(argv)
    try:
        yield person
    finally:
        os.close(person.fd)  # hangs up
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end and os.waitpid(person.pid, os.WNOHANG) == (0, 0):
            select.select([], [], [], 0.02)


def decisions(app: Path) -> list[tuple[str, str]]:
    """(request's end, by whom) as the log has them."""
    log = next((app.parent / "state/runs").glob("*/audit.jsonl")).read_text().splitlines()
    found = [json.loads(line) for line in log]
    return [
        (e["target"].split(":")[-1], e["res"]["by"]) for e in found if e["target"].startswith("run:approval:")
    ]  # fmt: skip


@pytest.mark.parametrize(("key", "code", "state"), [("y", 0, "approved"), ("n", 13, "denied")])
def test_the_person_at_the_terminal_answers(app: Path, key: str, code: int, state: str) -> None:
    with at_terminal(command(app, "x", "read", quiet=key == "n")) as person:
        shown = person.sees(r"Allow it\?")
        assert f"akbox: fs.open {app}/deploy/x" in shown
        assert f"wanted by agent root; rule: approve fs.write {app}/deploy/**" in shown
        assert not (app / "deploy/x").exists()
        person.answers(key)
        person.sees(f"akbox: {state}\r\n")
        person.sees(f"x {code}\r\n")
        person.type("typed for the agent\r")  # its input is its own again, and had nothing of the answer
        person.sees("got typed for the agent\r\n")
        person.rest()
    assert (app / "deploy/x").exists() == (key == "y")
    assert decisions(app) == [(state, "the terminal")]


def test_always_is_for_equal_requests_of_this_run(app: Path) -> None:
    with at_terminal(command(app, "x", "x", "y", "x")) as person:
        person.answers("a")
        person.sees("x 0\r\n(.*)x 0\r\n")
        person.answers("n")  # another path is another question
        person.sees("y 13\r\n")
        person.sees("x 0\r\n")
        person.rest()
    assert decisions(app) == [
        ("approved", "the terminal"), ("approved", "always"), ("denied", "the terminal"), ("approved", "always"),
    ]  # fmt: skip


def test_nobody_answers(app: Path) -> None:
    with at_terminal(command(app, "x", timeout_ms=700)) as person:
        person.sees("Enter: ")
        person.type("y")  # without Enter it is no answer
        person.sees(r"akbox: timed out")
        person.sees("x 13\r\n")
        person.rest()
    assert decisions(app) == [("timed out", "nobody answered in time")]


def test_another_shell_answers_and_one_decision_counts(app: Path) -> None:
    approve = [sys.executable, "-c", ENTRY, "approve", "last", "1", "--state-dir", str(app.parent / "state")]
    with at_terminal(command(app, "x", "read")) as person:
        person.sees("Enter: ")
        done = subprocess.run(approve, capture_output=True, text=True, timeout=60)
        assert done.stdout == f"approved: fs.open {app}/deploy/x\n"
        person.sees(r"akbox: approved \(the command line\)\r\n")
        person.sees("x 0\r\n")
        again = subprocess.run([*approve, "--deny"], capture_output=True, text=True, timeout=60)
        assert again.returncode == 1
        assert "approved already" in again.stderr
        person.type("n\r")  # too late: the agent's
        person.sees("got n\r\n")
        person.rest()
    assert decisions(app) == [("approved", "the command line")]


def test_two_wait_and_are_asked_one_after_the_other(app: Path) -> None:
    with at_terminal(command(app, "both")) as person:
        for answer in "yn":
            person.answers(answer)
        out = person.rest()
    assert sorted(re.findall(r"^([pq]) (\d+)", out, re.M)) in ([("p", "0"), ("q", "13")], [("p", "13"), ("q", "0")])
    assert len(list((app / "deploy").iterdir())) == 1


def test_interrupt_ends_agent_and_question(app: Path) -> None:
    script = '"$@"; echo "over $?"; read line'
    with at_terminal(["bash", "-c", script, "bash", *command(app, "x")]) as person:
        person.sees("Enter: ")
        person.type("\x03")
        person.sees("over 1(30)?")
        wanted = termios.ICANON | termios.ECHO | termios.ISIG
        assert person.modes() & wanted == wanted  # put back
        person.type("\r")
        person.rest()
    assert not (app / "deploy/x").exists()
    assert decisions(app) in ([("denied", "the caller is gone")], [("denied", "the run ends")])


def test_stopped_and_continued_the_question_is_shown_again(app: Path) -> None:
    argv = command(app, "child")  # the first process waits for its child, which waits for the answer: ^Z stops the job
    script = 'set -m; "$@"; echo "stopped $?"; fg >/dev/null; echo "over $?"; read line'
    with at_terminal(["bash", "-c", script, "bash", *argv]) as person:
        person.sees("Enter: ")
        person.type("\x1a")
        person.sees("stopped 14[68]")
        person.sees(r"Allow it\?")
        person.answers("y")
        person.sees("x 0\r\n")
        person.sees("over 0")
        person.type("\r")
        person.rest()
    assert decisions(app) == [("approved", "the terminal")]


def test_what_the_agent_prints_waits_and_a_full_screen_program_repaints(app: Path) -> None:
    code = (
        "import os, signal, sys, termios, threading, tty\n"
        "tty.setraw(0); winch = threading.Event()\n"
        "signal.signal(signal.SIGWINCH, lambda *_: winch.set())\n"
        "sys.stdout.write('\\x1b]0;unfinished'); sys.stdout.flush()\n"
        f"t = threading.Thread(target=lambda: os.close(os.open('{app}/deploy/x', os.O_WRONLY | os.O_CREAT, 0o600)))\n"
        "t.start(); t.join(0.3); print('AGENT'); sys.stdout.flush(); t.join()\n"
        "while not winch.is_set(): winch.wait(0.05)\n"
        "print('repainted')\n"
    )
    argv = command(app)
    argv[argv.index("-c", 3) + 1 :] = [code]
    with at_terminal(argv) as person:
        before = person.sees(r"Allow it\?")
        assert "unfinished\x18\x1b\\" in before
        assert "AGENT" not in before
        person.answers("y")
        after = person.sees("repainted")
        assert after.index("akbox: approved") < after.index("AGENT")
        person.rest()


@pytest.mark.parametrize("redirect", ["> {out}", "< /dev/null > {out} 2> {err}", "| cat"])
def test_where_nobody_can_be_asked_nobody_is(app: Path, redirect: str) -> None:
    out, err = app.parent / "out", app.parent / "err"
    script = f'"$@" {redirect.format(out=out, err=err)}'
    with at_terminal(["bash", "-c", script, "bash", *command(app, "x", timeout_ms=400)]) as person:
        if redirect == "> {out}":  # the terminal is in line mode then, and asks all the same
            person.sees(r"Allow it\?")
            person.sees("timed out")
        elif redirect == "| cat":
            assert "Allow it?" not in person.sees("x 13")
        rest = person.rest()
    if "err" in redirect:
        assert "Allow it?" not in rest
        assert "waits for you: akbox approve last 1" in err.read_text()
    assert decisions(app) == [("timed out", "nobody answered in time")]


def test_line_mode_answers(app: Path) -> None:
    out = app.parent / "out"
    with at_terminal(["bash", "-c", f'"$@" > {out}', "bash", *command(app, "x")]) as person:
        person.sees("Enter: ")
        select.select([], [], [], GRACE_S)  # here the host echoes, so an answer too early cannot be told
        person.type("y\n")
        person.sees("akbox: approved")
        person.rest()
    assert out.read_text() == "x 0\n"
