"""The throw-away process of probe.py: really tries each thing, prints one JSON object {layer: [works, detail]}.

A program of its own, run with the standard library only (python -I -S): filters and Landlock domains cannot be taken
off again, and a supervisor with threads must not fork itself. Its one argument is a JSON object of system call numbers.
Each group of probes runs in a child of it, so that one that is killed takes no other with it.
"""

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import struct
import sys
import threading
from collections.abc import Callable

Finding = tuple[bool, str]
Outcome = dict[str, Finding]

NR: dict[str, int] = json.loads(sys.argv[1])
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = LIBC.ptrace.restype = LIBC.process_vm_readv.restype = ctypes.c_long
LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

RET_ERRNO, RET_TRAP, RET_USER_NOTIF, RET_TRACE, RET_ALLOW = 0x50000, 0x30000, 0x7FC00000, 0x7FF00000, 0x7FFF0000
NEW_LISTENER, WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
NOTIF_RECV, NOTIF_SEND, NOTIF_ADDFD, NOTIF_SET_FLAGS = 0xC0502100, 0xC0182101, 0x40182103, 0x40082104
SEIZE, CONT, GETREGSET, SETREGSET = 0x4206, 7, 0x4204, 0x4205
EXITKILL_TRACESECCOMP, EVENT_SECCOMP, WALL = 0x100080, 7, 0x40000000
AUTHORITY = 1024
# words of struct user_regs_struct: how many, where the result is, where the call number is
REGISTERS = {"x86_64": (27, 10, 15), "aarch64": (34, 0, 8)}[os.uname().machine]
TIMEOUT_MS, ANSWER, ERRNO = 2000, 4242, 77


class Failed(Exception):
    """A probe that did not hold, with what was seen."""


