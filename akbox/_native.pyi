"""Types of the C extension (native/*.c). Nothing here decides policy in Python; see docs/architecture.md."""

from collections.abc import Sequence

# ---- py_policy.c ---------------------------------------------------------------------------------------------------

class Policy:
    """The compiled matcher of native/policy.h. Paths are canonical bytes. Raises ValueError for a bad blob."""

    def __init__(self, blob: bytes) -> None: ...
    def fs(self, need: int, path: bytes) -> tuple[int, int, int]:
        """(decision 0 deny | 1 allow | 2 ask, rule index or -1, missing need bits)."""
    def rights(self, path: bytes) -> int: ...
    def visible(self, path: bytes) -> bool: ...
    def move_keeps_rights(self, source: bytes, target: bytes, is_dir: bool) -> bool: ...
    def net(self, op: int, proto: int, addr: bytes, port: int) -> tuple[int, int]: ...
    def unix(self, path: bytes) -> tuple[int, int]: ...
    def exec_exact(self, path: bytes) -> bool: ...
    def view(self, parent: Policy | None) -> Policy:
        """The same rules, with ends of their own, allowing only what `parent` allows too; a rule of the parent's is
        numbered after all of ours."""
    def end(self, rule: int, at_ns: int) -> None:
        """Of a view: from CLOCK_BOOTTIME `at_ns` on (1: now) the rule grants nothing. Raises ValueError."""

# ---- py_names.c ----------------------------------------------------------------------------------------------------

class Names:
    """Pins and led sockets of one run (native/names.h). The ports: where our DNS server and the relay listen on
    127.0.0.1 and ::1, 0 for none. relayed: AK_RELAY_*, which connections go to the relay (with no relay:
    are refused). above: of the agent that started this one. Thread-safe."""

    def __init__(
        self,
        udp4: int,
        udp6: int,
        tcp4: int,
        tcp6: int,
        relay4: int = 0,
        relay6: int = 0,
        relayed: int = 0,
        above: Names | None = None,
    ) -> None: ...
    def pin(self, address: bytes, name: str | bytes, seconds: int, rules: bytes) -> None:
        """`address` (16 bytes, IPv4 as mapped IPv6) was handed out for `name`; 2^32-1 seconds: as long as the run.
        rules: packed struct ak_pin_rule. Raises OSError(ENOSPC) when too many addresses are pinned."""
    def led_udp(self, inode: int) -> tuple[int, int, int, bytes, bool] | None:
        """(tgid, tid, system call, the sockaddr it was meant for, whether a rule on a name allowed it) of a socket that
        was led to the DNS server."""
    def claim_tcp(self, port: int) -> tuple[int, int, int, bytes, bool] | None:
        """The same of the connection from this local port; each can be claimed once."""

    def spend(self) -> None:
        """The budget of bytes is spent: nothing more is let out."""

class Pump:
    """Moves bytes between pairs of connected sockets on a thread of its own (native/pump.h)."""

    def __init__(self, limit: int, over_fd: int) -> None:
        """limit: bytes in all (2^64-1: none), past which every pair is cut and the eventfd over_fd written."""
    def add(self, a: int, b: int) -> None:
        """Takes both descriptors over. Raises OSError (EDQUOT: over the limit); then they were reset."""
    def moved(self) -> int: ...
    def close(self) -> None: ...

# ---- py_enforce.c --------------------------------------------------------------------------------------------------

class Ring:
    """The event ring of native/ring.h over an open file; the one reader is Python."""

    def __init__(self, fd: int, size: int, run: bytes) -> None: ...
    def read(self, max_bytes: int) -> bytes:
        """Whole records (struct ak_event + strings, no padding records), without consuming them; b"" when empty."""
    def consume(self, n_bytes: int) -> None:
        """Gives the space of the first n_bytes returned by the last read() back (they are durable in the log now)."""
    def wait(self, timeout_ms: int) -> bool:
        """Blocks (GIL released) until a record is there or the time is over."""
    def put(
        self,
        op: int,
        decision: int,
        need: int,
        tgid: int,
        tid: int,
        nr: int,
        error: int,
        rule: int,
        arg: int,
        target: bytes,
        target2: bytes,
    ) -> None:
        """An event from the Python side (ptrace stops). Raises OSError(EPIPE) once shut."""
    def shut(self) -> None: ...
    def close(self) -> None: ...

