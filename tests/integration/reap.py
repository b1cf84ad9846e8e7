"""`reap.py DELAY_S DEADLINE_S COMMAND...`: starts the command, kills it after DELAY_S, and looks for survivors.

It is its descendants' subreaper (prctl(2)): whoever outlives the command becomes its child, whatever session or parent
it had. Prints "survivors N" once none is left or the deadline is over; those it kills.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def children() -> list[int]:
    """Of every thread of this process; zombies, which are dead, are collected and left out."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return []
        if pid == 0:
            break
    return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]


def main() -> int:
    delay_s, deadline_s, command = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(delay_s)  # the moment of the kill is the point, not a wait for something
    process.kill()
    process.wait()
    end = time.monotonic() + deadline_s
    while (left := children()) and time.monotonic() < end:
        time.sleep(0.005)
    print("survivors", len(left))
    for pid in left:
        print(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        os.kill(pid, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
