/* The pump; see pump.h. Level-triggered epoll; a direction holds a pipe only while something is in it, so an idle pair
 * costs its two descriptors. */
#include "pump.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHUNK_BYTES (1u << 20)
#define ROUNDS 8                /* chunks of one direction before others have their turn */
#define EVENTS 64
#define POOL 32                 /* empty pipes that are kept */

struct flow {
	int from, to;
	int pipe[2];                    /* -1: none is held */
	size_t held;                    /* bytes in it */
	bool ended;                     /* nothing more to read, and the end passed on */
	bool gone;                      /* `from` hung up while something was held: no longer watched, read to its end at once */
};

struct pair {
	struct pair *next, *prev;
	struct flow flow[2];            /* flow[i].from is the socket whose events carry tag i */
	uint32_t interest[2];
	bool dead;
};

struct ak_pump {
	int epoll, wake, over_fd;
	atomic_ullong moved;
	uint64_t limit;
	atomic_bool over, stopping;
	pthread_t thread;

	pthread_mutex_t lock;           /* guards the list; a pair itself is the thread's alone once it is added */
	struct pair pairs;              /* head */
	struct pair *incoming;          /* not yet watched; linked by `next` */

	int pool[POOL][2];              /* the thread's alone */
	unsigned pooled;
};

/* ---- pipes ------------------------------------------------------------------------------------------------------- */

static bool take_pipe(struct ak_pump *p, struct flow *f)
{
	if (f->pipe[0] >= 0)
		return true;
	if (p->pooled) {
		memcpy(f->pipe, p->pool[--p->pooled], sizeof f->pipe);
		return true;
	}
	if (pipe2(f->pipe, O_CLOEXEC | O_NONBLOCK) < 0) {
		f->pipe[0] = f->pipe[1] = -1;
		return false;
	}
	(void)fcntl(f->pipe[0], F_SETPIPE_SZ, CHUNK_BYTES);     /* refused past a limit of the user's: slower, nothing else */
	return true;
}

static void close_pipe(int pipe[2])
{
	if (pipe[0] >= 0) {
		close(pipe[0]);
		close(pipe[1]);
	}
	pipe[0] = pipe[1] = -1;
}

static void give_pipe_back(struct ak_pump *p, struct flow *f)
{
	if (f->pipe[0] < 0 || f->held)
		return;
	if (p->pooled < POOL) {
		memcpy(p->pool[p->pooled++], f->pipe, sizeof f->pipe);
		f->pipe[0] = f->pipe[1] = -1;
	} else {
		close_pipe(f->pipe);
	}
}

/* ---- one direction ----------------------------------------------------------------------------------------------- */

static uint64_t left(struct ak_pump *p)
{
	uint64_t moved = atomic_load(&p->moved);
	return moved >= p->limit ? 0 : p->limit - moved;
}

