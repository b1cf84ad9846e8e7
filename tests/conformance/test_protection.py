"""A run against what holds it: its own supervisor, the supervisor and the processes of another run of the same user,
their files and sockets (P07-P10, R01, R11, I10, I16 for a stranger that has our uid)."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from akbox.conformance.cases_life import state
from akbox.conformance.engine import (
    USERS,
    Result,
    akbox_command,
    as_user,
    environment,
    policy_text,
    run_inside,
    run_outside,
    uid_of,
    verify,
)
from akbox.conformance.model import BOTH, py
from akbox.conformance.world import MARK, World, Worlds

# What each attempt on process P came to. Numbers are x86-64's. None of them changes a process that allows it.
ATTEMPTS = """
import ctypes, errno, fcntl, json, os, resource, signal, socket, struct, sys
P = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
found = {}
def attempt(name, body):
    try:
        body()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
def call(number, *args):
    if libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in args]) < 0:
        raise OSError(ctypes.get_errno(), "")
GARBAGE = 0x5eedbeef << 32
info = ctypes.create_string_buffer(struct.pack("iii", 0, 0, -1), 128)
attempt("kill", lambda: os.kill(P, 0))
attempt("kill high", lambda: call(62, GARBAGE | P, GARBAGE))
attempt("tkill", lambda: call(200, P, 0))
attempt("tgkill", lambda: call(234, P, P, 0))
attempt("sigqueue", lambda: call(129, P, 18, info))
attempt("tgsigqueue", lambda: call(297, P, P, 18, info))
attempt("pidfd", lambda: signal.pidfd_send_signal(os.pidfd_open(P), 0))
attempt("prlimit get", lambda: resource.prlimit(P, resource.RLIMIT_CPU))
attempt("prlimit set", lambda: resource.prlimit(P, resource.RLIMIT_CPU, (-1, -1)))
attempt("affinity", lambda: os.sched_setaffinity(P, range(1024)))
attempt("scheduler", lambda: os.sched_setscheduler(P, os.SCHED_OTHER, os.sched_param(0)))
attempt("param", lambda: os.sched_setparam(P, os.sched_param(0)))
attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, P, 19))
attempt("ioprio", lambda: call(251, 1, P, 0))
attempt("attr", lambda: call(314, P, ctypes.create_string_buffer(struct.pack("IIQiIQQQ", 48, 0, 0, 19, *[0] * 4)), 0))
attempt("robust list", lambda: call(274, P, ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)))
attempt("move pages", lambda: call(279, P, 0, 0, 0, 0, 0))
for name in ("mem", "environ", "maps", "auxv", "io", "status", "stat", "cmdline"):
    attempt(f"read {name}", lambda name=name: open(f"/proc/{P}/{name}", "rb").close())
for name in ("mem", "oom_score_adj", "comm", "coredump_filter", "clear_refs"):
    attempt(f"write {name}", lambda name=name: os.close(os.open(f"/proc/{P}/{name}", os.O_WRONLY)))
attempt("list fd", lambda: os.listdir(f"/proc/{P}/fd"))
attempt("open fd", lambda: os.close(os.open(f"/proc/{P}/fd/0", os.O_RDONLY)))
attempt("task", lambda: open(f"/proc/{P}/task/{P}/environ").close())
attempt("root", lambda: os.listdir(f"/proc/{P}/root/"))
attempt("cwd", lambda: os.listdir(f"/proc/{P}/cwd/"))
# These change what they are let do: only on a process that must not be reached.
if sys.argv[2] == "all":
    attempt("attach", lambda: call(101, 16, P, 0, 0))
    attempt("seize", lambda: call(101, 0x4206, P, 0, 0))
    iovec = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(info), 8))
    attempt("vm read", lambda: call(310, P, iovec, 1, iovec, 1, 0))
    attempt("vm write", lambda: call(311, P, iovec, 1, iovec, 1, 0))
    attempt("getfd", lambda: call(438, os.pidfd_open(P), 0, 0))
    attempt("madvise", lambda: call(440, os.pidfd_open(P), iovec, 1, 20, 0))
    attempt("kcmp", lambda: call(312, os.getpid(), P, 0, 0, 0))
    attempt("stop", lambda: os.kill(P, signal.SIGSTOP))
    attempt("end", lambda: os.kill(P, signal.SIGKILL))
