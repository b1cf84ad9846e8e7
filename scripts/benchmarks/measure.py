"""Runs sides interleaved (A B C A B C …), each time in a fresh copy of what a workload prepared, and keeps medians."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sides import Side
from benchmarks.workloads import Workload

TIMEOUT_S = 300
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figures:
    """name: of the workload or call. values: side → every round's figure, in `unit`; a side that failed is absent."""

    name: str
    unit: str
    values: dict[str, list[float]]

    def median(self, side: str) -> float | None:
        return statistics.median(self.values[side]) if self.values.get(side) else None


def run_workload(workload: Workload, sides: Sequence[Side], rounds: int, scratch: Path) -> Figures:
    """Wall seconds of whole commands. The first round fills the caches and is not counted."""
    template, work = scratch / "template", scratch / "work"
    work.mkdir()
    workload.prepare(work)  # where it will be: a virtual environment knows its own path
    work.rename(template)
    values: dict[str, list[float]] = {}
    broken: set[str] = set()
    for n in range(rounds + 1):
        for side in sides:
            if side.id in broken:
                continue
            took = _once(workload, side, template, work)
            if took is None:
                broken.add(side.id)
                values.pop(side.id, None)
            elif n:
                values.setdefault(side.id, []).append(took)
    shutil.rmtree(template)
    return Figures(workload.id, "s", values)


def _once(workload: Workload, side: Side, template: Path, work: Path) -> float | None:
    """None when the command fails under this side; what it said goes to standard error."""
    subprocess.run(["cp", "-a", "--reflink=auto", str(template), str(work)], check=True)
    command = side.wrap(list(workload.command), work, workload.preset)
    try:
        start = time.perf_counter()
        done = subprocess.run(command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
        took = time.perf_counter() - start
    except subprocess.TimeoutExpired:
        print(f"{workload.id} under {side.id}: not done in {TIMEOUT_S} s", file=sys.stderr)
        return None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if done.returncode:
        print(f"{workload.id} under {side.id}: exit {done.returncode}: {done.stderr.decode()[-300:]}", file=sys.stderr)
        return None
    return took


def run_calls(sides: Sequence[Side], rounds: int, scratch: Path) -> list[Figures]:
    """Microseconds of single system calls, by calls.c."""
    work = scratch / "calls"
    work.mkdir()
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", str(work / "calls"), str(HERE / "calls.c")], check=True)
    (work / "file").write_text("x")
    found: dict[str, dict[str, list[float]]] = {}
    with _listener() as port:
        for _ in range(rounds):
            for side in sides:
                command = side.wrap(["./calls", str(work / "file"), "file", str(port)], work, "default")
                done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=TIMEOUT_S)
                if done.returncode:
                    print(f"calls under {side.id}: exit {done.returncode}: {done.stderr[-300:]}", file=sys.stderr)
                for line in done.stdout.splitlines():
                    name, nanoseconds = line.split("\t")
                    found.setdefault(name, {}).setdefault(side.id, []).append(float(nanoseconds) / 1000)
    return [Figures(name, "µs", values) for name, values in found.items()]


@contextmanager
def _listener() -> Iterator[int]:
    """A port on the loopback address that accepts, and closes at once."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:

        def serve() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """On the disk, not in memory: installs and logs are synced. The state of akbox's runs is kept there, too."""
    with tempfile.TemporaryDirectory(prefix="akbox-bench-", dir="/var/tmp") as name:
        os.environ["XDG_STATE_HOME"] = str(Path(name) / "state")
        yield Path(name)
