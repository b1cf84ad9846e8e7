/* Calls that tell about files without opening them. inotify_add_watch is always trapped; the others only under
 * fs.metadata = "strict", where a name outside every grant does not exist for the agent.
 *
 * What may be seen is looked up on the resolved O_PATH object and copied to the agent as the kernel laid it out. Only
 * refusals have an entry: a program looks at thousands of names, and design 01 asks for entries of opens and changes.
 * Descriptor forms (fstat and the like) are not trapped; "" with AT_EMPTY_PATH is served, since the string could change.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <linux/limits.h>

#include "behalf.h"

#ifndef SYS_getxattrat
#define SYS_getxattrat 464              /* Linux 6.13 */
#define SYS_listxattrat 465
#endif

#define SMALL_LIST 1024                 /* bytes of an extended attribute that need no allocation */

/* An object to look at. AT_* flags as the call has them. */
static int seen(struct ak_call *c, int dirfd, uint64_t addr, int at_flags, struct ak_object *object)
{
	unsigned flags = (at_flags & AT_SYMLINK_NOFOLLOW ? AK_NOFOLLOW : 0) |
			 (at_flags & AT_EMPTY_PATH ? AK_EMPTY_PATH : 0);
	return ak_object_arg(c, AK_OP_STAT, dirfd, addr, flags, object);
}

/* ---- inotify ----------------------------------------------------------------------------------------------------- */

/* A watch tells what others do with a file, or with the names in a directory: a read of it. It is set through a
 * duplicate of the agent's own inotify descriptor, on the object and not on the name. */
static int64_t add_watch(struct ak_call *c, int fd, uint64_t addr, uint32_t mask)
{
	struct ak_object object;
	int inotify = ak_own_copy(c, fd);
	if (inotify < 0)
		return inotify;
	int r = ak_object_arg(c, AK_OP_STAT, AT_FDCWD, addr, mask & IN_DONT_FOLLOW ? AK_NOFOLLOW : 0, &object);
	if (r == 0) {
		r = ak_judge_fs(c, AK_OP_STAT, AK_READ, object.path, object.len, mask);
		if (r == 0) {
			r = inotify_add_watch(inotify, ak_proc_fd(object.fd).text, mask & ~(uint32_t)IN_DONT_FOLLOW);
			r = r < 0 ? -errno : r;
		}
		ak_object_close(&object);
	}
	close(inotify);
	return r;
}

static void call_inotify_add_watch(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, add_watch(c, ak_int(a[0]), a[1], (uint32_t)a[2]));
}

/* ---- stat -------------------------------------------------------------------------------------------------------- */

/* glibc's struct stat is the kernel's on the 64-bit architectures, padding included. */
static int64_t stat_by_name(struct ak_call *c, int dirfd, uint64_t addr, int at_flags, uint64_t out)
{
	struct ak_object object;
	struct stat st;
	int r = seen(c, dirfd, addr, at_flags, &object);
	if (r < 0)
		return r;
	r = syscall(SYS_newfstatat, object.fd, "", &st, AT_EMPTY_PATH) < 0 ? -errno : 0;
	ak_object_close(&object);
	return r < 0 ? r : ak_write(c, out, &st, sizeof st);
}

#define AT_STAT_KNOWN (AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH)

static void call_newfstatat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	int flags = ak_int(a[3]);
	ak_result(o, flags & ~AT_STAT_KNOWN ? -EINVAL : stat_by_name(c, ak_int(a[0]), a[1], flags, a[2]));
}

static int64_t statx_by_name(struct ak_call *c, int dirfd, uint64_t addr, int at_flags, unsigned mask, uint64_t out)
{
	struct ak_object object;
	struct statx stx;
	if ((at_flags & ~(AT_STAT_KNOWN | AT_STATX_SYNC_TYPE)) || (at_flags & AT_STATX_SYNC_TYPE) == AT_STATX_SYNC_TYPE)
		return -EINVAL;
	if (mask & STATX__RESERVED)
		return -EINVAL;
	/* Since 6.11 a NULL path with AT_EMPTY_PATH means the descriptor. */
	int r = addr == 0 && (at_flags & AT_EMPTY_PATH) ? ak_object_of_fd(c, dirfd, true, &object) :
							  seen(c, dirfd, addr, at_flags, &object);
	if (r < 0)
		return r;
	int how = AT_EMPTY_PATH | (at_flags & (AT_STATX_SYNC_TYPE | AT_NO_AUTOMOUNT));
	r = syscall(SYS_statx, object.fd, "", how, mask, &stx) < 0 ? -errno : 0;
	ak_object_close(&object);
	return r < 0 ? r : ak_write(c, out, &stx, sizeof stx);
}

static void call_statx(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, statx_by_name(c, ak_int(a[0]), a[1], ak_int(a[2]), (unsigned)ak_int(a[3]), a[4]));
}

