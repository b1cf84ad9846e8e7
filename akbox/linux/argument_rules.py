"""Which arguments let a call pass in the kernel that is otherwise refused or trapped.

Every rule only ever *allows*: a call passes when one of its rules matches, and what no rule allows goes to the
supervisor. So the order of rules means nothing, and a rule that is lost closes something instead of opening it.

A filter sees 64-bit registers where the kernel takes an int. Each comparison therefore names its mask: INT for the
arguments that the kernel cuts to 32 bits, so that garbage in the upper half changes nothing (CVE-2019-10063 was a
missing mask), POINTER for whole registers.
"""

from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct

INT = 0xFFFF_FFFF
POINTER = 0xFFFF_FFFF_FFFF_FFFF


class Match(NamedTuple):
    """`args[arg] & mask == value`."""

    arg: int
    mask: int
    value: int


Rule = tuple[Match, ...]  # all must hold
Rules = tuple[Rule, ...]  # one must hold


class FilterPlan(Struct, frozen=True):
    """What the filter must know of the host and the policy; equal plans give equal filters.

    arch: "x86_64" or "aarch64". strict_metadata: fs.metadata = "strict". reads_in_kernel: audit.level = "writes" and
    Landlock holds every read rule exactly. listings_in_kernel: it judges every listing as the policy does (both:
    kernel_opens.py). traced: a tracer serves the authority numbers. notify: a listener serves the rest (else the tracer
    does). landlock: a domain is on. signals_scoped: and it scopes signals (ABI 6). names: the policy has rules on
    names. accepts: a tracer records accepted connections.
    """

    arch: str
    strict_metadata: bool = False
    reads_in_kernel: bool = False
    listings_in_kernel: bool = False
    traced: bool = True
    notify: bool = True
    landlock: bool = True
    signals_scoped: bool = True
    names: bool = False
    accepts: bool = False


def rules_for(name: str, plan: FilterPlan) -> Rules:
    """The exceptions of call `name` under `plan`; empty when its action in the table stands for all arguments."""
    make = _MAKERS.get(name)
    return make(plan) if make is not None else ()


def aligned_ranges(low: int, high: int) -> list[tuple[int, int]]:
    """[low, high] as the fewest (bits, value) pairs with `x & ~bits == value`: aligned blocks of 2^k numbers."""
    blocks = []
    while low <= high:
        size = low & -low if low else 1 << high.bit_length()
        while low + size - 1 > high:
            size >>= 1
        blocks.append((size - 1, low))
        low += size
    return blocks


def _one_of(arg: int, values: tuple[int, ...], mask: int = INT) -> Rules:
    return tuple((Match(arg, mask, value),) for value in values)


# ---- files -----------------------------------------------------------------------------------------------------------

_O_ACCMODE, _O_CREAT, _O_TRUNC, _O_APPEND = 0o3, 0o100, 0o1000, 0o2000
_O_PATH, _TMPFILE_BIT = 0o10000000, 0o20000000  # O_TMPFILE is this bit and O_DIRECTORY
_O_DIRECTORY = {"x86_64": 0o200000, "aarch64": 0o40000}
_CHANGES = _O_ACCMODE | _O_CREAT | _O_TRUNC | _O_APPEND | _TMPFILE_BIT


def _open(flags_arg: int) -> Callable[[FilterPlan], Rules]:
    def rules(plan: FilterPlan) -> Rules:
        """O_PATH gives no contents (the kernel ignores O_CREAT and its like beside it)."""
        if plan.strict_metadata:
            return ()
        by_path = (Match(flags_arg, _O_PATH, _O_PATH),)
        if not plan.landlock:
            return (by_path,)
        if plan.reads_in_kernel:
            return (by_path, (Match(flags_arg, _O_PATH | _CHANGES, 0),))
        if not plan.listings_in_kernel:
            return (by_path,)
        directory = _O_DIRECTORY[plan.arch]
        return (by_path, (Match(flags_arg, _O_PATH | _CHANGES | directory, directory),))

    return rules


