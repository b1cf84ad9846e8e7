"""System calls that an agent must not reach: namespaces, mounts, other processes, kernel interfaces (P01-P19, T01).

Numbers are x86-64's; the kit's helper makes each call with garbage in the upper halves of its int arguments.
"""

from __future__ import annotations

from akbox.conformance.model import AUTO, Case, Control, Entry, Expect, call, ok, refused, sh

NAMESPACE = Control("namespace")
NEW = {
    "NEWTIME": 0x80,
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}
NEWUSER = NEW["NEWUSER"]
UNSHARE, CLONE, CLONE3, SETNS = 272, 56, 435, 308


def reaches_kernel(*errnos: str) -> Control:
    """Bare, as the machine's root, with arguments that change nothing: the kernel itself answers, not with EPERM."""
    return Control("root", exit=None, errnos=errnos)


NAMESPACES = [
    *(
        Case(f"P01-{name}", f"unshare(CLONE_{name})", call("unshare", hex(flag | NEWUSER)), refused(UNSHARE))
        for name, flag in NEW.items()
    ),
    Case("P01-tool", "unshare(1)", ("unshare", "--user", "true"), refused(UNSHARE)),
    *(
        Case(f"P02-{name}", f"clone with CLONE_{name}", call("clone", hex(flag | NEWUSER)), refused(CLONE))
        for name, flag in NEW.items()
        if name != "NEWTIME"  # shares its bit with the exit signal: not for clone(2)
    ),
    Case("P02-clone3", "clone3", call("clone3", hex(NEWUSER)), refused(CLONE3, ("ENOSYS",))),
    Case("P03-setns", "setns", call("setns", "self", hex(NEW["NEWNS"])), refused(SETNS), NAMESPACE),
    Case(
        "P03-tool",
        "nsenter",
        ("nsenter", "--mount=/proc/self/ns/mnt", "true"),
        Expect(errnos=("EACCES", "EPERM"), entry=Entry()),
        NAMESPACE,
    ),
]

# (case, attempt and arguments, number)
MOUNTS = [
    ("P04", ("mount", "{W}/d"), 165),
    ("P04", ("umount2", "{W}/d"), 166),
    ("P04", ("pivot_root", "{W}/d"), 155),
    ("P04", ("chroot", "{W}"), 161),
    ("P05", ("fsopen",), 430),
    ("P05", ("fsmount",), 432),
    ("P05", ("move_mount", "{W}/d", "{W}/d"), 429),
    ("P05", ("open_tree", "{W}/d"), 428),
    ("P05", ("mount_setattr", "{W}/d"), 442),
]
OTHERS: list[tuple[str, str, tuple[str, ...], int]] = [
    ("P07", "ptrace_attach", (), 101),
    ("P07", "ptrace_seize", (), 101),
    ("P09", "pidfd_getfd", ("0",), 438),
]
MEMORY = [("P08", ("process_vm_readv",), 310), ("P08", ("process_vm_writev",), 311)]

