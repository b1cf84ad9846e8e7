"""A terminal with an interactive shell on it, driven like a person would: type, wait until something shows, look."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from types import TracebackType

from akbox.conformance.engine import as_user, environment
from akbox.conformance.world import World

PROMPT = "KIT> "
DEADLINE_S = 20
CTRL_C, CTRL_D, CTRL_Z = "\x03", "\x04", "\x1a"


class Console:
    """Context manager. `seen` is everything the terminal showed since the last `expect` that matched."""

    def __init__(self, world: World, shell: Sequence[str] = ("bash", "--norc", "--noprofile", "-i")) -> None:
        self.master, slave = os.openpty()
        self.seen = ""
        self.resize(24, 80)
        self.process = subprocess.Popen(
            [*as_user(world.uid), *shell],
            cwd=world.W,
            env={**environment(world), "PS1": PROMPT, "HISTFILE": "/dev/null"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def __enter__(self) -> Console:
        self.expect(re.escape(PROMPT))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        os.close(self.master)  # the terminal is gone: its session gets SIGHUP
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, pattern: str) -> str:
        """Reads until `pattern` (a regular expression) shows; returns what showed up to its end."""
        end = time.monotonic() + DEADLINE_S
        while True:
            found = re.search(pattern, self.seen)
            if found is not None:
                before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
                return before
            left = end - time.monotonic()
            assert left > 0, f"{pattern!r} did not show; the terminal shows\n{self.seen}"
            if select.select([self.master], [], [], left)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
                except OSError as error:
                    raise AssertionError(f"the terminal closed; it shows\n{self.seen}") from error

    def command(self, line: str) -> str:
        """Types a line at the prompt; returns what it printed, up to the next prompt."""
        self.type(line + "\n")
        return self.expect(re.escape(PROMPT)).removesuffix(PROMPT)

    def status(self) -> int:
        """Exit code of the last command."""
        found = re.search(r"code=(\d+)=", self.command("echo code=$?="))
        assert found is not None
        return int(found[1])
