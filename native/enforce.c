/* One stopped call in, one outcome out: dispatch by number, judging, recording, and the threads of calls that wait.
 *
 * Anything without a handler is refused: by the errno of the refusal table, else ENOSYS. Every refusal is recorded.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <linux/audit.h>
#include <linux/capability.h>

#include "enforcer.h"
#include "notify.h"

#define OP_REFUSED 0x3FF                /* "sys.refused": a system call that no policy grants; target "syscall:NAME" */

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#else
#error "akbox knows the system calls of x86-64 and arm64"
#endif

/* ---- threads that act for the agent ------------------------------------------------------------------------------ */

static _Thread_local bool own_fs;

bool ak_thread_has_own_fs(void)
{
	return own_fs;
}

/* Without capabilities a file that the agent may not open is one that we cannot open for it either. */
static bool drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
	struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
	return syscall(SYS_capset, &header, none) == 0;
}

bool ak_thread_prepare(const char *name)
{
	sigset_t all;
	sigfillset(&all);
	if (pthread_sigmask(SIG_SETMASK, &all, NULL) != 0 || !drop_capabilities())
		return false;
	/* Refused by some container profiles: then ak_adopt_umask() denies what it cannot do right. */
	own_fs = unshare(CLONE_FS) == 0;
	prctl(PR_SET_NAME, name);
	return true;
}

/* ---- outcomes ---------------------------------------------------------------------------------------------------- */

void ak_deny(struct ak_outcome *o, int error)
{
	*o = (struct ak_outcome){.kind = AK_RESULT, .value = -error, .fd = -1};
}

void ak_result(struct ak_outcome *o, int64_t value)
{
	*o = (struct ak_outcome){.kind = AK_RESULT, .value = value, .fd = -1};
}

void ak_continue(struct ak_outcome *o)
{
	*o = (struct ak_outcome){.kind = AK_CONTINUE, .fd = -1};
}

void ak_install(struct ak_outcome *o, int fd, bool cloexec)
{
	*o = (struct ak_outcome){.kind = AK_INSTALL_FD, .fd = fd, .cloexec = cloexec, .only_copy = o->only_copy};
}

void ak_await_handovers(struct ak_call *c)
{
	pthread_rwlock_wrlock(&c->enforcer->handovers);
	pthread_rwlock_unlock(&c->enforcer->handovers);
}

/* ---- judging and recording --------------------------------------------------------------------------------------- */

