"""How programs run, end and are limited: tracing, filters of one's own, pipelines, daemons, exit codes, limits.

P11, P12, P31, P32, P36, P37, P39, P40 and L04-L11 of cases.md; what needs more than a command (a killed supervisor, a
terminal, descriptors that were open before) is in tests/conformance/test_lifecycle.py.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from akbox.conformance.engine import Result
from akbox.conformance.model import AUTO, Case, Control, Entry, Expect, call, ok, py, refused, require, sh
from akbox.conformance.world import World

PTRACE, SECCOMP, PRCTL, UNSHARE = 101, 317, 157, 272
SET_SECUREBITS, SET_PTRACER = "28", "0x59616d61"

SELF = [
    Case("P11", "trace a child of one's own", call("ptrace_child"), refused(PTRACE)),
    Case("P12-traceme", "ask to be traced, as programs do that look for a debugger", call("traceme"), refused(PTRACE)),
    Case("P12-strace", "strace says why not, and the run goes on", sh("strace -o /dev/null true; echo alive"),
         Expect(exit=0, errnos=("EPERM",), stdout="alive", entry=Entry(nr=PTRACE)), interposers=AUTO,
         programs=("strace",)),
    Case("P31-dumpable", "PR_SET_DUMPABLE 0 answers 0 and is not carried out", call("hide"), ok("ok 1"),
         Control(stdout="ok 0")),
    Case("P31-ptracer", "PR_SET_PTRACER", call("prctl", SET_PTRACER, "-1", "0"), refused(PRCTL),
         Control(exit=(0, 1))),
    Case("P31-securebits", "PR_SET_SECUREBITS", call("prctl", SET_SECUREBITS, "1", "0"), refused(PRCTL),
         Control("namespace")),
    Case("P31-mm", "PR_SET_MM", call("set_mm"), refused(PRCTL), Control(exit=(0, 1))),
    Case("P31-name", "what concerns only oneself works", call("prctl", "15", "0", "0"),
         Expect(exit=1, errnos=("EFAULT",)), Control(exit=1, errnos=("EFAULT",))),
    Case("P32", "a filter that allows all loosens nothing", call("loosen"), refused(UNSHARE)),
    Case("P32-tighten", "and one that forbids more works", call("tighten"), Expect(exit=1, errnos=("EXDEV",)),
         Control(exit=1, errnos=("EXDEV",))),
    Case("P32-listener", "a listener of one's own", call("listener"), refused(SECCOMP, ("EPERM", "EBUSY"))),
]  # fmt: skip

PIPELINE = (
    "trap 'n=$n' CHLD; i=0; while [ $i -lt 100 ]; do "
    "c=$(seq 1 100000 | sort | uniq | wc -l) || exit 1; [ $c -eq 100000 ] || exit 2; i=$((i+1)); done; echo $i"
)
DAEMON = (
    "import os, time\nr, w = os.pipe()\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n"
    "  os.closerange(0, 3); os.write(w, str(os.getpid()).encode())\n  time.sleep(600)\n os._exit(0)\n"
    "print(os.read(r, 20).decode(), flush=True)"
)


def state(pid: int) -> str:
    """As in /proc/PID/stat; X for a process that is gone (Z waits for whoever inherited it, and runs no more)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _is_gone(world: World, result: Result) -> None:
    require(state(int(result.stdout.split()[0])) in "ZX", f"a process outlived the run\n{result}")


def _is_there(world: World, result: Result) -> None:
    pid = int(result.stdout.split()[0])
    require(state(pid) not in "ZX", f"it is not a daemon\n{result}")
    os.kill(pid, signal.SIGKILL)


RUNS = [
    # Trapped calls, short-lived children and their SIGCHLD: dash once hung here, when close and fork were trapped.
    Case("P36", "a hundred pipelines under dash", ("dash", "-c", PIPELINE), ok("100\n"), timeout_s=240),
    Case("P37", "a daemon dies with the run", py(DAEMON), ok(), check=_is_gone, after_control=_is_there),
    Case("P40-pipe", "SIGPIPE and the rest have their default actions, none is blocked",
         ("grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"),
         ok("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n")),
]  # fmt: skip

# (name, command, exit code inside, outside)
EXITS = [
    ("0", sh("exit 0"), 0, 0),
    ("1", sh("exit 1"), 1, 1),
    ("42", sh("exit 42"), 42, 42),
    ("255", sh("exit 255"), 255, 255),
    *(
        (name.lower(), sh(f"kill -{name} $$"), 128 + number, -number)
        for name, number in (("TERM", signal.SIGTERM), ("KILL", signal.SIGKILL), ("PIPE", signal.SIGPIPE))
    ),
    ("segv", py("import ctypes; ctypes.string_at(8)"), 128 + signal.SIGSEGV, -signal.SIGSEGV),
]
NOT_STARTED = [
    ("missing", ("akbox-kit-no-such-program",), 127),
    ("missing-path", ("{W}/none",), 127),
    ("not-executable", ("{W}/ok",), 126),
    ("directory", ("{W}/d",), 126),
    ("denied", ("{S}",), 126),
]


def _names_program(world: World, result: Result) -> None:
    require(world.fill(result.argv[-1]) in result.stderr, f"the reason does not name the program\n{result}")


EXIT_CODES = [
    *(
        Case(f"P39-{name}", f"exit code {code}", command, Expect(exit=code), Control(exit=bare))
        for name, command, code, bare in EXITS
    ),
    *(
        Case(f"P39-{name}", f"exit code {code}: not started, with the reason", command, Expect(exit=code), None,
             check=_names_program, starts=False)
        for name, command, code in NOT_STARTED
    ),
]  # fmt: skip

BOMB = "bomb() { bomb & bomb & wait; }; bomb 2>/dev/null; exit 3"

ENDS = [
    Case("L05", "a fork bomb ends, and with it the run", sh(BOMB), Expect(exit=(2, 3, 124, 254)), None,
         policy={"limits.pids": 30, "budgets.wall_time_ms": 4000}, timeout_s=25),
    Case("L07", "a second of wall time", sh("sleep 60 & echo $!; wait"), Expect(exit=124), None,
         policy={"budgets.wall_time_ms": 1000}, check=_is_gone, timeout_s=20),
]  # fmt: skip

SECRETS = ("--token", "kit-secret-1", "--password=kit-secret-2", "Authorization: Bearer kit-secret-3",
           "https://user:kit-secret-4@host.example/")  # fmt: skip


def _not_in_log(world: World, result: Result) -> None:
    require(result.log is not None and "kit-secret" not in result.log.read_text(), f"a secret is in the log\n{result}")


LOG = [
    Case("A08", "secrets in the command line are not in the log", ("true", *SECRETS), ok(), check=_not_in_log),
    Case("A08-inside", "nor those of what it starts", ("sh", "-c", 'true "$@"; /bin/true "$@"', "sh", *SECRETS), ok(),
         check=_not_in_log),
]  # fmt: skip

CASES = [*SELF, *RUNS, *EXIT_CODES, *ENDS, *LOG]
