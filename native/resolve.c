/* Names to objects: what the agent's path means, as an O_PATH descriptor and the object's canonical path.
 *
 * The fast way is one openat2() that refuses magic links. A path whose meaning depends on who asks (/proc/self, /dev/fd)
 * is walked component by component, with the agent in our place. Either way the object is what is judged and used
 * afterwards; nothing is ever looked up by name a second time, so a name that changes meanwhile changes nothing.
 *
 * The agent's root directory is ours: chroot, mounts and mount namespaces are refused to it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>
#include <linux/openat2.h>

#include "enforcer.h"

#define LINKS_MAX 40                    /* the kernel's MAXSYMLINKS */
#define LAST_PATH_FLAGS (O_PATH | O_NOFOLLOW | O_CLOEXEC)

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

/* ---- canonical paths --------------------------------------------------------------------------------------------- */

static char *decimal(char *end, unsigned n)
{
	*--end = 0;
	do
		*--end = (char)('0' + n % 10);
	while (n /= 10);
	return end;
}

/* The kernel's own path of what `fd` refers to. Length, or -errno. */
static int kernel_path(struct ak_call *c, int fd, char path[PATH_MAX])
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

/* Fill in st, path and len of an object whose descriptor is open. */
static int describe(struct ak_call *c, struct ak_object *o)
{
	if (fstat(o->fd, &o->st) < 0)
		return -errno;
	int n = kernel_path(c, o->fd, o->path);
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
static bool on_procfs(int fd, const struct stat *st)
{
	struct statfs fs;
	return major(st->st_dev) == 0 && fstatfs(fd, &fs) == 0 && fs.f_type == PROC_SUPER_MAGIC;
}

/* "/proc/123/rest" -> 123 and "/rest"; 0 when the path is not below a process's directory. */
static pid_t proc_pid(const char *path, const char **rest)
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

/* Is the process whose directory `dir` lies in (`rest`: its path below /proc/PID) one of the run? */
static bool dir_in_run(struct ak_call *c, int dir, const char *rest)
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
static int describe_proc(struct ak_call *c, int dir, struct ak_object *o)
{
	const char *rest, *dir_rest;
	char dir_path[PATH_MAX];
	if (strncmp(o->path, "/proc", 5) != 0 || (o->path[5] && o->path[5] != '/'))
		return -EACCES;                 /* some other mount of procfs: its numbers may be another namespace's */
	pid_t pid = proc_pid(o->path, &rest);
	if (pid == 0)
		return 0;
	if (S_ISDIR(o->st.st_mode)) {
		if (dir_in_run(c, o->fd, rest))
			canonical_proc(o, rest);
		return 0;
	}
	if (dir >= 0 && kernel_path(c, dir, dir_path) >= 0 && proc_pid(dir_path, &dir_rest) == pid &&
	    dir_in_run(c, dir, dir_rest))
		canonical_proc(o, rest);
	return 0;
}

/* ---- the slow walk ----------------------------------------------------------------------------------------------- */

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
	int error = describe(w->c, out);
	if (error == 0 && on_procfs(fd, &out->st) && !(out->flags & AK_OWN_FD))
		error = describe_proc(w->c, is_last_dir ? -1 : w->dir, out);
	return error;
}