def _fcntl(plan: FilterPlan) -> Rules:
    """F_SETLEASE (1024) and F_SETDELEG (1040) stall openers. Owner and signal of a descriptor (8, 10, 15) send signals
    past the kill family; Landlock's scope covers them, where there is none they are refused."""
    allowed = [(0, 1023)] if plan.signals_scoped else [(0, 7), (9, 9), (11, 14), (16, 1023)]
    return _in_ranges(1, INT, [*allowed, (1025, 1039)])


# The low 16 bits of an ioctl command are its type and number; direction and size above them do not change what it does.
_IOCTL_TRAPPED: tuple[tuple[int, int], ...] = (
    (0x5412, 0x5412),  # TIOCSTI: types into the terminal (CVE-2017-5226)
    (0x541C, 0x541D),  # TIOCLINUX: pastes into a console (CVE-2023-1523); TIOCCONS
    (0x5423, 0x5423),  # TIOCSETD: loads line disciplines
    (0x5441, 0x5441),  # TIOCGPTPEER: not refused, but done by the enforcer (native/call_pty.c)
    (0x5800, 0x581E),  # 'X': FS_IOC_FSSETXATTR and XFS calls work on read-only descriptors of one's own files;
    (0x5820, 0x58FF),  #      FS_IOC_FSGETXATTR (1f) only reads
    (0x6600, 0x6600),  # 'f': FS_IOC_SETFLAGS, verity and encryption set attributes through read-only descriptors;
    (0x6602, 0x660A),  #      GETFLAGS (01), FIEMAP (0b) and FS_IOC_MEASURE_VERITY (86) only read
    (0x660C, 0x6685),
    (0x6687, 0x66FF),
    (0x7200, 0x72FF),  # 'r': FAT attributes
    (0x7600, 0x7600),  # 'v': FS_IOC_SETVERSION; GETVERSION (01) only reads
    (0x7602, 0x76FF),
    (0x9400, 0x9408),  # btrfs makes, deletes and changes subvolumes through a directory opened for listing;
    (0x940A, 0x940C),  #      FICLONE (09), FICLONERANGE (0d) and FIDEDUPERANGE (36) need the right descriptors
    (0x940E, 0x9435),
    (0x9437, 0x94FF),
    (0xF500, 0xF5FF),  # f2fs
)
_IOCTL_OWNER = (0x8901, 0x8902)  # FIOSETOWN, SIOCSPGRP: as F_SETOWN


def _ioctl(plan: FilterPlan) -> Rules:
    refused = _IOCTL_TRAPPED if plan.signals_scoped else (*_IOCTL_TRAPPED, _IOCTL_OWNER)
    allowed, start = [], 0
    for low, high in sorted(refused):
        if start < low:
            allowed.append((start, low - 1))
        start = high + 1
    return _in_ranges(1, 0xFFFF, [*allowed, (start, 0xFFFF)])


def _in_ranges(arg: int, mask: int, ranges: list[tuple[int, int]]) -> Rules:
    return tuple(
        (Match(arg, mask & ~bits, value),) for low, high in ranges for bits, value in aligned_ranges(low, high)
    )


# ---- sockets ---------------------------------------------------------------------------------------------------------

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_STREAM, _SOCK_DGRAM = 1, 2
_TYPE = INT & ~0o2004000  # without SOCK_CLOEXEC and SOCK_NONBLOCK
_MSG_FASTOPEN = 0x2000_0000


