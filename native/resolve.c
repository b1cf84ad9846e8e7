/* Names to objects: what the agent's path means, as an O_PATH descriptor and the object's canonical path.
 *
 * The fast way is one openat2() that refuses magic links. A path whose meaning depends on who asks (/proc/self, /dev/fd)
 * is walked component by component, with the agent in our place. Either way the object is what is judged and used
 * afterwards; nothing is ever looked up by name a second time, so a name that changes meanwhile changes nothing.
 *
 * The agent's root directory is ours: chroot, mounts and mount namespaces are refused to it.
 */
#include "resolve.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/openat2.h>

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
		return ak_walk(c, base, path, flags, resolve, out);
	int fd = open_path(base, path, flags, resolve | RESOLVE_NO_MAGICLINKS);
	if (fd < 0) {
		if (kernel_only || (resolve & RESOLVE_NO_SYMLINKS) || error_is_final(base, path, flags, fd))
			return fd == -ENOSYS && kernel_only ? -EACCES : fd;
		return ak_walk(c, base, path, flags, resolve, out);
	}
	out->fd = fd;
	int error = ak_describe(c, out);
	if (error || !ak_on_procfs(fd, &out->st))
		return error;
	if (kernel_only)
		return ak_describe_proc(c, -1, out);
	ak_object_close(out);
	object_init(out);
	return ak_walk(c, base, path, flags, resolve, out);
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
	int error = ak_describe(c, out);
	if (error == 0 && ak_on_procfs(out->fd, &out->st))
		error = ak_describe_proc(c, -1, out);
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