def syscall(name: str, *args: object) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = int(LIBC.syscall(ctypes.c_long(NR.get(name, AUTHORITY)), *wide))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(actions: dict[int, int], flags: int = 0) -> int:
    """A filter on this thread: call number → action, the rest allowed."""
    code = struct.pack("=HBBI", 0x20, 0, 0, 0)  # load the number
    for number, action in actions.items():
        code += struct.pack("=HBBI", 0x15, 0, 1, number) + struct.pack("=HBBI", 0x06, 0, 0, action)
    code += struct.pack("=HBBI", 0x06, 0, 0, RET_ALLOW)
    if LIBC.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "no_new_privs refused")
    program = Program(len(code) // 8, code)
    return syscall("seccomp", 1, flags, ctypes.byref(program))


# ---- filter and listener ---------------------------------------------------------------------------------------------


def filters() -> Outcome:
    """Filters hold for one thread: each is tried on a thread of its own, and the main thread serves."""
    out: Outcome = {"seccomp": in_thread(refusal)}
    for flags in (NEW_LISTENER | WAIT_KILLABLE_RECV, NEW_LISTENER):
        out |= listener(flags)
        if out["listener"][0]:
            break
    return out


def refusal() -> str:
    install({NR["getppid"]: RET_ERRNO | ERRNO})
    try:
        syscall("getppid")
    except OSError as error:
        if error.errno == ERRNO:
            return "a filter decides calls"
    raise Failed("the filter was taken but does not decide")


def in_thread(body: Callable[[], str]) -> Finding:
    box: list[Finding] = []
    thread = threading.Thread(target=lambda: box.append(guarded(body)))
    thread.start()
    thread.join()
    return box[0]


def guarded(body: Callable[[], str]) -> Finding:
    try:
        return True, body()
    except (OSError, Failed) as error:
        return False, getattr(error, "strerror", None) or str(error)


class Caller(threading.Thread):
    """Has a listener on its own getppid, and calls it three times."""

    def __init__(self, flags: int) -> None:
        super().__init__(daemon=True)
        self.flags, self.fd, self.why = flags, -1, ""
        self.results: list[int] = []
        self.ready = threading.Event()

    def run(self) -> None:
        try:
            self.fd = install({NR["getppid"]: RET_USER_NOTIF}, self.flags)
        except OSError as error:
            self.why = "another supervisor holds it" if error.errno == errno.EBUSY else str(error.strerror)
        self.ready.set()
        if self.fd >= 0:
            self.results += [LIBC.syscall(NR["getppid"]) for _ in range(3)]


def listener(flags: int) -> Outcome:
    caller = Caller(flags)
    caller.start()
    caller.ready.wait()
    fd = caller.fd
    names = ("listener", "listener-addfd", "listener-continue")
    if fd < 0:
        return dict.fromkeys((*names, "listener-wait-killable", "listener-sync-wake-up"), (False, caller.why))
    wake_up = guarded(lambda: sync_wake_up(fd))
    source = os.open("/", os.O_RDONLY)  # the kernel does not hand over O_PATH descriptors
    served = [
        guarded(lambda: answer(fd, lambda id_: respond(fd, id_, ANSWER, 0))),
        guarded(lambda: answer(fd, lambda id_: inject(fd, id_, source))),
        guarded(lambda: answer(fd, lambda id_: respond(fd, id_, 0, 1))),  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
    ]
    if all(ok for ok, _ in served):
        caller.join()
        first, second, third = caller.results
        checks = (
            first == ANSWER,
            second > 2 and os.path.samestat(os.fstat(second), os.fstat(source)),
            third == os.getppid(),
        )
        served = [
            (ok, "answers calls" if ok else f"the call returned {value}")
            for ok, value in zip(checks, caller.results, strict=True)
        ]
    killable = bool(flags & WAIT_KILLABLE_RECV)
    return {
        **dict(zip(names, served, strict=True)),
        "listener-wait-killable": (killable, "signals do not interrupt" if killable else "the kernel refuses the flag"),
        "listener-sync-wake-up": wake_up,
    }


def sync_wake_up(fd: int) -> str:
    fcntl.ioctl(fd, NOTIF_SET_FLAGS, 1)
    return "caller and supervisor share a processor"


def answer(fd: int, how: Callable[[int], None]) -> str:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(TIMEOUT_MS):
        raise Failed("no notification came: a filter of the host answers first")
    notification = bytearray(80)
    fcntl.ioctl(fd, NOTIF_RECV, notification)
    how(struct.unpack_from("=Q", notification)[0])
    return "answers calls"


def respond(fd: int, id_: int, value: int, flags: int) -> None:
    fcntl.ioctl(fd, NOTIF_SEND, bytearray(struct.pack("=QqiI", id_, value, 0, flags)))


def inject(fd: int, id_: int, source: int) -> None:
    """ADDFD with FLAG_SEND: the descriptor is the call's result, in one step."""
    try:
        fcntl.ioctl(fd, NOTIF_ADDFD, bytearray(struct.pack("=QIIII", id_, 2, source, 0, 0)))
    except OSError:
        respond(fd, id_, -1, 0)
        raise


# ---- ptrace ----------------------------------------------------------------------------------------------------------


def tracing() -> Outcome:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(TIMEOUT_MS // 1000)
        os.read(read_end, 1)
        install({AUTHORITY: RET_TRAP, NR["getppid"]: RET_TRACE})
        got = LIBC.syscall(ctypes.c_long(AUTHORITY), 0, 0, 0, 0, 0)
        LIBC.syscall(NR["getppid"])
        os._exit(0 if got == ANSWER else 1)
    missing = (False, "needs ptrace")
    try:
        traced = guarded(lambda: seize(pid))
        if not traced[0]:
            return {"ptrace": traced, "trap": missing, "trace": missing}
        os.write(write_end, b"x")
        trap = guarded(lambda: serve_trap(pid))
        trace = guarded(lambda: serve_trace(pid)) if trap[0] else missing
        if trace[0] and os.waitstatus_to_exitcode(os.waitpid(pid, WALL)[1]) != 0:
            trap = False, "the call did not return what was written"
        pid = 0 if trace[0] else pid
        return {"ptrace": traced, "trap": trap, "trace": trace}
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, WALL)


def ptrace(request: int, pid: int, address: int = 0, data: object = None) -> None:
    if LIBC.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")


def seize(pid: int) -> str:
    ptrace(SEIZE, pid, 0, EXITKILL_TRACESECCOMP)
    return "a child can be seized"


def serve_trap(pid: int) -> str:
    """RET_TRAP raises SIGSYS; at its delivery stop the result is written and the signal dropped."""
    status = os.waitpid(pid, WALL)[1]
    if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != signal.SIGSYS:
        raise Failed(f"no stop at the call (status {status:#x}): a filter of the host answers first")
    words, result, number = REGISTERS
    registers = (ctypes.c_ulong * words)()
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(registers), ctypes.sizeof(registers))
    ptrace(GETREGSET, pid, 1, ctypes.cast(vector, ctypes.c_void_p))
    if registers[number] != AUTHORITY:
        raise Failed(f"the stop shows call {registers[number]}")
    registers[result] = ANSWER
    ptrace(SETREGSET, pid, 1, ctypes.cast(vector, ctypes.c_void_p))
    ptrace(CONT, pid)
    return "authority calls stop and are answered"


def serve_trace(pid: int) -> str:
    status = os.waitpid(pid, WALL)[1]
    if status >> 8 != signal.SIGTRAP | EVENT_SECCOMP << 8:
        raise Failed(f"no stop at the call (status {status:#x})")
    ptrace(CONT, pid)
    return "calls stop for the tracer"


# ---- another process's memory and descriptors ------------------------------------------------------------------------


def memory() -> Outcome:
    buffer = ctypes.create_string_buffer(b"before", 8)
    (ready, go), (done, stop) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        buffer.value = b"after"
        os.write(go, b"x")
        os.close(stop)
        os.read(done, 1)
        os._exit(0)
    os.close(done)
    try:
        os.read(ready, 1)
        return {
            "process_vm_readv": guarded(lambda: vm_read(pid, buffer)),
            "proc-mem": guarded(lambda: mem_read(pid, buffer)),
            "pidfd_getfd": guarded(lambda: take_descriptor(pid, go)),
        }
    finally:
        os.close(stop)
        os.waitpid(pid, 0)


