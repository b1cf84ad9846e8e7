/* Calls that reach other processes (signals, scheduling, limits) and the prctl options that could blind the supervisor.
 *
 * Signals are trapped only where Landlock cannot scope them. What is judged here is in registers, which nobody can
 * change, so a call that is let through may be CONTINUEd; what lies behind a pointer (siginfo, limits, masks) is not
 * judged. A number could mean another process by the time the kernel uses it only if the agent reaped it and the
 * whole range of numbers went round in between; such a signal would still need the same uid. Not for exec or clone.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "behalf.h"

#define PIDFD_SELF_THREAD (-10000)              /* Linux 6.14 */
#define PIDFD_SELF_THREAD_GROUP (-10001)
#define PIDFD_SIGNAL_PROCESS_GROUP 4            /* Linux 6.9 */
#define IOPRIO_PROCESS 1
#define IOPRIO_GROUP 2

enum verdict { IN_RUN, OUTSIDE, NOBODY };

/* ---- who is meant ------------------------------------------------------------------------------------------------ */

static enum verdict one_task(struct ak_call *c, pid_t pid)
{
	if (pid == 0 || ak_pid_in_run(c, pid))
		return IN_RUN;
	return kill(pid, 0) < 0 && errno == ESRCH ? NOBODY : OUTSIDE;
}

/* Everybody in a process group, by a walk through /proc: this is asked only on kernels without Landlock's scope. */
static enum verdict whole_group(struct ak_call *c, pid_t group)
{
	enum verdict v = NOBODY;
	DIR *proc = opendir("/proc");
	if (!proc)
		return OUTSIDE;
	for (struct dirent *entry = readdir(proc); entry && v != OUTSIDE; entry = readdir(proc)) {
		pid_t pid = isdigit((unsigned char)entry->d_name[0]) ? (pid_t)atoi(entry->d_name) : 0;
		if (pid > 0 && getpgid(pid) == group)
			v = ak_pid_in_run(c, pid) ? IN_RUN : OUTSIDE;
	}
	closedir(proc);
	return v;
}

static enum verdict group_of(struct ak_call *c, pid_t group)
{
	pid_t tgid = ak_call_tgid(c);
	if (group == 0)
		group = tgid > 0 ? getpgid(tgid) : -1;
	return group > 0 ? whole_group(c, group) : OUTSIDE;
}

/* ---- the answer -------------------------------------------------------------------------------------------------- */

/* Let through what stays in the run, with an entry for signals; refuse the rest with an entry. */
static void decide(struct ak_call *c, struct ak_outcome *o, enum verdict v, long who, uint64_t arg)
{
	char target[40];
	snprintf(target, sizeof target, "pid:%ld", who);
	if (v == NOBODY)
		return ak_deny(o, ESRCH);
	enum ak_decision decision = v == IN_RUN ? AK_ALLOW : AK_DENY;
	if (ak_record(c, AK_OP_SIGNAL, decision, 0, AK_NO_RULE, 0, v == IN_RUN ? 0 : EPERM, arg, target, NULL) < 0 ||
	    v != IN_RUN)
		return ak_deny(o, EPERM);
	ak_continue(o);
}

/* ---- signals ----------------------------------------------------------------------------------------------------- */

static void call_kill(struct ak_call *c, struct ak_outcome *o)
{
	pid_t pid = ak_int(c->stop->args[0]);
	enum verdict v;
	if (pid == INT32_MIN)
		v = NOBODY;
	else if (pid == -1)
		v = OUTSIDE;            /* everybody that may be signalled: the supervisor is one of them */
	else
		v = pid > 0 ? one_task(c, pid) : group_of(c, -pid);
	decide(c, o, v, pid, (uint32_t)c->stop->args[1]);
}

static void call_tkill(struct ak_call *c, struct ak_outcome *o)
{
	pid_t tid = ak_int(c->stop->args[0]);
	if (tid <= 0)
		return ak_deny(o, EINVAL);
	decide(c, o, one_task(c, tid), tid, (uint32_t)c->stop->args[1]);
}

