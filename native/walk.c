/* The slow walk: a path taken component by component, with the agent in our place.
 *
 * For names whose meaning depends on who asks: /proc/self and /proc/thread-self are the agent's, and the magic links below
 * them (fd/N, cwd, root, exe) are followed only for processes of the run.
 */
#include "resolve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/openat2.h>

#define LINKS_MAX 40                    /* the kernel's MAXSYMLINKS */
#define LAST_PATH_FLAGS (O_PATH | O_NOFOLLOW | O_CLOEXEC)

struct walk {
	struct ak_call *c;
	uint64_t resolve;
	unsigned flags;
	int dir;                        /* where we are: a directory, owned */
	unsigned links;
	char *rest;                     /* what is left to walk; points into `text` */
	char text[2 * PATH_MAX];
};

static int go_to(struct walk *w, int dir)
{
	if (dir < 0)
		return -errno;
	close(w->dir);
	w->dir = dir;
	return 0;
}

/* Put `target` before what is left; an absolute one starts from the root again. */
static int put_before(struct walk *w, const char *target, size_t len)
{
	size_t rest_len = strlen(w->rest);
	if (++w->links > LINKS_MAX || (w->resolve & RESOLVE_NO_SYMLINKS))
		return -ELOOP;
	if (len == 0)
		return -ENOENT;
	if (len + rest_len + 2 > sizeof w->text)
		return -ENAMETOOLONG;
	memmove(w->text + len + 1, w->rest, rest_len + 1);
	memcpy(w->text, target, len);
	w->text[len] = '/';
	if (rest_len == 0)
		w->text[len] = 0;       /* no slash that was not asked for: "link" to a file is not "file/" */
	w->rest = w->text;
	return target[0] == '/' ? go_to(w, open("/", O_PATH | O_DIRECTORY | O_CLOEXEC)) : 0;
}

/* A magic link of a process outside the run: nothing is followed; the name says whose it is, and is denied as such. */
static int foreign(struct walk *w, int link, const char *dir_path, const char *name, struct ak_object *out)
{
	int n = snprintf(out->path, sizeof out->path, "%s/%s%s%s", dir_path, name, *w->rest ? "/" : "", w->rest);
	if (n < 0 || (size_t)n >= sizeof out->path) {
		close(link);
		return -ENAMETOOLONG;
	}
	out->fd = link;
	out->len = (size_t)n;
	out->flags |= AK_FOREIGN;
	return fstat(link, &out->st) < 0 ? -errno : 0;
}

/* Descriptor N when the link just followed is /proc/<the agent>/fd/N, else -1. */
static int own_fd(struct ak_call *c, pid_t pid, const char *dir_rest, const char *name)
{
	char task_fd[32];
	snprintf(task_fd, sizeof task_fd, "/task/%d/fd", c->stop->tid);
	if (pid != c->stop->tid && pid != ak_call_tgid(c))
		return -1;
	if (strcmp(dir_rest, "/fd") != 0 && strcmp(dir_rest, task_fd) != 0)
		return -1;
	return atoi(name);
}

enum { WALK_ON = 1 };   /* the walk continues; 0: `out` is done; negative: -errno */

static int finish(struct walk *w, int fd, bool is_last_dir, struct ak_object *out)
{
	out->fd = fd;
	int error = ak_describe(w->c, out);
	if (error == 0 && ak_on_procfs(fd, &out->st) && !(out->flags & AK_OWN_FD))
		error = ak_describe_proc(w->c, is_last_dir ? -1 : w->dir, out);
	return error;
}

static int follow_magic(struct walk *w, int link, const char *dir_path, const char *name, bool last,
			struct ak_object *out)
{
	const char *dir_rest;
	pid_t pid = ak_proc_pid(dir_path, &dir_rest);
	if (w->resolve & (RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS) || ++w->links > LINKS_MAX) {
		close(link);
		return -ELOOP;
	}
	if (!ak_dir_in_run(w->c, w->dir, dir_rest))
		return foreign(w, link, dir_path, name, out);
	close(link);
	int target = openat(w->dir, name, O_PATH | O_CLOEXEC | (last && !*w->rest ? 0 : O_DIRECTORY));
	if (!last)
		return go_to(w, target) ?: WALK_ON;
	if (target < 0)
		return -errno;
	out->own_fd = own_fd(w->c, pid, dir_rest, name);
	if (out->own_fd >= 0)
		out->flags |= AK_OWN_FD;
	int error = finish(w, target, true, out);
	if (error == 0 && !w->c->stop->still_valid(w->c->stop->ctx))
		return -ESRCH;
	return error;
}