static void call_statfs(struct ak_call *c, struct ak_outcome *o)
{
	struct ak_object object;
	struct statfs fs;
	int r = seen(c, AT_FDCWD, c->stop->args[0], 0, &object);
	if (r < 0)
		return ak_result(o, r);
	r = syscall(SYS_fstatfs, object.fd, &fs) < 0 ? -errno : 0;
	ak_object_close(&object);
	ak_result(o, r < 0 ? r : ak_write(c, c->stop->args[1], &fs, sizeof fs));
}

/* ---- access ------------------------------------------------------------------------------------------------------ */

/* The policy's part of the answer: what an open or an exec would be refused, access() refuses as well. X_OK of a
 * directory asks for search permission, which no policy restricts for a visible one. */
static bool policy_grants(const struct ak_call *c, const struct ak_object *object, int mode)
{
	unsigned need = (mode & R_OK ? AK_READ : 0) | (mode & W_OK ? AK_WRITE : 0) |
			(mode & X_OK && S_ISREG(object->st.st_mode) ? AK_EXEC : 0);
	if (need == 0 || (object->flags & AK_ANONYMOUS))
		return true;
	return (ak_policy_rights(c->config->policy, object->path, object->len) & need) == need;
}

/* Our real ids are the agent's, and neither of us has a capability. */
static int64_t access_by_name(struct ak_call *c, int dirfd, uint64_t addr, int mode, int at_flags)
{
	struct ak_object object;
	if ((mode & ~(R_OK | W_OK | X_OK)) || (at_flags & ~(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)))
		return -EINVAL;
	int r = seen(c, dirfd, addr, at_flags, &object);
	if (r < 0)
		return r;
	if (!policy_grants(c, &object, mode))
		r = -EACCES;
	else
		r = syscall(SYS_faccessat, AT_FDCWD, ak_proc_fd(object.fd).text, mode) < 0 ? -errno : 0;
	ak_object_close(&object);
	return r;
}

static void call_faccessat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, access_by_name(c, ak_int(a[0]), a[1], ak_int(a[2]), 0));
}

static void call_faccessat2(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, access_by_name(c, ak_int(a[0]), a[1], ak_int(a[2]), ak_int(a[3])));
}

/* ---- readlink ---------------------------------------------------------------------------------------------------- */

/* /proc/self and /proc/thread-self are the only links whose contents depend on who reads them: the agent's numbers. */
static ssize_t link_contents(struct ak_call *c, const struct ak_object *object, char *buf, size_t cap)
{
	bool thread = strcmp(object->path, "/proc/thread-self") == 0;
	if (!thread && strcmp(object->path, "/proc/self") != 0) {
		ssize_t n = readlinkat(object->fd, "", buf, cap);
		return n < 0 ? -errno : n;
	}
	pid_t tgid = ak_call_tgid(c);
	if (tgid <= 0)
		return -ESRCH;
	return thread ? snprintf(buf, cap, "%d/task/%d", tgid, c->stop->tid) : snprintf(buf, cap, "%d", tgid);
}

static int64_t read_link(struct ak_call *c, int dirfd, uint64_t addr, uint64_t out, int size)
{
	struct ak_object object;
	char text[PATH_MAX];
	if (size <= 0)
		return -EINVAL;
	int empty = dirfd == AT_FDCWD ? 0 : AT_EMPTY_PATH;      /* "" is the descriptor, without any flag */
	int r = seen(c, dirfd, addr, AT_SYMLINK_NOFOLLOW | empty, &object);
	if (r < 0)
		return r;
	ssize_t n = S_ISLNK(object.st.st_mode) ? link_contents(c, &object, text, sizeof text) :
		    object.flags & AK_OWN_FD   ? -ENOENT :
						 -EINVAL;
	ak_object_close(&object);
	if (n < 0)
		return n;
	n = n > size ? size : n;
	r = ak_write(c, out, text, (size_t)n);
	return r < 0 ? r : n;
}

static void call_readlinkat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, read_link(c, ak_int(a[0]), a[1], a[2], ak_int(a[3])));
}

/* ---- extended attributes ----------------------------------------------------------------------------------------- */

/* The value of `name`, or the list of names when it is NULL. Size 0 asks for the size only. */
static int64_t xattr_of(struct ak_call *c, const struct ak_object *object, const char *name, uint64_t out, size_t size)
{
	struct ak_proc_path path = ak_proc_fd(object->fd);
	char small[SMALL_LIST], *buf = small;
	if (size > XATTR_SIZE_MAX)
		size = XATTR_SIZE_MAX;
	if (size > sizeof small && !(buf = malloc(size)))
		return -ENOMEM;
	ssize_t n = name ? getxattr(path.text, name, buf, size) : listxattr(path.text, buf, size);
	int64_t r = n < 0 ? -errno : n;
	if (n > 0 && size > 0) {
		int error = ak_write(c, out, buf, (size_t)n);
		r = error < 0 ? error : n;
	}
	if (buf != small)
		free(buf);
	return r;
}

