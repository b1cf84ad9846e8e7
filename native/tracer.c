#include "tracer.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "taskset.h"

#define AUTHORITY_FIRST 1024
#define AUTHORITY_LAST 1100
/* Kernel-internal results (include/linux/errno.h): seen in the return register at a signal-delivery stop. */
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define RECORD 1                /* the data of our filter's RET_TRACE for calls of which we only want to see what came (filter.py) */

/* Where a task's call number and return value are. The one place with registers. */
#if defined(__x86_64__)
typedef struct user_regs_struct ak_regs;
static int64_t call_number(const ak_regs *r) { return (int64_t)r->orig_rax; }
static int64_t call_result(const ak_regs *r) { return (int64_t)r->rax; }
static void set_result(ak_regs *r, int64_t value) { r->rax = (uint64_t)value; }
static bool skip_call(pid_t tid, ak_regs *r) { (void)tid; r->orig_rax = (uint64_t)-1; return true; }
#elif defined(__aarch64__)
typedef struct user_regs_struct ak_regs;
static int64_t call_number(const ak_regs *r) { return (int64_t)r->regs[8]; }
static int64_t call_result(const ak_regs *r) { return (int64_t)r->regs[0]; }
static void set_result(ak_regs *r, int64_t value) { r->regs[0] = (uint64_t)value; }
/* x8 is only where the number came from; the kernel looks at its own copy (ptrace(2), NT_ARM_SYSTEM_CALL). */
static bool skip_call(pid_t tid, ak_regs *r)
{
	int none = -1;
	struct iovec io = {&none, sizeof none};
	(void)r;
	return ptrace(PTRACE_SETREGSET, tid, NT_ARM_SYSTEM_CALL, &io) == 0;
}
#else
#error "akbox knows the registers of x86-64 and arm64"
#endif

#define TURN_LOOKS 2            /* of so many looks for the next stop one asks so many tasks in turn first */
#define TURN_TASKS 4
#define CONDEMNED_MAX 64        /* children refused but not yet known to their parents; one more is refused with SIGKILL alone */

struct ak_tracer {
	struct ak_taskset tasks;
	pid_t main;
	const uint8_t *trapped;
	size_t n_calls;
	size_t max_processes;
	struct ak_tracer *above;
	pid_t condemned[CONDEMNED_MAX];         /* 0: free */
	bool trace_seccomp;
	bool count_io;
	bool main_gone;
	unsigned looks;                         /* see next_in_turn() */
	size_t turn;
};

struct ak_tracer *ak_tracer_new(const uint8_t *trapped, size_t n_calls, bool trace_seccomp, size_t max_processes,
				bool count_io, struct ak_tracer *above)
{
	struct ak_tracer *t = calloc(1, sizeof *t);
	if (!t)
		return NULL;
	t->trapped = trapped;
	t->n_calls = n_calls;
	t->trace_seccomp = trace_seccomp;
	t->max_processes = max_processes;
	t->count_io = count_io;
	t->above = above;
	if (!ak_taskset_init(&t->tasks, above ? &above->tasks : NULL)) {
		free(t);
		return NULL;
	}
	return t;
}

void ak_tracer_free(struct ak_tracer *t)
{
	if (!t)
		return;
	ak_taskset_free(&t->tasks);
	free(t);
}

size_t ak_tracer_count(struct ak_tracer *t) { return ak_taskset_count(&t->tasks); }
uint64_t ak_tracer_cpu_ns(struct ak_tracer *t) { return ak_taskset_cpu_ns(&t->tasks); }
void ak_tracer_kill(struct ak_tracer *t) { ak_taskset_kill(&t->tasks); }
bool ak_tracer_io_bytes(struct ak_tracer *t, uint64_t *sum) { return ak_taskset_io_bytes(&t->tasks, sum); }

size_t ak_tracer_tasks(struct ak_tracer *t, pid_t *tids, size_t most, bool processes)
{
	return ak_taskset_list(&t->tasks, tids, most, processes);
}

static void condemn(struct ak_tracer *t, pid_t tid)
{
	kill(tid, SIGKILL);
	for (size_t i = 0; i < CONDEMNED_MAX; i++)
		if (t->condemned[i] == 0) {
			t->condemned[i] = tid;
			return;
		}
}

/* Was it? Its parent asks once. */
static bool was_condemned(struct ak_tracer *t, pid_t tid)
{
	for (size_t i = 0; i < CONDEMNED_MAX; i++)
		if (t->condemned[i] == tid) {
			t->condemned[i] = 0;
			return true;
		}
	return false;
}