static int follow_link(struct walk *w, int link, const struct stat *st, const char *name, bool last,
		       struct ak_object *out)
{
	char target[PATH_MAX];
	const char *rest;
	if (ak_on_procfs(link, st)) {
		int n = ak_kernel_path(w->c, w->dir, target);
		if (n < 0) {
			close(link);
			return n;
		}
		if (ak_proc_pid(target, &rest))
			return follow_magic(w, link, target, name, last, out);
		if (strncmp(target, "/proc", 5) != 0) {
			close(link);
			return -EACCES;
		}
	}
	ssize_t n = readlinkat(link, "", target, sizeof target);
	int error = errno;
	close(link);
	if (n < 0)
		return -error;
	if ((size_t)n >= sizeof target)
		return -ENAMETOOLONG;
	return put_before(w, target, (size_t)n) ?: WALK_ON;
}

/* "self" and "thread-self" of /proc mean the agent. 0 when `name` is neither, else as follow_link(). */
static int follow_self(struct walk *w, const char *name)
{
	char path[PATH_MAX], target[40];
	bool thread = strcmp(name, "thread-self") == 0;
	if (!thread && strcmp(name, "self") != 0)
		return 0;
	if (ak_kernel_path(w->c, w->dir, path) < 0 || strcmp(path, "/proc") != 0)
		return 0;
	pid_t tgid = ak_call_tgid(w->c);
	if (tgid <= 0)
		return -ESRCH;
	int n = snprintf(target, sizeof target, thread ? "%d/task/%d" : "%d", tgid, w->c->stop->tid);
	return put_before(w, target, (size_t)n) ?: WALK_ON;
}

static int step(struct walk *w, struct ak_object *out)
{
	char name[NAME_MAX + 1];
	struct stat st;
	while (*w->rest == '/')
		w->rest++;
	size_t len = strcspn(w->rest, "/");
	if (len > NAME_MAX)
		return -ENAMETOOLONG;
	memcpy(name, w->rest, len);
	name[len] = 0;
	char *after = w->rest + len;
	bool slash = *after == '/';
	while (*after == '/')
		after++;
	bool last = *after == 0;
	if (len == 0 || (last && strcmp(name, ".") == 0)) {
		int dir = w->dir;
		w->dir = -1;
		return finish(w, dir, true, out);
	}
	w->rest = last && slash ? after - 1 : after;    /* keep one slash: it asks for a directory */
	if (strcmp(name, ".") == 0)
		return WALK_ON;
	bool follow = !last || slash || !(w->flags & AK_NOFOLLOW);
	int error = follow ? follow_self(w, name) : 0;
	if (error)
		return error;
	int fd = openat(w->dir, name, LAST_PATH_FLAGS);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0) {
		close(fd);
		return -EACCES;
	}
	if (S_ISLNK(st.st_mode) && follow)
		return follow_link(w, fd, &st, name, last, out);
	if (last && !slash)
		return finish(w, fd, false, out);
	if (!S_ISDIR(st.st_mode)) {
		close(fd);
		return -ENOTDIR;
	}
	return go_to(w, fd) ?: WALK_ON;
}

int ak_walk(struct ak_call *c, int base, const char *path, unsigned flags, uint64_t resolve, struct ak_object *out)
{
	struct walk w = {.c = c, .resolve = resolve, .flags = flags};
	size_t len = strlen(path);
	if (len >= PATH_MAX)
		return -ENAMETOOLONG;
	memcpy(w.text, path, len + 1);
	w.rest = w.text;
	w.dir = path[0] == '/' ? open("/", O_PATH | O_DIRECTORY | O_CLOEXEC) : openat(base, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (w.dir < 0)
		return -errno;
	int error;
	do
		error = step(&w, out);
	while (error == WALK_ON);
	if (w.dir >= 0)
		close(w.dir);
	return error;
}