class Enforcer:
    """Judges and carries out trapped system calls for one run (native/enforce.h)."""

    def __init__(
        self,
        policy: Policy,
        ring: Ring,
        *,
        main_pid: int,
        tracer_tid: int,
        flags: int,
        refusals: bytes,
        names: bytes = b"",
    ) -> None:
        """refusals: packed (u32 nr, u32 errno) pairs for this architecture, the refusal table; any number with neither
        a handler nor an entry is answered ENOSYS and recorded. names: 32 bytes for each number from 0, for those
        entries. tracer_tid: 0 when nothing traces. flags: FLAG_*."""
    def start(self, listener_fd: int, threads: int) -> None:
        """Takes the seccomp listener over and starts the notify threads (they inherit the calling thread's credentials,
        then empty their own capability sets)."""
    def serve(self, tid: int, arch: int, nr: int, args: Sequence[int], may_block: bool) -> tuple[int, int, int, bool]:
        """For a ptrace stop: (OUTCOME_*, value, fd or -1, cloexec). OUTCOME_LATER, only without may_block: ask again,
        with may_block, on a thread that can wait."""
    def set_kernel_reads(self, bits: bytes) -> None:
        """One little-endian bit for each rule that Landlock enforces exactly for reading: such opens are left to the
        kernel. Once, before start() or the first serve()."""
    def use_names(self, names: Names) -> None:
        """Judge connects through these pins, too, and lead port 53 to their DNS server. Once, before the first call."""
    def may_exec(self, path: bytes) -> bool:
        """Would execve of the object with this canonical path be allowed (dynamic linkers: by an exact rule only)?"""
    def accepted(self, tid: int, nr: int, fd: int) -> None:
        """Record that accept or accept4 (its number) is about to give a stopped task this descriptor. Raises
        PermissionError when the ring is shut."""
    def next_upcall(self, timeout_ms: int) -> tuple[int, int, int, int, bytes, int, int] | None:
        """What only Python can answer: (cookie, tid, tgid, nr, request, resp_cap, flags); today the prctl door of the
        authority calls. Several threads may wait here. None on timeout; raises EOFError once stopped."""
    def reply(self, cookie: int, value: int, body: bytes) -> bool:
        """Writes body to the caller's buffer (cut at resp_cap, NUL-terminated when there is room) and returns value
        from its call. False when the caller is gone. A body that cannot be written makes the call return -EFAULT."""
    def stop(self) -> None:
        """Ends the threads; every later notification is refused by the closed listener (ENOSYS)."""
    def counters(self) -> dict[str, int]: ...

OUTCOME_RESULT: int
OUTCOME_CONTINUE: int
OUTCOME_INSTALL_FD: int
OUTCOME_LATER: int

FLAG_STRICT_METADATA: int
FLAG_EXEC_CONTINUE: int  # exec is verified after the fact (ptrace) or Landlock is exact for exec: CONTINUE is safe
FLAG_FDS_BY_PIDFD: int  # pidfd_getfd works here (not in containers)

# ---- py_launch.c ---------------------------------------------------------------------------------------------------

def landlock_abi() -> int: ...
def landlock_create_ruleset(handled_fs: int, handled_net: int, scoped: int) -> int: ...
def landlock_add_path(ruleset_fd: int, rights: int, path_fd: int) -> None: ...
def landlock_add_port(ruleset_fd: int, rights: int, port: int) -> None: ...
def gettid() -> int: ...
def process_write(tid: int, address: int, data: bytes) -> int: ...
def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int: ...

class Child:
    """A launched child between clone and exec. All methods must be called on the launching thread."""

    pid: int
    def ready(self) -> None:
        """Waits until the child can be seized. Raises LaunchError."""
    def go(self) -> int:
        """Lets the child, now seized, confine itself and go on to its execve, which the listener or tracer must answer;
        the listener's descriptor, or -1 when its filter has none. Raises LaunchError."""
    def failure(self) -> tuple[int, str] | None:
        """(errno, step) of a child that ended before its program began; None when it got there."""

class LaunchError(Exception):
    """args: (errno, message, step), step being one of native/launch.c's names, e.g. "landlock", "execve"."""

