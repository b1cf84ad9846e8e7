"""The table is complete, and says what the design's refusal list says."""

import errno
import json
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest

from akbox.linux.argument_rules import aligned_ranges
from akbox.linux.syscalls import (
    ARCHES,
    FilterPlan,
    Outcome,
    calls,
    decide,
    decisions,
    falls_back,
    name_of,
    number_of,
    reason_of,
    refusals,
)
from akbox.linux.syscalls_table import Action

X86 = FilterPlan("x86_64")
ARM = FilterPlan("aarch64")
GARBAGE = 0xDEAD_BEEF_0000_0000
NEVER_TRAPPED = "close fork vfork wait4 waitid mmap munmap mprotect brk read write futex exit_group rt_sigreturn"
REFUSED = """
unshare setns mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr bpf
io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key userfaultfd perf_event_open init_module
finit_module delete_module kexec_load kexec_file_load pidfd_getfd process_vm_readv process_vm_writev process_madvise
ptrace quotactl swapon swapoff reboot acct settimeofday clock_settime adjtimex clock_adjtime iopl ioperm modify_ldt
open_by_handle_at name_to_handle_at fanotify_init fanotify_mark kcmp shmget semget msgget mq_open vhangup sethostname
setdomainname memfd_secret clone3 file_setattr open_tree_attr statmount
"""


def outcome(name: str, *args: int, plan: FilterPlan = X86) -> Outcome:
    nr = number_of(plan.arch, name)
    assert nr is not None
    return decide(plan, ARCHES[plan.arch], nr, [*args, *[GARBAGE] * (6 - len(args))])


def header_numbers(*paths: str) -> dict[str, int]:
    for path in paths:
        if Path(path).exists():
            found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", Path(path).read_text(), re.M)
            return {name: int(nr) for name, nr in found if name not in ("syscalls", "arch_specific_syscall")}
    raise AssertionError(f"none of {paths}: the C library's headers are needed (apt install libc6-dev)")


def test_every_call_of_the_x86_64_header_is_in_the_table() -> None:
    here = header_numbers("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h")
    for name, nr in here.items():
        assert decisions(X86)[nr].name == name


def test_every_call_of_the_generic_header_is_in_the_arm64_table() -> None:
    """asm-generic/unistd.h also numbers calls of 32-bit machines (403-423) and one alias."""
    aliases = {"fstatat": "newfstatat", "sync_file_range2": "sync_file_range"}
    for name, nr in header_numbers("/usr/include/asm-generic/unistd.h").items():
        if not 403 <= nr <= 423:
            assert decisions(ARM)[nr].name == aliases.get(name, name)