/* Nothing may be read any more: what splice() would return for an end or an error, and `over` when there is something. */
static ssize_t look(struct ak_pump *p, const struct flow *f)
{
	char byte;
	ssize_t n = recv(f->from, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
	if (n <= 0)
		return n;
	atomic_store(&p->over, true);
	errno = EDQUOT;
	return -1;
}

/* What is in the pipe goes on. False: the pair is broken. */
static bool drain(struct flow *f)
{
	while (f->held) {
		ssize_t n = splice(f->pipe[0], NULL, f->to, NULL, f->held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
		if (n <= 0)
			return n < 0 && errno == EAGAIN;
		f->held -= (size_t)n;
	}
	return true;
}

/* False: the pair is broken. */
static bool move(struct ak_pump *p, struct flow *f)
{
	if (!drain(f))
		return false;
	for (int round = 0; (round < ROUNDS || f->gone) && !f->held && !f->ended; round++) {
		uint64_t room = left(p);
		size_t chunk = room < CHUNK_BYTES ? (size_t)room : CHUNK_BYTES;
		if (!take_pipe(p, f))
			return false;
		ssize_t n = room ? splice(f->from, NULL, f->pipe[1], NULL, chunk, SPLICE_F_MOVE | SPLICE_F_NONBLOCK) : look(p, f);
		if (n < 0)
			return errno == EAGAIN;
		if (n == 0) {
			f->ended = true;
			shutdown(f->to, SHUT_WR);
			return true;
		}
		atomic_fetch_add(&p->moved, (unsigned long long)n);
		f->held = (size_t)n;
		if (!drain(f))
			return false;
	}
	return true;
}

/* ---- pairs ------------------------------------------------------------------------------------------------------- */

/* What came late or was not wanted: the peer shall see a reset, not an orderly end. */
static void reset(int fd)
{
	struct linger now = {.l_onoff = 1, .l_linger = 0};
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
	close(fd);
}

/* Takes a pair off the list and closes it; its memory stays until the batch of events is done. */
static void end_pair(struct ak_pump *p, struct pair *pair, bool orderly)
{
	pthread_mutex_lock(&p->lock);
	pair->prev->next = pair->next;
	pair->next->prev = pair->prev;
	pthread_mutex_unlock(&p->lock);
	pair->dead = true;
	for (int i = 0; i < 2; i++) {
		close_pipe(pair->flow[i].pipe);
		if (orderly)
			close(pair->flow[i].from);
		else
			reset(pair->flow[i].from);
	}
}

/* Which events a socket is watched for: its own direction wants input while nothing is held, the other one an outlet. */
static void watch(struct ak_pump *p, struct pair *pair)
{
	for (int i = 0; i < 2; i++) {
		const struct flow *in = &pair->flow[i], *out = &pair->flow[!i];
		if (in->gone)
			continue;
		uint32_t want = (!in->held && !in->ended ? EPOLLIN | EPOLLRDHUP : 0u) | (out->held ? EPOLLOUT : 0u);
		struct epoll_event e = {.events = want, .data.ptr = (char *)pair + i};
		if (want != pair->interest[i] && epoll_ctl(p->epoll, EPOLL_CTL_MOD, in->from, &e) == 0)
			pair->interest[i] = want;
	}
}

static void serve(struct ak_pump *p, struct pair *pair, uint32_t events, int tag)
{
	bool whole = move(p, &pair->flow[0]) && move(p, &pair->flow[1]);
	/* A side that is gone, with nothing of it left to read, tells no more: without this it would be reported for ever. */
	if (whole && (events & (EPOLLERR | EPOLLHUP)) && pair->flow[tag].ended)
		whole = pair->flow[!tag].ended;
	if (whole && (events & (EPOLLERR | EPOLLHUP)) && pair->flow[tag].held && !pair->flow[tag].gone) {
		/* It would be reported again and again until the other side takes what is held. */
		pair->flow[tag].gone = true;
		epoll_ctl(p->epoll, EPOLL_CTL_DEL, pair->flow[tag].from, NULL);
	}
	bool done = pair->flow[0].ended && pair->flow[1].ended && !pair->flow[0].held && !pair->flow[1].held;
	if (!whole || done) {
		end_pair(p, pair, whole);
		return;
	}
	give_pipe_back(p, &pair->flow[0]);
	give_pipe_back(p, &pair->flow[1]);
	watch(p, pair);
}

/* Pairs that were added since. */
static void take_incoming(struct ak_pump *p)
{
	uint64_t count;
	if (read(p->wake, &count, sizeof count) < 0)
		return;
	pthread_mutex_lock(&p->lock);
	struct pair *pair = p->incoming;
	p->incoming = NULL;
	for (struct pair *next; pair; pair = next) {
		next = pair->next;
		pair->next = p->pairs.next;
		pair->prev = &p->pairs;
		p->pairs.next->prev = pair;
		p->pairs.next = pair;
		for (int i = 0; i < 2; i++) {
			struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = (char *)pair + i};
			pair->interest[i] = e.events;
			if (epoll_ctl(p->epoll, EPOLL_CTL_ADD, pair->flow[i].from, &e) < 0) {
				shutdown(pair->flow[0].from, SHUT_RDWR);
				shutdown(pair->flow[1].from, SHUT_RDWR);
			}
		}
	}
	pthread_mutex_unlock(&p->lock);
}

static void cut_all(struct ak_pump *p)
{
	take_incoming(p);
	for (;;) {
		pthread_mutex_lock(&p->lock);
		struct pair *pair = p->pairs.next;
		pthread_mutex_unlock(&p->lock);
		if (pair == &p->pairs)
			return;
		end_pair(p, pair, false);
		free(pair);
	}
}

static void *pump_main(void *arg)
{
	struct ak_pump *p = arg;
	struct epoll_event events[EVENTS];
	prctl(PR_SET_NAME, "ak-pump");
	while (!atomic_load(&p->stopping)) {
		int n = epoll_wait(p->epoll, events, EVENTS, -1);
		struct pair *ended[EVENTS];
		int n_ended = 0;
		for (int i = 0; i < n; i++) {
			uintptr_t at = (uintptr_t)events[i].data.ptr;
			struct pair *pair = (struct pair *)(at & ~(uintptr_t)1);
			if (at == 0) {
				take_incoming(p);
				continue;
			}
			if (pair->dead)
				continue;
			serve(p, pair, events[i].events, (int)(at & 1));
			if (pair->dead)
				ended[n_ended++] = pair;
		}
		for (int i = 0; i < n_ended; i++)
			free(ended[i]);
		if (atomic_load(&p->over)) {
			uint64_t one = 1;
			cut_all(p);
			if (p->over_fd >= 0 && write(p->over_fd, &one, sizeof one) < 0)
				p->over_fd = -1;
			p->over_fd = -1;        /* told once */
		}
	}
	return NULL;
}

int ak_pump_add(struct ak_pump *p, int a, int b)
{
	uint64_t one = 1;
	struct pair *pair = atomic_load(&p->over) || atomic_load(&p->stopping) ? NULL : calloc(1, sizeof *pair);
	if (!pair) {
		reset(a);
		reset(b);
		return atomic_load(&p->over) ? -EDQUOT : -ENOMEM;
	}
	pair->flow[0] = (struct flow){.from = a, .to = b, .pipe = {-1, -1}};
	pair->flow[1] = (struct flow){.from = b, .to = a, .pipe = {-1, -1}};
	for (int i = 0; i < 2; i++)
		fcntl(pair->flow[i].from, F_SETFL, fcntl(pair->flow[i].from, F_GETFL) | O_NONBLOCK);
	pthread_mutex_lock(&p->lock);
	pair->next = p->incoming;
	p->incoming = pair;
	pthread_mutex_unlock(&p->lock);
	while (write(p->wake, &one, sizeof one) < 0 && errno == EINTR)
		;
	return 0;
}

struct ak_pump *ak_pump_new(uint64_t limit, int over_fd)
{
	sigset_t all, before;
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
	struct ak_pump *p = calloc(1, sizeof *p);
	if (!p)
		return NULL;
	p->limit = limit;
	p->over_fd = over_fd;
	p->pairs.next = p->pairs.prev = &p->pairs;
	p->epoll = epoll_create1(EPOLL_CLOEXEC);
	p->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&p->lock, NULL);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = p->epoll < 0 || p->wake < 0 || epoll_ctl(p->epoll, EPOLL_CTL_ADD, p->wake, &e) < 0
			    ? errno
			    : pthread_create(&p->thread, NULL, pump_main, p);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!error)
		return p;
	if (p->epoll >= 0)
		close(p->epoll);
	if (p->wake >= 0)
		close(p->wake);
	free(p);
	errno = error;
	return NULL;
}

uint64_t ak_pump_moved(struct ak_pump *p)
{
	return atomic_load(&p->moved);
}

bool ak_pump_over(struct ak_pump *p)
{
	return atomic_load(&p->over);
}

void ak_pump_free(struct ak_pump *p)
{
	uint64_t one = 1;
	atomic_store(&p->stopping, true);
	while (write(p->wake, &one, sizeof one) < 0 && errno == EINTR)
		;
	pthread_join(p->thread, NULL);
	cut_all(p);
	while (p->pooled)
		close_pipe(p->pool[--p->pooled]);
	close(p->epoll);
	close(p->wake);
	free(p);
}
