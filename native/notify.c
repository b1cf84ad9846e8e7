/* The notify loop: receive a trapped call, let the enforcer judge it, answer it.
 *
 * A descriptor goes into the agent with SECCOMP_ADDFD_FLAG_SEND: installed and returned in one step, and the agent goes
 * on while we still hold ours. Where that could be told it takes two steps (only_copy), or exec waits
 * (ak_await_handovers). ENOENT from any of these calls means that the agent's task is gone or was interrupted; there is
 * nobody to answer then.
 *
 * Where the answering thread runs is most of the cost (design 03, Placement): with SYNC_WAKE_UP the kernel wakes it on the
 * caller's CPU, which is about to be idle. Two threads that both wait for the next call take turns at it and drag what
 * they keep in the caches from CPU to CPU (a third more for each call), so that one waits and the others stand by, until calls
 * queue up (several CPUs make them) or nobody has received for a while (a look-up that sleeps: a disk, a network).
 */
#include "notify.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <linux/seccomp.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS                   /* Linux 6.6 */
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif
#define SYNC_WAKE_UP 1ul
#define THREADS_MAX 4                   /* by default */
#define AT_ONCE_NS 1500                 /* a RECV this short found a call that was waiting already */
#define QUEUED_CALLS 4                  /* so many of those in a row call for another thread, */
#define STAY_CALLS 256                  /* which then receives at least this often before it stands by again */
#define LOOK_MS 2                       /* between two looks of a thread that stands by, while there are calls */
#define IDLE_LOOKS 5                    /* so many looks without a call, and it sleeps */

struct ak_notify_thread {
	pthread_t thread;
	struct ak_enforcer *e;
	struct seccomp_notif *notif;    /* as large as this kernel's */
	size_t notif_size;
	bool ready;                     /* guarded by e->lock */
	bool failed;
	unsigned stay, queued;          /* see receive_in_turn() */
};

bool ak_notify_still_valid(void *ctx)
{
	const struct ak_notif *n = ctx;
	return ioctl(n->listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &n->id) == 0;
}

/* ---- answering --------------------------------------------------------------------------------------------------- */

static void send_answer(struct ak_enforcer *e, const struct ak_notif *n, int64_t value, uint32_t flags)
{
	struct seccomp_notif_resp resp = {.id = n->id, .flags = flags};
	if (value < 0)
		resp.error = (int32_t)value;
	else
		resp.val = value;
	if (ioctl(n->listener, SECCOMP_IOCTL_NOTIF_SEND, &resp) < 0)
		atomic_fetch_add_explicit(&e->counters.gone, 1, memory_order_relaxed);
}

/* 0 when the call has been answered; -errno when it has not. Our copy is closed either way. */
static int install(const struct ak_notif *n, struct ak_outcome *out)
{
	struct seccomp_notif_addfd add = {
		.id = n->id,
		.flags = out->only_copy ? 0 : SECCOMP_ADDFD_FLAG_SEND,
		.srcfd = (uint32_t)out->fd,
		.newfd_flags = out->cloexec ? O_CLOEXEC : 0,
	};
	int fd = ioctl(n->listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add);
	if (fd < 0 && errno == EINVAL && add.flags) {   /* before 5.14 */
		add.flags = 0;
		fd = ioctl(n->listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add);
	}
	int error = fd < 0 ? errno : 0;
	close(out->fd);
	out->fd = -1;
	if (error || add.flags)
		return -error;
	/* Two steps. If the second fails the agent has a descriptor more, one it was allowed to have. */
	struct seccomp_notif_resp resp = {.id = n->id, .val = fd};
	return ioctl(n->listener, SECCOMP_IOCTL_NOTIF_SEND, &resp) < 0 ? -errno : 0;
}

void ak_notify_answer(struct ak_enforcer *e, const struct ak_notif *notif, struct ak_outcome *out)
{
	if (out->kind == AK_CONTINUE) {
		send_answer(e, notif, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE);
	} else if (out->kind == AK_RESULT) {
		send_answer(e, notif, out->value, 0);
	} else if (out->kind == AK_INSTALL_FD) {
		/* The agent goes on as soon as it has the descriptor, which may be long before this thread runs again. */
		pthread_rwlock_rdlock(&e->handovers);
		int error = install(notif, out);
		pthread_rwlock_unlock(&e->handovers);
		if (error)                      /* EMFILE is the agent's own limit */
			send_answer(e, notif, error, 0);
	}
}

