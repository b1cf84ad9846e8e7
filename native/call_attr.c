/* Calls that change attributes: mode, owner, times, extended attributes; by name and by descriptor.
 *
 * None of them is covered by Landlock, and a descriptor that was opened for reading is enough for them, so every form is
 * judged as a write to the object's canonical path. All are carried out on the O_PATH object through /proc/self/fd/N,
 * which works for each kind of object, symlinks included, and on every kernel. Whether a set-id bit or an owner may be
 * set is left to the kernel: our threads hold no capability, like the agent.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <utime.h>

#include <linux/limits.h>

#include "behalf.h"

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452               /* Linux 6.6 */
#endif
#ifndef SYS_setxattrat
#define SYS_setxattrat 463              /* Linux 6.13 */
#define SYS_removexattrat 466
#endif

#define AT_KNOWN (AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)
#define SMALL_VALUE 1024                /* bytes of an extended attribute's value that need no allocation */

/* Where the object comes from. `addr` 0 with by_fd: the descriptor `dirfd` itself. */
struct place {
	int dirfd;
	uint64_t addr;
	int at_flags;
	bool by_fd;
};

static struct place by_name(int dirfd, uint64_t addr, int at_flags)
{
	return (struct place){dirfd, addr, at_flags, false};
}

static struct place by_descriptor(uint64_t fd)
{
	return (struct place){ak_int(fd), 0, 0, true};
}

/* Resolve and judge: 0 and an object that may be changed, to be closed; or -errno and nothing to close. */
static int changeable(struct ak_call *c, struct place at, uint64_t arg, struct ak_object *object)
{
	int error;
	if (at.by_fd)
		error = ak_object_of_fd(c, at.dirfd, false, object);
	else
		error = ak_object_arg(c, AK_OP_METADATA, at.dirfd, at.addr,
				      (at.at_flags & AT_SYMLINK_NOFOLLOW ? AK_NOFOLLOW : 0) |
					      (at.at_flags & AT_EMPTY_PATH ? AK_EMPTY_PATH : 0),
				      object);
	if (error < 0)
		return error;
	if (ak_nameless(object))
		error = ak_record(c, AK_OP_METADATA, AK_ALLOW, AK_WRITE, AK_NO_RULE, 0, 0, arg, object->path, NULL);
	else
		error = ak_judge_fs(c, AK_OP_METADATA, AK_WRITE, object->path, object->len, arg);
	if (error < 0)
		ak_object_close(object);
	return error;
}

/* ---- mode -------------------------------------------------------------------------------------------------------- */

static int64_t change_mode(struct ak_call *c, struct place at, uint64_t mode_arg)
{
	struct ak_object object;
	mode_t mode = (mode_t)mode_arg & 07777;
	int error = changeable(c, at, mode, &object);
	if (error < 0)
		return error;
	/* A symlink's mode means nothing, and since 6.6 the kernel refuses to change it everywhere. */
	if (S_ISLNK(object.st.st_mode))
		error = -EOPNOTSUPP;
	else if (chmod(ak_proc_fd(object.fd).text, mode) < 0)
		error = -errno;
	ak_object_close(&object);
	return error;
}

static void call_fchmod(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, change_mode(c, by_descriptor(c->stop->args[0]), c->stop->args[1]));
}

static void call_fchmodat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, change_mode(c, by_name(ak_int(a[0]), a[1], 0), a[2]));
}

static void call_fchmodat2(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	int flags = ak_int(a[3]);
	ak_result(o, flags & ~AT_KNOWN ? -EINVAL : change_mode(c, by_name(ak_int(a[0]), a[1], flags), a[2]));
}

/* ---- owner ------------------------------------------------------------------------------------------------------- */

static int64_t change_owner(struct ak_call *c, struct place at, uint64_t uid, uint64_t gid)
{
	struct ak_object object;
	int error = changeable(c, at, uid << 32 | (uint32_t)gid, &object);
	if (error < 0)
		return error;
	if (chown(ak_proc_fd(object.fd).text, (uid_t)uid, (gid_t)gid) < 0)
		error = -errno;
	ak_object_close(&object);
	return error;
}

static void call_fchown(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, change_owner(c, by_descriptor(a[0]), a[1], a[2]));
}

static void call_fchownat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	int flags = ak_int(a[4]);
	ak_result(o, flags & ~AT_KNOWN ? -EINVAL : change_owner(c, by_name(ak_int(a[0]), a[1], flags), a[2], a[3]));
}

/* ---- times ------------------------------------------------------------------------------------------------------- */

static int64_t change_times(struct ak_call *c, struct place at, const struct timespec *times)
{
	struct ak_object object;
	int error = changeable(c, at, 0, &object);
	if (error < 0)
		return error;
	if (utimensat(AT_FDCWD, ak_proc_fd(object.fd).text, times, 0) < 0)
		error = -errno;
	ak_object_close(&object);
	return error;
}

