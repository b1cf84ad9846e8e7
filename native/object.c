/* The canonical path of an object that is held by an O_PATH descriptor: what policies are asked about.
 *
 * It is the kernel's own path of the object, so it does not matter by which name the agent came to it. Processes of the
 * run are written /proc/self; every other process keeps its number, which no policy grants.
 */
#include "resolve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>

struct ak_proc_path ak_proc_fd(int fd)
{
	struct ak_proc_path p;
	snprintf(p.text, sizeof p.text, "/proc/self/fd/%d", fd);
	return p;
}

void ak_object_close(struct ak_object *o)
{
	if (o->fd >= 0)
		close(o->fd);
	o->fd = -1;
}

void ak_parent_close(struct ak_parent *p)
{
	if (p->fd >= 0)
		close(p->fd);
	p->fd = -1;
}

static char *decimal(char *end, unsigned n)
{
	*--end = 0;
	do
		*--end = (char)('0' + n % 10);
	while (n /= 10);
	return end;
}

int ak_kernel_path(struct ak_call *c, int fd, char path[PATH_MAX])
{
	char digits[16];
	ssize_t n = readlinkat(c->enforcer->proc_fd_dir, decimal(digits + sizeof digits, (unsigned)fd), path, PATH_MAX);
	if (n < 0)
		return -errno;
	if (n >= PATH_MAX)
		return -ENAMETOOLONG;
	path[n] = 0;
	return (int)n;
}

/* A removed file's path ends in " (deleted)", but so may a file's name. Believed when no link is left; with links left
 * (another hard link, or such a name) the name must still lead to this very object. True: it has no name. */
static bool strip_deleted(struct ak_object *o)
{
	static const char mark[] = " (deleted)";
	size_t mark_len = sizeof mark - 1;
	struct stat now;
	if (o->len <= mark_len || memcmp(o->path + o->len - mark_len, mark, mark_len) != 0)
		return false;
	if (o->st.st_nlink && fstatat(AT_FDCWD, o->path, &now, AT_SYMLINK_NOFOLLOW) == 0 && now.st_ino == o->st.st_ino &&
	    now.st_dev == o->st.st_dev)
		return false;
	o->len -= mark_len;
	o->path[o->len] = 0;
	return true;
}

int ak_describe(struct ak_call *c, struct ak_object *o)
{
	if (fstat(o->fd, &o->st) < 0)
		return -errno;
	int n = ak_kernel_path(c, o->fd, o->path);
	if (n < 0)
		return n;
	o->len = (size_t)n;
	if (o->path[0] != '/') {
		if (o->path[0] == '(')          /* "(unreachable)...": outside the root we share with the agent */
			return -EACCES;
		o->flags |= AK_ANONYMOUS;
	} else if (strip_deleted(o)) {
		o->flags |= AK_ANONYMOUS;
	}
	return 0;
}

/* procfs, wherever it is mounted. Only file systems without a block device of their own can be it. */
bool ak_on_procfs(int fd, const struct stat *st)
{
	struct statfs fs;
	return major(st->st_dev) == 0 && fstatfs(fd, &fs) == 0 && fs.f_type == PROC_SUPER_MAGIC;
}

pid_t ak_proc_pid(const char *path, const char **rest)
{
	if (strncmp(path, "/proc/", 6) != 0 || path[6] < '1' || path[6] > '9')
		return 0;
	char *end;
	long pid = strtol(path + 6, &end, 10);
	if (pid <= 0 || pid > INT32_MAX || (*end && *end != '/'))
		return 0;
	*rest = end;
	return (pid_t)pid;
}

bool ak_dir_in_run(struct ak_call *c, int dir, const char *rest)
{
	char status[64] = "";
	size_t used = 0;
	for (const char *p = rest; *p; p++) {
		if (*p != '/')
			continue;
		if (used + sizeof "../status" > sizeof status)
			return false;
		memcpy(status + used, "../", 3);
		used += 3;
	}
	memcpy(status + used, "status", sizeof "status");
	return ak_status_in_run(c, dir, status);
}

/* Write a process of the run as /proc/self, and one of its threads as the process: rules name what is behind, not who. */
static void canonical_proc(struct ak_object *o, const char *rest)
{
	static const char self[] = "/proc/self";
	size_t self_len = sizeof self - 1;
	if (strncmp(rest, "/task/", 6) == 0) {
		const char *below = strchr(rest + 6, '/');
		if (below)
			rest = below;
	}
	size_t rest_len = o->len - (size_t)(rest - o->path);
	if (self_len + rest_len >= PATH_MAX)    /* a one-digit pid: "self" is longer */
		return;
	memmove(o->path + self_len, rest, rest_len + 1);
	memcpy(o->path, self, self_len);
	o->len = self_len + rest_len;
}

/* An object in procfs: `dir` is the directory it was found in, or -1. An unproven process keeps its number. */
int ak_describe_proc(struct ak_call *c, int dir, struct ak_object *o)
{
	const char *rest, *dir_rest;
	char dir_path[PATH_MAX];
	if (strncmp(o->path, "/proc", 5) != 0 || (o->path[5] && o->path[5] != '/'))
		return -EACCES;                 /* some other mount of procfs: its numbers may be another namespace's */
	pid_t pid = ak_proc_pid(o->path, &rest);
	if (pid == 0)
		return 0;
	if (S_ISDIR(o->st.st_mode)) {
		if (ak_dir_in_run(c, o->fd, rest))
			canonical_proc(o, rest);
		return 0;
	}
	if (dir >= 0 && ak_kernel_path(c, dir, dir_path) >= 0 && ak_proc_pid(dir_path, &dir_rest) == pid &&
	    ak_dir_in_run(c, dir, dir_rest))
		canonical_proc(o, rest);
	return 0;
}