static void count(atomic_ullong *counter)
{
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

int ak_record(struct ak_call *c, uint16_t op, enum ak_decision decision, unsigned need, uint32_t rule, unsigned missing,
	      int error, uint64_t arg, const char *target, const char *target2)
{
	pid_t tgid = ak_call_tgid(c);
	struct ak_event e = {
		.op = op,
		.decision = (uint8_t)decision,
		.need = (uint8_t)need,
		.tgid = tgid > 0 ? tgid : 0,
		.tid = c->stop->tid,
		.nr = c->stop->nr,
		.error = error,
		.rule = rule,
		.missing = missing,
		.arg = arg,
	};
	count(decision == AK_ALLOW ? &c->enforcer->counters.allowed : &c->enforcer->counters.denied);
	return ak_ring_put(c->config->ring, &e, target, target2) < 0 ? -EPERM : 0;
}

/* Under strict metadata a name without any right does not exist, whatever is asked of it. */
static int refusal_errno(struct ak_call *c, const char *path, size_t len)
{
	bool hidden = (c->config->flags & AK_FLAG_STRICT_METADATA) && !ak_policy_visible(c->config->policy, path, len);
	return hidden ? ENOENT : EACCES;
}

int ak_judge_fs(struct ak_call *c, uint16_t op, unsigned need, const char *path, size_t len, uint64_t arg)
{
	struct ak_verdict v = ak_policy_fs(c->config->policy, need, path, len);
	if (v.decision == AK_ASK && ak_approved(c, op, need, v.rule, path, NULL))
		v.decision = AK_ALLOW;
	if (c->asks)
		return -EAGAIN;
	int error = v.decision == AK_ALLOW ? 0 : refusal_errno(c, path, len);
	int recorded = ak_record(c, op, v.decision, need, v.rule, v.missing, error, arg, path, NULL);
	return recorded < 0 ? recorded : -error;
}

int ak_judge_move(struct ak_call *c, uint16_t op, const char *from, size_t from_len, const char *to, size_t to_len,
		  bool is_dir)
{
	struct ak_verdict v = ak_policy_fs(c->config->policy, AK_WRITE, from, from_len);
	struct ak_verdict asked = v;
	int error = 0;
	if (v.decision == AK_DENY) {
		error = refusal_errno(c, from, from_len);
	} else {
		v = ak_policy_fs(c->config->policy, AK_WRITE, to, to_len);
		asked = asked.decision == AK_ASK ? asked : v;
		if (v.decision == AK_DENY) {
			error = refusal_errno(c, to, to_len);
		} else if (!ak_policy_move_keeps_rights(c->config->policy, from, from_len, to, to_len, is_dir)) {
			v = (struct ak_verdict){.rule = AK_NO_RULE, .decision = AK_DENY, .missing = AK_WRITE};
			error = EACCES;
		}
	}
	if (!error && asked.decision == AK_ASK) {       /* one question for both ends */
		v = asked;
		if (ak_approved(c, op, AK_WRITE, v.rule, from, to))
			v.decision = AK_ALLOW;
		else
			error = EACCES;
		if (c->asks)
			return -EAGAIN;
	}
	int recorded = ak_record(c, op, v.decision, AK_WRITE, v.rule, v.missing, error, is_dir, from, to);
	return recorded < 0 ? recorded : -error;
}

bool ak_kernel_reads(const struct ak_call *c, uint32_t rule)
{
	const struct ak_enforcer *e = c->enforcer;
	return rule / 8 < e->n_kernel_reads && (e->kernel_reads[rule / 8] >> (rule % 8) & 1);
}

/* ---- dispatch ---------------------------------------------------------------------------------------------------- */

static void refuse(struct ak_call *c, int error, struct ak_outcome *out)
{
	char target[16 + AK_NAME_BYTES];
	int nr = c->stop->nr;
	bool named = c->stop->arch == NATIVE_ARCH && nr >= 0 && (size_t)nr < c->enforcer->n_names;
	if (named && c->enforcer->names[nr][0])
		snprintf(target, sizeof target, "syscall:%s", c->enforcer->names[nr]);
	else
		snprintf(target, sizeof target, "syscall:%d", nr);
	if (ak_record(c, OP_REFUSED, AK_DENY, 0, AK_NO_RULE, 0, error, c->stop->arch, target, NULL) < 0)
		error = EPERM;
	ak_deny(out, error);
}

void ak_enforce(struct ak_enforcer *e, const struct ak_stop *stop, bool may_block, struct ak_outcome *out)
{
	struct ak_call c = {.enforcer = e, .config = &e->config, .stop = stop, .may_block = may_block};
	int nr = stop->nr;
	ak_deny(out, EPERM);            /* what a handler that forgets to answer answers */
	count(&e->counters.calls);
	if (stop->tid <= 0)             /* a task that our pid namespace cannot see */
		return;
	if (stop->arch != NATIVE_ARCH || nr < 0 || nr >= AK_SYSCALL_MAX)
		refuse(&c, ENOSYS, out);        /* x32 calls are here too, by bit 30 of their number */
	else if (ak_is_authority_door(stop))
		ak_authority_door(&c, out);
	else if (e->handlers[nr])
		e->handlers[nr](&c, out);
	else
		refuse(&c, e->refusals[nr] ? e->refusals[nr] : ENOSYS, out);
	if (c.asks) {                   /* nothing was done and nothing recorded: all of it happens where waiting is allowed */
		if (out->kind == AK_INSTALL_FD)
			close(out->fd);
		ak_block(&c, out);
	}
	if (out->kind == AK_CONTINUE)
		count(&e->counters.continued);
	else if (out->kind == AK_INSTALL_FD)
		count(&e->counters.installed);
}

/* ---- calls that wait --------------------------------------------------------------------------------------------- */

struct job {
	struct ak_enforcer *e;
	struct ak_stop stop;
	struct ak_notif notif;          /* stop.ctx points here for a notification */
	struct ak_outcome *out;         /* ak_enforcer_serve(): where the answer goes; else it is sent to the listener */
	bool may_block;
	bool done;
};

static bool job_begin(struct ak_enforcer *e, bool limited)
{
	pthread_mutex_lock(&e->lock);
	bool ok = !e->stopping && (!limited || e->blocked < AK_BLOCKED_MAX);
	if (ok)
		e->blocked++;
	pthread_mutex_unlock(&e->lock);
	return ok;
}

static void job_end(struct ak_enforcer *e, bool *done)
{
	pthread_mutex_lock(&e->lock);
	e->blocked--;
	if (done)
		*done = true;
	pthread_cond_broadcast(&e->changed);
	pthread_mutex_unlock(&e->lock);
}

static void *job_main(void *arg)
{
	struct job *job = arg;
	struct ak_outcome out;
	if (ak_thread_prepare("ak-wait"))
		ak_enforce(job->e, &job->stop, job->may_block, &out);
	else
		ak_deny(&out, EPERM);
	if (job->out) {
		*job->out = out;
		job_end(job->e, &job->done);    /* the waiting thread owns `job` and may free it now */
	} else {
		if (out.kind != AK_LATER)
			ak_notify_answer(job->e, &job->notif, &out);
		job_end(job->e, NULL);
		free(job);
	}
	return NULL;
}

static int start_thread(struct job *job)
{
	pthread_t thread;
	pthread_attr_t attr;
	sigset_t all, before;
	int error = pthread_attr_init(&attr);
	if (error)
		return error;
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, AK_STACK_BYTES);
	sigfillset(&all);               /* the new thread must not run the host program's signal handlers, not even once */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&thread, &attr, job_main, job);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	return error;
}