def test_the_running_kernel_has_no_call_that_the_table_lacks() -> None:
    """Bare, as an ordinary user, with arguments that no call can do anything with: only ENOSYS may come of a
    number that the table does not have."""
    script = (
        "import ctypes, json, sys\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.syscall.restype = ctypes.c_long\n"
        "known = set(json.loads(sys.argv[1]))\n"
        "for nr in [*range(336, 424), *range(424, 1024)]:\n if nr in known: continue\n"
        " bad = [ctypes.c_long(-1)] * 6\n"
        " if libc.syscall(ctypes.c_long(nr), *bad) != -1 or ctypes.get_errno() != 38: print(nr)"
    )
    plan = FilterPlan(os.uname().machine)
    become = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] if os.geteuid() == 0 else []
    command = [*become, "/usr/bin/python3", "-I", "-S", "-c", script, json.dumps(sorted(decisions(plan)))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == ""


NEWEST = """
451 cachestat 452 fchmodat2 453 map_shadow_stack 454 futex_wake 455 futex_wait 456 futex_requeue 457 statmount
458 listmount 459 lsm_get_self_attr 460 lsm_set_self_attr 461 lsm_list_modules 462 mseal 463 setxattrat 464 getxattrat
465 listxattrat 466 removexattrat 467 open_tree_attr 468 file_getattr 469 file_setattr 470 listns 471 rseq_slice_yield
"""


@pytest.mark.parametrize("plan", [X86, ARM])
def test_calls_that_older_headers_lack(plan: FilterPlan) -> None:
    """The same on both architectures, as the kernel has numbered all calls since 424."""
    words = NEWEST.split()
    for nr, name in zip(words[::2], words[1::2], strict=True):
        assert decisions(plan)[int(nr)].name == name


@pytest.mark.parametrize("plan", [X86, ARM])
def test_numbers_are_unique_and_reach_the_newest_call(plan: FilterPlan) -> None:
    numbers = [number_of(plan.arch, name) for name in calls()]
    present = [nr for nr in numbers if nr is not None]
    assert len(present) == len(set(present)) == len(decisions(plan))
    assert set(range(424, 472)) <= set(present)


def test_every_refusal_has_an_errno_and_everything_a_reason() -> None:
    for call in calls().values():
        assert (call.errno in errno.errorcode) == (call.action is Action.REFUSE)
        assert len(call.reason) > 10


def test_calls_that_must_work_or_that_cannot_be_restarted_are_never_trapped() -> None:
    """A trapped call that the supervisor has not received yet can be interrupted by a signal."""
    for name in NEVER_TRAPPED.split():
        assert outcome(name) is Outcome.ALLOW
    assert outcome("clone", 0x3D0F00) is Outcome.ALLOW  # pthread_create
    assert outcome("clone", GARBAGE | 0x1200011) is Outcome.ALLOW  # fork
    assert outcome("clone", 0x4111) is Outcome.ALLOW  # posix_spawn: CLONE_VM | CLONE_VFORK


@pytest.mark.parametrize("name", REFUSED.split())
def test_refusal_list(name: str) -> None:
    assert decide(X86, ARCHES["x86_64"], number_of("x86_64", name) or -1, [2**64 - 1] * 6) is Outcome.SUPERVISOR
    assert calls()[name].action is Action.REFUSE


def test_refusals_are_packed_for_the_enforcer() -> None:
    table = dict(struct.iter_unpack("=II", refusals(X86)))
    assert table[435] == errno.ENOSYS
    assert table[165] == errno.EPERM
    assert table[41] == errno.EACCES
    assert 257 not in table


AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
CLOEXEC_NONBLOCK = 0o2004000


@pytest.mark.parametrize(
    ("domain", "kind", "protocol", "allowed"),
    [
        (AF_UNIX, 1, 0, True),
        (AF_UNIX, 5, 0, True),
        (AF_INET, 1, 0, True),
        (AF_INET, 1, 6, True),
        (AF_INET6, 2, 0, True),
        (AF_INET6, 2, 17, True),
        (AF_NETLINK, 3, 0, True),
        (AF_INET, 1, 262, False),  # MPTCP
        (AF_INET, 1, 132, False),  # SCTP
        (AF_INET, 1, 1, False),
        (AF_INET, 2, 136, False),  # UDP-Lite
        (AF_INET, 2, 1, False),  # ping
        (AF_INET, 3, 1, False),  # raw
        (AF_INET, 6, 33, False),  # DCCP
        (AF_INET, 10, 0, False),  # SOCK_PACKET
        (AF_NETLINK, 3, 4, False),  # SOCK_DIAG
        (AF_NETLINK, 3, 9, False),  # AUDIT
        (17, 3, 0, False),
        (38, 5, 0, False),
        (40, 1, 0, False),
        (0, 1, 0, False),
    ],
)
@pytest.mark.parametrize("plan", [X86, ARM])
def test_socket_families(plan: FilterPlan, domain: int, kind: int, protocol: int, allowed: bool) -> None:
    want = Outcome.ALLOW if allowed else Outcome.SUPERVISOR
    assert outcome("socket", domain, kind, protocol, plan=plan) is want
    dirty = [GARBAGE | domain, GARBAGE | kind | CLOEXEC_NONBLOCK, GARBAGE | protocol]
    assert outcome("socket", *dirty, plan=plan) is want


TIOCSTI, TIOCLINUX, TCGETS, FIONREAD, FIOSETOWN = 0x5412, 0x541C, 0x5401, 0x541B, 0x8901


def test_ioctl() -> None:
    refused = (TIOCSTI, TIOCLINUX, 0x5423, 0x5441, 0x40086602, 0x401C5820, 0x50009401, 0x5000940E, GARBAGE | TIOCSTI)
    for command in refused:
        assert outcome("ioctl", 0, command) is Outcome.SUPERVISOR
    for command in (TCGETS, FIONREAD, 0x5413, 0x5451, 0x80086601, 0x801C581F, 0x40049409, 0x8913, GARBAGE | TCGETS):
        assert outcome("ioctl", 0, command) is Outcome.ALLOW
    unscoped = FilterPlan("x86_64", signals_scoped=False)
    assert outcome("ioctl", 0, FIOSETOWN) is Outcome.ALLOW
    assert outcome("ioctl", 0, FIOSETOWN, plan=unscoped) is Outcome.SUPERVISOR


def test_fcntl() -> None:
    refused = {cmd for cmd in range(1100) if outcome("fcntl", 0, GARBAGE | cmd) is not Outcome.ALLOW}
    assert refused == {1024, *range(1040, 1100)}
    unscoped = FilterPlan("x86_64", signals_scoped=False)
    refused = {cmd for cmd in range(20) if outcome("fcntl", 0, cmd, plan=unscoped) is not Outcome.ALLOW}
    assert refused == {8, 10, 15}


def test_prctl() -> None:
    trapped = {option for option in range(90) if outcome("prctl", GARBAGE | option) is not Outcome.ALLOW}
    assert {4, 28, 35, 47, 62} <= trapped
    assert trapped.isdisjoint({1, 15, 16, 22, 36, 38, 39, 59})
    for option in (0x414B0000, 0x414B0400, 0x414B8401, 0x59616D61):
        assert outcome("prctl", option) is Outcome.SUPERVISOR
    assert outcome("prctl", 0x53564D41) is Outcome.ALLOW


O_DIRECTORY = {"x86_64": 0o200000, "aarch64": 0o40000}


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_openat(arch: str) -> None:
    plan, directory = FilterPlan(arch, listings_in_kernel=True), O_DIRECTORY[arch]
    for flags in (directory, directory | 0o2000000, GARBAGE | directory):
        assert outcome("openat", 0, 0, flags, plan=FilterPlan(arch)) is Outcome.SUPERVISOR
    assert outcome("openat", 0, 0, directory | 0o10000000, plan=FilterPlan(arch)) is Outcome.ALLOW
    for flags in (directory, directory | 0o2000000, 0o10000000, 0o10000000 | 0o102, GARBAGE | directory):
        assert outcome("openat", 0, 0, flags, plan=plan) is Outcome.ALLOW
        assert outcome("openat", 0, 0, flags, plan=FilterPlan(arch, strict_metadata=True)) is Outcome.SUPERVISOR
    tmpfile = directory | 0o20000000
    for flags in (0, 0o101, directory | 1, directory | 0o100, directory | 0o1000, tmpfile, tmpfile | 2, directory | 3):
        assert outcome("openat", 0, 0, flags, plan=plan) is Outcome.SUPERVISOR
    reads = FilterPlan(arch, reads_in_kernel=True)
    assert outcome("openat", 0, 0, 0, plan=reads) is Outcome.ALLOW
    for flags in (1, 2, 3, 0o100, 0o1000, 0o2000, tmpfile):
        assert outcome("openat", 0, 0, flags, plan=reads) is Outcome.SUPERVISOR
    alone = FilterPlan(arch, listings_in_kernel=True, landlock=False, signals_scoped=False)
    assert outcome("openat", 0, 0, directory, plan=alone) is Outcome.SUPERVISOR
    assert outcome("openat2", plan=reads) is Outcome.SUPERVISOR


def test_processes() -> None:
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x800000, 0x8000):
        assert outcome("clone", flag | 17) is Outcome.SUPERVISOR
    assert outcome("unshare", 0x600) is Outcome.ALLOW
    assert outcome("unshare", 0x10000000) is Outcome.SUPERVISOR
    assert [outcome("personality", p) for p in (0, 0xFFFFFFFF, 0x40000)] == [Outcome.ALLOW] * 3
    assert [outcome("personality", p) for p in (8, 0x400000)] == [Outcome.SUPERVISOR] * 2
    assert outcome("seccomp", 1, 0) is Outcome.ALLOW
    assert outcome("seccomp", 1, GARBAGE | 8) is Outcome.SUPERVISOR
    for name in ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setattr", "sched_setparam"):
        assert outcome(name, GARBAGE) is Outcome.ALLOW
        assert outcome(name, 1) is Outcome.SUPERVISOR
    assert outcome("setpriority", 0, 0) is Outcome.ALLOW
    assert outcome("setpriority", 2, 0) is Outcome.SUPERVISOR
    assert outcome("ioprio_set", 3, 0) is Outcome.SUPERVISOR
    assert outcome("kill") is Outcome.ALLOW
    assert outcome("kill", plan=FilterPlan("x86_64", signals_scoped=False)) is Outcome.SUPERVISOR


