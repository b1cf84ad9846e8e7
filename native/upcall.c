/* Calls that only the Python side can answer: the prctl door of the authority calls.
 *
 * The request is copied here, so the agent cannot change it any more; the agent's task sleeps in its call until
 * ak_upcall_reply() writes the reply into its memory and answers.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

#include "notify.h"

#define DOOR 0x414b0000u                /* prctl option: "AK", bit 15 FETCH, then the authority number */
#define DOOR_FETCH 0x8000u

bool ak_is_authority_door(const struct ak_stop *stop)
{
	return stop->nr == SYS_prctl && ((uint32_t)stop->args[0] & 0xffff0000u) == DOOR;
}

static void upcall_free(struct ak_upcall *u)
{
	free(u->request);
	free(u);
}

/* Precondition: locked. */
static void unlink_upcall(struct ak_enforcer *e, struct ak_upcall *u)
{
	for (struct ak_upcall **at = &e->upcalls; *at; at = &(*at)->next) {
		if (*at == u) {
			*at = u->next;
			e->upcall_count--;
			return;
		}
	}
}

static int upcall_new(struct ak_call *c, struct ak_upcall **out)
{
	const uint64_t *args = c->stop->args;
	if (args[2] > AK_REQUEST_MAX)
		return -EINVAL;
	pid_t tgid = ak_call_tgid(c);
	if (tgid <= 0)
		return -ESRCH;
	struct ak_upcall *u = calloc(1, sizeof *u);
	if (!u)
		return -ENOMEM;
	u->request_len = (size_t)args[2];
	u->request = malloc(u->request_len ? u->request_len : 1);
	int error = u->request ? ak_read(c, args[1], u->request, u->request_len) : -ENOMEM;
	if (error) {
		upcall_free(u);
		return error;
	}
	u->stop = *c->stop;
	u->tgid = tgid;
	u->nr = (int)((uint32_t)args[0] & 0x7fffu);
	u->flags = (uint32_t)args[0] & DOOR_FETCH ? 1 : 0;
	u->resp = args[3];
	u->resp_cap = args[4];
	u->by_notify = c->stop->ctx != NULL;
	if (u->by_notify) {
		u->notif = *(const struct ak_notif *)c->stop->ctx;
		u->stop.ctx = &u->notif;
	}
	*out = u;
	return 0;
}

/* Appends, so that the oldest call is answered first. False when too many wait or the run ends. */
static bool enqueue(struct ak_enforcer *e, struct ak_upcall *u)
{
	pthread_mutex_lock(&e->lock);
	bool ok = !e->stopping && e->upcall_count < AK_UPCALLS_MAX;
	if (ok) {
		struct ak_upcall **end = &e->upcalls;
		while (*end)
			end = &(*end)->next;
		*end = u;
		e->upcall_count++;
		u->cookie = e->next_cookie++;
		pthread_cond_broadcast(&e->changed);
	}
	pthread_mutex_unlock(&e->lock);
	return ok;
}

void ak_authority_door(struct ak_call *c, struct ak_outcome *out)
{
	struct ak_enforcer *e = c->enforcer;
	struct ak_upcall *u;
	if (!c->stop->ctx && !c->may_block) {   /* a ptrace stop: asked again from a thread that may wait */
		out->kind = AK_LATER;
		return;
	}
	int error = upcall_new(c, &u);
	if (error) {
		ak_deny(out, -error);
		return;
	}
	atomic_fetch_add_explicit(&e->counters.upcalls, 1, memory_order_relaxed);
	bool by_notify = u->by_notify;
	if (!enqueue(e, u)) {
		upcall_free(u);
		ak_deny(out, EAGAIN);
		return;
	}
	if (by_notify) {                /* `u` may be answered and gone already */
		out->kind = AK_LATER;
		return;
	}
	pthread_mutex_lock(&e->lock);
	while (!u->answered && (u->replying || !e->stopping))
		pthread_cond_wait(&e->changed, &e->lock);
	if (u->answered)
		ak_result(out, u->value);
	else
		unlink_upcall(e, u);
	pthread_mutex_unlock(&e->lock);
	upcall_free(u);
}

/* ---- approvals ---------------------------------------------------------------------------------------------------- */

#define OP_EXEC 0x300
#define ASK_POLL_MS 200                 /* how often a waiting caller is looked after */

static struct ak_upcall *ask_new(struct ak_call *c, uint16_t op, unsigned need, uint32_t rule, const char *target,
				 const char *target2)
{
	size_t len = strlen(target), len2 = target2 ? strlen(target2) : 0;
	struct ak_ask_record head = {op, (uint8_t)need, 0, rule, (uint16_t)len, (uint16_t)len2};
	struct ak_upcall *u = calloc(1, sizeof *u);
	if (!u)
		return NULL;
	u->request_len = sizeof head + len + len2;
	u->request = malloc(u->request_len);
	if (!u->request || len > UINT16_MAX || len2 > UINT16_MAX) {
		upcall_free(u);
		return NULL;
	}
	memcpy(u->request, &head, sizeof head);
	memcpy(u->request + sizeof head, target, len);
	if (len2)
		memcpy(u->request + sizeof head + len, target2, len2);
	u->stop = *c->stop;
	u->tgid = ak_call_tgid(c);
	u->nr = AK_NR_ASK;
	return u;
}

