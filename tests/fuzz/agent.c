/* See agent.h. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/audit.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#else
#define ARCH AUDIT_ARCH_AARCH64
#endif
#define RING_BYTES (1u << 20)
#define WAIT_NS 5000000

#define NEED(condition) ((condition) ? (void)0 : die(#condition, __LINE__))

static void die(const char *what, int line)
{
	fprintf(stderr, "agent.c:%d: %s (errno %d)\n", line, what, errno);
	abort();
}

static struct agent agent;
static struct ak_ring *ring;
static const char *const files[AGENT_FILES] = {"work/ok", "work/d/secret", "read/a", "host/h"};
/* What changes when anything at all is done to what the policy keeps from the agent: the inode's change time. */
static const char *const kept[] = {"", "host", "host/h", "read", "read/a", "work/d/secret"};
static int lowest;                      /* descriptor that was free when the input began */
static struct stat before[sizeof kept / sizeof *kept];

static const char *inside(const char *name)
{
	static char path[2][PATH_MAX];
	static unsigned n;
	char *out = path[n++ % 2];
	snprintf(out, PATH_MAX, "%s/%s", agent.dir, name);
	return out;
}

/* ---- the process in the agent's place ------------------------------------------------------------------------------ */

static void at(int place, int fd)
{
	if (fd >= 0 && fd != FIRST_FD + place) {
		dup2(fd, FIRST_FD + place);
		close(fd);
	}
}

static void live(pid_t parent, int ready)
{
	int pair[2];
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 1);
	for (int sig = 1; sig < NSIG; sig++)    /* it may send itself any; that is no finding of the fuzzer's */
		signal(sig, SIG_DFL);
	if (getppid() != parent || chdir(inside("work")) < 0)
		_exit(1);
	at(0, socket(AF_INET, SOCK_STREAM, 0));
	at(1, socket(AF_INET, SOCK_DGRAM, 0));
	at(2, socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0));
	at(3, socket(AF_INET6, SOCK_DGRAM, 0));
	at(4, socket(AF_UNIX, SOCK_STREAM, 0));
	at(5, socket(AF_UNIX, SOCK_DGRAM, 0));
	at(6, socket(AF_NETLINK, SOCK_RAW, 0));
	at(7, open("ok", O_RDWR));
	at(8, open(inside("read/a"), O_RDONLY));
	at(9, open(".", O_RDONLY | O_DIRECTORY));
	at(10, open("/", O_PATH));
	at(11, open(inside("host"), O_PATH));
	at(12, open(inside("host/h"), O_PATH));
	at(13, memfd_create("m", 0));
	at(14, (int)syscall(SYS_pidfd_open, getpid(), 0));
	at(15, open("d", O_PATH));
	at(16, open("/proc/self", O_PATH));
	at(17, open("/dev/null", O_RDWR));
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0) {
		at(18, pair[0]);
		at(19, pair[1]);
	}
	if (write(ready, "", 1) != 1)
		_exit(1);
	close(ready);
	for (;;)
		pause();
}

bool agent_lives(const struct agent *a)
{
	return a->pid > 0 && waitpid(a->pid, NULL, WNOHANG) == 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *w)
{
	size_t len = strlen(path);
	(void)st;
	if (w->level == 0 || strcmp(path, inside("work/d")) == 0 || (len > 7 && strcmp(path + len - 7, "/secret") == 0))
		return 0;
	if (type == FTW_DP || type == FTW_DNR)
		chmod(path, 0700);
	remove(path);
	return 0;
}

/* The agent may take every right on its own directories away, which are ours too. */
static bool open_ways(void)
{
	return chmod(inside("work"), 0777) == 0 && chmod(inside("work/d"), 0777) == 0;
}

static void renew_files(void)
{
	umask(022);
	NEED(open_ways());
	nftw(inside("work"), remove_one, 16, FTW_DEPTH | FTW_PHYS);
	int fd = open(inside("work/ok"), O_WRONLY | O_CREAT | O_TRUNC, 0644);
	NEED(fd >= 0 && write(fd, "ok\n", 3) == 3 && close(fd) == 0);
	NEED(symlink(inside("host/h"), inside("work/out")) == 0 || errno == EEXIST);
	NEED(symlink("d/secret", inside("work/in")) == 0 || errno == EEXIST);
	NEED(mkfifo(inside("work/fifo"), 0600) == 0 || errno == EEXIST);
}

