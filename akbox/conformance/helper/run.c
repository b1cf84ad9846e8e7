/* Starting programs and threads: images without a name, vfork, storms; and calls that must go on working. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "call.h"

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif
#ifndef SYS_mseal
#define SYS_mseal 462
#endif

/* A copy of a program in a memfd, executed by descriptor: no path to judge. */
static long try_memfd_exec(char **argv)
{
	char *args[] = { argv[1], NULL }, *env[] = { NULL };
	int from = open(argv[1], O_RDONLY | O_CLOEXEC), memory = memfd_create("kit", MFD_CLOEXEC);
	struct stat st;

	if (from < 0 || memory < 0 || fstat(from, &st) != 0)
		return -errno;
	if (sendfile(memory, from, NULL, (size_t)st.st_size) != st.st_size)
		return -EIO;
	return sys(SYS_execveat, GARBAGE(memory), (long)"", (long)args, (long)env, GARBAGE(AT_EMPTY_PATH), 0);
}

static long try_execveat(char **argv)
{
	char *args[] = { argv[1], NULL }, *env[] = { NULL };

	return sys(SYS_execveat, GARBAGE(AT_FDCWD), (long)argv[1], (long)args, (long)env, GARBAGE(0), 0);
}

/* The parent is stopped until the child's exec: whoever judges that exec must not need the parent. */
static long try_vfork_exec(char **argv)
{
	long rounds = number(argv[2]);

	for (long i = 0; i < rounds; i++) {
		int status;
		pid_t pid = vfork();

		if (pid < 0)
			return -errno;
		if (pid == 0) {
			execl(argv[1], argv[1], (char *)NULL);
			_exit(127);
		}
		if (waitpid(pid, &status, 0) != pid || status != 0)
			return -ECHILD;
	}
	return rounds;
}

static void *hold(void *barrier)
{
	(void)pthread_barrier_wait(barrier);
	return NULL;
}

/* All of them alive at once, then all joined. */
static long try_threads(char **argv)
{
	long count = number(argv[1]);
	pthread_t *thread = calloc((size_t)count, sizeof *thread);
	pthread_barrier_t barrier;
	pthread_attr_t attr;

	if (thread == NULL)
		return -ENOMEM;
	(void)pthread_barrier_init(&barrier, NULL, (unsigned)count + 1);
	(void)pthread_attr_init(&attr);
	(void)pthread_attr_setstacksize(&attr, 65536);
	for (long i = 0; i < count; i++) {
		int error = pthread_create(&thread[i], &attr, hold, &barrier);

		if (error != 0)
			return -error;
	}
	(void)pthread_barrier_wait(&barrier);
	for (long i = 0; i < count; i++)
		(void)pthread_join(thread[i], NULL);
	free(thread);
	return count;
}

/* Forks until the limit says EAGAIN; the children wait on a pipe, so that they are all alive together. */
static long try_fork_storm(char **argv)
{
	long most = number(argv[1]), alive = 0, answer = 0;
	int gate[2];
	char byte;

	if (pipe(gate) != 0)
		return -errno;
	while (alive < most && answer == 0) {
		pid_t pid = fork();

		if (pid == 0) {
			(void)close(gate[1]);
			_exit(read(gate[0], &byte, 1) == 0 ? 0 : 1);
		}
		if (pid < 0)
			answer = -errno;
		else
			alive++;
	}
	(void)close(gate[1]);
	while (wait(NULL) > 0)
		continue;
	printf("alive %ld\n", alive);
	return answer;
}

/* Newer calls without an effect on others: a filter that lists what it knows must know these. */
static long try_newer_calls(char **argv)
{
	void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct futex_waitv wait = { .val = 1, .uaddr = (uintptr_t)page, .flags = FUTEX_32 };
	struct timespec past = { 0, 0 };
	uint64_t range[2] = { 0, 4096 }, cached[5];
	struct { const char *name; long value; } calls[] = {
		{ "membarrier", sys(SYS_membarrier, GARBAGE(MEMBARRIER_CMD_QUERY), GARBAGE(0), GARBAGE(0), 0, 0, 0) > 0 },
		{ "rseq", sys(SYS_rseq, 0, GARBAGE(1), GARBAGE(0), GARBAGE(0), 0, 0) },
		{ "futex_waitv", sys(SYS_futex_waitv, (long)&wait, GARBAGE(1), GARBAGE(0), (long)&past, GARBAGE(1), 0) },
		{ "close_range", sys(SYS_close_range, GARBAGE(900), GARBAGE(901), GARBAGE(0), 0, 0, 0) },
		{ "cachestat", sys(SYS_cachestat, GARBAGE(-1), (long)range, (long)cached, GARBAGE(0), 0, 0) },
		{ "mseal", sys(SYS_mseal, (long)page, 4096, 0, 0, 0, 0) },
		{ "getrandom", sys(SYS_getrandom, (long)cached, sizeof cached, GARBAGE(0), 0, 0, 0) },
		{ "sched_getattr", sys(SYS_sched_getattr, GARBAGE(0), (long)cached, GARBAGE(0), GARBAGE(0), 0, 0) },
		{ "pidfd_open", sys(SYS_pidfd_open, GARBAGE(getpid()), GARBAGE(0), 0, 0, 0, 0) > 0 },
		{ "memfd_create", sys(SYS_memfd_create, (long)"kit", GARBAGE(0), 0, 0, 0, 0) > 0 },
	};

	(void)argv;
	for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++)
		printf("%s %s\n", calls[i].name, calls[i].value < 0 ? strerrorname_np((int)-calls[i].value) : "ok");
	return 0;
}

const struct attempt run_attempts[] = {
	{ "memfd_exec", 1, try_memfd_exec },
	{ "execveat", 1, try_execveat },
	{ "vfork_exec", 2, try_vfork_exec },
	{ "threads", 1, try_threads },
	{ "fork_storm", 1, try_fork_storm },
	{ "newer_calls", 0, try_newer_calls },
	{ NULL, 0, NULL },
};
