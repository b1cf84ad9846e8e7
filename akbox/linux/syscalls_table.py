"""Every system call of x86-64 and arm64 by name and number, grouped by what happens to it and why. Only data.

It is not the decision itself: argument_rules.py says which arguments make an exception, syscalls.py joins both for a
plan.

Sources: arch/x86/entry/syscalls/syscall_64.tbl and scripts/syscall.tbl of Linux up to 7.0. A number that is not here is
unknown: it is answered ENOSYS and recorded, so a call that a later kernel adds is closed until somebody has read about
it.
"""

import errno
from enum import IntEnum
from typing import NamedTuple


class Action(IntEnum):
    """What becomes of a call whose arguments no rule of argument_rules.py allows."""

    ALLOW = 0  # the kernel carries it out
    REFUSE = 1  # the enforcer records it and answers with the errno beside it
    TRAP = 2  # a handler of the enforcer judges it
    METADATA = 3  # ALLOW, but TRAP under fs.metadata = "strict"
    SIGNAL = 4  # ALLOW where Landlock scopes signals, else TRAP
    RECEIVE = 5  # ALLOW, but TRAP where the policy has rules on names
    ACCEPT = 6  # the kernel carries it out; what came of it is recorded


class Group(NamedTuple):
    """Calls that share an action and the reason for it; `calls` is "name x86-64 arm64; …", "-" where there is none."""

    action: Action
    errno: int
    reason: str
    calls: str