print(json.dumps(found))
"""
REFUSED = {"EACCES", "EPERM", "ESRCH", "ENOENT", "ENOSYS", "EINVAL"}
# Reads what it may write, and writes what belongs to another run: all of /proc and all of the state directory granted.
WIDE: dict[str, object] = {
    "fs.read": ["/proc/**", "/sys/**", "{STATE}/**", "{HOME}/**"],
    "fs.write": ["/proc/**", "{STATE}/**"],
    "net.unix": ["{STATE}/**"],
}
WAIT = "import os, sys; print(os.getpid(), os.getppid(), flush=True); sys.stdin.read(); print('went on')"


@contextmanager
def another_run(world: World, interposer: str) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """(akbox, its agent's pid, its supervisor's) of a run that waits; its policy is the kit's."""
    file = world.base / "other.toml"
    file.write_text(policy_text(world, {}))
    command = [*akbox_command(), "run", "-q", "-p", str(file), "--interposer", interposer, "--", *py(WAIT)]
    with subprocess.Popen(
        [*as_user(world.uid), *command],
        cwd=world.W,
        env=environment(world),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        agent, supervisor = map(int, run.stdout.readline().split())
        try:
            yield run, agent, supervisor
        finally:
            if run.poll() is None:
                run.kill()


def tried(result: Result) -> dict[str, str]:
    assert result.exit == 0, str(result)
    found: dict[str, str] = json.loads(result.stdout)
    return found


def test_control(worlds: Worlds) -> None:
    """Any process of the user may do all of it to any other that is not protected."""
    uid = uid_of("user")
    command = [*as_user(uid), "/bin/sleep", "600"]
    with worlds.lend(uid) as world, subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL) as victim:
        found = tried(run_outside(world, (*py(ATTEMPTS), str(victim.pid), "harmless"), "user"))
        victim.kill()
    assert len(found) > 30
    assert {name: value for name, value in found.items() if value != "done"} == {}


@pytest.mark.parametrize("interposer", BOTH)
@pytest.mark.parametrize("user", USERS)
def test_another_run_of_the_same_user(worlds: Worlds, user: str, interposer: str) -> None:
    """Nothing reaches the other run's agent or supervisor, which goes on as if nothing had been."""
    with worlds.lend(uid_of(user)) as world, another_run(world, interposer) as (run, agent, supervisor):
        for pid in (agent, supervisor):
            result = run_inside(world, (*py(ATTEMPTS), str(pid), "all"), interposer=interposer, policy=WIDE)
            found = tried(result)
            assert len(found) > 40
            assert {name: value for name, value in found.items() if value not in REFUSED} == {}, found
            assert state(pid) not in "ZXTt"
            assert result.log is not None
            verify(world, result.log)
        out, _ = run.communicate("")
        assert (run.returncode, out) == (0, "went on\n")


@pytest.mark.parametrize("interposer", BOTH)
@pytest.mark.parametrize("user", USERS)
def test_the_own_supervisor(worlds: Worlds, user: str, interposer: str) -> None:
    script = f"import os, sys; sys.argv = ['', str(os.getppid()), 'all']\n{ATTEMPTS}"
    with worlds.lend(uid_of(user)) as world:
        result = run_inside(world, py(script), interposer=interposer, policy=WIDE)
        found = tried(result)
        assert {name: value for name, value in found.items() if value not in REFUSED} == {}, found
        assert result.log is not None
        verify(world, result.log)


