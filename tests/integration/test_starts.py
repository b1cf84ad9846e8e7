"""Starts that fail, and many that do not: nothing is left of a run, and nobody waits for ever.

Each kind of failure is repeated, and descriptors, threads, children and temporary directories are counted before and
after. Failures that do not come by themselves are put where they would come from.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from akbox import CannotRun, Sandbox, _native
from akbox.linux.tracer import TraceLoop
from akbox.policy.load import parse

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
TIMES = 10
BOUND_S = 60.0
NO_EXEC = 'version = "1.0"\nprofiles = ["base"]\nruntime = "none"\nfs.exec = []\n'


class Bench:
    """A sandbox on directories of its own, and what this process holds."""

    def __init__(self, tmp_path: Path) -> None:
        self.work, self.tmp = tmp_path / "work", tmp_path / "tmp"
        self.work.mkdir()
        self.tmp.mkdir()
        self.state = tmp_path / "state"
        self.sandbox = Sandbox(cwd=self.work, state_dir=self.state)

    def held(self) -> tuple[list[str], list[str], list[str], list[str]]:
        """Descriptors (what they are), threads, children, private directories."""
        gc.collect()
        descriptors = sorted(filter(None, map(_target, os.listdir("/proc/self/fd"))))
        threads = sorted(t.name for t in threading.enumerate() if t.name != "akbox-signing")
        return descriptors, threads, _children(), os.listdir(self.tmp)

    def fails(self, argv: list[str], sandbox: Sandbox | None = None) -> list[CannotRun]:
        """TIMES failing starts that leave nothing."""
        before = self.held()
        problems = []
        for _ in range(TIMES):
            with pytest.raises(CannotRun) as caught:
                (sandbox or self.sandbox).run(argv)
            problems.append(caught.value)
        del caught
        assert self.held() == before
        return problems


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""  # the descriptor that the listing itself was read through


def _children() -> list[str]:
    found = []
    for task in os.listdir("/proc/self/task"):
        found += Path(f"/proc/self/task/{task}/children").read_text().split()
    return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("TMPDIR", str(bench.tmp))  # a test's undo() takes it away: the last run is elsewhere
    assert bench.sandbox.run(["true"]).exit_code == 0  # what is made once per process is made now
    yield bench
    assert bench.sandbox.run(["true"]).exit_code == 0  # and afterwards everything works


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_commands_that_cannot_be_started(bench: Bench) -> None:
    exit_codes = {
        "no-such-command": 127,
        script(bench.work / "format", "\x7fELF and nothing more"): 126,
        script(bench.work / "interpreter", "#!/no/such/interpreter\n"): 127,
        "/etc/hostname": 126,
        "a\0b": 126,
    }
    for command, code in exit_codes.items():
        assert {p.exit_code for p in bench.fails([command])} == {code}, command


def test_a_policy_that_lets_nothing_be_executed(bench: Bench) -> None:
    sandbox = Sandbox(parse(NO_EXEC, syntax="toml", name="p"), cwd=bench.work, state_dir=bench.state)
    assert {p.exit_code for p in bench.fails(["/bin/true"], sandbox)} == {126}


def test_a_working_directory_that_is_gone(bench: Bench) -> None:
    gone = bench.work / "gone"
    gone.mkdir()
    sandbox = Sandbox(cwd=gone, state_dir=bench.state)
    gone.rmdir()
    assert "No such file" in bench.fails(["true"], sandbox)[0].message


def test_no_descriptors_left(bench: Bench) -> None:
    """However few there are: the start fails whole, or works."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = bench.held()
    outcomes: list[str] = []
    try:
        for spare in range(24):
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(before[0]) + 1 + spare, hard))
            outcomes.append(_outcome(bench.sandbox))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert bench.held() == before
    assert outcomes[0] == "CannotRun"
    assert outcomes[-1] == "exited"


def _outcome(sandbox: Sandbox) -> str:
    try:
        return sandbox.run(["true"]).reason
    except CannotRun as error:
        return type(error).__name__


