/* The event ring; see ring.h for the file's format.
 *
 * Writers take a lock for the time of one memcpy. A sleeping reader costs the first writer one wake-up; while it gathers
 * (ak_ring_wait) the others pay nothing, which matters more than the lock: a wake-up of another CPU is 70 µs on a VM.
 */
#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

struct header {
	char magic[8];
	uint64_t size;
	_Atomic uint64_t head;
	_Atomic uint64_t tail;
	uint8_t run[16];
};

struct ak_ring {
	struct header *header;
	char *data;
	size_t size;
	pthread_mutex_t lock;           /* guards everything below, and head and tail in the header */
	pthread_cond_t readable;
	pthread_cond_t writable;
	uint64_t wake_at;               /* the reader sleeps until this many bytes wait; 0: it does not sleep */
	unsigned blocked_writers;
	bool shut;
};

static size_t waiting(const struct ak_ring *r)
{
	return (size_t)(r->header->head - r->header->tail);
}

static int init_locks(struct ak_ring *r)
{
	pthread_condattr_t monotonic;
	int error = pthread_condattr_init(&monotonic);
	if (error)
		return error;
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	error = pthread_mutex_init(&r->lock, NULL);
	if (error == 0)
		error = pthread_cond_init(&r->readable, &monotonic);
	if (error == 0)
		error = pthread_cond_init(&r->writable, NULL);
	pthread_condattr_destroy(&monotonic);
	return error;
}

struct ak_ring *ak_ring_open(int fd, size_t data_size, const uint8_t run[16])
{
	if (data_size < 4 * AK_EVENT_MAX || (data_size & (data_size - 1))) {
		errno = EINVAL;
		return NULL;
	}
	/* Take the space now: a full disk must be an error here and not a SIGBUS in the middle of a record. */
	int error = posix_fallocate(fd, 0, (off_t)(AK_RING_HEADER + data_size));
	if (error) {
		errno = error;
		return NULL;
	}
	struct ak_ring *r = calloc(1, sizeof *r);
	if (!r)
		return NULL;
	void *map = mmap(NULL, AK_RING_HEADER + data_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		free(r);
		return NULL;
	}
	r->header = map;
	r->data = (char *)map + AK_RING_HEADER;
	r->size = data_size;
	error = init_locks(r);
	if (error) {
		munmap(map, AK_RING_HEADER + data_size);
		free(r);
		errno = error;
		return NULL;
	}
	r->header->size = data_size;
	r->header->head = r->header->tail = 0;
	memcpy(r->header->run, run, sizeof r->header->run);
	memcpy(r->header->magic, "AKRING1", 8);
	return r;
}

void ak_ring_close(struct ak_ring *r)
{
	munmap(r->header, AK_RING_HEADER + r->size);
	pthread_cond_destroy(&r->readable);
	pthread_cond_destroy(&r->writable);
	pthread_mutex_destroy(&r->lock);
	free(r);
}

/* ---- writers ----------------------------------------------------------------------------------------------------- */

/* Where the next `len` bytes go, after filling up the end of the ring if they do not fit there. NULL once shut. */
static char *reserve(struct ak_ring *r, uint32_t len, uint64_t *head)
{
	for (;;) {
		if (r->shut)
			return NULL;
		size_t offset = (size_t)(r->header->head & (r->size - 1));
		size_t to_end = r->size - offset;
		size_t need = len <= to_end ? len : to_end + len;
		if (r->size - waiting(r) >= need) {
			*head = r->header->head + need;
			if (len <= to_end)
				return r->data + offset;
			struct ak_event pad = {.len = (uint32_t)to_end, .op = AK_EVENT_PAD};
			memcpy(r->data + offset, &pad, to_end < sizeof pad ? to_end : sizeof pad);
			return r->data;
		}
		r->blocked_writers++;
		if (r->wake_at)
			pthread_cond_signal(&r->readable);
		pthread_cond_wait(&r->writable, &r->lock);
		r->blocked_writers--;
	}
}

static uint16_t text_len(const char *text)
{
	return text ? (uint16_t)strnlen(text, AK_EVENT_TARGET_MAX) : 0;
}