/* ---- receiving --------------------------------------------------------------------------------------------------- */

/* pthread_cancel() may end the thread only here, where it holds nothing: a call that was just received stays unanswered
 * until the listener is closed. The switch is thread-local memory, no system call. */
static int receive(int listener, struct seccomp_notif *notif)
{
	int old;
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old);
	int result = (int)syscall(SYS_ioctl, listener, SECCOMP_IOCTL_NOTIF_RECV, notif);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
	return result < 0 ? -errno : 0;
}

/* No task uses the filter any more (reported from Linux 6.11 on). */
static bool hung_up(int listener)
{
	struct pollfd p = {.fd = listener, .events = POLLIN};
	return poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR | POLLNVAL));
}

/* ---- taking turns ------------------------------------------------------------------------------------------------ */

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* More than one only at the end: a thread that stands by for nothing costs what all this is to save. */
static void wake(struct ak_enforcer *e, bool wanted)
{
	pthread_mutex_lock(&e->lock);
	e->turns.wanted = e->turns.wanted || wanted;
	pthread_cond_signal(&e->turns.turn);
	pthread_mutex_unlock(&e->lock);
}

static void wake_all(struct ak_enforcer *e, bool over)
{
	pthread_mutex_lock(&e->lock);
	e->turns.over = e->turns.over || over;
	pthread_cond_broadcast(&e->turns.turn);
	pthread_mutex_unlock(&e->lock);
}

static void look_later(struct ak_enforcer *e, unsigned ms)
{
	uint64_t until = now_ns() + ms * 1000000u;
	struct timespec deadline = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
	pthread_cond_timedwait(&e->turns.turn, &e->lock, &deadline);
}

/* Returns when this thread should receive: it is wanted, or nobody has received for a while and nobody waits to. False:
 * there is nothing to receive any more. */
static bool stand_by(struct ak_notify_thread *t)
{
	struct ak_enforcer *e = t->e;
	struct ak_turns *turns = &e->turns;
	unsigned seen = atomic_load(&turns->received), idle = 0;
	pthread_mutex_lock(&e->lock);
	while (!turns->over && !turns->wanted) {
		if (idle < IDLE_LOOKS) {
			look_later(e, LOOK_MS);
		} else {
			atomic_fetch_add(&turns->asleep, 1);
			pthread_cond_wait(&turns->turn, &e->lock);
			atomic_fetch_sub(&turns->asleep, 1);
		}
		unsigned received = atomic_load(&turns->received);
		if (received == seen && atomic_load(&turns->receiving) == 0)
			break;
		idle = received == seen ? idle + 1 : 0;
		seen = received;
	}
	t->stay = turns->wanted ? STAY_CALLS : 0;
	turns->wanted = false;
	bool over = turns->over;
	pthread_mutex_unlock(&e->lock);
	return !over;
}

/* receive(), by this thread when it is its turn. -EPIPE: there is nothing to receive any more. */
static int receive_in_turn(struct ak_notify_thread *t)
{
	struct ak_enforcer *e = t->e;
	struct ak_turns *turns = &e->turns;
	if (t->stay == 0 && atomic_load(&turns->receiving) > 0 && !stand_by(t))
		return -EPIPE;
	atomic_fetch_add(&turns->receiving, 1);
	uint64_t start = now_ns();
	int error = receive(e->listener, t->notif);
	bool at_once = now_ns() - start < AT_ONCE_NS;
	atomic_fetch_sub(&turns->receiving, 1);
	atomic_fetch_add(&turns->received, 1);
	t->queued = at_once ? t->queued + 1 : 0;
	if (t->stay)
		t->stay--;
	bool queued = t->queued == QUEUED_CALLS;
	if (queued || atomic_load_explicit(&turns->asleep, memory_order_relaxed))
		wake(e, queued);
	if (queued)
		t->queued = 0;
	return error;
}