def test_sendto() -> None:
    assert outcome("sendto", 3, 0, 5, 0x4000, 0, 0) is Outcome.ALLOW
    assert outcome("sendto", 3, 0, 5, GARBAGE, 0, 16) is Outcome.ALLOW
    assert outcome("sendto", 3, 0, 5, 0x20000000, 0, 0) is Outcome.SUPERVISOR
    assert outcome("sendto", 3, 0, 5, 0, 1 << 32, 16) is Outcome.SUPERVISOR
    assert outcome("sendmsg", 3, 0, 0) is Outcome.SUPERVISOR


def test_metadata_is_trapped_only_when_strict() -> None:
    strict = FilterPlan("x86_64", strict_metadata=True)
    for name in ("stat", "statx", "readlink", "access", "chdir", "getxattr"):
        assert outcome(name) is Outcome.ALLOW
        assert outcome(name, plan=strict) is Outcome.SUPERVISOR
    for name in ("fchmod", "fchown", "fsetxattr", "inotify_add_watch", "utimensat"):
        assert outcome(name) is Outcome.SUPERVISOR


def test_authority_numbers() -> None:
    arch = ARCHES["x86_64"]
    assert {decide(X86, arch, nr, [0] * 6) for nr in range(1024, 1045)} == {Outcome.SIGSYS}
    assert {decide(X86, arch, nr, [0] * 6) for nr in range(1045, 1101)} == {Outcome.SUPERVISOR}
    untraced = FilterPlan("x86_64", traced=False)
    assert {decide(untraced, arch, nr, [0] * 6) for nr in range(1024, 1101)} == {Outcome.SUPERVISOR}