def check(data: bytes) -> str:
    if data != b"after":
        raise Failed(f"read {data!r}")
    return "the agent's memory can be read"


def vm_read(pid: int, buffer: ctypes.Array[ctypes.c_char]) -> str:
    here = ctypes.create_string_buffer(5)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(here), 5)
    remote = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 5)
    if LIBC.process_vm_readv(pid, local, ctypes.c_ulong(1), remote, ctypes.c_ulong(1), ctypes.c_ulong(0)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return check(here.raw)


def mem_read(pid: int, buffer: ctypes.Array[ctypes.c_char]) -> str:
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    return check(os.pread(fd, 5, ctypes.addressof(buffer)))


def take_descriptor(pid: int, number: int) -> str:
    fd = syscall("pidfd_getfd", os.pidfd_open(pid), number, 0)
    if not os.path.samestat(os.fstat(fd), os.fstat(number)):
        raise Failed("another descriptor came")
    return "descriptors can be taken from the agent"


# ---- Landlock, and the small things ----------------------------------------------------------------------------------


def landlock() -> Outcome:
    missing = (False, "needs Landlock")
    try:
        abi = syscall("landlock_create_ruleset", 0, 0, 1)
    except OSError as error:
        return {"landlock": (False, error.strerror or ""), "landlock-abi": (False, "0"), "landlock-scope": missing}
    fields = (1 << 3, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)  # READ_DIR; bind and connect; sockets and signals
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8

    def restrict() -> str:
        attributes = ctypes.create_string_buffer(struct.pack("=QQQ", *fields)[:size], size)  # older kernels: a prefix
        ruleset = syscall("landlock_create_ruleset", ctypes.byref(attributes), size, 0)
        if LIBC.prctl(38, 1, 0, 0, 0):
            raise Failed("no_new_privs refused")
        syscall("landlock_restrict_self", ruleset, 0)
        return expect(lambda: os.listdir("/"), errno.EACCES, f"ABI {abi}")

    held = guarded(restrict)
    scoped = guarded(lambda: expect(lambda: os.kill(os.getppid(), 0), errno.EPERM, "signals stay inside the run"))
    if abi < 6:
        scoped = False, f"ABI {abi} has no scopes"
    return {"landlock": held, "landlock-abi": (True, str(abi)), "landlock-scope": scoped if held[0] else missing}


def expect(attempt: Callable[[], object], number: int, detail: str) -> str:
    try:
        attempt()
    except OSError as error:
        if error.errno == number:
            return detail
        raise
    raise Failed("it was set up but does not hold")


def small() -> Outcome:
    def resolve() -> str:
        how = ctypes.create_string_buffer(struct.pack("=QQQ", os.O_PATH, 0, 2))  # RESOLVE_NO_MAGICLINKS
        arguments = (-100, ctypes.c_char_p(b"/proc/self/exe"), ctypes.byref(how), 24)
        return expect(lambda: syscall("openat2", *arguments), errno.ELOOP, "names resolve without magic links")

    def unshare_files() -> str:
        syscall("close_range", 1000, 0xFFFFFFFF, 2)  # CLOSE_RANGE_UNSHARE
        return "the child leaves the shared descriptor table"

    def unshare_fs() -> str:
        syscall("unshare", 0x200)  # CLONE_FS
        return "the supervisor can take on the agent's umask"

    return {"openat2": guarded(resolve), "close_range": guarded(unshare_files), "unshare-fs": guarded(unshare_fs)}


GROUPS: tuple[tuple[Callable[[], Outcome], tuple[str, ...]], ...] = (
    (
        filters,
        (
            "seccomp",
            "listener",
            "listener-addfd",
            "listener-continue",
            "listener-wait-killable",
            "listener-sync-wake-up",
        ),
    ),
    (tracing, ("ptrace", "trap", "trace")),
    (memory, ("process_vm_readv", "proc-mem", "pidfd_getfd")),
    (landlock, ("landlock", "landlock-abi", "landlock-scope")),
    (small, ("openat2", "close_range", "unshare-fs")),
)


def nothing(layers: tuple[str, ...], why: str) -> Outcome:
    """A group of which nothing is known: nothing of it works. "landlock-abi" is a number."""
    return {name: (False, "0" if name == "landlock-abi" else why) for name in layers}


def run_group(body: Callable[[], Outcome], layers: tuple[str, ...]) -> Outcome:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        signal.alarm(TIMEOUT_MS // 1000)
        try:
            result = body()
        except Exception as error:  # the child's edge: what went wrong is the finding
            result = nothing(layers, f"the probe failed: {error}")
        os.write(write_end, json.dumps(result).encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not text:
        return nothing(layers, f"the probe ended with {status}")
    found: Outcome = json.loads(text)
    return found


if __name__ == "__main__":
    everything: Outcome = {}
    for group, names in GROUPS:
        everything |= run_group(group, names)
    sys.stdout.write(json.dumps(everything))