/* Until it is answered, the run ends, the caller is gone or has a signal to handle. Precondition: locked. */
static void await_answer(struct ak_enforcer *e, struct ak_call *c, struct ak_upcall *u)
{
	while (!u->answered && (u->replying || !e->stopping)) {
		struct timespec at;
		clock_gettime(CLOCK_MONOTONIC, &at);
		at.tv_nsec += ASK_POLL_MS * 1000000L;
		at.tv_sec += at.tv_nsec / 1000000000L;
		at.tv_nsec %= 1000000000L;
		if (pthread_cond_timedwait(&e->changed, &e->lock, &at) != ETIMEDOUT || u->replying || u->answered)
			continue;
		pthread_mutex_unlock(&e->lock);
		bool over = !c->stop->still_valid(c->stop->ctx) || ak_interrupted(c);
		pthread_mutex_lock(&e->lock);
		if (over && !u->replying && !u->answered)
			return;
	}
}

static void remember_exec(struct ak_enforcer *e, const char *path)
{
	char *copy = strdup(path);
	unsigned at = e->next_approved_exec++ % AK_APPROVED_EXECS;
	free(e->approved_execs[at]);
	e->approved_execs[at] = copy;
}

bool ak_exec_was_approved(struct ak_enforcer *e, const char *path, size_t len)
{
	bool found = false;
	pthread_mutex_lock(&e->lock);
	for (unsigned i = 0; i < AK_APPROVED_EXECS && !found; i++)
		found = e->approved_execs[i] && strlen(e->approved_execs[i]) == len && !memcmp(e->approved_execs[i], path, len);
	pthread_mutex_unlock(&e->lock);
	return found;
}

bool ak_approved(struct ak_call *c, uint16_t op, unsigned need, uint32_t rule, const char *target, const char *target2)
{
	struct ak_enforcer *e = c->enforcer;
	if (!c->may_block) {
		c->asks = true;
		return false;
	}
	struct ak_upcall *u = ask_new(c, op, need, rule, target, target2);
	if (!u)
		return false;
	if (!enqueue(e, u)) {
		upcall_free(u);
		return false;
	}
	pthread_mutex_lock(&e->lock);
	await_answer(e, c, u);
	bool allowed = u->answered && u->value == 1;
	if (!u->answered)
		unlink_upcall(e, u);
	if (allowed && op == OP_EXEC)
		remember_exec(e, target);
	pthread_mutex_unlock(&e->lock);
	upcall_free(u);
	return allowed;
}

int ak_upcall_next(struct ak_enforcer *e, int timeout_ms, struct ak_upcall *out)
{
	struct timespec deadline;
	struct ak_upcall *u = NULL;
	int error = 0;
	clock_gettime(CLOCK_MONOTONIC, &deadline);
	uint64_t ns = (uint64_t)deadline.tv_nsec + (uint64_t)timeout_ms * 1000000u;
	deadline.tv_sec += (time_t)(ns / 1000000000u);
	deadline.tv_nsec = (long)(ns % 1000000000u);
	pthread_mutex_lock(&e->lock);
	for (;;) {
		for (u = e->upcalls; u && u->taken; u = u->next)
			;
		if (u || error || e->stopping)
			break;
		error = pthread_cond_timedwait(&e->changed, &e->lock, &deadline);
	}
	if (u) {
		u->taken = true;
		*out = *u;              /* the request is the caller's now */
		u->request = NULL;
	}
	bool stopping = e->stopping && !u;
	pthread_mutex_unlock(&e->lock);
	return stopping ? -EPIPE : u ? 0 : -ETIMEDOUT;
}

/* The body, cut at resp_cap, and a NUL where there is room for one. */
static int write_body(struct ak_enforcer *e, const struct ak_upcall *u, const void *body, size_t len)
{
	struct ak_call c = {.enforcer = e, .config = &e->config, .stop = &u->stop};
	if (len > u->resp_cap)
		len = (size_t)u->resp_cap;
	int error = len ? ak_write(&c, u->resp, body, len) : 0;
	if (error == 0 && len < u->resp_cap)
		error = ak_write(&c, u->resp + len, "", 1);
	return error;
}

int ak_upcall_reply(struct ak_enforcer *e, uint64_t cookie, int64_t value, const void *body, size_t len)
{
	pthread_mutex_lock(&e->lock);
	struct ak_upcall *u = e->upcalls;
	while (u && u->cookie != cookie)
		u = u->next;
	if (!u || e->stopping) {
		pthread_mutex_unlock(&e->lock);
		return -ESRCH;
	}
	/* Off the list: nobody else can answer or free it. `blocked` keeps the listener open, `replying` keeps `u`. */
	unlink_upcall(e, u);
	u->replying = true;
	e->blocked++;
	pthread_mutex_unlock(&e->lock);

	bool by_notify = u->by_notify, alive = u->stop.still_valid(u->stop.ctx);
	int error = alive ? write_body(e, u, body, len) : -ESRCH;
	u->value = error ? -EFAULT : value;
	if (by_notify && alive) {
		struct ak_outcome out;
		ak_result(&out, u->value);
		ak_notify_answer(e, &u->notif, &out);
	}
	if (by_notify)
		upcall_free(u);

	pthread_mutex_lock(&e->lock);
	if (!by_notify) {
		u->replying = false;
		u->answered = true;
	}
	e->blocked--;
	pthread_cond_broadcast(&e->changed);
	pthread_mutex_unlock(&e->lock);
	return alive ? 0 : -ESRCH;
}

void ak_upcall_abandon(struct ak_enforcer *e)
{
	pthread_mutex_lock(&e->lock);
	while (e->upcalls) {
		struct ak_upcall *u = e->upcalls;
		unlink_upcall(e, u);
		upcall_free(u);
	}
	pthread_mutex_unlock(&e->lock);
}
