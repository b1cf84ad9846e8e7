"""Runs a command behind akbox.linux.terminal.Terminal without a sandbox, for test_cli_terminal."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios

from akbox.linux.terminal import Terminal


def main() -> int:
    terminal = Terminal.open()
    if terminal is None:
        print("no terminal", file=sys.stderr)
        return 3
    with terminal:
        slave = terminal.slave_fd
        child = subprocess.Popen(
            sys.argv[1:],
            stdin=terminal.stdio[0],
            stdout=terminal.stdio[1],
            stderr=terminal.stdio[2],
            start_new_session=True,
            pass_fds=[slave],
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
        )
        signal.signal(signal.SIGWINCH, lambda *_: terminal.resize())
        terminal.start()
        if os.environ.get("HOST_RAISES"):
            raise RuntimeError("the host failed")
        code = child.wait()
        terminal.finish()
    return code


if __name__ == "__main__":
    sys.exit(main())
