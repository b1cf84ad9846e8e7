/* Read-only opens in a few system calls: most of what a build or an interpreter's start does. Both ways begin with the
 * policy's verdict on the path in full, and leave to call_open.c whatever they are not sure of, unrecorded.
 *
 * open_granted(): the kernel opens it. Landlock enforces the deciding rule exactly (AK "kernel reads", worked out by
 * akbox/policy/landlock.py), so a name that changes during the call leads to nothing that the policy does not grant; the
 * look-up here is for the log, which names the object that the text led to when it was judged.
 *
 * open_known(): what was opened before under the same name. A name is known when it was resolved once in full, was its
 * object's canonical path to the letter, and the object was a regular file or a directory. The second time the policy is
 * asked about that text first; then the kernel opens it, and refuses if any symlink has come into the way
 * (RESOLVE_NO_SYMLINKS). If what it opened is the same object, the text that was judged is that object's canonical path: it
 * was found by these names and no others, and on a file system that folds case, where other spellings lead to the same
 * object, this spelling is the one that the kernel itself gave for it. Anything else is closed and goes the long way.
 *
 * A relative path is put behind the name of the directory it begins at. That directory may be moved meanwhile, so such a
 * text proves what is there (the object that it leads to is the one that was judged), never that nothing is.
 */
#include "open.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/openat2.h>

#include "behalf.h"

#define KNOWN 512                       /* names per thread; a power of two */
#define NAME_BYTES 232                  /* longer names are not remembered */
/* What the plain way would pass on, but for what needs more than looking (O_TRUNC) and who asks (the agent's O_PATH). */
#define SIMPLE_FLAGS (O_APPEND | O_NONBLOCK | O_DIRECTORY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC | 0100000 /* O_LARGEFILE */)
#define STATUS_FLAGS (O_APPEND | O_NONBLOCK | O_NOATIME)        /* of SIMPLE_FLAGS, those that F_SETFL sets */

struct known {
	dev_t dev;
	ino_t ino;
	uint32_t len;
	char name[NAME_BYTES];
};

static _Thread_local struct known table[KNOWN];

static struct known *slot_of(const char *path, size_t len)
{
	uint32_t h = 2166136261u;               /* FNV-1a; only where to look, the name itself is compared */
	for (size_t i = 0; i < len; i++)
		h = (h ^ (unsigned char)path[i]) * 16777619u;
	return &table[(h ^ h >> 16) & (KNOWN - 1)];
}

size_t ak_full_text(struct ak_call *c, int dirfd, const char *path, size_t len, char text[PATH_MAX])
{
	static const char removed[] = " (deleted)";
	const size_t mark = sizeof removed - 1;
	ssize_t base = 0;
	if (path[0] != '/') {
		base = ak_task_base_name(c, dirfd, text, PATH_MAX);
		if (base <= 0 || text[0] != '/' || ((size_t)base > mark && memcmp(text + base - mark, removed, mark) == 0))
			return 0;
		if (base > 1 && base < PATH_MAX)
			text[base++] = '/';
		while (path[0] == '.' && path[1] == '/' && path[2] != '/') {
			path += 2;
			len -= 2;
		}
	}
	if ((size_t)base + len >= PATH_MAX)
		return 0;
	memcpy(text + base, path, len + 1);
	return (size_t)base + len;
}

void ak_known_add(const struct ak_object *o, const char *text)
{
	bool plain = S_ISREG(o->st.st_mode) || S_ISDIR(o->st.st_mode);
	if (o->flags || !plain || o->len >= NAME_BYTES || strncmp(o->path, "/proc", 5) == 0 || strcmp(o->path, text) != 0)
		return;
	struct known *k = slot_of(o->path, o->len);
	k->dev = o->st.st_dev;
	k->ino = o->st.st_ino;
	k->len = (uint32_t)o->len;
	memcpy(k->name, o->path, o->len);
}

/* No ".", "..", "//" or "/" at the end: a text that is its object's canonical path if no symlink is on the way. */
static bool is_canonical(const char *path, size_t len)
{
	if (len < 2 || path[0] != '/' || path[len - 1] == '/')
		return false;
	for (const char *p = strchr(path, '/'); p; p = strchr(p + 1, '/')) {
		if (p[1] == '/')
			return false;
		if (p[1] == '.' && (p[2] == '/' || p[2] == 0 || (p[2] == '.' && (p[3] == '/' || p[3] == 0))))
			return false;
	}
	return true;
}

/* Precondition of both: the policy allows `text` by rule `rule`. */
static bool open_granted(struct ak_call *c, const char *text, uint32_t rule, unsigned flags, bool absolute,
			 struct ak_outcome *out)
{
	struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
	int fd = (int)syscall(SYS_openat2, AT_FDCWD, text, &how, sizeof how);
	if (fd < 0 && (!absolute || (errno != ENOENT && errno != ENOTDIR)))
		return false;
	if (fd < 0) {
		ak_deny(out, errno);            /* no symlink up to where it ends: it is not there, whoever asks */
		return true;
	}
	close(fd);
	if (ak_record(c, AK_OP_OPEN, AK_ALLOW, AK_READ, rule, 0, 0, flags, text, NULL) < 0)
		ak_deny(out, EPERM);
	else
		ak_continue(out);
	return true;
}

static bool open_known(struct ak_call *c, const char *text, size_t len, uint32_t rule, unsigned flags, struct ak_outcome *out)
{
	struct known *k = slot_of(text, len);
	struct stat st;
	if (len != k->len || memcmp(k->name, text, len) != 0)
		return false;
	/* O_NONBLOCK: a FIFO may have taken the name. */
	struct open_how how = {
		.flags = (flags & (O_APPEND | O_DIRECTORY | O_NOATIME)) | O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
		.resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	int fd = (int)syscall(SYS_openat2, AT_FDCWD, text, &how, sizeof how);
	if (fd < 0)
		return false;
	bool same = fstat(fd, &st) == 0 && st.st_dev == k->dev && st.st_ino == k->ino;
	if (same && !(flags & O_NONBLOCK))
		same = fcntl(fd, F_SETFL, flags & STATUS_FLAGS) == 0;
	if (!same) {
		close(fd);
		return false;
	}
	if (ak_record(c, AK_OP_OPEN, AK_ALLOW, AK_READ, rule, 0, 0, flags, text, NULL) < 0) {
		close(fd);
		ak_deny(out, EPERM);
		return true;
	}
	ak_install(out, fd, flags & O_CLOEXEC);
	return true;
}

bool ak_open_quick(struct ak_call *c, const char *path, const char *text, size_t len, unsigned flags, struct ak_outcome *out)
{
	if (flags & ~SIMPLE_FLAGS || !is_canonical(text, len))
		return false;
	struct ak_verdict v = ak_policy_fs(c->config->policy, AK_READ, text, len);
	if (v.decision != AK_ALLOW)
		return false;
	if (ak_kernel_reads(c, v.rule) && open_granted(c, text, v.rule, flags, path[0] == '/', out))
		return true;
	return open_known(c, text, len, v.rule, flags, out);
}
