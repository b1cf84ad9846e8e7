/* The agent's side of a call: its memory, its cwd, its descriptors, its umask, and which processes belong to its run.
 *
 * Everything is read through /proc/TID or process_vm_readv, so each answer is checked with still_valid(): only while the
 * task is stopped in this very call does the number TID surely mean the task that made it.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "notify.h"

#define PAGE_BYTES 4096u                /* the smallest page of both architectures: never reads past the last mapped one */
#define STATUS_BYTES 4096
#define ANCESTORS_MAX 512
#define KERNEL_RESTARTSYS 512           /* include/linux/errno.h: restart after an SA_RESTART handler, else EINTR */
#define KERNEL_RESTARTNOHAND 514        /* for our tracer, which turns it into the one above (tracer.c, signal_stop) */
#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL             /* Linux 6.9 */
#endif

static bool gone(struct ak_call *c)
{
	return !c->stop->still_valid(c->stop->ctx);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* Containers with older runtimes refuse process_vm_*: then /proc/TID/mem, whose access check is the same. */
static ssize_t copy_by_file(pid_t tid, uint64_t addr, void *buf, size_t len, bool write)
{
	char name[32];
	snprintf(name, sizeof name, "/proc/%d/mem", tid);
	int fd = open(name, (write ? O_WRONLY : O_RDONLY) | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t n = write ? pwrite(fd, buf, len, (off_t)addr) : pread(fd, buf, len, (off_t)addr);
	int error = errno;
	close(fd);
	return n < 0 ? (error == EIO ? -EFAULT : -error) : n;
}

static ssize_t copy_some(pid_t tid, uint64_t addr, void *buf, size_t len, bool write)
{
	struct iovec local = {buf, len}, remote = {(void *)(uintptr_t)addr, len};
	ssize_t n = write ? process_vm_writev(tid, &local, 1, &remote, 1, 0) : process_vm_readv(tid, &local, 1, &remote, 1, 0);
	if (n >= 0)
		return n;
	if (errno == EPERM || errno == ENOSYS)
		return copy_by_file(tid, addr, buf, len, write);
	return -errno;
}

static int copy_all(struct ak_call *c, uint64_t addr, void *buf, size_t len, bool write)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = copy_some(c->stop->tid, addr + done, (char *)buf + done, len - done, write);
		if (n == 0)
			return -EFAULT;
		if (n < 0)
			return (int)n;
		done += (size_t)n;
	}
	return 0;
}

int ak_read(struct ak_call *c, uint64_t addr, void *buf, size_t len)
{
	int error = copy_all(c, addr, buf, len, false);
	return gone(c) ? -ESRCH : error;
}

/* The check comes first: after it the number could mean another process only if the agent were killed and its number
 * used again in between. */
int ak_write(struct ak_call *c, uint64_t addr, const void *buf, size_t len)
{
	if (gone(c))
		return -ESRCH;
	int error = copy_all(c, addr, (void *)(uintptr_t)buf, len, true);
	return gone(c) ? -ESRCH : error;
}

/* A string may end just before an unmapped page, so no read crosses a page. */
static ssize_t read_string(struct ak_call *c, uint64_t addr, char *buf, size_t cap, int too_long)
{
	ssize_t result = too_long;
	for (size_t done = 0; done < cap;) {
		size_t len = PAGE_BYTES - ((addr + done) & (PAGE_BYTES - 1));
		if (len > cap - done)
			len = cap - done;
		ssize_t n = copy_some(c->stop->tid, addr + done, buf + done, len, false);
		if (n <= 0) {
			result = n < 0 ? n : -EFAULT;
			break;
		}
		char *end = memchr(buf + done, 0, (size_t)n);
		if (end) {
			result = end - buf;
			break;
		}
		done += (size_t)n;
	}
	return gone(c) ? -ESRCH : result;
}

ssize_t ak_read_path(struct ak_call *c, uint64_t addr, char buf[PATH_MAX])
{
	return read_string(c, addr, buf, PATH_MAX, -ENAMETOOLONG);
}

ssize_t ak_read_string(struct ak_call *c, uint64_t addr, char *buf, size_t cap)
{
	return read_string(c, addr, buf, cap, -ERANGE);
}

/* ---- /proc/TID --------------------------------------------------------------------------------------------------- */

