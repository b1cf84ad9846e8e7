#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_landlock_restrict_self
#define SYS_landlock_restrict_self 446
#endif
#define HIGH_FD 400     /* where a standard stream's source is parked while 0, 1 and 2 are set */

enum { CLONED, READY, SEIZED, CONFINED, FAILED };

struct ak_launch_status {
	_Atomic uint32_t state;
	int32_t listener;
	int32_t step;
	int32_t error;
};

const char *ak_launch_step_name(enum ak_launch_step step)
{
	static const char *const names[] = {
		[AK_STEP_NONE] = "none",
		[AK_STEP_PARENT_GONE] = "parent",
		[AK_STEP_SESSION] = "setsid",
		[AK_STEP_TERMINAL] = "terminal",
		[AK_STEP_IDENTITY] = "identity",
		[AK_STEP_CHDIR] = "chdir",
		[AK_STEP_LIMITS] = "limits",
		[AK_STEP_NO_NEW_PRIVS] = "no_new_privs",
		[AK_STEP_CAPABILITIES] = "capabilities",
		[AK_STEP_LANDLOCK] = "landlock",
		[AK_STEP_SECCOMP] = "seccomp",
		[AK_STEP_UNSHARE_FILES] = "unshare_files",
		[AK_STEP_STDIO] = "stdio",
		[AK_STEP_CLOSE] = "close",
		[AK_STEP_EXECVE] = "execve",
	};
	return (size_t)step < sizeof names / sizeof *names ? names[step] : "unknown";
}

/* ---- the two sides' hand-over: a word in a shared page --------------------------------------------------------- */

static void set_state(struct ak_launch_status *s, uint32_t state)
{
	atomic_store(&s->state, state);
	syscall(SYS_futex, &s->state, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void child_wait_past(struct ak_launch_status *s, uint32_t state)
{
	while (atomic_load(&s->state) == state)
		syscall(SYS_futex, &s->state, FUTEX_WAIT, state, NULL, NULL, 0);
}

/* The parent also looks whether the child still lives: SIGKILL could end it at any step. */
static int parent_wait_past(struct ak_launch_status *s, pid_t pid, uint32_t state)
{
	const struct timespec slice = {.tv_nsec = 20 * 1000 * 1000};
	while (atomic_load(&s->state) == state) {
		siginfo_t info = {0};
		if (syscall(SYS_futex, &s->state, FUTEX_WAIT, state, &slice, NULL, 0) == 0 || errno != ETIMEDOUT)
			continue;
		if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 && info.si_pid == pid
		    && atomic_load(&s->state) == state)
			return -ESRCH;
	}
	return 0;
}

/* ---- the child ------------------------------------------------------------------------------------------------- */

_Noreturn static void fail(struct ak_launch_status *s, enum ak_launch_step step, int error)
{
	s->step = step;
	s->error = error;
	set_state(s, FAILED);
	for (;;)
		syscall(SYS_exit_group, 127);
}

/* Handlers point into the parent's program; SIGPIPE is ignored by Python and must be the default in the agent. */
static void reset_signals(void)
{
	for (int sig = 1; sig < NSIG; sig++)
		if (sig != SIGKILL && sig != SIGSTOP)
			signal(sig, SIG_DFL);
}

/* Nothing to gain from root's uid afterwards: no bounding set, no root fix-up at execve, every set empty. The bounding
 * set and securebits can only be changed by who has CAP_SETPCAP; without it the sets are empty or no_new_privs keeps
 * execve from adding to them. */
static int drop_capabilities(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {0}, have[2] = {0};
	if (syscall(SYS_capget, &head, have) < 0)
		return -1;
	if (have[0].effective & (1u << CAP_SETPCAP)) {
		for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
			if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
				return -1;
		if (prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP |
			  SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |
			  SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED, 0, 0, 0) < 0)
			return -1;
	}
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return -1;
	return (int)syscall(SYS_capset, &head, none);
}

static int become(const struct ak_launch_plan *plan)
{
	if (!plan->drop_ids)
		return 0;
	if (syscall(SYS_setgroups, 0, NULL) < 0 || syscall(SYS_setresgid, plan->gid, plan->gid, plan->gid) < 0 ||
	    syscall(SYS_setresuid, plan->uid, plan->uid, plan->uid) < 0)
		return -1;
	return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);      /* a change of uid took it away */
}

static int set_limits(const struct ak_launch_plan *plan)
{
	for (size_t i = 0; i < plan->n_limits; i++) {
		struct rlimit want = plan->limits[i].value, now;
		if (getrlimit(plan->limits[i].resource, &now) < 0)
			return -1;
		if (now.rlim_max != RLIM_INFINITY && (want.rlim_max == RLIM_INFINITY || want.rlim_max > now.rlim_max))
			want.rlim_max = now.rlim_max;
		if (want.rlim_max != RLIM_INFINITY && (want.rlim_cur == RLIM_INFINITY || want.rlim_cur > want.rlim_max))
			want.rlim_cur = want.rlim_max;
		if (setrlimit(plan->limits[i].resource, &want) < 0)
			return -1;
	}
	return 0;
}

static int set_stdio(const struct ak_launch_plan *plan)
{
	int source[3];
	for (int i = 0; i < 3; i++) {
		source[i] = plan->stdio[i];
		if (source[i] >= 0 && source[i] < 3 && source[i] != i)
			source[i] = fcntl(source[i], F_DUPFD_CLOEXEC, HIGH_FD);
		if (plan->stdio[i] >= 0 && source[i] < 0)
			return -1;
	}
	for (int i = 0; i < 3; i++) {
		if (source[i] < 0)
			close(i);               /* a stream that was closed stays closed; EBADF is as good */
		else if (source[i] == i ? fcntl(i, F_SETFD, 0) < 0 : dup3(source[i], i, 0) < 0)
			return -1;
	}
	return 0;
}

