/* What a program may ask of itself: tracing, prctl, filters of its own. A sandbox must outlive each of them. */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "call.h"

/* A child that waits, is attached to as a debugger would, and is ended. */
static long try_ptrace_child(char **argv)
{
	pid_t pid = fork();
	long value;

	(void)argv;
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);        /* a sandbox may kill whoever traces */
		for (;;)
			pause();
	}
	value = sys(SYS_ptrace, PTRACE_ATTACH, GARBAGE(pid), 0, 0, 0, 0);
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, __WALL);
	return value;
}

/* What programs do that want to know whether they are debugged; in a child, which ends with it. */
static long try_traceme(char **argv)
{
	pid_t pid = fork();
	int status;

	(void)argv;
	if (pid < 0)
		return -errno;
	if (pid == 0)
		_exit((int)-sys(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0, 0, 0));
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -ECHILD;
	return -WEXITSTATUS(status);
}

static long try_prctl(char **argv)
{
	return sys(SYS_prctl, GARBAGE(number(argv[1])), number(argv[2]), number(argv[3]), 0, 0, 0);
}

/* The size of its table is what prctl(PR_SET_MM) tells anybody; the rest needs privileges. */
static long try_set_mm(char **argv)
{
	unsigned size = 0;

	(void)argv;
	return sys(SYS_prctl, GARBAGE(PR_SET_MM), PR_SET_MM_MAP_SIZE, (long)&size, 0, 0, 0);
}

/* Not dumpable means out of the supervisor's sight; what counts is what the kernel says afterwards. */
static long try_hide(char **argv)
{
	long value = sys(SYS_prctl, GARBAGE(PR_SET_DUMPABLE), 0, 0, 0, 0, 0);

	(void)argv;
	return value < 0 ? value : prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
}

static long filter(struct sock_filter *code, unsigned short length, unsigned flags)
{
	struct sock_fprog program = { length, code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		return -errno;
	return sys(SYS_seccomp, GARBAGE(SECCOMP_SET_MODE_FILTER), GARBAGE(flags), (long)&program, 0, 0, 0);
}

/* A filter that allows everything, then what an earlier one refuses. */
static long try_loosen(char **argv)
{
	struct sock_filter all[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
	long value = filter(all, 1, 0);

	(void)argv;
	return value < 0 ? value : sys(SYS_unshare, CLONE_NEWUSER, 0, 0, 0, 0, 0);
}

/* A stricter one works: getppid answers EXDEV, which no kernel does. */
static long try_tighten(char **argv)
{
	struct sock_filter one[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	long value = filter(one, 4, 0);

	(void)argv;
	return value < 0 ? value : sys(SYS_getppid, 0, 0, 0, 0, 0, 0);
}

/* A listener of one's own could answer "continue" to what an outer tracer must see. */
static long try_listener(char **argv)
{
	struct sock_filter all[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };

	(void)argv;
	return filter(all, 1, SECCOMP_FILTER_FLAG_NEW_LISTENER);
}

const struct attempt control_attempts[] = {
	{ "ptrace_child", 0, try_ptrace_child },
	{ "traceme", 0, try_traceme },
	{ "prctl", 3, try_prctl },
	{ "set_mm", 0, try_set_mm },
	{ "hide", 0, try_hide },
	{ "loosen", 0, try_loosen },
	{ "tighten", 0, try_tighten },
	{ "listener", 0, try_listener },
	{ NULL, 0, NULL },
};