/* Here, or where this tree is a part. */
static bool too_many(struct ak_tracer *t)
{
	for (; t; t = t->above)
		if (t->max_processes && ak_taskset_processes(&t->tasks) > t->max_processes)
			return true;
	return false;
}

/* True when the task was not known. Whatever its number of processes, a run has at most max_processes that have run an
 * instruction: a new one is seen here, stopped, before its first. */
static bool add_task(struct ak_tracer *t, pid_t tid)
{
	bool is_new;
	if (!ak_taskset_add(&t->tasks, tid, &is_new))
		kill(tid, SIGKILL);
	else if (is_new && too_many(t))
		condemn(t, tid);
	return is_new;
}

int ak_tracer_seize(struct ak_tracer *t, pid_t pid)
{
	unsigned long options = PTRACE_O_EXITKILL | PTRACE_O_TRACESECCOMP | PTRACE_O_TRACEEXEC | PTRACE_O_TRACEFORK |
				      PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACESYSGOOD;
	if (t->count_io)
		options |= PTRACE_O_TRACEEXIT;
	if (ptrace(PTRACE_SEIZE, pid, NULL, options) < 0)
		return -errno;
	t->main = pid;
	add_task(t, pid);
	return was_condemned(t, pid) ? -EAGAIN : 0;
}

/* ESRCH: the task was killed meanwhile; its end will be reported. */
int ak_tracer_resume(struct ak_tracer *t, pid_t tid, int sig)
{
	if (ak_taskset_ending(&t->tasks))
		kill(tid, SIGKILL);
	if (ptrace(PTRACE_CONT, tid, NULL, (void *)(intptr_t)sig) < 0 && errno != ESRCH)
		return -errno;
	return 0;
}

static bool get_regs(pid_t tid, ak_regs *regs)
{
	struct iovec io = {regs, sizeof *regs};
	errno = 0;
	return ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &io) == 0 && io.iov_len == sizeof *regs;
}

static bool put_regs(pid_t tid, ak_regs *regs)
{
	struct iovec io = {regs, sizeof *regs};
	return ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &io) == 0;
}

/* A task that cannot be told its result must not go on with another one. ESRCH: it is no longer stopped, so it was killed
 * meanwhile, and perhaps it alone (another thread's exec ends it): SIGKILL would go to its whole process, whose new image that
 * would be. */
static void must_not_go_on(pid_t tid)
{
	if (errno != ESRCH)
		kill(tid, SIGKILL);
}

static bool is_trapped(const struct ak_tracer *t, int64_t nr)
{
	return nr >= 0 && (size_t)nr < t->n_calls && (t->trapped[nr / 8] >> (nr % 8) & 1);
}