void agent_renew(struct agent *a)
{
	pid_t parent = getpid();
	int ready[2];
	char byte;
	if (a->pid > 0) {
		kill(a->pid, SIGKILL);
		waitpid(a->pid, NULL, 0);
	}
	renew_files();
	NEED(pipe2(ready, O_CLOEXEC) == 0);
	a->pid = fork();
	NEED(a->pid >= 0);
	if (a->pid == 0)
		live(parent, ready[1]);
	close(ready[1]);
	NEED(read(ready[0], &byte, 1) == 1);
	close(ready[0]);
	a->enforcer->config.main_pid = a->pid;
	for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
		NEED(lstat(inside(kept[i]), &before[i]) == 0);
}

/* ---- the enforcer --------------------------------------------------------------------------------------------------- */

/* The Python side: answers what waits for it, with anything. */
static void *answer(void *unused)
{
	static const char body[300] = "{\"ok\":true}";
	struct ak_upcall u;
	for (unsigned n = 0;; n++) {
		int r = ak_upcall_next(agent.enforcer, 1000, &u);
		if (r == -EPIPE)
			return unused;
		if (r < 0)
			continue;
		free(u.request);
		ak_upcall_reply(agent.enforcer, u.cookie, n & 1, body, n % sizeof body);
	}
}

static struct ak_policy *read_policy(void)
{
	static uint8_t blob[1 << 20];
	const char *why = NULL;
	FILE *file = fopen(inside("policy.blob"), "rb");
	NEED(file);
	size_t size = fread(blob, 1, sizeof blob, file);
	fclose(file);
	struct ak_policy *p = ak_policy_parse(blob, size, &why);
	NEED(p);
	return p;
}

/* Names that addresses were handed out for, and servers of our own, as a policy with `dns:` rules has them. */
static struct ak_names *make_names(void)
{
	struct ak_own_server server = {.v4_len = sizeof(struct sockaddr_in), .v6_len = sizeof(struct sockaddr_in6)};
	struct sockaddr_in *v4 = (struct sockaddr_in *)&server.v4;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&server.v6;
	uint8_t addr[16] = {[10] = 0xff, [11] = 0xff, [12] = 10, [15] = 7};
	*v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	*v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(9), .sin6_addr = in6addr_loopback};
	struct ak_names *n = ak_names_new(&server, &server, &server, AK_RELAY_NAMED, NULL);
	struct ak_pin_rule rules[2] = {{0, 443, 443, 0, AK_TCP}, {1, 444, 445, 2, AK_TCP}};
	NEED(n && ak_pin(n, addr, "a.example", 9, AK_PIN_FOREVER, rules, 2) == 0);
	return n;
}

static void set_signals(void)
{
	sigset_t none;
	struct rlimit size = {1 << 20, 1 << 20};
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	setrlimit(RLIMIT_FSIZE, &size);
	sigemptyset(&none);             /* libFuzzer's own: ak_thread_prepare() has blocked them */
	pthread_sigmask(SIG_SETMASK, &none, NULL);
}

struct agent *agent_start(uint32_t flags)
{
	static const uint8_t run[16] = {1};
	pthread_t thread;
	const char *dir = getenv("AKBOX_FUZZ_DIR");
	if (!dir || !realpath(dir, agent.dir)) {
		fprintf(stderr, "AKBOX_FUZZ_DIR: see tests/fuzz/seeds.py\n");
		exit(2);
	}
	int shared = memfd_create("memory", MFD_CLOEXEC), fd = memfd_create("ring", MFD_CLOEXEC);
	NEED(ftruncate(shared, MEMORY_BYTES) == 0);
	NEED(mmap(MEMORY, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, shared, 0) == MEMORY);
	ring = ak_ring_open(fd, RING_BYTES, run);
	NEED(ring);
	close(fd);
	close(shared);
	agent.policy = read_policy();
	struct ak_enforcer_config config = {
		.policy = agent.policy, .ring = ring, .supervisor_pid = getpid(), .flags = flags | AK_FLAG_FDS_BY_PIDFD,
	};
	agent.enforcer = ak_enforcer_new(&config, NULL, 0);
	agent.names = make_names();
	NEED(agent.enforcer && ak_thread_prepare("fuzz"));
	set_signals();
	agent_renew(&agent);
	NEED(pthread_create(&thread, NULL, answer, NULL) == 0);
	return &agent;
}