@pytest.mark.parametrize("refused", ["akbox-run", "akbox-drain", "akbox-upcalls"])
def test_no_threads_left(bench: Bench, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == refused:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    assert "can't start new thread" in bench.fails(["true"])[0].message
    monkeypatch.undo()


FAULTS = {
    "the ruleset": "akbox.linux.ruleset.build_ruleset",
    "after the clone": "akbox.linux.run.Run._make_enforcer",
    "the loop": "akbox.linux.run.TraceLoop",
}


@pytest.mark.parametrize("where", FAULTS)
@pytest.mark.parametrize("error", [OSError(12, "Cannot allocate memory"), ZeroDivisionError("division by zero")])
def test_whatever_is_raised_on_the_run_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    def broken(*_args: object, **_more: object) -> None:
        raise type(error)(*error.args)  # a new one: it would keep the frames that it went through

    monkeypatch.setattr(FAULTS[where], broken)
    assert str(error.args[-1]) in bench.fails(["true"])[0].message
    monkeypatch.undo()


def test_an_error_after_the_start_ends_the_agent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bench.held()
    monkeypatch.setattr(TraceLoop, "_main_exit", _raise)
    for _ in range(TIMES):
        result = bounded(lambda: bench.sandbox.run(["sh", "-c", "sleep 600 & exit 3"]))
        assert (result.exit_code, result.reason) == (125, "internal error: ZeroDivisionError('in the loop')")
    assert bench.held() == before
    monkeypatch.undo()


def _raise(*_: object) -> None:
    raise ZeroDivisionError("in the loop")


@pytest.mark.parametrize("moment", ["ready", "seize", "go", "loop"])
def test_the_first_process_is_killed_before_its_program(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """By somebody outside, at each step of the launch."""
    before = bench.held()
    real_launch = _native.launch
    victims: list[int] = []

    class Child:
        """A Child whose process is killed just before one of its steps."""

        def __init__(self, child: Any) -> None:  # Any: _native.Child cannot be made here
            self._child = child
            self.failure = child.failure
            victims.append(child.pid)

        @property
        def pid(self) -> int:
            if moment == "seize":
                os.kill(self._child.pid, signal.SIGKILL)
            return int(self._child.pid)

        def ready(self) -> None:
            if moment == "ready":
                os.kill(self._child.pid, signal.SIGKILL)
            self._child.ready()

        def go(self) -> int:
            if moment == "go":
                os.kill(self._child.pid, signal.SIGKILL)
            return int(self._child.go())

    def loop(*args: Any, **more: Any) -> Any:
        if moment == "loop":
            os.kill(victims[-1], signal.SIGKILL)
        return TraceLoop(*args, **more)

    monkeypatch.setattr(_native, "launch", lambda **plan: Child(real_launch(**plan)))
    monkeypatch.setattr("akbox.linux.run.TraceLoop", loop)
    endings = {bounded(lambda: _ending(bench.sandbox)) for _ in range(TIMES)}
    assert endings <= ({"signal 9"} if moment == "loop" else {"signal 9", "cannot run 125"})
    assert bench.held() == before
    monkeypatch.undo()


def _ending(sandbox: Sandbox) -> str:
    try:
        return f"signal {sandbox.run(['sleep', '600']).signal}"
    except CannotRun as error:
        return f"cannot run {error.exit_code}"


def bounded(work: Callable[[], T]) -> T:
    """What `work` returns, on a thread, so that one that waits for ever fails the test."""
    done: list[T | BaseException] = []

    def call() -> None:
        try:
            done.append(work())
        except BaseException as error:  # handed to the caller
            done.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(BOUND_S)
    assert done, f"still waiting after {BOUND_S} s"
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


MANY = """
import os, sys
from akbox.cli.main import main
commands = (["true"], ["sh", "-c", "true & true"], ["sh", "-c", "kill -9 $$"], ["sh", "-c", "sleep 600 & exit 3"],
            ["no-such-command"], ["sh", "-c", "true | true"])
codes = (0, 0, 137, 3, 127, 0)
for n in range(int(sys.argv[1])):
    sys.argv[1:] = ["run", "-q", "--", *commands[n % len(commands)]]
    code = main()
    assert code == codes[n % len(codes)], (n, code)
print(len(os.listdir("/proc/self/fd")))
"""


def test_three_hundred_runs_through_the_command_line(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path)}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MANY, "300"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 12, "descriptors stay open"
    assert time.monotonic() - began < 300