/* The kernel checks that the thread belongs to the group, so the thread decides. */
static void call_tgkill(struct ak_call *c, struct ak_outcome *o)
{
	pid_t tgid = ak_int(c->stop->args[0]), tid = ak_int(c->stop->args[1]);
	if (tgid <= 0 || tid <= 0)
		return ak_deny(o, EINVAL);
	decide(c, o, one_task(c, tid), tid, (uint32_t)c->stop->args[2]);
}

/* rt_sigqueueinfo(pid, …): the kernel takes a thread group; 0 and negative numbers find nobody. */
static void call_rt_sigqueueinfo(struct ak_call *c, struct ak_outcome *o)
{
	pid_t pid = ak_int(c->stop->args[0]);
	decide(c, o, pid <= 0 ? NOBODY : one_task(c, pid), pid, (uint32_t)c->stop->args[1]);
}

/* The process of a pidfd of ours, 0 when it is reaped or in another namespace, -EBADF when it is none. */
static pid_t pid_of_pidfd(int fd)
{
	char name[40], text[1024];
	snprintf(name, sizeof name, "/proc/self/fdinfo/%d", fd);
	int info = open(name, O_RDONLY | O_CLOEXEC);
	ssize_t n = info < 0 ? -1 : read(info, text, sizeof text - 1);
	if (info >= 0)
		close(info);
	text[n > 0 ? n : 0] = 0;
	const char *line = strstr(text, "\nPid:");
	if (!line)
		return -EBADF;          /* also a /proc/PID directory, which the kernel takes for a pidfd too */
	int pid = atoi(line + 5);
	return pid > 0 ? pid : 0;
}

/* Anybody may get a pidfd of anybody, so a sibling thread could put one of the supervisor in place of the one that was
 * looked at: the signal is sent here, through a duplicate. A receiver that asks who sent it sees the supervisor. */
static int64_t signal_by_pidfd(struct ak_call *c, int fd, int sig, uint64_t info_addr, unsigned flags)
{
	siginfo_t info;
	char target[40];
	int error = info_addr ? ak_read(c, info_addr, &info, sizeof info) : 0;
	int own = error < 0 ? error : ak_own_copy(c, fd);
	if (own < 0)
		return own;
	pid_t pid = pid_of_pidfd(own);
	enum verdict v = pid <= 0 ? NOBODY :
			 flags & PIDFD_SIGNAL_PROCESS_GROUP ? group_of(c, getpgid(pid)) : one_task(c, pid);
	if (v == NOBODY)
		error = pid < 0 ? pid : -ESRCH;
	else if (v == OUTSIDE)
		error = -EPERM;
	else if (syscall(SYS_pidfd_send_signal, own, sig, info_addr ? &info : NULL, flags) < 0)
		error = -errno;
	close(own);
	snprintf(target, sizeof target, "pid:%d", pid);
	if (v != NOBODY && ak_record(c, AK_OP_SIGNAL, v == IN_RUN ? AK_ALLOW : AK_DENY, 0, AK_NO_RULE, 0, -error,
				     (uint64_t)sig, target, NULL) < 0)
		error = -EPERM;
	return error;
}

static void call_pidfd_send_signal(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	int fd = ak_int(a[0]);
	if (fd == PIDFD_SELF_THREAD || fd == PIDFD_SELF_THREAD_GROUP) {
		enum verdict v = (unsigned)ak_int(a[3]) & PIDFD_SIGNAL_PROCESS_GROUP ? group_of(c, 0) : IN_RUN;
		return decide(c, o, v, 0, (uint32_t)a[1]);
	}
	ak_result(o, signal_by_pidfd(c, fd, ak_int(a[1]), a[2], (unsigned)ak_int(a[3])));
}

static void call_pidfd_open(struct ak_call *c, struct ak_outcome *o)
{
	pid_t pid = ak_int(c->stop->args[0]);
	if (pid <= 0)
		return ak_deny(o, EINVAL);
	decide(c, o, one_task(c, pid), pid, 0);
}

/* ---- scheduling and limits --------------------------------------------------------------------------------------- */