def _socket(plan: FilterPlan) -> Rules:
    """AF_UNIX; TCP and UDP by their default or own protocol (so no MPTCP, which passes Landlock, no SCTP, no UDP-Lite,
    no ICMP, no raw); routing netlink, which getifaddrs and getaddrinfo need."""
    del plan
    unix = (Match(0, INT, _AF_UNIX),)
    routing = (Match(0, INT, _AF_NETLINK), Match(2, INT, 0))
    return (
        unix,
        routing,
        *(
            (Match(0, INT, family), Match(1, _TYPE, kind), Match(2, INT, protocol))
            for family in (_AF_INET, _AF_INET6)
            for kind, protocols in ((_SOCK_STREAM, (0, 6)), (_SOCK_DGRAM, (0, 17)))
            for protocol in protocols
        ),
    )


def _sendto(plan: FilterPlan) -> Rules:
    """No address: the peer was judged by connect. MSG_FASTOPEN connects by itself, past Landlock before 6.18.54."""
    del plan
    return ((Match(3, _MSG_FASTOPEN, 0), Match(4, POINTER, 0)),)


def _recvfrom(plan: FilterPlan) -> Rules:
    """No address is asked for, so none has to be set right."""
    del plan
    return ((Match(4, POINTER, 0),),)


_SOL_IP, _SOL_SOCKET, _SOL_IPV6 = 0, 1, 41
_SO_PASSRIGHTS = 83  # Linux 6.16
_IP_OPTIONS = 4
_IPV6_ROUTING = (5, 6, 55, 57, 59)  # 2292RTHDR, 2292PKTOPTIONS, RTHDRDSTOPTS, RTHDR, DSTOPTS (home address)


def _setsockopt(plan: FilterPlan) -> Rules:
    """Every option but those that put a route of the sender's choice into the header (RFC 791, RFC 3542), and the one
    that would let a host program's socket pass descriptors again (native/call_net.c)."""
    del plan
    levels = _in_ranges(1, INT, [(_SOL_SOCKET + 1, _SOL_IPV6 - 1), (_SOL_IPV6 + 1, INT)])
    of_socket = _in_ranges(2, INT, _all_but((_SO_PASSRIGHTS,)))
    of_ip = _in_ranges(2, INT, _all_but((_IP_OPTIONS,)))
    of_ipv6 = _in_ranges(2, INT, _all_but(_IPV6_ROUTING))
    return (
        *levels,
        *((Match(1, INT, _SOL_SOCKET), *rule) for rule in of_socket),
        *((Match(1, INT, _SOL_IP), *rule) for rule in of_ip),
        *((Match(1, INT, _SOL_IPV6), *rule) for rule in of_ipv6),
    )


def _all_but(values: tuple[int, ...]) -> list[tuple[int, int]]:
    """The ranges of 32-bit numbers between `values` (ascending)."""
    ranges, start = [], 0
    for value in values:
        if start < value:
            ranges.append((start, value - 1))
        start = value + 1
    return [*ranges, (start, INT)]


# ---- processes -------------------------------------------------------------------------------------------------------

_CLONE_NAMESPACES = 0x7E02_0000  # NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; NEWTIME is clone3's alone
_CLONE_UNTRACED, _CLONE_PARENT = 0x0080_0000, 0x8000
_UNSHARE_OWN = 0x0005_0F00  # VM, FS, FILES, SIGHAND, THREAD, SYSVSEM: only the caller's own sharing
_PERSONALITIES = (0, 0xFFFF_FFFF, 0x0040000)  # PER_LINUX, the query, ADDR_NO_RANDOMIZE (gdb, sbcl, setarch -R)
_NEW_LISTENER = 8


def _clone(plan: FilterPlan) -> Rules:
    """The kernel takes the lower 32 bits. CLONE_PARENT would make a child of the supervisor's, outside the tree."""
    del plan
    return ((Match(0, _CLONE_NAMESPACES | _CLONE_UNTRACED | _CLONE_PARENT, 0),),)


def _unshare(plan: FilterPlan) -> Rules:
    del plan
    return ((Match(0, INT & ~_UNSHARE_OWN, 0),),)


def _personality(plan: FilterPlan) -> Rules:
    del plan
    return _one_of(0, _PERSONALITIES)