static int open_task(struct ak_call *c, int flags, const char *format, int n)
{
	char name[64];
	int used = snprintf(name, sizeof name, "%d/", c->stop->tid);
	snprintf(name + used, sizeof name - (size_t)used, format, n);
	int fd = openat(c->enforcer->proc_dir, name, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* A small proc file, whole, NUL-terminated. The file is generated in one go by the first read. */
static int read_small(int fd, char *buf, size_t cap)
{
	ssize_t n = read(fd, buf, cap - 1);
	if (n < 0)
		return -errno;
	buf[n] = 0;
	return 0;
}

static int read_task(struct ak_call *c, const char *format, int n, char *buf, size_t cap)
{
	int fd = open_task(c, O_RDONLY, format, n);
	if (fd < 0)
		return fd;
	int error = read_small(fd, buf, cap);
	close(fd);
	return gone(c) ? -ESRCH : error;
}

/* The value of a "Key:\tvalue" line as a number, -1 when the line is not there. What the task calls itself ("Name:")
 * cannot fake one: the kernel escapes newlines in it. */
static long field(const char *text, const char *key, int base)
{
	size_t len = strlen(key);
	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, key, len) == 0)
			return strtol(line + len, NULL, base);
	}
	return -1;
}

/* tgkill with signal 0 says in 0.1 µs whether a tid still belongs to a thread group; EPERM is told only after the two
 * were seen to match (kernel/signal.c, do_send_specific). */
static bool same_group(pid_t tgid, pid_t tid)
{
	return syscall(SYS_tgkill, tgid, tid, 0) == 0 || errno == EPERM;
}

pid_t ak_call_tgid(struct ak_call *c)
{
	/* A hint: checked again once the coarse clock has moved (4 ms; no number is used again that soon). */
	static _Thread_local struct { pid_t tid, tgid; long tick_ns; } recent[64];
	pid_t tid = c->stop->tid;
	struct timespec now;
	if (c->tgid)
		return c->tgid;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	size_t slot = (size_t)tid % 64;
	bool fresh = recent[slot].tid == tid && recent[slot].tick_ns == now.tv_nsec;
	if (fresh || (recent[slot].tid == tid && same_group(recent[slot].tgid, tid))) {
		recent[slot].tick_ns = now.tv_nsec;
		return c->tgid = recent[slot].tgid;
	}
	if (same_group(tid, tid)) {
		recent[slot].tid = recent[slot].tgid = tid;
		recent[slot].tick_ns = now.tv_nsec;
		return c->tgid = tid;
	}
	char text[STATUS_BYTES];
	int error = read_task(c, "status", 0, text, sizeof text);
	if (error)
		return error;
	long tgid = field(text, "Tgid:", 10);
	if (tgid <= 0)
		return -ESRCH;
	recent[slot].tid = tid;
	recent[slot].tgid = (pid_t)tgid;
	recent[slot].tick_ns = now.tv_nsec;
	return c->tgid = (pid_t)tgid;
}

int ak_task_cwd(struct ak_call *c)
{
	int fd = open_task(c, O_PATH | O_DIRECTORY, "cwd", 0);
	if (fd >= 0 && gone(c)) {
		close(fd);
		return -ESRCH;
	}
	return fd;
}

ssize_t ak_task_base_name(struct ak_call *c, int dirfd, char *buf, size_t cap)
{
	char link[64];
	snprintf(link, sizeof link, dirfd == AT_FDCWD ? "%d/cwd" : "%d/fd/%d", c->stop->tid, dirfd);
	ssize_t n = readlinkat(c->enforcer->proc_dir, link, buf, cap);
	if (n < 0)
		return -errno;
	return gone(c) ? -ESRCH : n;
}

int ak_task_object(struct ak_call *c, int fd)
{
	if (fd < 0)
		return -EBADF;
	int object = open_task(c, O_PATH, "fd/%d", fd);
	if (object >= 0 && gone(c)) {
		close(object);
		return -ESRCH;
	}
	return object == -ENOENT ? -EBADF : object;
}

/* A thread may have a descriptor table of its own (unshare(CLONE_FILES)); before 6.9 a pidfd means the whole process. */
int ak_task_dup(struct ak_call *c, int fd)
{
	if (fd < 0)
		return -EBADF;
	int pidfd = (int)syscall(SYS_pidfd_open, c->stop->tid, PIDFD_THREAD);
	if (pidfd < 0 && errno == EINVAL && ak_call_tgid(c) > 0)
		pidfd = (int)syscall(SYS_pidfd_open, c->tgid, 0);
	if (pidfd < 0)
		return -errno;
	int copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	int error = errno;
	close(pidfd);
	if (copy < 0)
		return -error;
	if (gone(c)) {
		close(copy);
		return -ESRCH;
	}
	return copy;
}

int ak_task_fd_flags(struct ak_call *c, int fd)
{
	char text[STATUS_BYTES];
	if (fd < 0)
		return -EBADF;
	int error = read_task(c, "fdinfo/%d", fd, text, sizeof text);
	if (error)
		return error == -ENOENT ? -EBADF : error;
	long flags = field(text, "flags:", 8);
	return flags < 0 ? -EACCES : (int)flags;
}

/* The agent can put another file at its descriptor between two looks; fdinfo tells mode, mount and inode (5.14) of one
 * and the same open file, so the mode that is believed is that of the object that will be opened. */
