#include "taskset.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DELETED ((pid_t)-1)
#define FIRST_SLOTS 256

static struct ak_task *find_slot(struct ak_task *slots, size_t n, pid_t tid)
{
	struct ak_task *deleted = NULL;
	for (size_t i = (size_t)tid * 2654435761u & (n - 1);; i = (i + 1) & (n - 1)) {
		if (slots[i].tid == tid)
			return &slots[i];
		if (slots[i].tid == DELETED && !deleted)
			deleted = &slots[i];
		if (slots[i].tid == 0)
			return deleted ? deleted : &slots[i];
	}
}

/* Precondition: lock held. */
static bool grow(struct ak_taskset *s)
{
	size_t n = s->n_slots;
	while (s->n_tasks * 4 >= n)
		n *= 2;
	struct ak_task *bigger = calloc(n, sizeof *bigger);
	if (!bigger)
		return false;
	for (size_t i = 0; i < s->n_slots; i++)
		if (s->slots[i].tid > 0)
			*find_slot(bigger, n, s->slots[i].tid) = s->slots[i];
	free(s->slots);
	s->slots = bigger;
	s->n_slots = n;
	s->n_used = s->n_tasks;
	return true;
}

/* Precondition: lock held. A thread group has the number of its leader; EPERM is told only of one that is there. */
static bool insert(struct ak_taskset *s, pid_t tid, bool *is_new)
{
	struct ak_task *slot = find_slot(s->slots, s->n_slots, tid);
	*is_new = slot->tid != tid;
	if (!*is_new)
		return true;
	if (slot->tid == 0 && s->n_used * 2 >= s->n_slots) {
		if (!grow(s))
			return false;
		slot = find_slot(s->slots, s->n_slots, tid);
	}
	s->n_used += slot->tid == 0;
	slot->tid = tid;
	slot->leads = syscall(SYS_tgkill, tid, tid, 0) == 0 || errno == EPERM;
	s->n_tasks++;
	s->n_processes += slot->leads;
	return true;
}

bool ak_taskset_init(struct ak_taskset *s)
{
	*s = (struct ak_taskset){.n_slots = FIRST_SLOTS};
	pthread_mutex_init(&s->lock, NULL);
	s->slots = calloc(s->n_slots, sizeof *s->slots);
	return s->slots != NULL;
}

void ak_taskset_free(struct ak_taskset *s)
{
	pthread_mutex_destroy(&s->lock);
	free(s->slots);
}

bool ak_taskset_add(struct ak_taskset *s, pid_t tid, bool *is_new)
{
	pthread_mutex_lock(&s->lock);
	bool ok = insert(s, tid, is_new);
	pthread_mutex_unlock(&s->lock);
	return ok;
}

bool ak_taskset_has(struct ak_taskset *s, pid_t tid)
{
	pthread_mutex_lock(&s->lock);
	bool has = find_slot(s->slots, s->n_slots, tid)->tid == tid;
	pthread_mutex_unlock(&s->lock);
	return has;
}

void ak_taskset_drop(struct ak_taskset *s, pid_t tid, uint64_t cpu_ns)
{
	pthread_mutex_lock(&s->lock);
	s->ended_cpu_ns += cpu_ns;
	struct ak_task *slot = find_slot(s->slots, s->n_slots, tid);
	if (slot->tid == tid) {
		s->n_tasks--;
		s->n_processes -= slot->leads;
		slot->tid = DELETED;
	}
	pthread_mutex_unlock(&s->lock);
}

void ak_taskset_kill(struct ak_taskset *s)
{
	pthread_mutex_lock(&s->lock);
	s->ending = true;
	for (size_t i = 0; i < s->n_slots; i++)
		if (s->slots[i].tid > 0)
			kill(s->slots[i].tid, SIGKILL);
	pthread_mutex_unlock(&s->lock);
}

bool ak_taskset_ending(struct ak_taskset *s)
{
	pthread_mutex_lock(&s->lock);
	bool ending = s->ending;
	pthread_mutex_unlock(&s->lock);
	return ending;
}

size_t ak_taskset_count(struct ak_taskset *s)
{
	pthread_mutex_lock(&s->lock);
	size_t n = s->n_tasks;
	pthread_mutex_unlock(&s->lock);
	return n;
}

pid_t ak_taskset_next(struct ak_taskset *s, size_t *cursor)
{
	pid_t tid = 0;
	pthread_mutex_lock(&s->lock);
	for (size_t i = 0; i < s->n_slots && tid <= 0; i++) {
		*cursor = (*cursor + 1) & (s->n_slots - 1);
		tid = s->slots[*cursor].tid;
	}
	pthread_mutex_unlock(&s->lock);
	return tid > 0 ? tid : 0;
}

size_t ak_taskset_processes(struct ak_taskset *s)
{
	pthread_mutex_lock(&s->lock);
	size_t n = s->n_processes;
	pthread_mutex_unlock(&s->lock);
	return n;
}

/* clock_getcpuclockid(3) spelled out: it allocates nothing and needs no permission. */
uint64_t ak_process_cpu_ns(pid_t pid)
{
	struct timespec ts;
	if (clock_gettime((clockid_t)(~(unsigned)pid << 3 | 2), &ts) < 0)
		return 0;
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t ak_taskset_cpu_ns(struct ak_taskset *s)
{
	pthread_mutex_lock(&s->lock);
	uint64_t sum = s->ended_cpu_ns;
	for (size_t i = 0; i < s->n_slots; i++)
		if (s->slots[i].tid > 0 && s->slots[i].leads)
			sum += ak_process_cpu_ns(s->slots[i].tid);
	pthread_mutex_unlock(&s->lock);
	return sum;
}