void ak_block(struct ak_call *c, struct ak_outcome *o)
{
	struct job *job;
	ak_deny(o, EAGAIN);
	if (c->may_block)
		return;
	if (!c->stop->ctx) {            /* a ptrace stop: the tracer asks again from a thread that may wait */
		o->kind = AK_LATER;
		return;
	}
	if (!job_begin(c->enforcer, true))
		return;
	job = calloc(1, sizeof *job);
	if (!job) {
		job_end(c->enforcer, NULL);
		return;
	}
	job->e = c->enforcer;
	job->may_block = true;
	job->stop = *c->stop;
	job->notif = *(const struct ak_notif *)c->stop->ctx;
	job->stop.ctx = &job->notif;
	if (start_thread(job) != 0) {
		job_end(c->enforcer, NULL);
		free(job);
		return;
	}
	count(&c->enforcer->counters.blocked);
	o->kind = AK_LATER;
}

int ak_enforcer_serve(struct ak_enforcer *e, const struct ak_stop *stop, bool may_block, struct ak_outcome *out)
{
	struct job job = {.e = e, .stop = *stop, .out = out, .may_block = may_block};
	if (!job_begin(e, false))
		return -EPIPE;
	int error = start_thread(&job);
	if (error) {
		job_end(e, NULL);
		return -error;
	}
	pthread_mutex_lock(&e->lock);
	while (!job.done)
		pthread_cond_wait(&e->changed, &e->lock);
	pthread_mutex_unlock(&e->lock);
	return 0;
}

