"""What the agent's side of akbox costs: authority calls and the library's start, in figures of their own.

`python inside.py read N` and `write N THREADS` run inside akbox and print microseconds or calls per second.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LIBRARY = """
import statistics, time, akbox
times = []
for _ in range(41):
    start = time.perf_counter()
    akbox.Sandbox().run(["true"])
    times.append((time.perf_counter() - start) * 1e3)
print(statistics.median(times[1:]))
"""


def read_round_trip(count: int) -> float:
    """Microseconds of an authority READ from the SDK, p50."""
    from authority_nanos import AuthorityKernel

    kernel = AuthorityKernel()
    handle = kernel.alloc("counter", b'{"value": 0}')
    took = []
    for _ in range(count):
        start = time.perf_counter_ns()
        kernel.read(handle)
        took.append(time.perf_counter_ns() - start)
    return statistics.median(took) / 1000


def writes_per_second(count: int, threads: int) -> float:
    """Authority WRITEs, each durable before its reply, from so many threads with an object each."""
    from authority_nanos import AuthorityKernel

    kernel = AuthorityKernel()
    handles = [kernel.alloc("counter", b'{"value": 0}') for _ in range(threads)]

    def work(handle: object) -> None:
        for n in range(count):
            kernel.write(handle, b'[{"op": "set", "path": "/value", "value": %d}]' % n)

    workers = [threading.Thread(target=work, args=(handle,)) for handle in handles]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return count * threads / (time.perf_counter() - start)


def fdatasyncs_per_second(directory: Path, count: int) -> float:
    """What the disk does for one writer that appends and syncs: the yardstick of durable writes."""
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        start = time.perf_counter()
        for _ in range(count):
            os.write(file.fileno(), b"x" * 300)
            os.fdatasync(file.fileno())
        return count / (time.perf_counter() - start)


def measure(directory: Path, quick: bool) -> list[tuple[str, float, str, str]]:
    """(what, figure, unit, bar) of each, one run after the other."""
    count = 200 if quick else 1000
    alone, together = _inside("write", count, 1), _inside("write", count // 8, 32)
    syncs = fdatasyncs_per_second(directory, count)
    library = subprocess.run([sys.executable, "-c", LIBRARY], check=True, capture_output=True, text=True)
    return [
        ('library start-up: Sandbox().run(["true"])', float(library.stdout), "ms", "6"),
        ("authority READ from the Python SDK, p50", _inside("read", 10 * count), "µs", "60"),
        ("authority WRITE, durable, 1 writer", alone, "/s", f"{0.8 * syncs:.0f}: 0.8 x the disk's {syncs:.0f} syncs/s"),
        ("authority WRITE, durable, 32 writers", together, "/s", f"{8 * syncs:.0f}: 8 x the disk's syncs/s"),
    ]


def _inside(*words: object) -> float:
    console = str(Path(sys.executable).with_name("akbox"))
    command = [console, "run", "-q", "-p", "python-agent", "--read", __file__, "--budget", "heap_objects=1000000"]
    command += ["--budget", "tool_calls=100000000", "--", "/usr/bin/python3", __file__, *map(str, words)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    what, first, *rest = sys.argv[1:]
    print(read_round_trip(int(first)) if what == "read" else writes_per_second(int(first), int(rest[0])))