def _seccomp(plan: FilterPlan) -> Rules:
    """More filters only tighten, but for one: USER_NOTIF is stronger than TRACE, so an agent with a listener of its own
    could answer CONTINUE to what a ptrace-only supervisor must see."""
    del plan
    return ((Match(1, _NEW_LISTENER, 0),),)


def _own_pid(plan: FilterPlan) -> Rules:
    """Task 0 is the caller itself."""
    del plan
    return ((Match(0, INT, 0),),)


def _setpriority(plan: FilterPlan) -> Rules:
    """PRIO_PROCESS 0 is the caller; PRIO_PGRP 0 and PRIO_USER 0 can include the supervisor."""
    del plan
    return ((Match(0, INT, 0), Match(1, INT, 0)),)


def _ioprio_set(plan: FilterPlan) -> Rules:
    """As setpriority; IOPRIO_WHO_PROCESS is 1."""
    del plan
    return ((Match(0, INT, 1), Match(1, INT, 0)),)


# What a program may ask for itself without a second thought, as ranges. Left out, so trapped: SET_DUMPABLE (4) and
# SET_PTRACER blind the supervisor or open up to others, SET_SECUREBITS (28), SET_MM (35) forges /proc/self, CAP_AMBIENT
# (47), SET_IO_FLUSHER (57), SCHED_CORE (62) names other tasks, SET_MEMORY_MERGE (67), the door of the authority calls
# (0x414b0000 | nr), and whatever comes later.
_PRCTL_OWN = (
    (1, 3),  # PDEATHSIG, GET_DUMPABLE
    (
        5,
        27,
    ),  # UNALIGN, KEEPCAPS, FPEMU, FPEXC, TIMING, NAME, ENDIAN, SECCOMP, CAPBSET (drops only), TSC, GET_SECUREBITS
    (29, 34),  # TIMERSLACK, TASK_PERF_EVENTS, MCE_KILL
    (36, 46),  # CHILD_SUBREAPER, NO_NEW_PRIVS, GET_TID_ADDRESS, THP_DISABLE, MPX, FP_MODE
    (50, 56),  # SVE, SPECULATION_CTRL, PAC_RESET_KEYS, TAGGED_ADDR_CTRL
    (58, 61),  # GET_IO_FLUSHER, SYSCALL_USER_DISPATCH, PAC_ENABLED_KEYS
    (63, 66),  # SME, MDWE
    (68, 68),  # GET_MEMORY_MERGE
    (74, 79),  # SHADOW_STACK, TIMER_CREATE_RESTORE_IDS, FUTEX_HASH, RSEQ_SLICE_EXTENSION
    (0x4155_5856, 0x4155_5856),  # GET_AUXV
    (0x5356_4D41, 0x5356_4D41),  # SET_VMA: names for anonymous memory
)


def _prctl(plan: FilterPlan) -> Rules:
    del plan
    return _in_ranges(0, INT, list(_PRCTL_OWN))


_MAKERS: dict[str, Callable[[FilterPlan], Rules]] = {
    "open": _open(1),
    "openat": _open(2),
    "fcntl": _fcntl,
    "ioctl": _ioctl,
    "socket": _socket,
    "socketpair": lambda plan: _one_of(0, (_AF_UNIX,)),
    "sendto": _sendto,
    "recvfrom": _recvfrom,
    "setsockopt": _setsockopt,
    "clone": _clone,
    "unshare": _unshare,
    "personality": _personality,
    "seccomp": _seccomp,
    "prctl": _prctl,
    "setpriority": _setpriority,
    "ioprio_set": _ioprio_set,
    **dict.fromkeys(
        (
            "prlimit64",
            "sched_setparam",
            "sched_setscheduler",
            "sched_setaffinity",
            "sched_setattr",
            "migrate_pages",
            "move_pages",
            "get_robust_list",
        ),
        _own_pid,
    ),
}