static int follow_magic(struct walk *w, int link, const char *dir_path, const char *name, bool last,
			struct ak_object *out)
{
	const char *dir_rest;
	pid_t pid = proc_pid(dir_path, &dir_rest);
	if (w->resolve & (RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS) || ++w->links > LINKS_MAX) {
		close(link);
		return -ELOOP;
	}
	if (!dir_in_run(w->c, w->dir, dir_rest))
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
	if (on_procfs(link, st)) {
		int n = kernel_path(w->c, w->dir, target);
		if (n < 0) {
			close(link);
			return n;
		}
		if (proc_pid(target, &rest))
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
	if (kernel_path(w->c, w->dir, path) < 0 || strcmp(path, "/proc") != 0)
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

static int walk(struct ak_call *c, int base, const char *path, unsigned flags, uint64_t resolve, struct ak_object *out)
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

/* ---- the fast way ------------------------------------------------------------------------------------------------ */

static int open_path(int base, const char *path, unsigned flags, uint64_t resolve)
{
	struct open_how how = {
		.flags = O_PATH | O_CLOEXEC | (flags & AK_NOFOLLOW ? O_NOFOLLOW : 0),
		.resolve = resolve,
	};
	long fd = syscall(SYS_openat2, base, path, &how, sizeof how);
	return fd < 0 ? -errno : (int)fd;
}

/* An error may come from a link into /proc/self/fd, where we looked at our descriptors and not at the agent's: it is the
 * agent's error only if no symlink was on the way. */
static bool error_is_final(int base, const char *path, unsigned flags, int error)
{
	if (error != -ENOENT && error != -ENOTDIR)
		return error != -ELOOP && error != -ENOSYS;
	int again = open_path(base, path, flags, RESOLVE_NO_SYMLINKS);
	if (again >= 0)
		close(again);
	return again != -ELOOP;
}

static bool depends_on_asker(const char *path)
{
	return strncmp(path, "/proc", 5) == 0 || strncmp(path, "/dev/fd", 7) == 0 || strncmp(path, "/dev/std", 8) == 0;
}

static void object_init(struct ak_object *o)
{
	o->fd = -1;
	o->flags = 0;
	o->own_fd = -1;
	o->len = 0;
	o->path[0] = 0;
}

static int resolve_any(struct ak_call *c, int base, const char *path, unsigned flags, uint64_t resolve,
		       struct ak_object *out)
{
	/* These change what "/" or ".." mean or forbid crossings that the walk cannot see: the kernel's answer, or none.
	 * (Magic links are refused with the first two by the kernel as well.) */
	bool kernel_only = resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT | RESOLVE_NO_XDEV);
	if (!kernel_only && depends_on_asker(path))
		return walk(c, base, path, flags, resolve, out);
	int fd = open_path(base, path, flags, resolve | RESOLVE_NO_MAGICLINKS);
	if (fd < 0) {
		if (kernel_only || (resolve & RESOLVE_NO_SYMLINKS) || error_is_final(base, path, flags, fd))
			return fd == -ENOSYS && kernel_only ? -EACCES : fd;
		return walk(c, base, path, flags, resolve, out);
	}
	out->fd = fd;
	int error = describe(c, out);
	if (error || !on_procfs(fd, &out->st))
		return error;
	if (kernel_only)
		return describe_proc(c, -1, out);
	ak_object_close(out);
	object_init(out);
	return walk(c, base, path, flags, resolve, out);
}

int ak_resolve_from(struct ak_call *c, int base, const char *path, unsigned flags, uint64_t resolve,
		    struct ak_object *out)
{
	object_init(out);
	if (*path == 0)
		return -ENOENT;
	int error = resolve_any(c, base, path, flags, resolve, out);
	if (error < 0)
		ak_object_close(out);
	return error;
}

int ak_task_base(struct ak_call *c, int dirfd)
{
	return dirfd == AT_FDCWD ? ak_task_cwd(c) : ak_task_object(c, dirfd);
}

static int resolve_empty(struct ak_call *c, int dirfd, struct ak_object *out)
{
	object_init(out);
	out->fd = ak_task_base(c, dirfd);
	if (out->fd < 0)
		return out->fd;
	if (dirfd != AT_FDCWD) {
		out->own_fd = dirfd;
		out->flags |= AK_OWN_FD;
	}
	int error = describe(c, out);
	if (error == 0 && on_procfs(out->fd, &out->st))
		error = describe_proc(c, -1, out);
	if (error)
		ak_object_close(out);
	return error;
}

int ak_resolve(struct ak_call *c, int dirfd, const char *path, unsigned flags, struct ak_object *out)
{
	object_init(out);
	if (*path == 0)
		return flags & AK_EMPTY_PATH ? resolve_empty(c, dirfd, out) : -ENOENT;
	if (*path == '/')
		return ak_resolve_from(c, AT_FDCWD, path, flags, 0, out);
	int base = ak_task_base(c, dirfd);
	if (base < 0)
		return base;
	int error = ak_resolve_from(c, base, path, flags, 0, out);
	close(base);
	return error;
}

/* ---- a name in its directory ------------------------------------------------------------------------------------- */

/* What the kernel answers when the last component is "/", "." or "..". */
static int special_name(struct ak_call *c, const char *name)
{
	switch (c->stop->nr) {
#ifdef SYS_rename
	case SYS_rename:
#endif
#ifdef SYS_renameat
	case SYS_renameat:
#endif
	case SYS_renameat2:
		return -EBUSY;
#ifdef SYS_rmdir
	case SYS_rmdir:
		return strcmp(name, ".") == 0 ? -EINVAL : strcmp(name, "..") == 0 ? -ENOTEMPTY : -EBUSY;
#endif
#ifdef SYS_unlink
	case SYS_unlink:
		return -EISDIR;
#endif
	case SYS_unlinkat:
		if (!(c->stop->args[2] & AT_REMOVEDIR))
			return -EISDIR;
		return strcmp(name, ".") == 0 ? -EINVAL : strcmp(name, "..") == 0 ? -ENOTEMPTY : -EBUSY;
#ifdef SYS_open
	case SYS_open:
	case SYS_creat:
#endif
	case SYS_openat:
	case SYS_openat2:
		return -EISDIR;
	default:
		return -EEXIST;         /* mkdir, mknod, symlink, link */
	}
}

/* Join the directory's path (already in p->path, dir_len long) and the name. */
static int join(struct ak_parent *p, const char *name, size_t len)
{
	size_t slash = p->dir_len > 1;          /* "/" brings its own */
	if (len > NAME_MAX || p->dir_len + slash + len >= PATH_MAX)
		return -ENAMETOOLONG;
	if (slash)
		p->path[p->dir_len] = '/';
	memcpy(p->path + p->dir_len + slash, name, len);
	p->len = p->dir_len + slash + len;
	p->path[p->len] = 0;
	p->name = p->path + p->dir_len + slash;
	return 0;
}

int ak_resolve_parent_from(struct ak_call *c, int base, const char *path, uint64_t resolve, struct ak_parent *out)
{
	char dir[PATH_MAX], name[NAME_MAX + 1];
	struct ak_object o;
	out->fd = -1;
	size_t end = strlen(path);
	if (end == 0)
		return -ENOENT;
	if (end >= PATH_MAX)
		return -ENAMETOOLONG;
	out->trailing_slash = path[end - 1] == '/';
	while (end > 0 && path[end - 1] == '/')
		end--;
	size_t start = end;
	while (start > 0 && path[start - 1] != '/')
		start--;
	if (end - start > NAME_MAX)
		return -ENAMETOOLONG;
	memcpy(name, path + start, end - start);
	name[end - start] = 0;
	memcpy(dir, path, start);
	dir[start] = 0;
	int error = ak_resolve_from(c, base, start ? dir : path[0] == '/' ? "/" : ".", 0, resolve, &o);
	if (error)
		return error;
	if (!S_ISDIR(o.st.st_mode) && !(o.flags & AK_FOREIGN))
		error = -ENOTDIR;
	else if (*name == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		error = special_name(c, name);
	if (error == 0) {
		memcpy(out->path, o.path, o.len + 1);
		out->dir_len = o.len;
		error = join(out, name, end - start);
	}
	if (error) {
		ak_object_close(&o);
		return error;
	}
	out->fd = o.fd;
	return 0;
}

int ak_resolve_parent(struct ak_call *c, int dirfd, const char *path, struct ak_parent *out)
{
	out->fd = -1;
	if (*path == '/' || *path == 0)
		return ak_resolve_parent_from(c, AT_FDCWD, path, 0, out);
	int base = ak_task_base(c, dirfd);
	if (base < 0)
		return base;
	int error = ak_resolve_parent_from(c, base, path, 0, out);
	close(base);
	return error;
}
