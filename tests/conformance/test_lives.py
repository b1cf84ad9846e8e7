"""What a process may do with its own life while it is held: exec from any thread, exits, signals and stops in
the middle of a trapped call, vfork, a thousand threads, being PID 1 (see also test_lifecycle.py)."""

from __future__ import annotations

import pytest

from akbox.conformance.cases_life import state
from akbox.conformance.engine import (
    USERS,
    Result,
    akbox_command,
    execute,
    policy_text,
    run_inside,
    uid_of,
    verify,
)
from akbox.conformance.model import BOTH, py
from akbox.conformance.world import World, Worlds

VARIANTS = [*((USERS[-1], interposer) for interposer in BOTH), *((user, "auto") for user in USERS[:-1])]
BOTH_OF_EACH = pytest.mark.parametrize(("user", "interposer"), VARIANTS, ids=lambda word: word)


def inside(world: World, interposer: str, script: str, exit_code: int = 0, timeout_s: float = 60) -> Result:
    result = run_inside(world, py(script), interposer=interposer, timeout_s=timeout_s)
    assert result.exit == exit_code, str(result)
    assert result.log is not None
    verify(world, result.log)
    return result


EXEC_FROM_THREAD = """
import os, threading
def others():
    while True: open("{R}/a").close()
for n in range(20): threading.Thread(target=others, daemon=True).start()
if os.fork() == 0:
    for n in range(20): threading.Thread(target=others, daemon=True).start()
    script = "cat {S}; test -r /proc/self/exe && echo child"
    threading.Thread(target=lambda: os.execv("/bin/sh", ["sh", "-c", script])).start()
    threading.Event().wait()
os.wait()
threading.Thread(target=lambda: os.execv("/bin/sh", ["sh", "-c", "cat {S}; echo $$"])).start()
threading.Event().wait()
"""


@BOTH_OF_EACH
def test_exec_from_a_thread_that_is_not_the_leader(worlds: Worlds, user: str, interposer: str) -> None:
    """Twenty other threads are in trapped calls and vanish; the new image is held like any other, and is still the
    first process, whose end is the run's."""
    with worlds.lend(uid_of(user)) as world:
        result = inside(world, interposer, world.fill(EXEC_FROM_THREAD))
        assert result.stdout.splitlines()[0] == "child", str(result)
        assert "HOST-SECRET" not in result.stdout
        denied = [e for e in result.entries if e["decision"] == "deny" and e["target"] == str(world.S)]
        assert denied, str(result)


THREADS = """
import os, threading
threading.stack_size(65536)
ready, wrong = threading.Barrier(1001), []
def work(n):
    ready.wait()
    if open("{R}/a").read() != "alpha\\n": wrong.append(n)
    try: open("{S}"); wrong.append(-n)
    except PermissionError: pass
threads = [threading.Thread(target=work, args=(n,)) for n in range(1000)]
for t in threads: t.start()
ready.wait()
for t in threads: t.join()
print(len(threads), wrong)
"""


@BOTH_OF_EACH
def test_a_thousand_threads_that_open_at_once(worlds: Worlds, user: str, interposer: str) -> None:
    with worlds.lend(uid_of(user)) as world:
        assert inside(world, interposer, world.fill(THREADS), timeout_s=120).stdout == "1000 []\n"


SIGNALS = """
import os, signal, threading, time
hits = 0
def hit(number, frame):
    global hits
    hits += 1
signal.signal(signal.SIGALRM, hit)
signal.siginterrupt(signal.SIGALRM, {interrupt})
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
wrong = []
for n in range(800):
    fd = libc.open(b"{R}/a", 0)
    if fd < 0: wrong.append(ctypes.get_errno())
    else: libc.close(fd)
    if libc.open(b"{S}", 0) != -1 or ctypes.get_errno() != 13: wrong.append(("denied", ctypes.get_errno()))
    if libc.mkdir(b"{W}/made", 0o700) or libc.rmdir(b"{W}/made"): wrong.append(("mkdir", ctypes.get_errno()))
signal.setitimer(signal.ITIMER_REAL, 0)
print(hits > 20, wrong[:9])
"""


@BOTH_OF_EACH
@pytest.mark.parametrize("interrupt", [False, True], ids=["restart", "interrupt"])
def test_signals_during_trapped_calls(worlds: Worlds, user: str, interposer: str, interrupt: bool) -> None:
    """open() of a file never fails with EINTR on Linux, whatever SA_RESTART says; nor does it here, and nothing is done
    twice (mkdir would say EEXIST)."""
    with worlds.lend(uid_of(user)) as world:
        script = world.fill(SIGNALS.replace("{interrupt}", str(interrupt)))
        assert inside(world, interposer, script, timeout_s=120).stdout == "True []\n"