FILES = """
import json, os, socket, stat, sys
found, inside = {}, []
for top in sys.argv[1:]:
    for folder, folders, files in os.walk(top, onerror=lambda error: found.setdefault(error.filename, error.strerror)):
        inside += [os.path.join(folder, name) for name in files]
for name in sys.argv[1:]:
    for word in ("audit.jsonl", "ring", "summary.json", "akbox.toml", "keys/signing", "host.json"):
        inside.append(f"{name}/{word}")
for path in inside:
    for kind, body in (
        ("read", lambda: open(path, "rb").read()), ("write", lambda: open(path, "ab").close()),
        ("remove", lambda: os.unlink(path)), ("move", lambda: os.rename(path, path + "-")),
        ("link", lambda: os.link(path, "{W}/linked")), ("chmod", lambda: os.chmod(path, 0o777)),
        ("connect", lambda: socket.socket(socket.AF_UNIX).connect(path)),
    ):
        try:
            body()
            print("DONE", kind, path)
        except OSError as error:
            pass
for name in sys.argv[1:]:
    try:
        os.rename(name, name + "-moved")
        print("DONE moved", name)
    except OSError: pass
print("tried", len(inside))
"""


@pytest.mark.parametrize("interposer", BOTH)
@pytest.mark.parametrize("user", USERS)
def test_files_and_sockets_of_another_run(worlds: Worlds, user: str, interposer: str) -> None:
    """The state directory, the runs, their logs and keys: not even with all of it granted by the policy."""
    with worlds.lend(uid_of(user)) as world, another_run(world, interposer) as (run, _, supervisor):
        runs = sorted((world.STATE / "akbox" / "runs").iterdir())
        tmpdirs = [line.split("=", 1)[1] for line in environ(run, world) if line.startswith("TMPDIR=")]
        places = [str(world.STATE / "akbox"), *map(str, runs), *tmpdirs, f"/proc/{supervisor}/cwd"]
        result = run_inside(world, (*py(FILES), *places), interposer=interposer, policy=WIDE)
        assert result.exit == 0, str(result)
        assert "DONE" not in result.stdout, str(result)
        assert MARK not in result.stdout
        out, _ = run.communicate("")
        assert (run.returncode, out) == (0, "went on\n")
        verify(world, runs[0] / "audit.jsonl")


def environ(run: subprocess.Popen[str], world: World) -> list[str]:
    """Of the run's agent, as root or as its user sees it from outside."""
    children = subprocess.run(
        [
            *as_user(world.uid),
            "sh",
            "-c",
            f"for p in $(ps -o pid= --ppid {run.pid}); do tr '\\0' '\\n' </proc/$p/environ; done",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return children.stdout.splitlines()


OWNER = """
import fcntl, os, signal, socket, sys
a, b = socket.socketpair()
fcntl.fcntl(a, fcntl.F_SETOWN, int(sys.argv[1]))
fcntl.fcntl(a, 10, signal.SIGUSR1)
fcntl.fcntl(a, fcntl.F_SETFL, fcntl.fcntl(a, fcntl.F_GETFL) | os.O_ASYNC)
b.send(b"x")
"""


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_signals_of_a_descriptor(worlds: Worlds, where: str) -> None:
    """A descriptor's owner is signalled when something comes: a kill() that no filter sees. Landlock's scope holds it;
    where there is none the owner cannot be set (test_degraded.py)."""
    uid = uid_of("user")
    with worlds.lend(uid) as world, subprocess.Popen([*as_user(uid), "/bin/sleep", "600"], cwd="/") as victim:
        command = (*py(OWNER), str(victim.pid))
        try:
            if where == "inside":
                result = run_inside(world, command)
                assert result.exit in (0, 1), str(result)
                assert victim.poll() is None, "the signal came through"
            else:
                assert run_outside(world, command, "user").exit == 0
                assert victim.wait(10) == -signal.SIGUSR1
        finally:
            victim.kill()