bool ak_wait_ms(struct ak_call *c, unsigned ms)
{
	struct ak_enforcer *e = c->enforcer;
	struct timespec deadline;
	clock_gettime(CLOCK_MONOTONIC, &deadline);
	uint64_t ns = (uint64_t)deadline.tv_nsec + (uint64_t)ms * 1000000u;
	deadline.tv_sec += (time_t)(ns / 1000000000u);
	deadline.tv_nsec = (long)(ns % 1000000000u);
	pthread_mutex_lock(&e->lock);
	while (!e->stopping && pthread_cond_timedwait(&e->changed, &e->lock, &deadline) != ETIMEDOUT)
		;
	bool stopping = e->stopping;
	pthread_mutex_unlock(&e->lock);
	return !stopping && c->stop->still_valid(c->stop->ctx);
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static void join_tables(struct ak_enforcer *e, const uint32_t *refusals, size_t pairs)
{
	const struct ak_handler_entry *tables[] = {
		ak_open_handlers, ak_exec_handlers, ak_mutate_handlers, ak_attr_handlers,
		ak_meta_handlers, ak_net_handlers, ak_pty_handlers, ak_misc_handlers,
	};
	for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
		for (const struct ak_handler_entry *h = tables[i]; h->nr >= 0; h++)
			if (h->nr < AK_SYSCALL_MAX)
				e->handlers[h->nr] = h->handler;
	for (size_t i = 0; i < pairs; i++)
		if (refusals[2 * i] < AK_SYSCALL_MAX)
			e->refusals[refusals[2 * i]] = (uint16_t)refusals[2 * i + 1];
}

struct ak_enforcer *ak_enforcer_new(const struct ak_enforcer_config *config, const uint32_t *refusals, size_t pairs)
{
	pthread_condattr_t monotonic;
	pthread_rwlockattr_t exec_first;
	struct ak_enforcer *e = calloc(1, sizeof *e);
	if (!e)
		return NULL;
	e->config = *config;
	e->listener = -1;
	e->next_cookie = 1;
	e->proc_dir = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	e->proc_fd_dir = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	e->ptys = ak_ptys_new();
	if (e->proc_dir < 0 || e->proc_fd_dir < 0 || !e->ptys) {
		int error = errno;
		ak_enforcer_free(e);
		errno = error;
		return NULL;
	}
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_mutex_init(&e->lock, NULL);
	pthread_cond_init(&e->changed, &monotonic);
	pthread_cond_init(&e->turns.turn, &monotonic);
	pthread_condattr_destroy(&monotonic);
	pthread_rwlockattr_init(&exec_first);
	pthread_rwlockattr_setkind_np(&exec_first, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&e->handovers, &exec_first);
	pthread_rwlockattr_destroy(&exec_first);
	join_tables(e, refusals, pairs);
	return e;
}

bool ak_enforcer_set_names(struct ak_enforcer *e, const char *cells, size_t count)
{
	e->names = malloc(count * AK_NAME_BYTES + 1);
	if (!e->names)
		return false;
	memcpy(e->names, cells, count * AK_NAME_BYTES);
	for (size_t i = 0; i < count; i++)
		e->names[i][AK_NAME_BYTES - 1] = 0;
	e->n_names = count;
	return true;
}

bool ak_enforcer_set_kernel_reads(struct ak_enforcer *e, const uint8_t *bits, size_t bytes)
{
	uint8_t *copy = e->kernel_reads ? NULL : malloc(bytes + 1);
	if (!copy)
		return false;
	memcpy(copy, bits, bytes);
	e->n_kernel_reads = bytes;
	e->kernel_reads = copy;
	return true;
}

void ak_enforcer_stop(struct ak_enforcer *e)
{
	pthread_mutex_lock(&e->lock);
	e->stopping = true;
	pthread_cond_broadcast(&e->changed);
	pthread_mutex_unlock(&e->lock);
	ak_notify_stop(e);
	pthread_mutex_lock(&e->lock);
	while (e->blocked)
		pthread_cond_wait(&e->changed, &e->lock);
	pthread_mutex_unlock(&e->lock);
	ak_upcall_abandon(e);
	ak_notify_close(e);
}

void ak_enforcer_free(struct ak_enforcer *e)
{
	if (e->proc_dir >= 0)
		close(e->proc_dir);
	if (e->proc_fd_dir >= 0)
		close(e->proc_fd_dir);
	ak_ptys_free(e->ptys);
	for (unsigned i = 0; i < AK_APPROVED_EXECS; i++)
		free(e->approved_execs[i]);
	free(e->names);
	free(e->kernel_reads);
	free(e);
}