PROCESSES = [
    *(Case(f"{case}-{words[0]}", words[0], call(*words), refused(nr), NAMESPACE) for case, words, nr in MOUNTS),
    *(
        Case(f"{case}-{name}", f"{name} of a host process", call(name, "{HP}", *fd), refused(nr))
        for case, name, fd, nr in OTHERS
    ),
    *(
        Case(f"{case}-{name}-parent", f"{name} of the parent", sh(f"{{K}}/try_call {name} $PPID {' '.join(fd)}"),
             refused(nr), control=None)
        for case, name, fd, nr in OTHERS
    ),
    *(
        Case(f"{case}-{words[0]}", f"{words[0]} of a host process", call(*words, "{HP}", "{HPADDR}"), refused(nr))
        for case, words, nr in MEMORY
    ),
    *(
        Case(f"{case}-{words[0]}-parent", f"{words[0]} of the parent",
             sh(f"{{K}}/try_call {words[0]} $PPID {{HPADDR}}"), refused(nr), control=None)
        for case, words, nr in MEMORY
    ),
    Case("P10", "memory of a host process", call("proc_mem", "{HP}"),
         Expect(errnos=("EACCES", "EPERM"), entry=Entry("fs.open", "/proc/*/mem"))),
    Case("P10-parent", "memory of the parent", sh("{K}/try_call proc_mem $PPID"),
         Expect(errnos=("EACCES", "EPERM", "ENOENT"), entry=Entry("fs.open", "/proc/*/mem")), control=None),
    Case("P10-self", "one's own, for writing", sh("exec 3<>/proc/self/mem"),
         Expect(errnos=("EACCES", "EPERM"), entry=Entry("fs.open", "/proc/self/mem"))),
    Case("P10-signal", "signal a host process", call("kill", "{HP}", "0"), Expect(errnos=("EPERM", "ESRCH"))),
    Case("P10-pidfd", "by pidfd", call("pidfd_send_signal", "{HP}", "0"), Expect(errnos=("EPERM", "ESRCH", "EBADF"))),
    Case("P10-prlimit", "set limits of a host process", call("prlimit64", "{HP}"), Expect(errnos=("EPERM", "ESRCH"))),
    Case("P10-nice", "renice a host process", call("setpriority", "{HP}"), Expect(errnos=("EPERM", "ESRCH")),
         after_control=None),
    Case("P10-affinity", "move a host process", call("sched_setaffinity", "{HP}"), Expect(errnos=("EPERM", "ESRCH"))),
    Case("P10-kcmp", "compare with a host process", call("kcmp", "{HP}"), refused(312)),
    Case("P10-parent-kill", "signal the supervisor", sh("kill -9 $PPID; echo alive"), ok("alive"), control=None),
]  # fmt: skip

# (case, attempt, number, errnos inside, control)
KERNEL = [
    ("P13", ("io_uring_setup",), 425, ("EPERM", "ENOSYS"), Control()),
    ("P13", ("io_uring_enter",), 426, ("EPERM", "ENOSYS"), Control(exit=1, errnos=("EBADF",))),
    ("P13", ("io_uring_register",), 427, ("EPERM", "ENOSYS"), Control(exit=1, errnos=("EBADF",))),
    ("P15", ("bpf",), 321, ("EPERM",), Control("root")),
    ("P15", ("perf_event_open",), 298, ("EPERM",), Control()),
    ("P15", ("userfaultfd",), 323, ("EPERM",), Control()),
    ("P15", ("add_key",), 248, ("EPERM",), Control()),
    ("P15", ("request_key",), 249, ("EPERM",), Control(exit=1, errnos=("ENOKEY",))),
    ("P15", ("keyctl",), 250, ("EPERM",), Control()),
    ("P15", ("modify_ldt",), 154, ("EPERM",), Control()),
    ("P15", ("iopl",), 172, ("EPERM",), Control(exit=(0, 1), errnos=())),
    ("P15", ("quotactl_fd",), 443, ("EPERM",), Control(exit=1, errnos=("EBADF", "EINVAL"))),
    ("P15", ("clock_settime",), 227, ("EPERM",), Control(exit=1, errnos=("EINVAL",))),
    ("P15", ("adjtimex",), 159, ("EPERM",), reaches_kernel("EINVAL")),
    # In a pid namespace of its own rebooting ends that namespace: the helper is its init and dies of a signal.
    ("P15", ("reboot", "0x1234567"), 169, ("EPERM",), Control("namespace", exit=(129, 130, 137, 1, -1, -9))),
    ("P18", ("personality", "8"), 135, ("EPERM",), Control()),
    ("P18", ("personality", "0x400000"), 135, ("EPERM",), Control()),
]
# By number with harmless arguments, as (name, number, six arguments, errnos of the kernel to root).
BY_NUMBER = [
    ("kexec_load", 246, "0 1 0 0xffffffff 0 0", ("EINVAL", "EPERM", "EFAULT", "ENOSYS")),
    ("kexec_file_load", 320, "-1 -1 0 0 0 0", ("EBADF", "ENOSYS")),
    ("init_module", 175, "0 0 0 0 0 0", ("ENOEXEC", "EFAULT", "ENOSYS")),
    ("finit_module", 313, "-1 0 0 0 0 0", ("EBADF", "EFAULT", "ENOSYS")),
    ("delete_module", 176, "0 0x800 0 0 0 0", ("EFAULT", "ENOSYS")),
    ("quotactl", 179, "-1 0 0 0 0 0", ("EINVAL",)),
    ("acct", 163, "1 0 0 0 0 0", ("EFAULT", "ENOSYS")),
    ("swapon", 167, "1 0 0 0 0 0", ("EFAULT",)),
    ("swapoff", 168, "1 0 0 0 0 0", ("EFAULT",)),
    ("sethostname", 170, "0 -1 0 0 0 0", ("EINVAL",)),
    ("syslog", 103, "-1 0 0 0 0 0", ("EINVAL",)),
    ("ioperm", 173, "-1 1 0 0 0 0", ("EINVAL", "ENOSYS")),
    ("settimeofday", 164, "1 0 0 0 0 0", ("EFAULT",)),
    ("move_pages", 279, "1 0 0 0 0 -1", ("EINVAL",)),
    ("shmget", 29, "0 0 0 0 0 0", ("EINVAL",)),
    ("mq_open", 240, "1 0 0 0 0 0", ("EFAULT",)),
]