GROUPS: tuple[Group, ...] = (
    Group(
        Action.ALLOW,
        0,
        "acts on descriptors that are already open",
        """
        read 0 63; write 1 64; close 3 57; lseek 8 62; pread64 17 67; pwrite64 18 68; readv 19 65; writev 20 66;
        preadv 295 69; pwritev 296 70; preadv2 327 286; pwritev2 328 287; dup 32 23; dup2 33 -; dup3 292 24; pipe 22 -;
        pipe2 293 59; poll 7 -; ppoll 271 73; select 23 -; pselect6 270 72; flock 73 32; fsync 74 82; fdatasync 75 83;
        sync_file_range 277 84; sync 162 81; syncfs 306 267; ftruncate 77 46; fallocate 285 47; fadvise64 221 223;
        readahead 187 213; getdents 78 -; getdents64 217 61; sendfile 40 71; splice 275 76; tee 276 77;
        vmsplice 278 75; copy_file_range 326 285; close_range 436 436; fstat 5 80; fstatfs 138 44; fgetxattr 193 10;
        flistxattr 196 13; fchdir 81 50; cachestat 451 451; epoll_create 213 -; epoll_create1 291 20; epoll_ctl 233 21;
        epoll_wait 232 -; epoll_pwait 281 22; epoll_pwait2 441 441; eventfd 284 -; eventfd2 290 19; signalfd 282 -;
        signalfd4 289 74; timerfd_create 283 85; timerfd_settime 286 86; timerfd_gettime 287 87; inotify_init 253 -;
        inotify_init1 294 26; inotify_rm_watch 255 28; io_setup 206 0; io_destroy 207 1; io_getevents 208 4;
        io_pgetevents 333 292; io_submit 209 2; io_cancel 210 3; memfd_create 319 279
        """,
    ),
    Group(
        Action.ALLOW,
        0,
        "acts on sockets that are already connected, or only says what a socket is",
        """
        shutdown 48 210; getsockname 51 204; getpeername 52 205; getsockopt 55 209
        """,
    ),
    Group(
        Action.ACCEPT,
        0,
        "the listener was judged when it was bound; who comes has an entry",
        "accept 43 202; accept4 288 242",
    ),
    Group(
        Action.RECEIVE,
        0,
        "receives; under rules on names the replies of akbox's DNS server get the source that is expected",
        "recvfrom 45 207; recvmsg 47 212; recvmmsg 299 243",
    ),
    Group(
        Action.ALLOW,
        0,
        "the caller's own memory",
        """
        mmap 9 222; mprotect 10 226; munmap 11 215; mremap 25 216; msync 26 227; mincore 27 232; madvise 28 233;
        brk 12 214; mlock 149 228; mlock2 325 284; munlock 150 229; mlockall 151 230; munlockall 152 231;
        remap_file_pages 216 234; pkey_mprotect 329 288; pkey_alloc 330 289; pkey_free 331 290; mseal 462 462;
        map_shadow_stack 453 453; mbind 237 235; set_mempolicy 238 237; get_mempolicy 239 236;
        set_mempolicy_home_node 450 450; membarrier 324 283
        """,
    ),
    Group(
        Action.ALLOW,
        0,
        "the caller's own threads, children and signals",
        """
        fork 57 -; vfork 58 -; exit 60 93; exit_group 231 94; wait4 61 260; waitid 247 95; set_tid_address 218 96;
        set_robust_list 273 99; rseq 334 293; rseq_slice_yield 471 471; futex 202 98; futex_waitv 449 449;
        futex_wake 454 454; futex_wait 455 455; futex_requeue 456 456; rt_sigaction 13 134; rt_sigprocmask 14 135;
        rt_sigreturn 15 139; rt_sigpending 127 136; rt_sigtimedwait 128 137; rt_sigsuspend 130 133;
        sigaltstack 131 132; restart_syscall 219 128; pause 34 -; setpgid 109 154; getpgid 121 155; getpgrp 111 -;
        setsid 112 157; getsid 124 156; getpid 39 172; getppid 110 173; gettid 186 178; pidfd_open 434 434;
        sched_yield 24 124; arch_prctl 158 -; uretprobe 335 -; uprobe 336 -
        """,
    ),
    Group(
        Action.ALLOW,
        0,
        "clocks and timers of the caller; setting the host's clock is refused",
        """
        nanosleep 35 101; clock_nanosleep 230 115; clock_gettime 228 113; clock_getres 229 114; gettimeofday 96 169;
        time 201 -; times 100 153; alarm 37 -; getitimer 36 102; setitimer 38 103; timer_create 222 107;
        timer_settime 223 110; timer_gettime 224 108; timer_getoverrun 225 109; timer_delete 226 111
        """,
    ),
    Group(
        Action.ALLOW,
        0,
        "tells the caller about itself or the machine",
        """
        uname 63 160; sysinfo 99 179; getrusage 98 165; getrlimit 97 163; getcpu 309 168; getrandom 318 278;
        getpriority 140 141; ioprio_get 252 31; sched_getparam 143 121; sched_getscheduler 145 120;
        sched_get_priority_max 146 125; sched_get_priority_min 147 126; sched_rr_get_interval 148 127;
        sched_getaffinity 204 123; sched_getattr 315 275; getcwd 79 17; umask 95 166; ustat 136 -; sysfs 139 -;
        lsm_get_self_attr 459 459; lsm_list_modules 461 461
        """,
    ),
    Group(
        Action.ALLOW,
        0,
        "no more than the caller has: it holds no capability, and no_new_privs keeps it so",
        """
        getuid 102 174; geteuid 107 175; getgid 104 176; getegid 108 177; getgroups 115 158; getresuid 118 148;
        getresgid 120 150; setuid 105 146; setgid 106 144; setreuid 113 145; setregid 114 143; setresuid 117 147;
        setresgid 119 149; setfsuid 122 151; setfsgid 123 152; setgroups 116 159; capget 125 90; capset 126 91;
        setrlimit 160 164
        """,
    ),
    Group(
        Action.ALLOW,
        0,
        "a program may confine itself further",
        "landlock_create_ruleset 444 444; landlock_add_rule 445 445; landlock_restrict_self 446 446",
    ),
    Group(
        Action.METADATA,
        0,
        'names and attributes of files, no contents; trapped under fs.metadata = "strict"',
        """
        stat 4 -; lstat 6 -; newfstatat 262 79; statx 332 291; access 21 -; faccessat 269 48; faccessat2 439 439;
        readlink 89 -; readlinkat 267 78; statfs 137 43; chdir 80 49; getxattr 191 8; lgetxattr 192 9;
        getxattrat 464 464; listxattr 194 11; llistxattr 195 12; listxattrat 465 465
        """,
    ),
    Group(
        Action.SIGNAL,
        0,
        "may only reach the run's own processes: by Landlock's signal scope, else by the enforcer",
        """
        kill 62 129; tkill 200 130; tgkill 234 131; rt_sigqueueinfo 129 138; rt_tgsigqueueinfo 297 240;
        pidfd_send_signal 424 424
        """,
    ),
    Group(
        Action.TRAP,
        0,
        "opens a file by name",
        "open 2 -; openat 257 56; openat2 437 437; creat 85 -",
    ),
    Group(
        Action.TRAP,
        0,
        "starts a program",
        "execve 59 221; execveat 322 281",
    ),
    Group(
        Action.TRAP,
        0,
        "changes a directory's entries",
        """
        unlink 87 -; unlinkat 263 35; rename 82 -; renameat 264 38; renameat2 316 276; mkdir 83 -; mkdirat 258 34;
        rmdir 84 -; link 86 -; linkat 265 37; symlink 88 -; symlinkat 266 36; mknod 133 -; mknodat 259 33;
        truncate 76 45
        """,
    ),
    Group(
        Action.TRAP,
        0,
        "changes attributes, which Landlock does not cover",
        """
        chmod 90 -; fchmod 91 52; fchmodat 268 53; fchmodat2 452 452; chown 92 -; fchown 93 55; lchown 94 -;
        fchownat 260 54; utime 132 -; utimes 235 -; futimesat 261 -; utimensat 280 88; setxattr 188 5; lsetxattr 189 6;
        fsetxattr 190 7; setxattrat 463 463; removexattr 197 14; lremovexattr 198 15; fremovexattr 199 16;
        removexattrat 466 466
        """,
    ),
    Group(
        Action.TRAP,
        0,
        "tells when others use a file, which Landlock does not cover",
        "inotify_add_watch 254 27",
    ),
    Group(
        Action.TRAP,
        0,
        "reaches another machine, another program or a port",
        "connect 42 203; bind 49 200; listen 50 201; sendto 44 206; sendmsg 46 211; sendmmsg 307 269",
    ),
    Group(
        Action.TRAP,
        0,
        "acts on the caller in ways that could blind the supervisor, or is the door of the authority calls",
        "prctl 157 167",
    ),
    Group(
        Action.TRAP,
        0,
        "acts on other processes' scheduling or limits",
        """
        prlimit64 302 261; setpriority 141 140; sched_setparam 142 118; sched_setscheduler 144 119;
        sched_setaffinity 203 122; sched_setattr 314 274; ioprio_set 251 30
        """,
    ),
    Group(
        Action.REFUSE,
        errno.EACCES,
        "only unix, TCP, UDP and routing sockets can be held to a policy; every other family or protocol goes round it",
        "socket 41 198; socketpair 53 199",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "source routes lead a packet elsewhere than to the address that was judged",
        "setsockopt 54 208",
    ),
    Group(
        Action.TRAP,
        0,
        "terminal injection, line disciplines, file flags and subvolumes change things no policy is asked about",
        "ioctl 16 29",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "leases stall whoever opens the file, the supervisor included",
        "fcntl 72 25",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "new namespaces, or a child that leaves the tree or its tracer",
        "clone 56 220",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "new namespaces give capabilities inside and a wide kernel surface",
        "unshare 272 97",
    ),
    Group(
        Action.REFUSE,
        errno.ENOSYS,
        "its flags are in memory and cannot be judged by a filter; the C libraries fall back to clone",
        "clone3 435 435",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "other execution domains change how numbers and addresses are understood",
        "personality 135 92",
    ),
    Group(
        Action.REFUSE,
        errno.EBUSY,
        "a listener of the agent's own could answer for the supervisor; one listener per process tree",
        "seccomp 317 277",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "acts on pages or robust lists of other processes",
        "migrate_pages 256 238; move_pages 279 239; get_robust_list 274 100",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "joins a namespace of another process",
        "setns 308 268",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "changes what the file system looks like",
        """
        mount 165 40; umount2 166 39; pivot_root 155 41; chroot 161 51; open_tree 428 428; open_tree_attr 467 467;
        move_mount 429 429; fsopen 430 430; fsconfig 431 431; fsmount 432 432; fspick 433 433; mount_setattr 442 442
        """,
    ),
    Group(
        Action.REFUSE,
        errno.ENOSYS,
        "shows the host's mounts and namespaces; libraries fall back to /proc",
        "statmount 457 457; listmount 458 458; listns 470 470",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "reaches into another process",
        """
        ptrace 101 117; process_vm_readv 310 270; process_vm_writev 311 271; pidfd_getfd 438 438;
        process_madvise 440 440; process_mrelease 448 448; kcmp 312 272
        """,
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "carries out calls that no filter sees",
        "io_uring_setup 425 425; io_uring_enter 426 426; io_uring_register 427 427",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "programs and events inside the kernel",
        "bpf 321 280; perf_event_open 298 241",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "stalls the kernel, and whoever reads the caller's memory, at a page of the caller's choice",
        "userfaultfd 323 282",
    ),
    Group(
        Action.REFUSE,
        errno.ENOSYS,
        "memory that the supervisor cannot read; the same answer as a kernel without it",
        "memfd_secret 447 447",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "keyrings are shared by all programs of a user and can hand over credentials",
        "add_key 248 217; request_key 249 218; keyctl 250 219",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "opens or names files by handle, past every name",
        "name_to_handle_at 303 264; open_by_handle_at 304 265",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "watches or answers for other programs' file accesses",
        "fanotify_init 300 262; fanotify_mark 301 263",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "sets file flags and project ids, which no policy describes",
        "file_setattr 469 469",
    ),
    Group(
        Action.REFUSE,
        errno.ENOSYS,
        "the newer form of an ioctl that only reads; programs fall back to that",
        "file_getattr 468 468",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "System V objects have no name that a policy could judge and outlive the run",
        """
        shmget 29 194; shmat 30 196; shmctl 31 195; shmdt 67 197; semget 64 190; semop 65 193; semctl 66 191;
        semtimedop 220 192; msgget 68 186; msgsnd 69 189; msgrcv 70 188; msgctl 71 187
        """,
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "message queues are shared with every program of the user",
        """
        mq_open 240 180; mq_unlink 241 181; mq_timedsend 242 182; mq_timedreceive 243 183; mq_notify 244 184;
        mq_getsetattr 245 185
        """,
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "loads or replaces kernel code",
        "init_module 175 105; finit_module 313 273; delete_module 176 106; kexec_load 246 104; kexec_file_load 320 294",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "administers the machine",
        """
        reboot 169 142; swapon 167 224; swapoff 168 225; acct 163 89; quotactl 179 60; quotactl_fd 443 443;
        sethostname 170 161; setdomainname 171 162; vhangup 153 58; syslog 103 116
        """,
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "sets the host's clock",
        "settimeofday 164 170; clock_settime 227 112; adjtimex 159 171; clock_adjtime 305 266",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "input and output ports, and code segments of other modes",
        "iopl 172 -; ioperm 173 -; modify_ldt 154 -",
    ),
    Group(
        Action.REFUSE,
        errno.EPERM,
        "changes the attributes that other security modules judge by",
        "lsm_set_self_attr 460 460",
    ),
    Group(
        Action.REFUSE,
        errno.ENOSYS,
        "gone from, or never in, the kernel; refused by name so that the number cannot come back unnoticed",
        """
        uselib 134 -; _sysctl 156 -; create_module 174 -; get_kernel_syms 177 -; query_module 178 -; nfsservctl 180 42;
        getpmsg 181 -; putpmsg 182 -; afs_syscall 183 -; tuxcall 184 -; security 185 -; set_thread_area 205 -;
        get_thread_area 211 -; lookup_dcookie 212 18; epoll_ctl_old 214 -; epoll_wait_old 215 -; vserver 236 -
        """,
    ),
)