static int close_others(const struct ak_launch_plan *plan)
{
	unsigned first = 3;
	for (size_t i = 0; i < plan->n_keep_fds; i++) {
		unsigned keep = (unsigned)plan->keep_fds[i];
		if (keep > first && syscall(SYS_close_range, first, keep - 1, 0) < 0)
			return -1;
		if (fcntl((int)keep, F_SETFD, 0) < 0)
			return -1;
		first = keep + 1;
	}
	return (int)syscall(SYS_close_range, first, ~0u, 0);
}

/* Order: what needs privilege or an open descriptor first, the filter last, because it binds us too. */
static void confine(const struct ak_launch_plan *plan, struct ak_launch_status *s)
{
	long listener;
	if (become(plan) < 0)
		fail(s, AK_STEP_IDENTITY, errno);
	if (fchdir(plan->cwd_fd) < 0)
		fail(s, AK_STEP_CHDIR, errno);
	if (set_limits(plan) < 0)
		fail(s, AK_STEP_LIMITS, errno);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		fail(s, AK_STEP_NO_NEW_PRIVS, errno);
	if (drop_capabilities() < 0)
		fail(s, AK_STEP_CAPABILITIES, errno);
	for (size_t i = 0; i < plan->n_outer_rulesets; i++)
		if (syscall(SYS_landlock_restrict_self, plan->outer_rulesets[i], 0) < 0)
			fail(s, AK_STEP_LANDLOCK, errno);
	if (plan->ruleset_fd >= 0 && syscall(SYS_landlock_restrict_self, plan->ruleset_fd, 0) < 0)
		fail(s, AK_STEP_LANDLOCK, errno);
	listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, plan->filter_flags, &plan->filter);
	if (listener < 0)
		fail(s, AK_STEP_SECCOMP, errno);
	s->listener = (plan->filter_flags & SECCOMP_FILTER_FLAG_NEW_LISTENER) ? (int32_t)listener : -1;
}

_Noreturn static void child(const struct ak_launch_plan *plan, struct ak_launch_status *s, pid_t parent)
{
	sigset_t none;
	reset_signals();
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 || getppid() != parent)
		fail(s, AK_STEP_PARENT_GONE, errno);
	if (setsid() < 0)
		fail(s, AK_STEP_SESSION, errno);
	if (plan->tty_fd >= 0 && ioctl(plan->tty_fd, TIOCSCTTY, 0) < 0)
		fail(s, AK_STEP_TERMINAL, errno);
	/* The supervisor is not dumpable and we inherited that: it could not seize us. */
	if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
		fail(s, AK_STEP_IDENTITY, errno);
	set_state(s, READY);
	child_wait_past(s, READY);

	confine(plan, s);
	/* Beyond every descriptor in use: copies the whole table, closes nothing. */
	if (syscall(SYS_close_range, ~0u, ~0u, CLOSE_RANGE_UNSHARE) < 0)
		fail(s, AK_STEP_UNSHARE_FILES, errno);
	set_state(s, CONFINED);
	if (set_stdio(plan) < 0)
		fail(s, AK_STEP_STDIO, errno);
	if (close_others(plan) < 0)
		fail(s, AK_STEP_CLOSE, errno);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execve(plan->exec_path, plan->argv, plan->envp);
	fail(s, AK_STEP_EXECVE, errno);
}

/* ---- the parent ------------------------------------------------------------------------------------------------ */

pid_t ak_launch(const struct ak_launch_plan *plan, struct ak_launch_status **status)
{
	sigset_t all, before;
	pid_t parent = getpid(), pid;
	struct ak_launch_status *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (s == MAP_FAILED)
		return -errno;
	s->listener = -1;
	/* No handler of ours may run in the child: it shares our descriptors and has our handlers until it resets them. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pid = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
	if (pid == 0)
		child(plan, s, parent);
	if (pid < 0)
		pid = -errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (pid < 0)
		ak_launch_release(s);
	else
		*status = s;
	return pid;
}

int ak_launch_failure(const struct ak_launch_status *s, enum ak_launch_step *step)
{
	if (atomic_load(&s->state) != FAILED)
		return 0;
	*step = (enum ak_launch_step)s->step;
	return s->error ? s->error : ESRCH;
}

static int wait_past(struct ak_launch_status *s, pid_t pid, uint32_t state, enum ak_launch_step *step)
{
	int error = parent_wait_past(s, pid, state);
	*step = AK_STEP_NONE;
	return error ? error : -ak_launch_failure(s, step);
}

int ak_launch_ready(struct ak_launch_status *s, pid_t pid, enum ak_launch_step *step)
{
	return wait_past(s, pid, CLONED, step);
}

int ak_launch_go(struct ak_launch_status *s, pid_t pid, int *listener, enum ak_launch_step *step)
{
	int error;
	set_state(s, SEIZED);
	error = wait_past(s, pid, SEIZED, step);
	if (error && s->listener >= 0)
		close(s->listener);     /* made in the shared table before the child failed */
	*listener = error ? -1 : s->listener;
	return error;
}

void ak_launch_release(struct ak_launch_status *s)
{
	if (s)
		munmap(s, sizeof *s);
}
