/* races MODE ROUNDS A B: one thread turns A into B and back while the other uses A; says how often B was reached.
 *
 *   swap    A and B are exchanged on disk (a file and a symlink to something denied); A is opened and read
 *   memory  the path string alternates between A and B while openat() is under way
 *   dirfd   one descriptor number alternates between the directories A and B; "target" is opened below it
 *   cwd     the shared working directory alternates between A and B; "target" is opened
 *   create  like swap, for a directory and a symlink to one that is not granted; files A/made-N are created
 *   exec    like memory, for execve() in a child; B exits 77
 *
 * A file that was reached by mistake holds "HOST-SECRET" in its first bytes. Prints "rounds N good G refused R leaked L"; exit 3
 * when something leaked. Outside a sandbox it leaks at once: that is the control.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECRET "HOST-SECRET"

struct race {
	const char *a, *b;
	char *path;             /* memory, exec: the string that changes; room for the longer of the two */
	int slot, dir_a, dir_b; /* dirfd */
	atomic_long flips;
	atomic_bool over;
};

struct count { long good, refused, leaked; };

static void *flip_names(void *context)
{
	struct race *race = context;

	while (!atomic_load(&race->over))
		atomic_fetch_add(&race->flips, syscall(SYS_renameat2, AT_FDCWD, race->a, AT_FDCWD, race->b, 2 /* EXCHANGE */) == 0);
	return NULL;
}

static void *flip_memory(void *context)
{
	struct race *race = context;
	size_t a = strlen(race->a) + 1, b = strlen(race->b) + 1;

	while (!atomic_load(&race->over)) {
		memcpy(race->path, race->b, b);
		atomic_thread_fence(memory_order_seq_cst);
		memcpy(race->path, race->a, a);
		atomic_fetch_add(&race->flips, 1);
	}
	return NULL;
}

static void *flip_descriptor(void *context)
{
	struct race *race = context;

	while (!atomic_load(&race->over)) {
		(void)dup2(race->dir_b, race->slot);
		(void)dup2(race->dir_a, race->slot);
		atomic_fetch_add(&race->flips, 1);
	}
	return NULL;
}

static void *flip_cwd(void *context)
{
	struct race *race = context;

	while (!atomic_load(&race->over)) {
		(void)chdir(race->b);
		(void)chdir(race->a);
		atomic_fetch_add(&race->flips, 1);
	}
	return NULL;
}

static void judge_open(struct count *count, int fd)
{
	char bytes[64];
	ssize_t n = fd < 0 ? -1 : read(fd, bytes, sizeof bytes);

	if (fd >= 0)
		(void)close(fd);
	if (n > 0 && memmem(bytes, (size_t)n, SECRET, sizeof SECRET - 1) != NULL)
		count->leaked++;
	else if (n > 0)
		count->good++;
	else
		count->refused++;
}

/* A thousand names in turn, never removed: where they landed is for the host to see. */
static void judge_create(struct count *count, const struct race *race)
{
	long round = count->good + count->refused;
	char made[4096];
	int fd;

	(void)snprintf(made, sizeof made, "%s/made-%ld", race->a, round % 1000);
	fd = open(made, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	if (fd >= 0) {
		(void)close(fd);
		count->good++;
	} else {
		count->refused++;
	}
}

static void judge_exec(struct count *count, const struct race *race)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		char *args[] = { (char *)race->a, NULL }, *env[] = { NULL };

		(void)execve(race->path, args, env);
		_exit(66);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid) {
		count->refused++;
		return;
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		count->leaked++;
	else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		count->good++;
	else
		count->refused++;
}

static void run_round(const char *mode, const struct race *race, struct count *count)
{
	if (strcmp(mode, "create") == 0)
		judge_create(count, race);
	else if (strcmp(mode, "exec") == 0)
		judge_exec(count, race);
	else if (strcmp(mode, "dirfd") == 0)
		judge_open(count, openat(race->slot, "target", O_RDONLY | O_CLOEXEC));
	else if (strcmp(mode, "cwd") == 0)
		judge_open(count, open("target", O_RDONLY | O_CLOEXEC));
	else
		judge_open(count, open(strcmp(mode, "memory") == 0 ? race->path : race->a, O_RDONLY | O_CLOEXEC));
}

int main(int argc, char **argv)
{
	struct { const char *mode; void *(*flip)(void *); } modes[] = {
		{ "swap", flip_names }, { "memory", flip_memory }, { "dirfd", flip_descriptor }, { "cwd", flip_cwd },
		{ "create", flip_names }, { "exec", flip_memory },
	};
	struct race race = { 0 };
	struct count count = { 0 };
	void *(*flip)(void *) = NULL;
	pthread_t thread;
	long rounds = argc == 5 ? atol(argv[2]) : 0;

	for (size_t i = 0; argc == 5 && i < sizeof modes / sizeof modes[0]; i++)
		if (strcmp(modes[i].mode, argv[1]) == 0)
			flip = modes[i].flip;
	if (flip == NULL || rounds <= 0) {
		fprintf(stderr, "usage: races swap|memory|dirfd|cwd|create|exec ROUNDS A B\n");
		return 2;
	}
	race.a = argv[3];
	race.b = argv[4];
	race.path = aligned_alloc(64, 4096);
	if (race.path == NULL)
		return 2;
	memcpy(race.path, race.a, strlen(race.a) + 1);
	race.dir_a = open(race.a, O_PATH | O_CLOEXEC);
	race.dir_b = open(race.b, O_PATH | O_CLOEXEC);
	race.slot = dup(race.dir_a);
	if (pthread_create(&thread, NULL, flip, &race) != 0)
		return 2;
	while (atomic_load(&race.flips) == 0)
		(void)sched_yield();
	for (long i = 0; i < rounds; i++)
		run_round(argv[1], &race, &count);
	atomic_store(&race.over, true);
	(void)pthread_join(thread, NULL);
	printf("rounds %ld good %ld refused %ld leaked %ld\n", rounds, count.good, count.refused, count.leaked);
	return count.leaked > 0 ? 3 : 0;
}