KERNEL_CASES = [
    *(
        Case(f"{case}-{'-'.join(words)}", words[0], call(*words), refused(nr, errnos), control)
        for case, words, nr, errnos, control in KERNEL
    ),
    *(
        Case(
            f"P15-{name}",
            name,
            call("number", str(nr), *arguments.split()),
            refused(nr),
            reaches_kernel(*answers),
            interposers=AUTO,
        )
        for name, nr, arguments, answers in BY_NUMBER
    ),
    Case("P16", "the 32-bit entry", call("int80"), Expect(exit=(1, 128 + 31, 128 + 11)), Control(stdout="ok")),
    Case("P17", "an x32 number", call("x32", "39"), Expect(exit=1, errnos=("ENOSYS",), entry=Entry()),
         Control(exit=(0, 1))),
    Case("P18-query", "asking for the personality", call("personality", "0xffffffff"), ok("ok 0")),
    Case("P19", "an unknown number", call("number", "600", *["-1"] * 6),
         Expect(exit=1, errnos=("ENOSYS",), entry=Entry(nr=600)), Control(exit=1, errnos=("ENOSYS",))),
    Case("P19-high", "a number past every table", call("number", "0x7fffffff", *["0"] * 6),
         Expect(exit=1, errnos=("ENOSYS",), entry=Entry()), Control(exit=1, errnos=("ENOSYS",))),
    Case("P20", "newer calls that are safe", call("newer_calls"),
         ok("membarrier ok\nrseq EINVAL\nfutex_waitv EFAULT\nclose_range ok\ncachestat EBADF\nmseal ok\ngetrandom ok\n"
            "sched_getattr EINVAL\npidfd_open ok\nmemfd_create ok\n"),
         Control(stdout="mseal ok"), interposers=AUTO),
]  # fmt: skip

TIOCSTI, TIOCLINUX, TIOCSETD, TIOCCONS = "0x5412", "0x541c", "0x5423", "0x541d"
TERMINAL = [
    *(
        Case(f"T01-{name}{tail}", f"{name} {high}", call("ioctl", "0", number, high),
             refused(16), control, terminal=True)
        for name, number, control in (
            ("TIOCSTI", TIOCSTI, Control()),
            ("TIOCLINUX", TIOCLINUX, Control(exit=1, errnos=("ENOTTY", "EINVAL"))),
            ("TIOCSETD", TIOCSETD, Control(exit=(0, 1))),
            ("TIOCCONS", TIOCCONS, Control(exit=(0, 1))),
        )
        for high, tail in (("plain", ""), ("garbage", "-high"))
    ),
]  # fmt: skip

CASES = [*NAMESPACES, *PROCESSES, *KERNEL_CASES, *TERMINAL]