static void serve(struct ak_notify_thread *t)
{
	struct ak_enforcer *e = t->e;
	struct seccomp_notif *notif = t->notif;
	for (;;) {
		memset(notif, 0, t->notif_size);        /* the kernel insists */
		int error = receive_in_turn(t);
		if (error == -ENOENT && !hung_up(e->listener))
			continue;               /* the caller was killed before we had its call */
		if (error == -EINTR || error == -EAGAIN)
			continue;
		if (error)
			return;
		struct ak_notif n = {.listener = e->listener, .id = notif->id};
		struct ak_stop stop = {
			.tid = (pid_t)notif->pid,
			.arch = notif->data.arch,
			.nr = notif->data.nr,
			.still_valid = ak_notify_still_valid,
			.ctx = &n,
		};
		for (int i = 0; i < 6; i++)
			stop.args[i] = notif->data.args[i];
		struct ak_outcome out;
		ak_enforce(e, &stop, false, &out);
		ak_notify_answer(e, &n, &out);
	}
}

static void *thread_main(void *arg)
{
	struct ak_notify_thread *t = arg;
	int old;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
	bool ok = ak_thread_prepare("ak-notify");
	pthread_mutex_lock(&t->e->lock);
	t->ready = true;
	t->failed = !ok;
	pthread_cond_broadcast(&t->e->changed);
	pthread_mutex_unlock(&t->e->lock);
	if (ok)
		serve(t);
	wake_all(t->e, false);          /* the others see for themselves whether it is over */
	return NULL;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static int start_one(struct ak_enforcer *e, struct ak_notify_thread *t, size_t notif_size)
{
	pthread_attr_t attr;
	sigset_t all, before;
	t->e = e;
	t->notif_size = notif_size;
	t->notif = calloc(1, notif_size);
	if (!t->notif)
		return -ENOMEM;
	int error = pthread_attr_init(&attr);
	if (error == 0) {
		pthread_attr_setstacksize(&attr, AK_STACK_BYTES);
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &before);
		error = pthread_create(&t->thread, &attr, thread_main, t);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
		pthread_attr_destroy(&attr);
	}
	if (error)
		free(t->notif);
	return -error;
}

/* A thread that could not give its capabilities up must not serve. */
static int await_ready(struct ak_enforcer *e)
{
	int error = 0;
	pthread_mutex_lock(&e->lock);
	for (unsigned i = 0; i < e->thread_count; i++) {
		while (!e->threads[i].ready)
			pthread_cond_wait(&e->changed, &e->lock);
		if (e->threads[i].failed)
			error = -EPERM;
	}
	pthread_mutex_unlock(&e->lock);
	return error;
}

int ak_notify_start(struct ak_enforcer *e, int listener, unsigned count)
{
	struct seccomp_notif_sizes sizes;
	if (e->listener >= 0)
		return -EBUSY;
	if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) < 0)
		return -errno;
	size_t notif_size = sizes.seccomp_notif > sizeof(struct seccomp_notif) ? sizes.seccomp_notif
									       : sizeof(struct seccomp_notif);
	if (count == 0) {
		long cpus = sysconf(_SC_NPROCESSORS_ONLN);
		count = cpus < 2 ? 2 : cpus > THREADS_MAX ? THREADS_MAX : (unsigned)cpus;
	}
	e->threads = calloc(count, sizeof *e->threads);
	if (!e->threads)
		return -ENOMEM;
	e->listener = listener;
	(void)ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP);   /* older kernels: slower, nothing else */
	int error = 0;
	while (error == 0 && e->thread_count < count) {
		error = start_one(e, &e->threads[e->thread_count], notif_size);
		if (error == 0)
			e->thread_count++;
	}
	if (error == 0)
		error = await_ready(e);
	if (error)
		ak_notify_stop(e);
	return error;
}

void ak_notify_stop(struct ak_enforcer *e)
{
	wake_all(e, true);
	for (unsigned i = 0; i < e->thread_count; i++)
		pthread_cancel(e->threads[i].thread);
	for (unsigned i = 0; i < e->thread_count; i++) {
		pthread_join(e->threads[i].thread, NULL);
		free(e->threads[i].notif);
	}
	free(e->threads);
	e->threads = NULL;
	e->thread_count = 0;
}

void ak_notify_close(struct ak_enforcer *e)
{
	if (e->listener >= 0)
		close(e->listener);
	e->listener = -1;
}