bool ak_task_holds(struct ak_call *c, int fd, const struct ak_object *object, unsigned need)
{
	char theirs[STATUS_BYTES], ours[STATUS_BYTES], name[48];
	if (read_task(c, "fdinfo/%d", fd, theirs, sizeof theirs) < 0)
		return false;
	snprintf(name, sizeof name, "self/fdinfo/%d", object->fd);
	int info = openat(c->enforcer->proc_dir, name, O_RDONLY | O_CLOEXEC);
	if (info < 0)
		return false;
	int error = read_small(info, ours, sizeof ours);
	close(info);
	long flags = field(theirs, "flags:", 8), ino = field(theirs, "ino:", 10), mount = field(theirs, "mnt_id:", 10);
	if (error || flags < 0 || ino < 0 || mount < 0 || (flags & O_PATH))
		return false;
	if (ino != field(ours, "ino:", 10) || mount != field(ours, "mnt_id:", 10))
		return false;
	int mode = (int)flags & O_ACCMODE;
	unsigned held = mode == O_RDONLY ? AK_READ : mode == O_WRONLY ? AK_WRITE : mode == O_RDWR ? AK_READ | AK_WRITE : 0;
	return (need & ~held) == 0;
}

int ak_task_umask(struct ak_call *c)
{
	char text[STATUS_BYTES];
	int error = read_task(c, "status", 0, text, sizeof text);
	if (error)
		return error;
	long mask = field(text, "Umask:", 8);
	return mask < 0 ? -EACCES : (int)mask;
}

int ak_adopt_umask(struct ak_call *c)
{
	int mask = ak_task_umask(c);
	if (mask < 0)
		return mask;
	if (ak_thread_has_own_fs()) {
		umask((mode_t)mask);
		return 0;
	}
	char text[STATUS_BYTES];
	int fd = openat(c->enforcer->proc_dir, "thread-self/status", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -EPERM;
	int error = read_small(fd, text, sizeof text);
	close(fd);
	return error == 0 && field(text, "Umask:", 8) == mask ? 0 : -EPERM;
}

/* The value of a "Key:\thex" line of signals. */
static uint64_t signal_set(const char *text, const char *key)
{
	const char *line = strstr(text, key);
	return line ? strtoull(line + strlen(key), NULL, 16) : 0;
}

int ak_interrupted(struct ak_call *c)
{
	char text[STATUS_BYTES];
	if (read_task(c, "status", 0, text, sizeof text) < 0)
		return 0;
	uint64_t pending = signal_set(text, "\nSigPnd:");
	/* A signal to the process goes to its main thread if that can take it; of another thread we cannot know. */
	if (ak_call_tgid(c) == c->stop->tid)
		pending |= signal_set(text, "\nShdPnd:");
	if (!(pending & ~signal_set(text, "\nSigBlk:") & signal_set(text, "\nSigCgt:")))
		return 0;
	if (c->stop->still_valid != ak_notify_still_valid)
		return EINTR;
	return c->config->tracer_tid ? KERNEL_RESTARTNOHAND : KERNEL_RESTARTSYS;
}

/* ---- who belongs to the run -------------------------------------------------------------------------------------- */

static bool descends_from_main(struct ak_call *c, long tgid, long parent)
{
	pid_t main_pid = c->config->main_pid;
	for (int i = 0; i < ANCESTORS_MAX; i++) {
		char name[32], text[STATUS_BYTES];
		if (tgid == main_pid || parent == main_pid)
			return true;
		if (parent <= 1)
			return false;
		snprintf(name, sizeof name, "%ld/status", parent);
		int fd = openat(c->enforcer->proc_dir, name, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return false;
		int error = read_small(fd, text, sizeof text);
		close(fd);
		if (error)
			return false;
		parent = field(text, "PPid:", 10);
	}
	return false;
}

/* `dir` is a descriptor in /proc/PID, so what is read is about that process even if its number is used again. */
bool ak_status_in_run(struct ak_call *c, int dir, const char *status_path)
{
	char text[STATUS_BYTES];
	int fd = openat(dir, status_path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	int error = read_small(fd, text, sizeof text);
	close(fd);
	if (error)
		return false;
	long tgid = field(text, "Tgid:", 10);
	if (tgid > 0 && tgid == ak_call_tgid(c) && !gone(c))
		return true;
	if (c->config->tracer_tid)
		return field(text, "TracerPid:", 10) == c->config->tracer_tid;
	return descends_from_main(c, tgid, field(text, "PPid:", 10));
}

bool ak_pid_in_run(struct ak_call *c, pid_t pid)
{
	char name[16];
	if (pid <= 0)
		return false;
	snprintf(name, sizeof name, "%d", pid);
	int dir = openat(c->enforcer->proc_dir, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return false;
	bool in_run = ak_status_in_run(c, dir, "status");
	close(dir);
	return in_run;
}
