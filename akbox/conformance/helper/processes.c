/* Reaching into another process: tracing, its memory, its descriptors. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "call.h"

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif

/* "parent" is whoever started us: inside a sandbox, for its first process, that is akbox's own side. */
static pid_t target(const char *text)
{
	return strcmp(text, "parent") == 0 ? getppid() : (pid_t)number(text);
}

/* The tracee is only borrowed: detached again, so that a control leaves it running. */
static long borrow(long request, pid_t pid)
{
	long value = sys(SYS_ptrace, request, GARBAGE(pid), 0, 0, 0, 0);
	int status;

	if (value < 0)
		return value;
	if (request == PTRACE_SEIZE && ptrace(PTRACE_INTERRUPT, pid, 0, 0) != 0)
		return -errno;
	(void)waitpid(pid, &status, __WALL);
	(void)ptrace(PTRACE_DETACH, pid, 0, 0);
	return value;
}

static long try_ptrace_attach(char **argv)
{
	return borrow(PTRACE_ATTACH, target(argv[1]));
}

static long try_ptrace_seize(char **argv)
{
	return borrow(PTRACE_SEIZE, target(argv[1]));
}

static long move_memory(long nr, char **argv)
{
	char bytes[8] = { 0 };
	struct iovec local = { bytes, sizeof bytes }, remote = { (void *)number(argv[2]), sizeof bytes };

	if (nr == SYS_process_vm_writev) {      /* write back what is there, so that a control changes nothing */
		(void)process_vm_readv(target(argv[1]), &local, 1, &remote, 1, 0);
	}
	return sys(nr, GARBAGE(target(argv[1])), (long)&local, 1, (long)&remote, 1, 0);
}

static long try_process_vm_readv(char **argv)
{
	return move_memory(SYS_process_vm_readv, argv);
}

static long try_process_vm_writev(char **argv)
{
	return move_memory(SYS_process_vm_writev, argv);
}

static long try_pidfd_getfd(char **argv)
{
	long pidfd = sys(SYS_pidfd_open, GARBAGE(target(argv[1])), GARBAGE(0), 0, 0, 0, 0);

	return sys(SYS_pidfd_getfd, GARBAGE(pidfd), GARBAGE(number(argv[2])), GARBAGE(0), 0, 0, 0);
}

static long try_kcmp(char **argv)
{
	return sys(SYS_kcmp, GARBAGE(getpid()), GARBAGE(target(argv[1])), GARBAGE(0), 0, 0, 0);
}

static long try_proc_mem(char **argv)
{
	char path[64];
	int fd;

	(void)snprintf(path, sizeof path, "/proc/%d/mem", (int)target(argv[1]));
	fd = open(path, O_RDWR | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static long try_kill(char **argv)
{
	return sys(SYS_kill, GARBAGE(target(argv[1])), GARBAGE(number(argv[2])), 0, 0, 0, 0);
}

static long try_pidfd_send_signal(char **argv)
{
	long pidfd = sys(SYS_pidfd_open, target(argv[1]), 0, 0, 0, 0, 0);

	return sys(SYS_pidfd_send_signal, GARBAGE(pidfd), GARBAGE(number(argv[2])), 0, GARBAGE(0), 0, 0);
}

static long try_prlimit64(char **argv)
{
	uint64_t limit[2] = { 0, 0 };

	return sys(SYS_prlimit64, GARBAGE(target(argv[1])), GARBAGE(4 /* RLIMIT_CORE */), (long)limit, 0, 0, 0);
}

static long try_setpriority(char **argv)
{
	return sys(SYS_setpriority, GARBAGE(0), GARBAGE(target(argv[1])), GARBAGE(19), 0, 0, 0);
}

static long try_sched_setaffinity(char **argv)
{
	uint64_t mask[16] = { ~0ULL };

	return sys(SYS_sched_setaffinity, GARBAGE(target(argv[1])), GARBAGE(sizeof mask), (long)mask, 0, 0, 0);
}

const struct attempt process_attempts[] = {
	{ "ptrace_attach", 1, try_ptrace_attach },
	{ "ptrace_seize", 1, try_ptrace_seize },
	{ "process_vm_readv", 2, try_process_vm_readv },
	{ "process_vm_writev", 2, try_process_vm_writev },
	{ "pidfd_getfd", 2, try_pidfd_getfd },
	{ "kcmp", 1, try_kcmp },
	{ "proc_mem", 1, try_proc_mem },
	{ "kill", 2, try_kill },
	{ "pidfd_send_signal", 2, try_pidfd_send_signal },
	{ "prlimit64", 1, try_prlimit64 },
	{ "setpriority", 1, try_setpriority },
	{ "sched_setaffinity", 1, try_sched_setaffinity },
	{ NULL, 0, NULL },
};