/* prlimit64, sched_set*, sched_get*: the first argument is a task, 0 the caller. */
static void call_on_task(struct ak_call *c, struct ak_outcome *o)
{
	pid_t pid = ak_int(c->stop->args[0]);
	if (pid == 0)
		return ak_continue(o);
	if (pid < 0)
		return ak_deny(o, EINVAL);
	decide(c, o, one_task(c, pid), pid, 0);
}

/* setpriority and ioprio_set number the same three kinds from 0 and from 1: a task, a process group, all of a user's. */
static void on_which(struct ak_call *c, struct ak_outcome *o, int kind)
{
	int who = ak_int(c->stop->args[1]);
	uint64_t value = (uint32_t)c->stop->args[2];
	if (kind == PRIO_PROCESS)
		return who == 0 ? ak_continue(o) : decide(c, o, who > 0 ? one_task(c, who) : NOBODY, who, value);
	if (kind == PRIO_PGRP)
		return decide(c, o, who >= 0 ? group_of(c, who) : NOBODY, who, value);
	if (kind == PRIO_USER)
		return decide(c, o, OUTSIDE, who, value);       /* the supervisor is one of that user's processes */
	ak_deny(o, EINVAL);
}

static void call_setpriority(struct ak_call *c, struct ak_outcome *o)
{
	on_which(c, o, ak_int(c->stop->args[0]));
}

static void call_ioprio_set(struct ak_call *c, struct ak_outcome *o)
{
	int which = ak_int(c->stop->args[0]);
	on_which(c, o, which >= IOPRIO_PROCESS && which <= IOPRIO_GROUP + 1 ? which - IOPRIO_PROCESS : -1);
}

/* ---- prctl ------------------------------------------------------------------------------------------------------- */

static void refuse_option(struct ak_call *c, struct ak_outcome *o, int option)
{
	char target[32];
	snprintf(target, sizeof target, "prctl:%d", option);
	ak_record(c, AK_OP_REFUSED, AK_DENY, 0, AK_NO_RULE, 0, EPERM, c->stop->args[1], target, NULL);
	ak_deny(o, EPERM);
}

/* The door of the authority calls never comes here (enforce.c). A process that is not dumpable cannot be read by the
 * supervisor, so becoming so is answered and not done; it protects nothing here, since nobody else may trace the agent.
 * Orphans of a subreaper stay in the run: they are its descendants. What is not known is refused. */
static void call_prctl(struct ak_call *c, struct ak_outcome *o)
{
	int option = ak_int(c->stop->args[0]);
	switch (option) {
	case PR_SET_DUMPABLE:
		/* The kernel compares the whole register: 0 and 1 only. */
		return ak_result(o, c->stop->args[1] <= 1 ? 0 : -EINVAL);
	case PR_SET_CHILD_SUBREAPER:
		return ak_continue(o);
	default:
		refuse_option(c, o, option);
	}
}

const struct ak_handler_entry ak_misc_handlers[] = {
	{SYS_prctl, call_prctl},
	{SYS_kill, call_kill},
	{SYS_tkill, call_tkill},
	{SYS_tgkill, call_tgkill},
	{SYS_rt_sigqueueinfo, call_rt_sigqueueinfo},
	{SYS_rt_tgsigqueueinfo, call_tgkill},
	{SYS_pidfd_send_signal, call_pidfd_send_signal},
	{SYS_pidfd_open, call_pidfd_open},
	{SYS_prlimit64, call_on_task},
	{SYS_sched_setaffinity, call_on_task},
	{SYS_sched_getaffinity, call_on_task},
	{SYS_sched_setscheduler, call_on_task},
	{SYS_sched_getscheduler, call_on_task},
	{SYS_sched_setparam, call_on_task},
	{SYS_sched_getparam, call_on_task},
	{SYS_sched_setattr, call_on_task},
	{SYS_sched_getattr, call_on_task},
	{SYS_setpriority, call_setpriority},
	{SYS_ioprio_set, call_ioprio_set},
	{-1, NULL},
};