/* A path that is NULL means the descriptor in utimensat and futimesat; without a descriptor it is a bad address. */
static struct place name_or_descriptor(int dirfd, uint64_t addr, int at_flags)
{
	if (addr == 0 && dirfd != AT_FDCWD)
		return by_descriptor((uint32_t)dirfd);
	return by_name(dirfd, addr, at_flags);
}

static void call_utimensat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	struct timespec times[2];
	int flags = ak_int(a[3]);
	if (a[2]) {
		int error = ak_read(c, a[2], times, sizeof times);
		if (error < 0)
			return ak_result(o, error);
		/* The kernel does not even look at the path then. */
		if (times[0].tv_nsec == UTIME_OMIT && times[1].tv_nsec == UTIME_OMIT)
			return ak_result(o, 0);
	}
	struct place at = name_or_descriptor(ak_int(a[0]), a[1], flags);
	if (flags & ~AT_KNOWN || (at.by_fd && flags))
		return ak_result(o, -EINVAL);
	ak_result(o, change_times(c, at, a[2] ? times : NULL));
}

#ifdef SYS_utimes
static void times_by_timeval(struct ak_call *c, struct ak_outcome *o, struct place at, uint64_t addr)
{
	struct timeval old[2];
	struct timespec times[2];
	if (addr == 0)
		return ak_result(o, change_times(c, at, NULL));
	int error = ak_read(c, addr, old, sizeof old);
	if (error < 0)
		return ak_result(o, error);
	for (int i = 0; i < 2; i++) {
		if (old[i].tv_usec < 0 || old[i].tv_usec >= 1000000)
			return ak_result(o, -EINVAL);
		times[i].tv_sec = old[i].tv_sec;
		times[i].tv_nsec = old[i].tv_usec * 1000;
	}
	ak_result(o, change_times(c, at, times));
}

static void call_utimes(struct ak_call *c, struct ak_outcome *o)
{
	times_by_timeval(c, o, by_name(AT_FDCWD, c->stop->args[0], 0), c->stop->args[1]);
}

static void call_futimesat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	times_by_timeval(c, o, name_or_descriptor(ak_int(a[0]), a[1], 0), a[2]);
}

static void call_utime(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	struct utimbuf old;
	struct timespec times[2] = {{0, 0}, {0, 0}};
	if (a[1]) {
		int error = ak_read(c, a[1], &old, sizeof old);
		if (error < 0)
			return ak_result(o, error);
		times[0].tv_sec = old.actime;
		times[1].tv_sec = old.modtime;
	}
	ak_result(o, change_times(c, by_name(AT_FDCWD, a[0], 0), a[1] ? times : NULL));
}
#endif

/* ---- extended attributes ----------------------------------------------------------------------------------------- */

struct xattr_arguments {        /* struct xattr_args of Linux 6.13 */
	uint64_t value;
	uint32_t size;
	uint32_t flags;
};

/* The kernel's rule: 1 to 255 bytes. */
static int read_xattr_name(struct ak_call *c, uint64_t addr, char name[XATTR_NAME_MAX + 1])
{
	ssize_t len = ak_read_string(c, addr, name, XATTR_NAME_MAX + 1);
	return len < 0 ? (int)len : len == 0 ? -ERANGE : 0;
}

static int64_t set_attribute(struct ak_call *c, struct place at, const char *name, const struct xattr_arguments *args)
{
	struct ak_object object;
	char small[SMALL_VALUE], *value = args->size > sizeof small ? malloc(args->size) : small;
	if (!value)
		return -ENOMEM;
	int error = args->size ? ak_read(c, args->value, value, args->size) : 0;
	if (error == 0)
		error = changeable(c, at, args->size, &object);
	if (error == 0) {
		if (setxattr(ak_proc_fd(object.fd).text, name, value, args->size, (int)args->flags) < 0)
			error = -errno;
		ak_object_close(&object);
	}
	if (value != small)
		free(value);
	return error;
}

static int64_t set_xattr(struct ak_call *c, struct place at, uint64_t name_addr, const struct xattr_arguments *args)
{
	char name[XATTR_NAME_MAX + 1];
	if (args->flags & ~(unsigned)(XATTR_CREATE | XATTR_REPLACE))
		return -EINVAL;
	int error = read_xattr_name(c, name_addr, name);
	if (error < 0)
		return error;
	return args->size > XATTR_SIZE_MAX ? -E2BIG : set_attribute(c, at, name, args);
}

static int64_t remove_xattr(struct ak_call *c, struct place at, uint64_t name_addr)
{
	char name[XATTR_NAME_MAX + 1];
	struct ak_object object;
	int error = read_xattr_name(c, name_addr, name);
	if (error < 0)
		return error;
	error = changeable(c, at, 0, &object);
	if (error < 0)
		return error;
	if (removexattr(ak_proc_fd(object.fd).text, name) < 0)
		error = -errno;
	ak_object_close(&object);
	return error;
}

