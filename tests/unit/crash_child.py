"""Run by test_crash.py: makes calls on a kernel and kills itself (SIGKILL) at one step of the last of them."""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kernel_kit import Box

from akbox.kernel.audit import AuditLog
from akbox.store import sqlite

directory, number, torn = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "torn"
seen = 0
armed = False


def step(_name: object = "") -> None:
    """One more place where a supervisor can die."""
    global seen
    if armed:
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)


def around(owner: type, name: str) -> None:
    inner = getattr(owner, name)

    def wrapped(*args: object, **more: object) -> object:
        step()
        result = inner(*args, **more)
        step()
        return result

    setattr(owner, name, wrapped)


box = Box(directory)
box.call(1025, type="counter", value={"value": 0})
(directory / "run").write_text(box.run_id.hex())
assert box.store._db is not None
box.store._db.set_trace_callback(step)  # before every SQL statement, BEGIN and COMMIT among them
around(AuditLog, "append")
around(AuditLog, "wait_durable")
around(sqlite.SqliteStore, "logged")
write = os.write


def half_write(fd: int, data: bytes) -> int:
    if armed and torn and data[:1] == b"{":
        write(fd, bytes(data)[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(fd, data)


os.write = half_write
armed = True
box.call(1026, ptr=1, patch=[{"op": "replace", "path": "/value", "value": 7}])
armed = False
print(json.dumps(seen), flush=True)
box.close()
