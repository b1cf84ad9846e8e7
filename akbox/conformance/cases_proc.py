"""/proc, /sys, /dev, akbox's own files, and what a program gains or inherits (R01-R11, P21-P29, P45, P46)."""

from __future__ import annotations

import os
from pathlib import Path

from akbox.conformance.engine import Result
from akbox.conformance.model import AUTO, Case, Control, Entry, Expect, call, deny, ok, py, require, sh
from akbox.conformance.world import World

HIDDEN = ("EACCES", "EPERM", "ENOENT")
PROC: dict[str, object] = {"fs.read": ["/proc/**", "/sys/**"], "fs.write": ["/proc/**", "/sys/**"]}
ROOT_ONLY = Control("root")


def opened(path: str) -> Entry:
    return Entry("fs.open", path)


HOST_PROCESS = [
    *(
        Case(f"R01-{name}", f"/proc/HP/{name}, with /proc/** granted", ("cat", f"/proc/{{HP}}/{name}"),
             Expect(errnos=HIDDEN, entry=opened(f"/proc/{{HP}}/{name}")), policy=PROC)
        for name in ("environ", "cmdline", "maps", "status", "mountinfo")
    ),
    Case("R01-mem", "/proc/HP/mem", call("proc_mem", "{HP}"), Expect(errnos=HIDDEN, entry=opened("/proc/{HP}/mem")),
         policy=PROC),
    Case("R01-fd", "/proc/HP/fd", ("cat", "/proc/{HP}/fd/0"), Expect(errnos=HIDDEN), policy=PROC),
    Case("R01-exe", "/proc/HP/exe", sh("cat /proc/{HP}/exe | wc -c | grep -v '^0$'"), Expect(), policy=PROC),
    Case("R01-cwd", "/proc/HP/cwd", ("cat", "/proc/{HP}/cwd/etc/shadow-"), Expect(errnos=HIDDEN), control=None,
         policy=PROC),
    Case("R01-task", "/proc/HP/task", ("cat", "/proc/{HP}/task/{HP}/environ"), Expect(errnos=HIDDEN), policy=PROC),
    Case("R01-self", "one's own is there", sh("cat /proc/self/status /proc/$$/status | grep -c ^Name"), ok("2"),
         policy=PROC),
    Case("R01-child", "and that of a child",
         py("from subprocess import PIPE, Popen\np = Popen(['cat'], stdin=PIPE, stdout=PIPE)\n"
            "p.stdin.write(b'x'); p.stdin.flush(); p.stdout.read(1)\n"
            "print(open(f'/proc/{p.pid}/cmdline').read().split(chr(0))[0]); p.stdin.close(); p.wait()"),
         ok("cat"), policy=PROC),
    Case("R04-oom", "oom_score_adj", sh("echo 500 > /proc/self/oom_score_adj"),
         Expect(errnos=HIDDEN, entry=Entry("fs.open"))),
    Case("R04-oom-preset", "under the default preset", sh("echo 500 > /proc/self/oom_score_adj"),
         Expect(errnos=HIDDEN, entry=Entry("fs.open")), preset="default"),
    Case("R04-uid_map", "uid_map", py("open('/proc/self/uid_map', 'w')"),
         Expect(errnos=HIDDEN, entry=Entry("fs.open"))),
    Case("R04-sys", "/proc/sys, even if granted", py("open('/proc/sys/kernel/core_pattern', 'w')"),
         Expect(errnos=HIDDEN, entry=opened("/proc/sys/kernel/core_pattern")), ROOT_ONLY, policy=PROC),
    Case("R04-sysrq", "/proc/sysrq-trigger", py("open('/proc/sysrq-trigger', 'w')"), Expect(errnos=HIDDEN),
         ROOT_ONLY if Path("/proc/sysrq-trigger").exists() else None, policy=PROC),
    Case("R09-net", "/sys/class/net", ("ls", "/sys/class/net"), Expect(errnos=HIDDEN), Control(stdout="lo")),
    Case("R09-net-file", "a file of it", sh("cat /sys/class/net/lo/address"), Expect(errnos=HIDDEN)),
    Case("R09-cgroup", "a cgroup file, even if granted",
         py("import glob; open(sorted(glob.glob('/sys/fs/cgroup/**/cgroup.procs', recursive=True))[0], 'w')"),
         Expect(), Control("root"), policy=PROC),
    Case("R09-cgroup-mkdir", "a cgroup of one's own", ("mkdir", "/sys/fs/cgroup/akbox-kit"),
         Expect(errnos=(*HIDDEN, "EROFS")), control=None, policy=PROC),
]  # fmt: skip