/* ---- calls ---------------------------------------------------------------------------------------------------------- */

static struct { unsigned looks; uint64_t until_ns; } valid;

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool still_valid(void *unused)
{
	(void)unused;
	return valid.looks && valid.looks-- && (!valid.until_ns || now_ns() < valid.until_ns);
}

struct ak_stop agent_stop(struct agent *a, int nr, unsigned looks)
{
	valid.looks = looks;
	valid.until_ns = 0;
	return (struct ak_stop){.tid = a->pid, .arch = ARCH, .nr = nr, .still_valid = still_valid};
}

/* An installed descriptor leads to nothing that the policy keeps from the agent, whatever its name says. */
static void check_installed(const struct agent *a, int nr, int fd)
{
	struct stat st;
	char name[PATH_MAX];
	int flags = fcntl(fd, F_GETFL);
	NEED(flags >= 0 && fstat(fd, &st) == 0);
	if (flags & O_PATH)
		return;
	for (int i = 0; i < AGENT_FILES; i++) {
		struct stat file;
		if (lstat(inside(files[i]), &file) < 0 || file.st_ino != st.st_ino || file.st_dev != st.st_dev)
			continue;
		bool reads = (flags & O_ACCMODE) == O_RDONLY;
		if (i == SECRET || i == HOST_H || (i == READ_A && !reads)) {
			fprintf(stderr, "call %d gave %s with flags %#x\n", nr, files[i], (unsigned)flags);
			abort();
		}
	}
	ssize_t n = readlink(ak_proc_fd(fd).text, name, sizeof name);
	unsigned need = (flags & O_ACCMODE) == O_RDONLY ? AK_READ : (flags & O_ACCMODE) == O_WRONLY ? AK_WRITE : AK_READ | AK_WRITE;
	bool by_name = n > 0 && name[0] == '/' && st.st_nlink && strncmp(name, "/proc/", 6) != 0 && strncmp(name, "/dev/", 5) != 0;
	if (by_name && !(n > 10 && memcmp(name + n - 10, " (deleted)", 10) == 0))
		NEED(ak_policy_fs(a->policy, need, name, (size_t)n).decision == AK_ALLOW);
}

void agent_call(struct agent *a, int nr, const uint64_t args[6], unsigned looks, struct ak_outcome *out)
{
	struct ak_stop stop = agent_stop(a, nr, looks);
	memcpy(stop.args, args, sizeof stop.args);
	ak_enforce(a->enforcer, &stop, false, out);
	if (out->kind == AK_LATER) {
		valid.until_ns = now_ns() + WAIT_NS;
		ak_enforce(a->enforcer, &stop, true, out);
		NEED(out->kind != AK_LATER);
	}
	NEED(out->kind != AK_RESULT || out->value >= -4095);
	/* Where an address was judged nothing may be left to the kernel. */
	NEED(out->kind != AK_CONTINUE || (nr != SYS_connect && nr != SYS_bind && nr != SYS_listen));
	if (out->kind == AK_INSTALL_FD)
		check_installed(a, nr, out->fd);
}

static int lowest_free(void)
{
	int fd = dup(0);
	NEED(fd >= 0 && close(fd) == 0);
	return fd;
}

void agent_begin(void)
{
	lowest = lowest_free();
}

void agent_check(struct agent *a)
{
	static uint8_t records[RING_BYTES];
	for (size_t n; (n = ak_ring_peek(ring, records, sizeof records)) > 0;)
		NEED(ak_ring_consume(ring, n) == 0);
	for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
		struct stat now;
		bool there = lstat(inside(kept[i]), &now) == 0;
		if (!there && errno == EACCES && open_ways())
			there = lstat(inside(kept[i]), &now) == 0;
		bool same = there && now.st_ino == before[i].st_ino &&
			    now.st_ctim.tv_sec == before[i].st_ctim.tv_sec && now.st_ctim.tv_nsec == before[i].st_ctim.tv_nsec;
		if (!same)
			fprintf(stderr, "%s/%s was changed\n", a->dir, kept[i]);
		NEED(same);
	}
	NEED(lowest_free() <= lowest);
}