/* setxattr, lsetxattr and fsetxattr differ only in their first argument. size_t: above 32 bits it is too big as well. */
static void set_xattr_at(struct ak_call *c, struct ak_outcome *o, struct place at)
{
	const uint64_t *a = c->stop->args;
	struct xattr_arguments args = {a[2], a[3] > XATTR_SIZE_MAX ? XATTR_SIZE_MAX + 1 : (uint32_t)a[3], (uint32_t)a[4]};
	ak_result(o, set_xattr(c, at, a[1], &args));
}

static void call_setxattr(struct ak_call *c, struct ak_outcome *o)
{
	set_xattr_at(c, o, by_name(AT_FDCWD, c->stop->args[0], 0));
}

static void call_lsetxattr(struct ak_call *c, struct ak_outcome *o)
{
	set_xattr_at(c, o, by_name(AT_FDCWD, c->stop->args[0], AT_SYMLINK_NOFOLLOW));
}

static void call_fsetxattr(struct ak_call *c, struct ak_outcome *o)
{
	set_xattr_at(c, o, by_descriptor(c->stop->args[0]));
}

static void call_removexattr(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, remove_xattr(c, by_name(AT_FDCWD, c->stop->args[0], 0), c->stop->args[1]));
}

static void call_lremovexattr(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, remove_xattr(c, by_name(AT_FDCWD, c->stop->args[0], AT_SYMLINK_NOFOLLOW), c->stop->args[1]));
}

static void call_fremovexattr(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, remove_xattr(c, by_descriptor(c->stop->args[0]), c->stop->args[1]));
}

/* Later kernels may give the structure more fields; this one is whole if the rest is zero (copy_struct_from_user). */
static int read_xattr_arguments(struct ak_call *c, uint64_t addr, uint64_t size, struct xattr_arguments *args)
{
	char whole[4096];
	if (size < sizeof *args)
		return -EINVAL;
	if (size > sizeof whole)
		return -E2BIG;
	int error = ak_read(c, addr, whole, size);
	if (error < 0)
		return error;
	for (size_t i = sizeof *args; i < size; i++)
		if (whole[i])
			return -E2BIG;
	memcpy(args, whole, sizeof *args);
	return 0;
}

static void call_setxattrat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	struct xattr_arguments args;
	int flags = ak_int(a[2]);
	if (flags & ~AT_KNOWN)
		return ak_result(o, -EINVAL);
	int error = read_xattr_arguments(c, a[4], a[5], &args);
	ak_result(o, error < 0 ? error : set_xattr(c, by_name(ak_int(a[0]), a[1], flags), a[3], &args));
}

static void call_removexattrat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	int flags = ak_int(a[2]);
	ak_result(o, flags & ~AT_KNOWN ? -EINVAL : remove_xattr(c, by_name(ak_int(a[0]), a[1], flags), a[3]));
}

/* ---- the older calls, which x86-64 kept and arm64 never had ------------------------------------------------------ */

#ifdef SYS_chmod
static void call_chmod(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, change_mode(c, by_name(AT_FDCWD, c->stop->args[0], 0), c->stop->args[1]));
}

static void call_chown(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, change_owner(c, by_name(AT_FDCWD, a[0], 0), a[1], a[2]));
}

static void call_lchown(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, change_owner(c, by_name(AT_FDCWD, a[0], AT_SYMLINK_NOFOLLOW), a[1], a[2]));
}
#endif

const struct ak_handler_entry ak_attr_handlers[] = {
#ifdef SYS_chmod
	{SYS_chmod, call_chmod},
	{SYS_chown, call_chown},
	{SYS_lchown, call_lchown},
#endif
#ifdef SYS_utimes
	{SYS_utime, call_utime},
	{SYS_utimes, call_utimes},
	{SYS_futimesat, call_futimesat},
#endif
	{SYS_fchmod, call_fchmod},
	{SYS_fchmodat, call_fchmodat},
	{SYS_fchmodat2, call_fchmodat2},
	{SYS_fchown, call_fchown},
	{SYS_fchownat, call_fchownat},
	{SYS_utimensat, call_utimensat},
	{SYS_setxattr, call_setxattr},
	{SYS_lsetxattr, call_lsetxattr},
	{SYS_fsetxattr, call_fsetxattr},
	{SYS_setxattrat, call_setxattrat},
	{SYS_removexattr, call_removexattr},
	{SYS_lremovexattr, call_lremovexattr},
	{SYS_fremovexattr, call_fremovexattr},
	{SYS_removexattrat, call_removexattrat},
	{-1, NULL},
};
