"""Limits and budgets that hold although the program makes no call (L01, L03, L04, L07, L08, L11). A fork bomb and a
second of wall time are in cases_life.py."""

from __future__ import annotations

import os
import re

from akbox.conformance.engine import Result
from akbox.conformance.model import Case, Check, Control, Entry, Expect, call, ok, py, require, sh
from akbox.conformance.world import World

MEGABYTE = 1 << 20
MEMORY: dict[str, object] = {"limits.memory": "64M"}
KILLED, SPENT, TOO_LARGE = 137, 124, 128 + 25  # SIGKILL; a budget; SIGXFSZ


def _memory_is_the_reason(world: World, result: Result) -> None:
    require(result.report["reason"] == "limit memory", str(result))
    usage = result.report["usage"]
    peak = usage.get("memory_peak_bytes", 0) if isinstance(usage, dict) else 0
    # At most what a tree can take between two looks, and far from what it asked for.
    require(60 * MEGABYTE < peak < 768 * MEGABYTE, f"{usage}\n{result}")
    require("limits.memory is reached" in result.stderr, str(result))
    require("raise it with --limit memory=" in result.stderr, str(result))


def _reason(reason: str) -> Check:
    def check(world: World, result: Result) -> None:
        require(result.report["reason"] == reason, str(result))

    return check


def too_much(title: str, name: str, script: str, more: dict[str, object] | None = None) -> Case:
    expect = Expect(exit=KILLED, entry=Entry(target="run:limit:memory"))
    return Case(
        f"L01-{name}" if not name.startswith("L") else name, title, py(script), expect, Control(stdout="all of it"),
        policy={**MEMORY, **(more or {})}, check=_memory_is_the_reason, timeout_s=120,
    )  # fmt: skip


WRITE_A_GIGABYTE = "for i in range(1024): os.write(fd, b'x' * (1 << 20))\nprint('all of it')"
CHILDREN = (
    "import os\nr, w = os.pipe()\nfor i in range(12):\n if os.fork() == 0:\n"
    "  os.close(w); x = bytearray({size} << 20)\n"
    "  os.read(r, 1); os._exit(0)\nos.close(r); import time; time.sleep({seconds}); os.close(w)\n"
    "for i in range(12): os.wait()\nprint('all of it')"
)

MEMORY_CASES = [
    too_much("one process", "one", "bytearray(1 << 30); print('all of it')"),
    too_much("twelve processes, none of which is too large", "tree", CHILDREN.format(size=30, seconds=3)),
    too_much("a memory file that nobody maps", "L03-memfd",
             f"import os\nfd = os.memfd_create('x')\n{WRITE_A_GIGABYTE}"),
    too_much("shared anonymous memory", "L03-shared",
             "import mmap\nm = mmap.mmap(-1, 1 << 30)\nfor i in range(1024): m.write(b'x' * (1 << 20))\n"
             "print('all of it')"),
    too_much("files on a tmpfs, each of them closed", "L03-tmpfs",
             "import os\nn = f'/dev/shm/akbox-kit-{os.getpid()}-'\n"
             "for i in range(64):\n open(n + str(i), 'wb').write(b'x' * (4 << 20))\n"
             "for i in range(64): os.unlink(n + str(i))\nprint('all of it')",
             {"fs.write": ["/dev/shm/akbox-kit-*"]}),
    Case("L01-enough", "less than the limit", py("x = bytearray(20 << 20); print(len(x))"), ok("20971520"),
         policy=MEMORY),
    Case("L01-shared-once", "what twelve processes share counts once",
         py("y = b'y' * 15_000_000\n" + CHILDREN.format(size=0, seconds=0.5)), ok("all of it"),
         policy={"limits.memory": "96M"}, timeout_s=60),
]  # fmt: skip


def _processes_alive(world: World, result: Result) -> None:
    found = re.search(r"alive (\d+)", result.stdout)
    alive = int(found[1]) if found is not None else None
    require(alive == 9, f"nine children and their parent are ten\n{result}")
    require(any(entry["target"] == "limit:pids" for entry in result.entries), str(result))


TEN: dict[str, object] = {"limits.pids": 10}
PIDS = [
    Case("L04", "the eleventh process", call("fork_storm", "40"), Expect(exit=1, errnos=("EAGAIN",)), policy=TEN,
         check=_processes_alive),
    Case("L04-one-by-one", "forty processes one after the other",
         sh("for i in $(seq 40); do /bin/true; done; echo done"), ok("done"), policy=TEN),
    Case("L04-threads", "threads are not processes", call("threads", "100"), ok("ok 100"), policy=TEN),
    Case("L04-clone3", "nor is there another door", call("clone3", "0"), Expect(exit=1, errnos=("ENOSYS",)),
         control=None, policy=TEN),
]  # fmt: skip

