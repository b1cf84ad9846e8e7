"""The pty between agent and host, with real terminals: nothing lost, nothing stopped, everything put back."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from akbox.linux.terminal import Terminal

HOST = [sys.executable, str(Path(__file__).with_name("cli_pty_host.py"))]
ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
DEADLINE_S = 30.0


class Session:
    """A command on a terminal of its own; the test is the person in front of it."""

    def __init__(self, argv: list[str], env: dict[str, str] | None = None) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.execvpe(argv[0], argv, {**ENV, **(env or {})})
            finally:
                os._exit(127)
        self.seen = b""

    def read_until(self, needle: bytes | None) -> bytes:
        """Reads until the needle was seen (None: the end). Fails after the deadline."""
        end = time.monotonic() + DEADLINE_S
        while needle is None or needle not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"waited for {needle!r}, saw {self.seen[-500:]!r}"
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                data = b""
            if not data:
                assert needle is None, f"ended before {needle!r}: {self.seen[-500:]!r}"
                break
            self.seen += data
        return self.seen

    def type(self, data: bytes) -> None:
        os.write(self.fd, data)

    def local_modes(self) -> int:
        return int(termios.tcgetattr(self.fd)[3])

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def python(code: str) -> list[str]:
    return [*HOST, sys.executable, "-c", code]


def test_no_terminal_no_pty() -> None:
    done = subprocess.run([*HOST, "true"], stdin=subprocess.DEVNULL, capture_output=True, env=ENV, check=False)
    assert done.returncode == 3
    with pytest.raises(ValueError, match="none of the streams"), open(os.devnull) as null:
        Terminal((null.fileno(),) * 3)


def test_the_agent_sees_a_terminal_of_its_own() -> None:
    session = Session(
        python("import os; print(os.isatty(0), os.isatty(1), os.isatty(2), os.ttyname(0), os.getsid(0) == os.getpid())")
    )
    host_name = os.ptsname(session.fd) if hasattr(os, "ptsname") else ""
    out = session.read_until(None).decode()
    assert session.wait() == 0
    assert "True True True /dev/pts/" in out
    assert out.rstrip().endswith("True")
    assert not host_name or host_name not in out.split()


def test_the_tail_is_not_lost() -> None:
    session = Session(python("import sys; sys.stdout.write('x' * 3_000_000 + 'END\\n')"))
    out = session.read_until(None)
    assert session.wait() == 0
    assert out == b"x" * 3_000_000 + b"END\r\n"


def test_a_slow_reader_holds_the_agent_up_and_loses_nothing() -> None:
    session = Session(python("import sys; [sys.stdout.write(f'{n}\\n') for n in range(200_000)]"))
    seen = bytearray()
    while select.select([session.fd], [], [], DEADLINE_S)[0]:
        try:
            data = os.read(session.fd, 700)
        except OSError:
            break
        seen += data
    assert session.wait() == 0
    assert bytes(seen) == b"".join(b"%d\r\n" % n for n in range(200_000))


def test_typing_line_mode_and_end_of_file() -> None:
    session = Session([*HOST, "cat"])
    session.type(b"hello\n")
    session.read_until(b"hello\r\nhello\r\n")  # the echo of the agent's own terminal, then cat
    session.type(b"\x04")
    session.read_until(None)
    assert session.wait() == 0


def test_interrupt_reaches_the_agent_not_us() -> None:
    code = "import signal, sys\nsignal.signal(2, lambda *_: sys.exit('interrupted'))\n"
    code += "print('ready', flush=True)\nsignal.pause()"
    session = Session(python(code))
    session.read_until(b"ready")
    session.type(b"\x03")
    assert b"interrupted" in session.read_until(None)
    assert session.wait() == 1


def test_the_size_is_passed_on_at_the_start_and_when_it_changes() -> None:
    code = (
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])\n"
        "print('ready', flush=True)\nsignal.sigwait([signal.SIGWINCH])\nprint(tuple(os.get_terminal_size()))"
    )
    session = Session(python(code))
    session.read_until(b"ready")
    session.resize(41, 137)
    assert b"(137, 41)" in session.read_until(None)
    assert session.wait() == 0


@pytest.mark.parametrize("fails", [False, True])
def test_the_modes_are_put_back(fails: bool) -> None:
    # bash stays on the terminal, so that its modes can be looked at when the host has ended.
    env = {"HOST_RAISES": "1"} if fails else {}
    script = '"$@" 2>/dev/null; echo "over $?"; read line'
    argv = ["bash", "-c", script, "bash", *HOST, "sh", "-c", "echo raw; read key; echo got"]
    session = Session(argv, env)
    if not fails:
        session.read_until(b"raw")
        assert not session.local_modes() & termios.ICANON
        session.type(b"\r")
    session.read_until(b"over 1" if fails else b"over 0")
    assert session.local_modes() & (termios.ICANON | termios.ECHO | termios.ISIG) == (
        termios.ICANON | termios.ECHO | termios.ISIG
    )
    session.type(b"\n")
    session.read_until(None)
    session.wait()


def test_a_background_run_is_not_stopped_and_leaves_the_modes_alone() -> None:
    script = 'stty tostop; set -m; "$@" & pid=$!; wait $pid; echo "over $?"'
    session = Session(["bash", "-c", script, "bash", *HOST, "sh", "-c", "echo from the background; stty size"])
    out = session.read_until(None)
    session.wait()
    assert b"from the background" in out
    assert b"over 0" in out


def test_in_a_pipeline_only_the_terminal_streams_are_ours(tmp_path: Path) -> None:
    target = tmp_path / "out"
    code = "import os; print(os.isatty(0), os.isatty(1), os.isatty(2))"
    session = Session(["bash", "-c", f'"$@" > {target}', "bash", *python(code)])
    session.read_until(None)
    assert session.wait() == 0
    assert target.read_text() == "True False True\n"


def test_line_mode_in_a_pipeline_gives_lines_and_end_of_file(tmp_path: Path) -> None:
    target = tmp_path / "out"
    session = Session(["bash", "-c", f'"$@" > {target}', "bash", *HOST, "sh", "-c", "echo ready >&2; cat"])
    session.read_until(b"ready")
    session.type(b"one\ntwo\n\x04")
    session.read_until(None)
    assert session.wait() == 0
    assert target.read_text() == "one\ntwo\n"


def test_an_agent_without_any_open_terminal_is_waited_for() -> None:
    code = (
        "import os, sys\n"
        "null = os.open('/dev/null', os.O_RDWR)\n"
        "[os.dup2(null, n) for n in range(3)]\n"
        "os.closerange(3, 100)\n"
        "open('/dev/tty', 'w').write('back again\\n')\n"
    )
    session = Session(python(code))
    assert b"back again" in session.read_until(None)
    assert session.wait() == 0
