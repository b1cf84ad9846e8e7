#include "taskset.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

static void count_processes(struct ak_taskset *s, size_t more, size_t fewer)
{
	for (; s; s = s->above) {
		atomic_fetch_add(&s->all_processes, more);
		atomic_fetch_sub(&s->all_processes, fewer);
	}
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
	slot->exiting = false;
	slot->leads = syscall(SYS_tgkill, tid, tid, 0) == 0 || errno == EPERM;
	s->n_tasks++;
	s->n_processes += slot->leads;
	count_processes(s, slot->leads, 0);
	return true;
}

bool ak_taskset_init(struct ak_taskset *s, struct ak_taskset *above)
{
	*s = (struct ak_taskset){.n_slots = FIRST_SLOTS, .above = above};
	pthread_mutex_init(&s->lock, NULL);
	s->slots = calloc(s->n_slots, sizeof *s->slots);
	return s->slots != NULL;
}

void ak_taskset_free(struct ak_taskset *s)
{
	count_processes(s->above, 0, s->n_processes);
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
		count_processes(s, 0, slot->leads);
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
	return atomic_load(&s->all_processes);
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

size_t ak_taskset_list(struct ak_taskset *s, pid_t *tids, size_t most, bool leads)
{
	size_t n = 0;
	pthread_mutex_lock(&s->lock);
	for (size_t i = 0; i < s->n_slots; i++)
		if (s->slots[i].tid > 0 && (!leads || s->slots[i].leads)) {
			if (n < most)
				tids[n] = s->slots[i].tid;
			n++;
		}
	pthread_mutex_unlock(&s->lock);
	return n;
}

static uint64_t io_field(const char *text, const char *key)
{
	const char *at = strstr(text, key);
	return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

int ak_task_io_bytes(pid_t tid, uint64_t *bytes)
{
	char path[64], text[512];
	snprintf(path, sizeof path, "/proc/%d/task/%d/io", tid, tid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t n = read(fd, text, sizeof text - 1);
	int error = n < 0 ? errno : ESRCH;
	close(fd);
	if (n <= 0)
		return -error;
	text[n] = '\0';
	uint64_t in = io_field(text, "rchar: "), out = io_field(text, "wchar: ");
	uint64_t from_disk = io_field(text, "\nread_bytes: "), to_disk = io_field(text, "\nwrite_bytes: ");
	*bytes = (in > from_disk ? in : from_disk) + (out > to_disk ? out : to_disk);
	return 0;
}

void ak_taskset_exiting(struct ak_taskset *s, pid_t tid)
{
	uint64_t bytes = 0;
	int error = ak_task_io_bytes(tid, &bytes);
	pthread_mutex_lock(&s->lock);
	struct ak_task *slot = find_slot(s->slots, s->n_slots, tid);
	if (slot->tid == tid && !error && !slot->exiting) {
		slot->exiting = true;
		s->ended_io_bytes += bytes;
	}
	pthread_mutex_unlock(&s->lock);
}

/* The tasks and the sum of the ended ones at one moment. A task that is reaped before it is read is in neither: once more.
 * One that was killed without an exit stop may be a zombie that cannot be read: the caller knows what it had seen of it. */
bool ak_taskset_io_bytes(struct ak_taskset *s, uint64_t *sum)
{
	bool complete = false;
	for (int tries = 0; !complete && tries < 8; tries++) {
		pthread_mutex_lock(&s->lock);
		size_t n = 0, most = s->n_tasks;
		pid_t *tids = malloc(most * sizeof *tids + 1);
		for (size_t i = 0; tids && i < s->n_slots && n < most; i++)
			if (s->slots[i].tid > 0 && !s->slots[i].exiting)
				tids[n++] = s->slots[i].tid;
		*sum = s->ended_io_bytes;
		pthread_mutex_unlock(&s->lock);
		if (!tids)
			return false;
		complete = true;
		for (size_t i = 0; complete && i < n; i++) {
			uint64_t bytes = 0;
			int error = ak_task_io_bytes(tids[i], &bytes);
			complete = error != -ENOENT && error != -ESRCH;
			*sum += bytes;
		}
		free(tids);
	}
	return complete;
}