TIMES = [
    Case("L07-ignored", "wall time, SIGTERM ignored", py("import signal, time; signal.signal(15, signal.SIG_IGN)\n"
         "time.sleep(600)"), Expect(exit=SPENT, entry=Entry(target="run:budget:wall_time_ms")), control=None,
         policy={"budgets.wall_time_ms": 500}, check=_reason("budget wall_time_ms"), interposers=("auto",),
         users=("user",)),
    Case("L07-cpu", "CPU time, of children that have ended too",
         sh("i=0; while [ $i -lt 400 ]; do /usr/bin/python3 -I -c 'sum(range(300000))'; i=$((i+1)); done"),
         Expect(exit=SPENT, entry=Entry(target="run:budget:cpu_ns")), control=None,
         policy={"budgets.cpu_ns": 500_000_000}, check=_reason("budget cpu_ns"), timeout_s=60),
    Case("L07-io", "bytes read and written",
         sh("i=0; while [ $i -lt 400 ]; do head -c 1000000 /dev/zero > /dev/null; i=$((i+1)); done; echo all of it"),
         Expect(exit=SPENT, entry=Entry(target="run:limit:io_bytes")), Control(stdout="all of it"),
         policy={"limits.io_bytes": 20_000_000}, check=_reason("limit io_bytes"), timeout_s=60),
    Case("L07-io-enough", "less than that", sh("head -c 1000000 /dev/zero | wc -c"), ok("1000000"),
         policy={"limits.io_bytes": 20_000_000}),
]  # fmt: skip

RAISE = "import resource as r; r.prlimit(0, r.RLIMIT_{name}, ({value}, {value})); print('raised')"
OPEN_UNTIL = (
    "import os\ntry:\n while True: last = os.open('{R}/a', os.O_RDONLY)\nexcept OSError as e: print('errno', e.errno)\n"
    "print('below the limit' if last < 32 else last)"
)
SIZES = [
    Case("L08-open-files", "open_files", py(OPEN_UNTIL), ok("errno 24\nbelow the limit\n"), Control(stdout="errno 24"),
         policy={"limits.open_files": 32}),
    Case("L08-core", "no core files", sh("ulimit -c; ulimit -Hc"), ok("0\n0\n"), control=None),
    Case("L08-file-size-error", "a program that would rather have an error gets one",
         py("open('{W}/big', 'wb', 0).write(bytes(1 << 20)); open('{W}/big', 'ab', 0).write(b'x')"),
         Expect(exit=1, errnos=("EFBIG",)), policy={"limits.file_size": "1M"}),
    Case("L08-size-reason", "a file that grows too large is the reason", sh("exec head -c 2000000 /dev/zero > {W}/big"),
         Expect(exit=TOO_LARGE), policy={"limits.file_size": "1M"}, check=_reason("limit file_size")),
    *(
        Case(f"L11-{name}", f"raise one's own limit of {key}", py(RAISE.format(name=name, value=more)),
             Expect(exit=1, errnos=("EPERM",)), Control(stdout="raised"), policy={f"limits.{key}": value})
        for name, key, value, more in (("NOFILE", "open_files", 32, 64), ("FSIZE", "file_size", "1M", 1 << 40),
                                       ("CORE", "core", 0, 1 << 30), ("STACK", "stack", "8M", 1 << 30))
    ),
    Case("L11-prlimit", "or by number, for one's own process",
         py("import resource as r, os; r.prlimit(os.getpid(), r.RLIMIT_NOFILE, (64, 64)); print('raised')"),
         Expect(exit=1, errnos=("EPERM",)), Control(stdout="raised"), policy={"limits.open_files": 32}),
]  # fmt: skip

# Whatever control groups are mounted, of either version; where none is there is nothing to try. To open such a file for
# writing changes nothing, and is what has to be refused.
LIFT = (
    "import os\ntried = errno = 0\nfor folder, _, names in os.walk('/sys/fs/cgroup'):\n for n in names:\n"
    "  if n in {'cgroup.procs', 'tasks', 'cgroup.subtree_control', 'memory.max', 'memory.high', 'pids.max', 'cpu.max',"
    " 'memory.limit_in_bytes'}:\n"
    "   tried += 1\n   try: open(os.path.join(folder, n), 'r+b', 0); print('lifted', folder, n)\n"
    "   except OSError as e: errno = e.errno\nprint('tried', errno)"
)
CGROUPS = os.path.exists("/sys/fs/cgroup/cgroup.procs") or os.path.exists("/sys/fs/cgroup/memory/cgroup.procs")


def _nothing_lifted(world: World, result: Result) -> None:
    require("lifted" not in result.stdout, str(result))


GROUPS = [
    Case("L11-cgroup", "lift the limits of one's control group, even if its files are granted", py(LIFT),
         ok("tried 13", Entry("fs.open", "/sys/fs/cgroup/*")) if CGROUPS else ok("tried 0"),
         Control("root", stdout="lifted") if CGROUPS else None, check=_nothing_lifted,
         policy={**MEMORY, "fs.read": ["/sys/**"], "fs.write": ["/sys/**"]}),
]  # fmt: skip

CASES = [*MEMORY_CASES, *PIDS, *TIMES, *SIZES, *GROUPS]
