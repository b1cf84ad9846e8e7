"""`killer.py WHAT ROUNDS`, inside a run: a child that does nothing but calls of one kind is killed at a moment nobody
chose, and so on. A call that fails although nothing refuses it ends the program with 1."""

import ctypes
import os
import random
import signal
import sys
import time

QUERY, DOOR = 1028, 0x414B0000
libc = ctypes.CDLL(None)
reply = ctypes.create_string_buffer(4096)
REQUEST = b'{"what": "budget"}'


def raw() -> None:
    assert libc.syscall(QUERY, 0, REQUEST, len(REQUEST), reply, len(reply), 0) > 0


def door() -> None:
    assert libc.prctl(DOOR | QUERY, REQUEST, len(REQUEST), reply, len(reply)) > 0


def opens() -> None:
    os.close(os.open("/etc/passwd", os.O_RDONLY))


def execs() -> None:
    if os.fork() == 0:
        os.execv("/bin/true", ["true"])
    assert os.wait()[1] == 0


def child(call) -> None:  # type: ignore[no-untyped-def]
    try:
        while True:
            call()
    except (OSError, AssertionError) as error:
        print(f"a call failed: {error!r}", flush=True)
        os._exit(1)


def main() -> int:
    call, rounds = {"raw": raw, "door": door, "opens": opens, "execs": execs}[sys.argv[1]], int(sys.argv[2])
    choose = random.Random(call.__name__)
    statuses = set()
    for _ in range(rounds):
        pid = os.fork()
        if pid == 0:
            child(call)
        time.sleep(choose.uniform(0, 0.004))
        os.kill(pid, signal.SIGKILL)
        statuses.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return 0 if statuses == {-signal.SIGKILL} else 1


if __name__ == "__main__":
    sys.exit(main())