static int64_t get_xattr(struct ak_call *c, int dirfd, uint64_t addr, int at_flags, uint64_t name_addr, uint64_t out,
			 uint64_t size)
{
	struct ak_object object;
	char name[XATTR_NAME_MAX + 1];
	ssize_t len = ak_read_string(c, name_addr, name, sizeof name);
	if (len <= 0)
		return len < 0 ? len : -ERANGE;
	int error = seen(c, dirfd, addr, at_flags, &object);
	if (error < 0)
		return error;
	int64_t r = xattr_of(c, &object, name, out, size);
	ak_object_close(&object);
	return r;
}

static int64_t list_xattr(struct ak_call *c, int dirfd, uint64_t addr, int at_flags, uint64_t out, uint64_t size)
{
	struct ak_object object;
	int error = seen(c, dirfd, addr, at_flags, &object);
	if (error < 0)
		return error;
	int64_t r = xattr_of(c, &object, NULL, out, size);
	ak_object_close(&object);
	return r;
}

static void call_getxattr(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, get_xattr(c, AT_FDCWD, a[0], 0, a[1], a[2], a[3]));
}

static void call_lgetxattr(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, get_xattr(c, AT_FDCWD, a[0], AT_SYMLINK_NOFOLLOW, a[1], a[2], a[3]));
}

static void call_listxattr(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, list_xattr(c, AT_FDCWD, a[0], 0, a[1], a[2]));
}

static void call_llistxattr(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, list_xattr(c, AT_FDCWD, a[0], AT_SYMLINK_NOFOLLOW, a[1], a[2]));
}

static void call_listxattrat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	int flags = ak_int(a[2]);
	bool known = (flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) == 0;
	ak_result(o, known ? list_xattr(c, ak_int(a[0]), a[1], flags, a[3], a[4]) : -EINVAL);
}

/* struct xattr_args {u64 value; u32 size; u32 flags}; larger ones of later kernels are not understood: E2BIG. */
static void call_getxattrat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	struct { uint64_t value; uint32_t size, flags; } args;
	int flags = ak_int(a[2]);
	if ((flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) || a[5] < sizeof args)
		return ak_result(o, -EINVAL);
	if (a[5] > sizeof args)
		return ak_result(o, -E2BIG);
	int error = ak_read(c, a[4], &args, sizeof args);
	if (error < 0 || args.flags)
		return ak_result(o, error < 0 ? error : -EINVAL);
	ak_result(o, get_xattr(c, ak_int(a[0]), a[1], flags, a[3], args.value, args.size));
}

/* ---- chdir ------------------------------------------------------------------------------------------------------- */

/* Nothing is told by being somewhere: each name that is looked up from there is judged again. So the kernel may do it,
 * even if the string changes meanwhile. */
static void call_chdir(struct ak_call *c, struct ak_outcome *o)
{
	struct ak_object object;
	int error = seen(c, AT_FDCWD, c->stop->args[0], 0, &object);
	if (error < 0)
		return ak_result(o, error);
	ak_object_close(&object);
	ak_continue(o);
}

/* ---- the older calls, which x86-64 kept and arm64 never had ------------------------------------------------------ */

#ifdef SYS_stat
static void call_stat(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, stat_by_name(c, AT_FDCWD, c->stop->args[0], 0, c->stop->args[1]));
}

static void call_lstat(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, stat_by_name(c, AT_FDCWD, c->stop->args[0], AT_SYMLINK_NOFOLLOW, c->stop->args[1]));
}

static void call_access(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, access_by_name(c, AT_FDCWD, c->stop->args[0], ak_int(c->stop->args[1]), 0));
}

static void call_readlink(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, read_link(c, AT_FDCWD, a[0], a[1], ak_int(a[2])));
}
#endif

const struct ak_handler_entry ak_meta_handlers[] = {
#ifdef SYS_stat
	{SYS_stat, call_stat},
	{SYS_lstat, call_lstat},
	{SYS_access, call_access},
	{SYS_readlink, call_readlink},
#endif
	{SYS_inotify_add_watch, call_inotify_add_watch},
	{SYS_newfstatat, call_newfstatat},
	{SYS_statx, call_statx},
	{SYS_statfs, call_statfs},
	{SYS_faccessat, call_faccessat},
	{SYS_faccessat2, call_faccessat2},
	{SYS_readlinkat, call_readlinkat},
	{SYS_getxattr, call_getxattr},
	{SYS_lgetxattr, call_lgetxattr},
	{SYS_getxattrat, call_getxattrat},
	{SYS_listxattr, call_listxattr},
	{SYS_llistxattr, call_llistxattr},
	{SYS_listxattrat, call_listxattrat},
	{SYS_chdir, call_chdir},
	{-1, NULL},
};