/* Default disposition of `sig` in the task's process, from /proc; an unreadable status counts as "handled". */
static bool has_default_action(pid_t tid, int sig)
{
	char path[32], text[2048], *at;
	unsigned long long mask = 0;
	ssize_t n;
	int fd;
	snprintf(path, sizeof path, "/proc/%d/status", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, text, sizeof text - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	for (int i = 0; i < 2; i++) {
		unsigned long long one;
		at = strstr(text, i ? "SigCgt:" : "SigIgn:");
		if (!at || sscanf(at + 7, "%llx", &one) != 1)
			return false;
		mask |= one;
	}
	return !(mask >> (sig - 1) & 1);
}

/* The main process leads a session whose parent is outside it: an orphaned process group, in which the kernel ignores
 * ^Z (setpgid(2), "orphaned"). The user's shell is behind us, so stop it with SIGSTOP instead. */
static int stop_signal_for(const struct ak_tracer *t, pid_t tid, int sig)
{
	bool job_stop = sig == SIGTSTP || sig == SIGTTIN || sig == SIGTTOU;
	if (job_stop && getpgid(tid) == t->main && has_default_action(tid, sig))
		return SIGSTOP;
	return sig;
}

/* A trapped call that the supervisor had not received when the signal came (the kernel says ERESTARTSYS) has not begun: it
 * is restarted whatever SA_RESTART says; bare, it could not have been interrupted. One that waited, as for the other end of a FIFO,
 * and that the enforcer ended for this signal (task.c, ak_interrupted) is for SA_RESTART to decide. */
static void restart_as_bare(pid_t tid, ak_regs *regs)
{
	int64_t result = call_result(regs);
	if (result != -ERESTARTSYS && result != -ERESTARTNOHAND)
		return;
	set_result(regs, result == -ERESTARTSYS ? -ERESTARTNOINTR : -ERESTARTSYS);
	put_regs(tid, regs);
}

/* Returns true when Python must look at it. */
static bool signal_stop(struct ak_tracer *t, pid_t tid, int sig, struct ak_stop_event *event)
{
	ak_regs regs;
	if (!get_regs(tid, &regs)) {
		ak_tracer_resume(t, tid, sig);
		return false;
	}
	/* Act on the number in the registers only: SIGSYS itself can be forged. Blocked or ignored, it still stops here. */
	if (sig == SIGSYS && call_number(&regs) >= AUTHORITY_FIRST && call_number(&regs) <= AUTHORITY_LAST) {
		*event = (struct ak_stop_event){AK_STOP_SYSCALL, tid, call_number(&regs)};
		return true;
	}
	if (is_trapped(t, call_number(&regs)))
		restart_as_bare(tid, &regs);
	ak_tracer_resume(t, tid, stop_signal_for(t, tid, sig));
	return false;
}

/* PTRACE_EVENT_STOP: a new task's first stop, a group stop, or the end of one. */
static bool event_stop(struct ak_tracer *t, pid_t tid, int sig, bool is_new, struct ak_stop_event *event)
{
	if (is_new || sig == SIGTRAP || ak_taskset_ending(&t->tasks)) {
		ak_tracer_resume(t, tid, 0);
		return false;
	}
	ptrace(PTRACE_LISTEN, tid, NULL, NULL);
	if (tid != t->main)
		return false;
	*event = (struct ak_stop_event){AK_STOP_STOPPED, tid, sig};
	return true;
}

int ak_tracer_answer(struct ak_tracer *t, pid_t tid, int64_t value)
{
	ak_regs regs;
	bool ok = get_regs(tid, &regs) && skip_call(tid, &regs);
	if (ok) {
		set_result(&regs, value);
		ok = put_regs(tid, &regs);
	}
	if (!ok)
		must_not_go_on(tid);
	return ak_tracer_resume(t, tid, 0);
}

static bool is_accept(int64_t nr)
{
	return nr == SYS_accept || nr == SYS_accept4;
}

/* Nothing of an accept is judged: the kernel carries it out as it would bare, and stops once more with what it returns. */
static bool seccomp_stop(struct ak_tracer *t, pid_t tid, struct ak_stop_event *event)
{
	ak_regs regs;
	unsigned long data = 0;
	if (ptrace(PTRACE_GETEVENTMSG, tid, NULL, &data) == 0 && data == RECORD && get_regs(tid, &regs) &&
	    is_accept(call_number(&regs))) {
		ptrace(PTRACE_SYSCALL, tid, NULL, NULL);
		return false;
	}
	if (t->trace_seccomp && get_regs(tid, &regs)) {
		*event = (struct ak_stop_event){AK_STOP_SECCOMP, tid, call_number(&regs)};
		return true;
	}
	ak_tracer_answer(t, tid, -ENOSYS);
	return false;
}

static bool exec_stop(struct ak_tracer *t, pid_t tid, struct ak_stop_event *event)
{
	unsigned long former = (unsigned long)tid;
	ptrace(PTRACE_GETEVENTMSG, tid, NULL, &former);
	if ((pid_t)former != tid)
		ak_taskset_drop(&t->tasks, (pid_t)former, 0);  /* a thread's exec: it goes on under the leader's number */
	*event = (struct ak_stop_event){AK_STOP_EXEC, tid, (int64_t)former};
	return true;
}

/* Of a new child either its own first stop comes first, or its parent's event; then the stop is waited for. A child that is
 * neither known nor to be waited for has come and gone already. */
static bool child_refused(struct ak_tracer *t, pid_t child)
{
	const int how = WSTOPPED | WEXITED | WNOWAIT | __WALL | __WNOTHREAD;
	siginfo_t info;
	if (was_condemned(t, child))
		return true;
	if (ak_taskset_has(&t->tasks, child) || waitid(P_PID, (id_t)child, &info, how) < 0)
		return false;
	add_task(t, child);
	return was_condemned(t, child);
}

/* One process too many is killed before its first instruction, and its parent's call ends with EAGAIN, as with
 * RLIMIT_NPROC, at its exit stop (refused_stop). */
static bool fork_stop(struct ak_tracer *t, pid_t tid, struct ak_stop_event *event)
{
	unsigned long child = 0;
	if (t->max_processes && ptrace(PTRACE_GETEVENTMSG, tid, NULL, &child) == 0 && child_refused(t, (pid_t)child)) {
		ptrace(PTRACE_SYSCALL, tid, NULL, NULL);
		*event = (struct ak_stop_event){AK_STOP_TOO_MANY, tid, (int64_t)child};
		return true;
	}
	ak_tracer_resume(t, tid, 0);
	return false;
}

/* At the exit of a call is only stopped who accepts a connection, or a parent whose child was refused. */
static bool exit_stop(struct ak_tracer *t, pid_t tid, struct ak_stop_event *event)
{
	ak_regs regs;
	bool known = get_regs(tid, &regs);
	if (known && is_accept(call_number(&regs))) {
		if (call_result(&regs) >= 0) {
			*event = (struct ak_stop_event){AK_STOP_ACCEPTED, tid, call_number(&regs) << 32 | call_result(&regs)};
			return true;
		}
	} else if (known) {
		set_result(&regs, -EAGAIN);
		if (!put_regs(tid, &regs))
			must_not_go_on(tid);
	}
	ak_tracer_resume(t, tid, 0);
	return false;
}

static bool handle(struct ak_tracer *t, pid_t tid, int status, uint64_t cpu_ns, struct ak_stop_event *event)
{
	bool is_new;
	int sig = WSTOPSIG(status);
	if (!WIFSTOPPED(status)) {
		ak_taskset_drop(&t->tasks, tid, cpu_ns);
		if (tid != t->main || t->main_gone)
			return false;
		t->main_gone = true;
		*event = (struct ak_stop_event){AK_STOP_MAIN_EXIT, tid, status};
		return true;
	}
	is_new = add_task(t, tid);
	if (ak_taskset_ending(&t->tasks)) {
		kill(tid, SIGKILL);
		if (status >> 16 == PTRACE_EVENT_EXIT)  /* it is dying already: no signal wakes it from this stop */
			ptrace(PTRACE_CONT, tid, NULL, NULL);
		return false;
	}
	if (sig == (SIGTRAP | 0x80))
		return exit_stop(t, tid, event);
	switch (status >> 16) {
	case PTRACE_EVENT_EXEC:
		return exec_stop(t, tid, event);
	case PTRACE_EVENT_SECCOMP:
		return seccomp_stop(t, tid, event);
	case PTRACE_EVENT_EXIT: /* it still has its memory, without which only root may read what it has read and written */
		ak_taskset_exiting(&t->tasks, tid);
		ak_tracer_resume(t, tid, 0);
		return false;
	case PTRACE_EVENT_STOP:
		return event_stop(t, tid, sig, is_new, event);
	case PTRACE_EVENT_FORK:
	case PTRACE_EVENT_VFORK:
	case PTRACE_EVENT_CLONE:
		return fork_stop(t, tid, event);
	default:
		return signal_stop(t, tid, sig, event);
	}
}

/* A task that waits for us although others stop again and again: the kernel reports the newest first, and a few busy threads
 * would keep the rest waiting for ever. So each is asked after by name once in a while. 0: whoever comes first. */
static pid_t next_in_turn(struct ak_tracer *t, int which)
{
	if (++t->looks % TURN_LOOKS)
		return 0;
	for (int i = 0; i < TURN_TASKS; i++) {
		siginfo_t info = {0};
		pid_t tid = ak_taskset_next(&t->tasks, &t->turn);
		if (tid > 0 && waitid(P_PID, (id_t)tid, &info, WEXITED | WSTOPPED | WNOWAIT | WNOHANG | which) == 0 && info.si_pid)
			return tid;
	}
	return 0;
}

int ak_tracer_wait(struct ak_tracer *t, struct ak_stop_event *event, bool block)
{
	for (;;) {
		/* This thread's tracees and children only: several runs, and the host program's own children, live here. */
		const int which = __WALL | __WNOTHREAD, hang = block ? 0 : WNOHANG;
		siginfo_t info = {0};
		uint64_t cpu_ns = 0;
		int status;
		pid_t turn = next_in_turn(t, which);
		/* Looked at before it is reaped: a zombie's CPU clock is exact, its rusage would count its children twice. */
		if (waitid(turn ? P_PID : P_ALL, (id_t)turn, &info, WEXITED | WSTOPPED | WNOWAIT | which | hang) < 0) {
			if (errno == EINTR)
				continue;
			if (errno != ECHILD)
				return -errno;
			*event = (struct ak_stop_event){AK_STOP_ALL_GONE, 0, 0};
			return 0;
		}
		if (info.si_pid == 0) {
			*event = (struct ak_stop_event){AK_STOP_NOTHING, 0, 0};
			return 0;
		}
		if (info.si_code == CLD_EXITED || info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED)
			cpu_ns = ak_process_cpu_ns(info.si_pid);
		if (waitpid(info.si_pid, &status, which | WNOHANG) != info.si_pid)
			continue;       /* it went from one state to another between the two looks */
		if (handle(t, info.si_pid, status, cpu_ns, event))
			return 0;
	}
}