def launch(
    *,
    exec_path: bytes,
    argv: tuple[bytes, ...],
    envp: tuple[bytes, ...],
    cwd_fd: int,
    stdio: tuple[int, int, int],
    keep_fds: tuple[int, ...],
    ruleset_fd: int,
    bpf: bytes,
    filter_flags: int,
    limits: tuple[tuple[int, int, int], ...],
    tty_fd: int,
    drop_ids: tuple[int, int] | None,
    outer_rulesets: tuple[int, ...],
) -> Child:
    """Clones a child that waits to be seized (native/launch.h). keep_fds ascending and above 2; a standard stream of -1
    stays closed; limits are (RLIMIT_*, soft, hard); drop_ids is (uid, gid) for a supervisor that is root."""

STOP_NOTHING: int
STOP_SYSCALL: int
STOP_SECCOMP: int
STOP_EXEC: int
STOP_STOPPED: int
STOP_MAIN_EXIT: int
STOP_ALL_GONE: int
STOP_TOO_MANY: int
STOP_ACCEPTED: int

class Tracer:
    """The wait loop of native/tracer.h. One thread seizes, waits and resumes; kill, count and cpu_ns may come from
    any."""

    count: int
    def __init__(
        self,
        trapped: bytes,
        trace_seccomp: bool,
        max_processes: int = 0,
        count_io: bool = False,
        above: Tracer | None = None,
    ) -> None:
        """trapped: one bit (little-endian) for each call number that the filter gives to the listener. max_processes:
        at one time, 0 for no limit; one more gets EAGAIN and STOP_TOO_MANY is reported. count_io: what tasks that end
        have read and written is kept for io_bytes(). above: the tracer of the agent that started this one, whose
        max_processes covers these, too."""
    def seize(self, pid: int) -> None:
        """BlockingIOError: it is one process too many, and was killed."""
    def wait(self, block: bool = True) -> tuple[int, int, int]:
        """(kind STOP_*, tid, value): value is the call number, the former tid of an exec, the stop signal or the main
        process's wait status."""
    def resume(self, tid: int, signal: int = 0) -> None: ...
    def kill(self) -> None: ...
    def answer(self, tid: int, value: int) -> None:
        """The stopped call is not made and returns value (negative: -errno); the task goes on."""
    def cpu_ns(self) -> int: ...
    def tasks(self, processes: bool = False) -> list[int]:
        """The numbers of the tasks that live; with `processes`, of their thread groups alone."""
    def io_bytes(self) -> int | None:
        """Bytes that all tasks read and wrote (/proc/PID/io), ended ones included, given count_io. None: they come and
        go too fast to be added up now."""

# ---- py_chain.c ----------------------------------------------------------------------------------------------------

class Chain:
    """Renders ring records as log lines, byte for byte as akbox.kernel.event_lines does (native/chain.h). Immutable."""

    def __init__(self, run: bytes, names: tuple[tuple[int, bytes], ...], rules: tuple[bytes, ...]) -> None:
        """names: (op, its name), ascending; rules: by rule number, as JSON strings."""
    def render(self, records: bytes, agent: bytes, seq: int, prev: bytes) -> tuple[bytes, bytes]:
        """(lines, their this_hashes of 32 bytes each) of whole records, the first of which gets number seq and follows
        prev. Works without the GIL. Raises ValueError for bytes that are no whole, consistent records."""

def scan_records(records: bytes) -> list[tuple[int, int, int]]:
    """(start, end, index) of each record that was not allowed: its bytes, and its place among the records (padding ones
    not counted). Raises ValueError for bytes that are no whole, consistent records."""

def check_lines(data: bytes, at: int, seq: int, prev: bytes, run: bytes) -> tuple[int, bytes]:
    """Checks whole lines of a log from byte `at` on: (the byte behind the last one that certainly is what the writer
    would have written, the this_hashes). It stops early at a line that is bad, or too odd for it (native/check.h).
    `seq` is the first line's number, `prev` the hash before it. Works without the GIL."""

def merkle_extend(edge: bytes, size: int, hashes: bytes) -> bytes:
    """The right edge (32 bytes for each complete subtree, largest first) of an RFC 6962 tree of size leaves, after
    hashes were appended to it."""

def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C of data, continuing crc."""

def sha256(data: bytes, *, portable: bool = False) -> bytes:
    """The C side's own SHA-256, by the processor's instructions where it has them; for tests of it."""
