/* races MODE ROUNDS A B: one thread turns A into B and back while the other uses A; says how often B was reached.
 *
 *   swap    A and B are exchanged on disk (a file and a symlink to something denied); A is opened and read
 *   memory  the path string alternates between A and B while openat() is under way
 *   dirfd   one descriptor number alternates between the directories A and B; "target" is opened below it
 *   cwd     the shared working directory alternates between A and B; "target" is opened
 *   create  like swap, for a directory and a symlink to one that is not granted; files A/made-N are created
 *   exec    like memory, for execve() in a child; B exits 77
 *   shared  like memory, by another process, in memory that both map
 *   vm      like memory, by another process that has all of this one's (clone(CLONE_VM))
 *   parent  the directory "sub" moves between A and B while A/sub/…/../secret is resolved, down and up again
 *   procfd  one descriptor number alternates between A, open for reading, and B, which is only named; it is opened by /proc
 *   shebang a script A alternates between two interpreters, /bin/true and B, which exits 77
 *   mutate  like memory, for truncate(); B must keep its size
 *   how     the flags of openat2() alternate between reading and writing; A must not be opened for writing
 *
 * A file that was reached by mistake holds "HOST-SECRET" in its first bytes. Prints "rounds N good G refused R leaked L"; exit 3
 * when something leaked. Outside a sandbox it leaks at once: that is the control.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECRET "HOST-SECRET"

struct race {
	const char *a, *b;
	char *path;             /* memory, exec: the string that changes; room for the longer of the two */
	int slot, dir_a, dir_b; /* dirfd, procfd */
	struct open_how how;
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

static void *flip_parents(void *context)
{
	struct race *race = context;
	char here[4096], there[4096];

	(void)snprintf(here, sizeof here, "%s/sub", race->a);
	(void)snprintf(there, sizeof there, "%s/sub", race->b);
	while (!atomic_load(&race->over)) {
		atomic_fetch_add(&race->flips, rename(here, there) == 0);
		(void)rename(there, here);
	}
	return NULL;
}

static void *flip_script(void *context)
{
	struct race *race = context;
	char line[2][256] = { "#!/bin/true\n" };
	int fd = open(race->a, O_WRONLY | O_CLOEXEC);

	(void)snprintf(line[1], sizeof line[1], "#!%s\n", race->b);
	(void)close(fd);
	for (long i = 0; !atomic_load(&race->over); i++) {
		fd = open(race->a, O_WRONLY | O_CLOEXEC);       /* ETXTBSY while it is being executed */
		if (fd >= 0 && pwrite(fd, line[i % 2], sizeof line[0], 0) == sizeof line[0])
			atomic_fetch_add(&race->flips, 1);
		if (fd >= 0)
			(void)close(fd);
		(void)sched_yield();
	}
	return NULL;
}

static void *flip_how(void *context)
{
	struct race *race = context;
	volatile uint64_t *flags = (volatile uint64_t *)&race->how.flags;

	while (!atomic_load(&race->over)) {
		*flags = O_RDWR;
		atomic_thread_fence(memory_order_seq_cst);
		*flags = O_RDONLY;
		atomic_fetch_add(&race->flips, 1);
	}
	return NULL;
}

