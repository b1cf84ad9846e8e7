"""Every accepted connection has an entry, and accept itself is as bare: what one program sees of it, outside and
inside."""

from __future__ import annotations

import fnmatch

import pytest

from akbox.conformance.engine import run_inside, run_outside, uid_of
from akbox.conformance.services import free_port
from akbox.conformance.world import Worlds

# EAGAIN where nobody comes; a handler without SA_RESTART ends the wait, one with it does not; a full descriptor table
# leaves the connection in the queue; flags of accept4; both families and a unix socket; a child of a child.
PROGRAM = r"""
import ctypes, errno, os, resource, signal, socket, sys, threading, time
port, path = int(sys.argv[1]), sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
def accept(s, flags=0):
    fd = libc.accept4(s.fileno(), None, None, flags)
    return fd if fd >= 0 else errno.errorcode[ctypes.get_errno()]
def serve(family, end):
    s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(end); s.listen(16); return s
def come(family, end):
    c = socket.socket(family); c.connect(end); return c
four = (socket.AF_INET, ("127.0.0.1", port))
s = serve(*four)
s.setblocking(False)
print("nobody", accept(s))
s.setblocking(True)
s.settimeout(None)
def later(call, after_s=0.2):
    t = threading.Timer(after_s, call); t.start(); return t
kept = []
for restart in (False, True):
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, not restart)
    main = threading.main_thread().ident
    signals = later(lambda: signal.pthread_kill(main, signal.SIGUSR1), 0.1)
    comes = later(lambda: kept.append(come(*four)), 0.5)
    got = accept(s)
    print("restart" if restart else "interrupt", got if isinstance(got, str) else "made")
    signals.join(); comes.join()
    if not restart: print("queued", type(accept(s)).__name__)
c = come(*four)
used = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
fill = []
resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
try:
    while True: fill.append(os.dup(0))
except OSError: pass
print("full", accept(s))
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
for fd in fill: os.close(fd)
fd = accept(s, socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
print("flags", os.get_inheritable(fd), os.get_blocking(fd))
print("bad", accept(c), libc.accept(-1, None, None))
for family, end in ((socket.AF_INET6, ("::1", port)), (socket.AF_UNIX, path)):
    with serve(family, end) as other, come(family, end):
        print(family.name, other.accept()[0].getpeername()[:1])
if os.fork() == 0:
    if os.fork() == 0:
        with come(*four): print("child", s.accept()[1][0], flush=True)
        os._exit(0)
    os.wait(); os._exit(0)
os.wait()
"""
TARGETS = ["ip:127.0.0.1:{port}"] * 4 + ["ip:[[]::1]:{port}", "unix:{path}"]


@pytest.mark.parametrize(("user", "interposer"), [("user", "auto"), ("root", "ptrace"), ("user", "notify")])
def test_accept_is_as_bare_and_has_its_entry(worlds: Worlds, user: str, interposer: str) -> None:
    port = free_port()
    ends = [f"ip:127.0.0.1:{port}", f"ip:[::1]:{port}"]
    rules: dict[str, object] = {"net.bind": ends, "net.listen": ends, "net.connect": ends, "fs.read": ["/proc/**"]}
    with worlds.lend(uid_of(user)) as world:
        path = world.W / "listener"
        argv = ("/usr/bin/python3", "-I", "-c", PROGRAM, str(port), str(path))
        bare = run_outside(world, argv, "user")
        assert bare.exit == 0, str(bare)
        assert "full EMFILE" in bare.stdout, str(bare)
        assert "interrupt EINTR" in bare.stdout, str(bare)
        path.unlink()
        inside = run_inside(world, argv, interposer=interposer, policy=rules)
        assert inside.stdout == bare.stdout, str(inside)
        accepted = [e for e in inside.entries if e["name"] == "net.accept"]
        assert all(e["decision"] == "allow" for e in accepted)
        for target in set(TARGETS):
            wanted = target.format(port=port, path=path)
            count = sum(fnmatch.fnmatchcase(str(e["target"]), wanted) for e in accepted)
            assert count == TARGETS.count(target), (wanted, accepted)