def test_names_and_reasons() -> None:
    assert name_of("x86_64", 165) == "mount"
    assert name_of("aarch64", 40) == "mount"
    assert name_of("x86_64", 600) == "syscall 600"
    assert name_of("x86_64", 1024) == "authority call 1024"
    assert "file system" in reason_of("x86_64", 165)
    assert "ENOSYS" in reason_of("x86_64", 600)
    assert number_of("aarch64", "open") is None


def test_refusals_that_programs_expect() -> None:
    expected = {"clone3", "memfd_secret", "statmount", "io_uring_setup", "file_getattr"}
    quiet = {d.name for nr, d in decisions(X86).items() if falls_back("x86_64", nr)}
    assert expected <= quiet
    assert quiet.isdisjoint({"mount", "socket", "ptrace", "ioctl", "openat", "read"})
    assert not falls_back("x86_64", 600)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 7), (1, 6), (5, 1000), (0x5413, 0xFFFF), (0, 0xFFFF)])
def test_aligned_ranges_cover_exactly(low: int, high: int) -> None:
    covered = [x for bits, value in aligned_ranges(low, high) for x in range(value, value + bits + 1)]
    assert covered == list(range(low, high + 1))


def test_an_unknown_architecture_is_an_error() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        decisions(FilterPlan("riscv64"))
