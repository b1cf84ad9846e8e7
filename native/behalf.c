/* Helpers of the handlers that act on the agent's behalf; see behalf.h. Nothing here judges. */
#include "behalf.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/openat2.h>

static pthread_mutex_t names = PTHREAD_MUTEX_INITIALIZER;

void ak_names_lock(void)
{
	pthread_mutex_lock(&names);
}

void ak_names_unlock(void)
{
	pthread_mutex_unlock(&names);
}

bool ak_hidden(const struct ak_call *c, const char *path, size_t len)
{
	return ak_strict(c) && !ak_policy_visible(c->config->policy, path, len);
}

bool ak_nameless(const struct ak_object *object)
{
	return (object->flags & AK_ANONYMOUS) && (object->path[0] != '/' || strncmp(object->path, "/memfd:", 7) == 0);
}

/* Is a symlink part of the path? Then the error may be about any place that the agent lets it lead to. */
static bool has_symlink(struct ak_call *c, int dirfd, const char *path, int error)
{
	struct ak_object o;
	int base = path[0] == '/' ? AT_FDCWD : ak_task_base(c, dirfd);
	int again = ak_resolve_from(c, base, path, 0, RESOLVE_NO_SYMLINKS, &o);
	if (again == 0)
		ak_object_close(&o);
	if (base >= 0)
		close(base);
	return again != error || error == -ELOOP;
}

int ak_hide_error(struct ak_call *c, int dirfd, char *path, int error)
{
	if (!ak_strict(c) || (error != -ENOTDIR && error != -EACCES && error != -ELOOP))
		return error;
	if (has_symlink(c, dirfd, path, error))
		return -ENOENT;
	for (char *cut = strrchr(path, '/'); cut && cut != path; cut = strrchr(path, '/')) {
		struct ak_object part;
		*cut = 0;
		if (ak_resolve(c, dirfd, path, 0, &part) < 0)
			continue;
		bool hidden = ak_hidden(c, part.path, part.len);
		ak_object_close(&part);
		return hidden ? -ENOENT : error;
	}
	return error;
}

int ak_object_arg(struct ak_call *c, uint16_t op, int dirfd, uint64_t addr, unsigned flags, struct ak_object *out)
{
	char path[PATH_MAX];
	ssize_t len = ak_read_path(c, addr, path);
	if (len < 0)
		return (int)len;
	int error = ak_resolve(c, dirfd, path, flags, out);
	if (error < 0)
		return ak_hide_error(c, dirfd, path, error);
	/* What the agent holds open (a standard stream it was given, say) is no secret from it: fstat() is not trapped. */
	if ((len == 0 && dirfd != AT_FDCWD) || (out->flags & AK_ANONYMOUS) || !ak_hidden(c, out->path, out->len))
		return 0;
	error = ak_record(c, op, AK_DENY, 0, AK_NO_RULE, 0, ENOENT, 0, out->path, NULL);
	ak_object_close(out);
	return error < 0 ? error : -ENOENT;
}

int ak_parent_arg(struct ak_call *c, int dirfd, uint64_t addr, struct ak_parent *out)
{
	char path[PATH_MAX];
	ssize_t len = ak_read_path(c, addr, path);
	if (len < 0)
		return (int)len;
	int error = ak_resolve_parent(c, dirfd, path, out);
	return error < 0 ? ak_hide_error(c, dirfd, path, error) : 0;
}

int ak_own_copy(struct ak_call *c, int fd)
{
	int copy = ak_task_dup(c, fd);
	if (copy == -EPERM)
		ak_record(c, AK_OP_REFUSED, AK_DENY, 0, AK_NO_RULE, 0, EPERM, 0, "host:pidfd_getfd", NULL);
	return copy;
}

int ak_object_of_fd(struct ak_call *c, int fd, bool path_only, struct ak_object *out)
{
	int flags = ak_task_fd_flags(c, fd);
	if (flags < 0)
		return flags;
	if ((flags & O_PATH) && !path_only)
		return -EBADF;
	return ak_resolve(c, fd, "", AK_EMPTY_PATH, out);
}

bool ak_keeps_name(int fd, const char *path, size_t len)
{
	char now[PATH_MAX];
	/* Nothing can be renamed or linked in /proc, and only there is the canonical name not the kernel's own. */
	if (len >= 6 && memcmp(path, "/proc/", 6) == 0)
		return true;
	ssize_t n = readlink(ak_proc_fd(fd).text, now, sizeof now);
	if (n == 1 && now[0] == '/')
		return len == 0 || (len == 1 && path[0] == '/');
	return n >= 0 && (size_t)n == len && memcmp(now, path, len) == 0;
}