int ak_ring_put(struct ak_ring *r, struct ak_event *e, const char *target, const char *target2)
{
	struct timespec now;
	uint64_t head;
	e->target_len = text_len(target);
	e->target2_len = text_len(target2);
	uint32_t used = (uint32_t)sizeof *e + e->target_len + e->target2_len;
	e->len = (used + 7u) & ~7u;
	memset(e->reserved, 0, sizeof e->reserved);
	clock_gettime(CLOCK_REALTIME, &now);
	e->ts_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;

	pthread_mutex_lock(&r->lock);
	char *at = reserve(r, e->len, &head);
	if (!at) {
		pthread_mutex_unlock(&r->lock);
		return -1;
	}
	memset(at + e->len - 8, 0, 8);
	memcpy(at, e, sizeof *e);
	if (e->target_len)
		memcpy(at + sizeof *e, target, e->target_len);
	if (e->target2_len)
		memcpy(at + sizeof *e + e->target_len, target2, e->target2_len);
	/* A supervisor killed here leaves the record out or leaves it whole. */
	atomic_store_explicit(&r->header->head, head, memory_order_release);
	bool wake = r->wake_at && waiting(r) >= r->wake_at;
	if (wake)
		r->wake_at = 0;
	pthread_mutex_unlock(&r->lock);
	if (wake)
		pthread_cond_signal(&r->readable);
	return 0;
}

void ak_ring_shut(struct ak_ring *r)
{
	pthread_mutex_lock(&r->lock);
	r->shut = true;
	r->wake_at = 0;
	pthread_cond_broadcast(&r->writable);
	pthread_cond_broadcast(&r->readable);
	pthread_mutex_unlock(&r->lock);
}

/* ---- the reader -------------------------------------------------------------------------------------------------- */

/* Only len and op: a padding record may be as short as 8 bytes. */
static uint32_t record_at(const struct ak_ring *r, uint64_t position, uint16_t *op)
{
	const char *at = r->data + (position & (r->size - 1));
	uint32_t len;
	memcpy(&len, at + offsetof(struct ak_event, len), sizeof len);
	memcpy(op, at + offsetof(struct ak_event, op), sizeof *op);
	return len;
}

size_t ak_ring_waiting(struct ak_ring *r)
{
	return (size_t)(atomic_load_explicit(&r->header->head, memory_order_acquire) - r->header->tail);
}

size_t ak_ring_peek(struct ak_ring *r, void *buf, size_t cap)
{
	/* No lock: records between tail and head do not change, and only this reader moves tail. */
	uint64_t end = atomic_load_explicit(&r->header->head, memory_order_acquire);
	size_t used = 0;
	uint16_t op;
	for (uint64_t at = r->header->tail; at < end;) {
		uint32_t len = record_at(r, at, &op);
		if (op != AK_EVENT_PAD) {
			if (len > cap - used)
				break;
			memcpy((char *)buf + used, r->data + (at & (r->size - 1)), len);
			used += len;
		}
		at += len;
	}
	return used;
}

int ak_ring_consume(struct ak_ring *r, size_t n)
{
	uint16_t op;
	int result = 0;
	pthread_mutex_lock(&r->lock);
	uint64_t at = r->header->tail, end = r->header->head;
	while (at < end) {
		uint32_t len = record_at(r, at, &op);
		if (op != AK_EVENT_PAD) {
			if (len > n)
				break;  /* padding before what was not read is given back too */
			n -= len;
		}
		at += len;
	}
	if (n) {
		errno = EINVAL;
		result = -1;
	} else {
		atomic_store_explicit(&r->header->tail, at, memory_order_release);
		if (r->blocked_writers)
			pthread_cond_broadcast(&r->writable);
	}
	pthread_mutex_unlock(&r->lock);
	return result;
}

static void deadline_after(struct timespec *t, int ms)
{
	clock_gettime(CLOCK_MONOTONIC, t);
	t->tv_sec += ms / 1000;
	t->tv_nsec += (ms % 1000) * 1000000L;
	if (t->tv_nsec >= 1000000000L) {
		t->tv_sec++;
		t->tv_nsec -= 1000000000L;
	}
}

/* Precondition: locked. Sleeps until `bytes` wait or a writer needs what waits, the ring is shut or the time is over. */
static void sleep_until(struct ak_ring *r, uint64_t bytes, int ms)
{
	struct timespec deadline;
	deadline_after(&deadline, ms);
	while (!r->shut && waiting(r) < bytes && !(r->blocked_writers && waiting(r))) {
		r->wake_at = bytes;
		if (pthread_cond_timedwait(&r->readable, &r->lock, &deadline) == ETIMEDOUT)
			break;
	}
	r->wake_at = 0;
}

bool ak_ring_wait(struct ak_ring *r, int timeout_ms)
{
	pthread_mutex_lock(&r->lock);
	sleep_until(r, 1, timeout_ms);
	if (waiting(r))
		sleep_until(r, r->size / 2, timeout_ms < AK_RING_GATHER_MS ? timeout_ms : AK_RING_GATHER_MS);
	bool any = waiting(r) > 0;
	pthread_mutex_unlock(&r->lock);
	return any;
}