# (device, how it is opened); which of them there are depends on the machine.
DANGEROUS = [
    ("kvm", "O_RDWR"),
    ("fuse", "O_RDWR"),
    ("mem", "O_RDONLY"),
    ("port", "O_RDONLY"),
    ("kmsg", "O_RDONLY"),
    ("tty1", "O_RDONLY"),
    ("input/event0", "O_RDONLY"),
    ("video0", "O_RDWR"),
    ("vda", "O_RDONLY"),
    ("sda", "O_RDONLY"),
    ("net/tun", "O_RDWR"),
    ("loop-control", "O_RDWR"),
    ("vhost-vsock", "O_RDWR"),
]
FUSE: dict[str, object] = {"fs.read": ["/dev/fuse"], "fs.write": ["/dev/fuse"]}
ALL_DEVICES: dict[str, object] = {"fs.read": ["/dev/**"], "fs.write": ["/dev/**"]}
DEVICES = [
    *(
        Case(f"R10-{name.replace('/', '-')}", f"/dev/{name} under the default preset",
             py(f"import os; os.open('/dev/{name}', os.{mode})"),
             Expect(errnos=("EACCES", "EPERM"), entry=opened(f"/dev/{name}")), None, preset="default")
        for name, mode in DANGEROUS
        if Path(f"/dev/{name}").exists()
    ),
    *(
        case
        for case in (
            Case("R10-wide", "one that is granted with all of /dev", py("import os; os.open('/dev/fuse', os.O_RDWR)"),
                 deny("fs.open", "/dev/fuse"), policy=ALL_DEVICES),
            Case("R10-exact", "and by its exact path", py("import os; os.open('/dev/fuse', os.O_RDWR)"), ok(),
                 policy=FUSE),
        )
        if os.access("/dev/fuse", os.R_OK | os.W_OK) and os.stat("/dev/fuse").st_mode & 0o006 == 0o006
    ),
]  # fmt: skip


def _program_in_w(world: World) -> None:
    for name in ("mynode", "target"):
        data = (world.helpers / "seven").read_bytes()
        path = world.W / name
        path.write_bytes(data)
        path.chmod(0o755)
        os.chown(path, world.uid, world.uid)


def _identity(world: World, capability: bytes | None) -> None:
    """A copy of `identity` that belongs to root: set-uid, or with a file capability. Only root can make one."""
    path = world.R / "identity"
    path.write_bytes((world.helpers / "identity").read_bytes())
    os.chown(path, 0, 0)
    path.chmod(0o4755 if capability is None else 0o755)
    if capability is not None:
        os.setxattr(path, "security.capability", capability)


# struct vfs_cap_data, version 2, effective: CAP_NET_RAW (13).
NET_RAW = bytes.fromhex("01000002" + "00200000" + "00000000" * 3)
EXEC_R: dict[str, object] = {"fs.exec": ["{R}/**"]}
LOADERS = "a loader is never run by name, though it is read and mapped by every program"
LOADER = "/lib64/ld-linux-x86-64.so.2"
NO_CAPS = "".join(f"Cap{name}:\t0000000000000000\n" for name in ("Inh", "Prm", "Eff"))

EXECUTION = [
    Case("P21", "memfd_create and fexecve", call("memfd_exec", "{K}/seven"),
         Expect(exit=1, errnos=("EACCES", "EPERM"), entry=Entry("exec")), Control(exit=77)),
    Case("P21-execveat", "execveat of what may run", call("execveat", "{K}/seven"), Expect(exit=77), Control(exit=77)),
    Case("P23", "the loader, with a program that may not run", (LOADER, "{W}/mynode"),
         Expect(exit=(126, 127, 1), entry=Entry()), Control(exit=77), prepare=_program_in_w, beyond=LOADERS),
    Case("P23-shell", "and from a shell", sh(f"{LOADER} {{W}}/mynode"),
         Expect(exit=(126, 127, 1), entry=Entry()), Control(exit=77), prepare=_program_in_w, beyond=LOADERS),
    Case("P24", "a copy of a program in W", sh("cp {K}/seven {W}/copy && {W}/copy"),
         Expect(exit=126, errnos=("EACCES",), entry=Entry("exec", "{W}/copy")), Control(exit=77)),
    Case("P24-script", "a script in W", sh("printf '#!/bin/sh\\nexit 77\\n' > {W}/s; chmod +x {W}/s; {W}/s"),
         Expect(exit=126, errnos=("EACCES",), entry=Entry("exec", "{W}/s")), Control(exit=77)),
    Case("P24-shebang", "a script whose interpreter may not run",
         sh("printf '#!{W}/mynode\\n' > {W}/s2; chmod +x {W}/s2; {W}/s2"),
         Expect(exit=126, errnos=("EACCES",), entry=Entry("exec")), Control(exit=77),
         policy={"fs.exec": ["{W}/s2"]}, prepare=_program_in_w),
    Case("P24-granted", "where W may be executed it runs", sh("cp {K}/seven {W}/copy && {W}/copy"),
         Expect(exit=77), Control(exit=77), policy={"fs.exec": ["{W}/**"]}),
    Case("P28", "no capabilities", ("{K}/identity",), ok(NO_CAPS), control=None),
    Case("P27-no-new-privs", "no new privileges", ("{K}/identity",), ok("NoNewPrivs:\t1"),
         Control(stdout="NoNewPrivs:\t0")),
]  # fmt: skip