EXITS = """
import os, signal, threading, time, random
def load():
    while True:
        try: open("{S}").close()
        except OSError: pass
        open("{W}/f", "w").close()
for n in range(48):
    pid = os.fork()
    if pid == 0:
        for k in range(3): threading.Thread(target=load, daemon=True).start()
        end = time.monotonic() + random.random() / 50
        while time.monotonic() < end: open("{R}/a").close()
        how = n % 4
        if how == 0: os._exit(7)
        if how == 1: os.kill(os.getpid(), signal.SIGKILL)
        if how == 2: os.execv("/bin/true", ["true"])
        os.abort()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == (7, -9, 0, -6)[n % 4], (n, status)
print("all of them", open("{R}/a").read())
"""


@BOTH_OF_EACH
def test_ends_in_the_middle_of_trapped_calls(worlds: Worlds, user: str, interposer: str) -> None:
    """exit, SIGKILL, exec and abort while other threads of the process wait for the supervisor's answer."""
    with worlds.lend(uid_of(user)) as world:
        assert inside(world, interposer, world.fill(EXITS), timeout_s=120).stdout == "all of them alpha\n\n"


EXECS = """
import os, threading
def load():
    while True:
        try: open("{S}").close()
        except OSError: pass
for n in range(60):
    pid = os.fork()
    if pid == 0:
        for k in range(3): threading.Thread(target=load, daemon=True).start()
        os.execv("/bin/true", ["true"])
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, (n, status)
print("all of them")
"""


@BOTH_OF_EACH
def test_execs_in_the_middle_of_trapped_calls(worlds: Worlds, user: str, interposer: str) -> None:
    """The exec ends the other threads before they are answered; that must not reach the new image (one in four did)."""
    with worlds.lend(uid_of(user)) as world:
        assert inside(world, interposer, world.fill(EXECS)).stdout == "all of them\n"


STOPS = """
import os, signal, threading, time
pid = os.fork()
if pid == 0:
    def load():
        while True: open("{R}/a").close()
    threading.Thread(target=load, daemon=True).start()
    while True: open("{R}/a").close()
for n in range(40):
    os.kill(pid, signal.SIGSTOP)
    got, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP, status
    assert open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] in "Tt"  # t: its tracer has seen it
    os.kill(pid, signal.SIGCONT)
    got, status = os.waitpid(pid, os.WCONTINUED)
    assert os.WIFCONTINUED(status), status
os.kill(pid, signal.SIGSTOP)
os.waitpid(pid, os.WUNTRACED)
os.kill(pid, signal.SIGKILL)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@BOTH_OF_EACH
def test_stops_and_goes_on(worlds: Worlds, user: str, interposer: str) -> None:
    """Its parent sees a stopped child stop and continue as without a tracer, and can kill it while it is stopped."""
    with worlds.lend(uid_of(user)) as world:
        script = world.fill(STOPS.replace("{pid}", "<pid>")).replace("<pid>", "{pid}")
        assert inside(world, interposer, script).stdout == "-9\n"


@BOTH_OF_EACH
def test_stopped_daemons_end_with_the_run(worlds: Worlds, user: str, interposer: str) -> None:
    script = (
        "import os, signal\nr, w = os.pipe()\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n"
        "  os.write(w, str(os.getpid()).encode()); os.kill(os.getpid(), signal.SIGSTOP)\n os._exit(0)\n"
        "print(os.read(r, 20).decode(), flush=True)"
    )
    with worlds.lend(uid_of(user)) as world:
        assert state(int(inside(world, interposer, script).stdout)) in "ZX"


VFORK = """
import ctypes, os, threading
libc = ctypes.CDLL(None, use_errno=True)
done = []
def work():
    for n in range(12):
        pid = os.posix_spawn("/bin/true", ["true"], {})
        done.append(os.waitpid(pid, 0)[1])
        try: os.posix_spawn("{S}", ["secret"], {}); done.append("ran")
        except PermissionError: pass
threads = [threading.Thread(target=work) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(done), set(done))
"""


@BOTH_OF_EACH
def test_vfork_from_many_threads(worlds: Worlds, user: str, interposer: str) -> None:
    """Each parent's thread is suspended in the kernel until its child's exec is judged, eight at a time."""
    with worlds.lend(uid_of(user)) as world:
        assert inside(world, interposer, world.fill(VFORK), timeout_s=120).stdout == "96 {0}\n"


@pytest.mark.parametrize("interposer", BOTH)
def test_pid_1_of_a_container(worlds: Worlds, interposer: str) -> None:
    """akbox is the first process of a pid namespace: it reaps, its exit code is the agent's, and nobody in the
    namespace is left when it ends."""
    with worlds.lend(uid_of("user")) as world:
        file = world.base / "policy.toml"
        file.write_text(policy_text(world, {}))
        script = (
            "import os\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  import time; time.sleep(600)\n"
            " os._exit(0)\nos.wait(); print(os.getppid(), flush=True); os._exit(42)"
        )
        new = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "--"]
        run = [*akbox_command(), "run", "-q", "-p", str(file), "--interposer", interposer, "--", *py(script)]
        result = execute([*new, *run], world, uid=world.uid)
        assert (result.exit, result.stdout) == (42, "1\n"), str(result)
