/* calls FILE: what single system calls cost, for scripts/bench. Prints "name nanoseconds" lines: the median of many calls
 * in a row, each timed by itself, without the cost of asking the clock. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 20000, FORKS = 300 };

static const char *file, *relative;
static int zero;
static struct sockaddr_in listening;

static double now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static void nothing(void) {}
static void call_getppid(void) { syscall(SYS_getppid); }
static void call_stat(void) { struct stat st; must(stat(file, &st) == 0, "stat"); }
static void call_readlink(void) { char b[64]; must(readlink("/proc/self/exe", b, sizeof b) > 0, "readlink"); }
static void call_read(void) { char b[64]; must(read(zero, b, sizeof b) == sizeof b, "read"); }
static void call_write(void) { static int null = -1; if (null < 0) null = open("/dev/null", O_WRONLY); must(write(null, "x", 1) == 1, "write"); }

static void call_mmap(void)
{
	void *p = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(p != MAP_FAILED && munmap(p, 4096) == 0, "mmap");
}

static void open_close(const char *path, int flags)
{
	int fd = open(path, flags, 0644);
	must(fd >= 0, path);
	close(fd);
}

static void call_open(void) { open_close(file, O_RDONLY); }
static void call_open_relative(void) { open_close(relative, O_RDONLY); }
static void call_open_write(void) { open_close("written", O_WRONLY | O_CREAT | O_TRUNC); }

static void call_absent(void)
{
	must(open("/usr/include/no-such-file", O_RDONLY) < 0, "absent");
}

static void call_fork(void)
{
	pid_t pid = fork();
	if (pid == 0)
		_exit(0);
	must(pid > 0 && waitpid(pid, NULL, 0) == pid, "fork");
}

static void call_connect(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	must(fd >= 0 && connect(fd, (struct sockaddr *)&listening, sizeof listening) == 0, "connect");
	struct linger reset = {.l_onoff = 1};
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
	close(fd);
}

static void listen_somewhere(const char *port)
{
	listening = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
	listening.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
}

static double median_ns(void (*call)(void), int rounds)
{
	static double took[ROUNDS];
	for (int i = 0; i < rounds; i++) {
		double start = now_ns();
		call();
		took[i] = now_ns() - start;
	}
	qsort(took, (size_t)rounds, sizeof *took, compare);
	return took[rounds / 2];
}

static const struct { const char *name; void (*call)(void); int rounds; } calls[] = {
	{"getppid", call_getppid, ROUNDS},
	{"stat", call_stat, ROUNDS},
	{"readlink", call_readlink, ROUNDS},
	{"read", call_read, ROUNDS},
	{"write", call_write, ROUNDS},
	{"mmap+munmap", call_mmap, ROUNDS},
	{"open+close", call_open, ROUNDS},
	{"open+close, relative", call_open_relative, ROUNDS},
	{"open+close, for writing", call_open_write, ROUNDS},
	{"open of nothing", call_absent, ROUNDS},
	{"fork+wait", call_fork, FORKS},
	{"tcp connect", call_connect, 2000},
};

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: calls FILE RELATIVE PORT\n");
		return 2;
	}
	file = argv[1];
	relative = argv[2];
	listen_somewhere(argv[3]);
	zero = open("/dev/zero", O_RDONLY);
	must(zero >= 0, "/dev/zero");
	double clock = median_ns(nothing, ROUNDS);
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
		printf("%s\t%.0f\n", calls[i].name, median_ns(calls[i].call, calls[i].rounds) - clock);
	return 0;
}