static int flip_in_process(void *context)
{
	(void)flip_memory(context);
	return 0;
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

static void judge_mutation(struct count *count, const struct race *race)
{
	struct stat before, after;
	bool known = stat(race->b, &before) == 0;
	long result = truncate(race->path, 2);

	if (known && stat(race->b, &after) == 0 && after.st_size != before.st_size)
		count->leaked++;
	else if (result == 0)
		count->good++;
	else
		count->refused++;
}

static void judge_how(struct count *count, const struct race *race)
{
	int fd = (int)syscall(SYS_openat2, AT_FDCWD, race->a, &race->how, sizeof race->how);

	if (fd < 0)
		count->refused++;
	else if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
		count->leaked++;
	else
		count->good++;
	if (fd >= 0)
		(void)close(fd);
}

static void run_round(const char *mode, const struct race *race, struct count *count)
{
	if (strcmp(mode, "create") == 0)
		judge_create(count, race);
	else if (strcmp(mode, "exec") == 0)
		judge_exec(count, race);
	else if (strcmp(mode, "shebang") == 0)
		judge_exec(count, race);
	else if (strcmp(mode, "mutate") == 0)
		judge_mutation(count, race);
	else if (strcmp(mode, "how") == 0)
		judge_how(count, race);
	else if (strcmp(mode, "parent") == 0 || strcmp(mode, "procfd") == 0)
		judge_open(count, open(race->path, O_RDONLY | O_CLOEXEC));
	else if (strcmp(mode, "dirfd") == 0)
		judge_open(count, openat(race->slot, "target", O_RDONLY | O_CLOEXEC));
	else if (strcmp(mode, "cwd") == 0)
		judge_open(count, open("target", O_RDONLY | O_CLOEXEC));
	else
		judge_open(count, open(strcmp(mode, "swap") == 0 ? race->a : race->path, O_RDONLY | O_CLOEXEC));
}

/* Starts what flips: a thread, or for `shared` and `vm` a process. */
static bool start(const char *mode, void *(*flip)(void *), struct race *race, pthread_t *thread, pid_t *pid)
{
	enum { STACK = 1 << 16 };
	char *stack;

	if (strcmp(mode, "shared") == 0) {
		*pid = fork();
		if (*pid == 0)
			_exit(flip_in_process(race));
		return *pid > 0;
	}
	if (strcmp(mode, "vm") == 0) {
		stack = malloc(STACK);
		*pid = stack == NULL ? -1 : clone(flip_in_process, stack + STACK, CLONE_VM | SIGCHLD, race);
		return *pid > 0;
	}
	return pthread_create(thread, NULL, flip, race) == 0;
}

/* The longer the way, the more often the directory moves meanwhile. */
static void go_down_and_up(struct race *race)
{
	enum { DEPTH = 64 };
	int len = snprintf(race->path, 4096, "%s/sub", race->a);

	for (int i = 0; i < DEPTH; i++)
		len += snprintf(race->path + len, 4096 - (size_t)len, "/d");
	for (int i = 0; i <= DEPTH; i++)
		len += snprintf(race->path + len, 4096 - (size_t)len, "/..");
	(void)snprintf(race->path + len, 4096 - (size_t)len, "/secret");
}

static void prepare(const char *mode, struct race *race)
{
	bool procfd = strcmp(mode, "procfd") == 0;

	race->dir_a = open(race->a, (procfd ? O_RDONLY : O_PATH) | O_CLOEXEC);
	race->dir_b = open(race->b, O_PATH | O_CLOEXEC);
	race->slot = dup(race->dir_a);
	if (procfd)
		(void)snprintf(race->path, 4096, "/proc/self/fd/%d", race->slot);
	else if (strcmp(mode, "parent") == 0)
		go_down_and_up(race);
	else
		(void)snprintf(race->path, 4096, "%s", race->a);
}

int main(int argc, char **argv)
{
	struct { const char *mode; void *(*flip)(void *); } modes[] = {
		{ "swap", flip_names }, { "memory", flip_memory }, { "dirfd", flip_descriptor }, { "cwd", flip_cwd },
		{ "create", flip_names }, { "exec", flip_memory }, { "shared", flip_memory }, { "vm", flip_memory },
		{ "parent", flip_parents }, { "procfd", flip_descriptor }, { "shebang", flip_script },
		{ "mutate", flip_memory }, { "how", flip_how },
	};
	struct count count = { 0 };
	void *(*flip)(void *) = NULL;
	pthread_t thread;
	pid_t pid = 0;
	long rounds = argc == 5 ? atol(argv[2]) : 0;
	/* Shared with another process, where there is one; of its own pages, so that a string never crosses one. */
	struct race *race = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	for (size_t i = 0; argc == 5 && i < sizeof modes / sizeof modes[0]; i++)
		if (strcmp(modes[i].mode, argv[1]) == 0)
			flip = modes[i].flip;
	if (flip == NULL || rounds <= 0 || race == MAP_FAILED) {
		fprintf(stderr, "usage: races MODE ROUNDS A B (see the head of races.c)\n");
		return 2;
	}
	race->a = argv[3];
	race->b = argv[4];
	race->path = (char *)race + 4096;
	prepare(argv[1], race);
	if (!start(argv[1], flip, race, &thread, &pid))
		return 2;
	while (atomic_load(&race->flips) == 0)
		(void)sched_yield();
	for (long i = 0; i < rounds; i++)
		run_round(argv[1], race, &count);
	atomic_store(&race->over, true);
	if (pid > 0)
		(void)waitpid(pid, NULL, 0);
	else
		(void)pthread_join(thread, NULL);
	printf("rounds %ld good %ld refused %ld leaked %ld\n", rounds, count.good, count.refused, count.leaked);
	return count.leaked > 0 ? 3 : 0;
}