# A file that root owns and that gives privileges can only be made by root; the user who runs it must not be root.
GAINS = [
    Case("P27", "a set-uid program", ("{R}/identity",), ok(f"uid 65534 euid 65534\n{NO_CAPS}"),
         Control(stdout="uid 65534 euid 0"), policy=EXEC_R, prepare=lambda world: _identity(world, None),
         users=("user",), needs_root=True),
    Case("P27-su", "su", sh("su -c true </dev/null"), Expect(), control=None),
    Case("P29", "file capabilities", ("{R}/identity",), ok(NO_CAPS), Control(stdout="CapEff:\t0000000000002000"),
         policy=EXEC_R, prepare=lambda world: _identity(world, NET_RAW), users=("user",), needs_root=True),
]  # fmt: skip


def _own_state_unchanged(world: World, result: Result) -> None:
    require((world.STATE / "akbox").is_dir(), str(result))
    require(not list(world.W.glob("akbox.*")), str(result))


STATE: dict[str, object] = {"fs.read": ["{STATE}/**"], "fs.write": ["{STATE}/**"]}
OWN_FILES = [
    Case("R11-log", "read the log, with its directory granted", sh("cat {STATE}/akbox/runs/*/audit.jsonl"),
         Expect(errnos=HIDDEN), control=None, policy=STATE, check=_own_state_unchanged),
    Case("R11-write", "write it", sh("for f in {STATE}/akbox/runs/*/audit.jsonl; do echo x >> $f; done"),
         Expect(), control=None, policy=STATE),
    Case("R11-list", "list the runs", ("ls", "{STATE}/akbox/runs"), deny("fs.open", "{STATE}/akbox/runs", HIDDEN),
         control=None, policy=STATE),
    Case("R11-move", "move the state away", ("mv", "{STATE}/akbox", "{STATE}/z"), Expect(errnos=HIDDEN), control=None,
         policy=STATE, check=_own_state_unchanged),
    Case("R11-policy", "leave a policy for the next run", sh("echo > {W}/akbox.toml"),
         deny("fs.open", "{W}/akbox.toml"), control=None, check=_own_state_unchanged),
    Case("R11-policy-json", "or one in JSON, by renaming", ("mv", "{W}/ok", "{W}/akbox.json"), deny("fs.rename"),
         control=None, check=_own_state_unchanged),
    Case("R11-policy-below", "or in a directory below", sh("mkdir {W}/sub; echo > {W}/sub/akbox.toml"),
         deny("fs.open", "{W}/sub/akbox.toml"), control=None),
]  # fmt: skip

RUNNING = [
    Case("P34", "vfork and exec, over and over", call("vfork_exec", "/bin/true", "50"), ok("ok 50"), timeout_s=120),
    Case("P34-python", "subprocess, which uses vfork",
         py("import subprocess\nfor i in range(20): subprocess.run(['/bin/true'], check=True)"), ok(), timeout_s=120),
    Case("P02-threads", "threads and posix_spawn", py(
        "import os, threading\nt = [threading.Thread(target=lambda: None) for i in range(20)]\n"
        "[x.start() for x in t]; [x.join() for x in t]\n"
        "p = os.posix_spawn('/bin/true', ['true'], {}); print(os.waitpid(p, 0)[1])"), ok("0")),
    Case("P41-threads", "a thousand threads", call("threads", "1000"), ok("ok 1000"), timeout_s=120,
         policy={"limits.pids": 60}),
    Case("P41-storm", "forks up to the limit", call("fork_storm", "400"), Expect(exit=1, errnos=("EAGAIN",)),
         Control(exit=0), policy={"limits.pids": 60}, timeout_s=120),
    Case("P41-after", "and the run goes on after it",
         sh("{K}/try_call fork_storm 400; {K}/try_call fork_storm 20 && echo fine"), ok("fine"), control=None,
         policy={"limits.pids": 60}, interposers=AUTO, timeout_s=120),
]  # fmt: skip

CASES = [*HOST_PROCESS, *DEVICES, *EXECUTION, *GAINS, *OWN_FILES, *RUNNING]
