/* open, creat, openat, openat2: judged on the object, carried out on the object, the descriptor injected.
 *
 * An existing file is opened a second time through /proc/self/fd/N of the descriptor that was judged: the same inode,
 * whatever happens to its name meanwhile. A new file is made in the parent that was judged, with O_EXCL, so that nothing
 * that appears there in between is opened instead.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <linux/openat2.h>

#include "behalf.h"
#include "enforcer.h"
#include "open.h"

#define TMPFILE_BIT 020000000           /* O_TMPFILE is this and O_DIRECTORY */

#define OPEN_FLAGS (O_ACCMODE | O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_APPEND | O_NONBLOCK | O_SYNC | O_DSYNC | \
		    O_ASYNC | O_DIRECT | 0100000 /* O_LARGEFILE */ | O_DIRECTORY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC | \
		    O_PATH | TMPFILE_BIT)
#define PATH_FLAGS (O_DIRECTORY | O_NOFOLLOW | O_PATH | O_CLOEXEC)
#define RESOLVE_FLAGS (RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH | \
		       RESOLVE_IN_ROOT | RESOLVE_CACHED)
/* What is passed on when an object is opened for real: everything that is not about finding it. */
#define REOPEN_FLAGS (O_ACCMODE | O_TRUNC | O_APPEND | O_NONBLOCK | O_SYNC | O_DSYNC | O_DIRECT | O_DIRECTORY | O_NOATIME)
#define HOW_PAGE 4096u
#define LINKS_MAX 40
#define RACES_MAX 100                   /* a name that comes and goes as often as this in one call is not an accident */

struct request {
	unsigned flags;                 /* O_*, checked */
	mode_t mode;
	uint64_t resolve;               /* RESOLVE_* */
	int base;                       /* O_PATH descriptor of ours that a relative path begins at */
	int dirfd;                      /* what the agent passed; for errors only */
	char *path;
	const char *text;               /* the path in full, if it was easily had */
};

/* ---- arguments --------------------------------------------------------------------------------------------------- */

static bool creates(unsigned flags)
{
	return flags & (O_CREAT | TMPFILE_BIT);
}

/* The checks of build_open_flags() in fs/open.c that do not depend on the file. */
static int check_flags(struct request *r)
{
	if (r->flags & O_PATH)
		return r->flags & ~PATH_FLAGS ? -EINVAL : 0;
	if ((r->flags & (O_DIRECTORY | O_CREAT)) == (O_DIRECTORY | O_CREAT))
		return -EINVAL;
	if (r->flags & TMPFILE_BIT) {
		if (!(r->flags & O_DIRECTORY) || (r->flags & O_ACCMODE) == O_RDONLY)
			return -EINVAL;
	}
	return 0;
}

/* open() and openat() drop what they do not know; O_PATH drops everything that it does not combine with. */
static int plain_flags(struct request *r, uint64_t flags, uint64_t mode)
{
	r->flags = (unsigned)flags & OPEN_FLAGS;
	if (r->flags & O_PATH)
		r->flags &= PATH_FLAGS;
	r->mode = creates(r->flags) ? (mode_t)mode & 07777 : 0;
	return check_flags(r);
}

static int read_how(struct ak_call *c, uint64_t addr, uint64_t size, struct open_how *how)
{
	char more[256];
	if (size < sizeof *how)
		return -EINVAL;
	if (size > HOW_PAGE)
		return -E2BIG;
	int error = ak_read(c, addr, how, sizeof *how);
	for (uint64_t done = sizeof *how; error == 0 && done < size;) {
		size_t len = size - done < sizeof more ? (size_t)(size - done) : sizeof more;
		error = ak_read(c, addr + done, more, len);
		for (size_t i = 0; error == 0 && i < len; i++)
			if (more[i])
				return -E2BIG;
		done += len;
	}
	return error;
}

static int how_flags(struct request *r, const struct open_how *how)
{
	if (how->flags & ~(uint64_t)OPEN_FLAGS || how->resolve & ~(uint64_t)RESOLVE_FLAGS)
		return -EINVAL;
	if ((how->resolve & RESOLVE_BENEATH) && (how->resolve & RESOLVE_IN_ROOT))
		return -EINVAL;
	r->flags = (unsigned)how->flags;
	if (creates(r->flags) ? how->mode & ~(uint64_t)07777 : how->mode)
		return -EINVAL;
	r->mode = (mode_t)how->mode;
	r->resolve = how->resolve;
	int error = check_flags(r);
	if (error)
		return error;
	/* "Only if it needs no I/O": we cannot promise that, and EAGAIN is what the caller is prepared for. */
	return how->resolve & RESOLVE_CACHED ? -EAGAIN : 0;
}

/* ---- existing objects -------------------------------------------------------------------------------------------- */

static unsigned need_of(unsigned flags)
{
	unsigned mode = flags & O_ACCMODE;
	unsigned need = mode == O_RDONLY ? AK_READ : mode == O_WRONLY ? AK_WRITE : AK_READ | AK_WRITE;
	return flags & O_TRUNC ? need | AK_WRITE : need;
}

/* The agent has this very object open already with the access it asks for: nothing is gained by opening it again (the
 * /dev/stdout idiom). With O_TRUNC it needs to hold it for writing, and then ftruncate() would do the same. */
static bool has_it_open(struct ak_call *c, const struct request *r, const struct ak_object *o)
{
	return (o->flags & AK_OWN_FD) && ak_task_holds(c, o->own_fd, o, need_of(r->flags));
}

static int judge(struct ak_call *c, const struct request *r, const struct ak_object *o)
{
	unsigned need = need_of(r->flags);
	int error;
	if (has_it_open(c, r, o))
		return ak_record(c, AK_OP_OPEN, AK_ALLOW, need, AK_NO_RULE, 0, 0, r->flags, o->path, NULL);
	if (o->flags & AK_ANONYMOUS) {  /* what has no name cannot be covered by a rule */
		error = ak_record(c, AK_OP_OPEN, AK_DENY, need, AK_NO_RULE, need, EACCES, r->flags, o->path, NULL);
		return error < 0 ? error : -EACCES;
	}
	if (ak_pty_of_run(c, o))
		return ak_judge_pty(c, need, o->path, o->len, r->flags);
	return ak_judge_fs(c, AK_OP_OPEN, need, o->path, o->len, r->flags);
}

/* What the kernel says about an existing object before it looks at permissions. */
static int shape_error(const struct request *r, const struct ak_object *o)
{
	mode_t mode = o->st.st_mode;
	if ((r->flags & O_CREAT) && (r->flags & O_EXCL))
		return -EEXIST;
	if ((r->flags & O_DIRECTORY) && !S_ISDIR(mode))
		return -ENOTDIR;
	if (S_ISLNK(mode))
		return -ELOOP;
	if (S_ISDIR(mode) && ((r->flags & O_CREAT) || (r->flags & O_ACCMODE) != O_RDONLY))
		return -EISDIR;
	if (S_ISSOCK(mode))
		return -ENXIO;
	return 0;
}

int ak_reopen(struct ak_call *c, int object, unsigned flags)
{
	char name[16];
	char *end = name + sizeof name, *digits = end;
	*--digits = 0;
	for (unsigned n = (unsigned)object; n || digits == end - 1; n /= 10)
		*--digits = (char)('0' + n % 10);
	int fd = openat(c->enforcer->proc_fd_dir, digits, (int)((flags & REOPEN_FLAGS) | O_CLOEXEC | O_NOCTTY));
	return fd < 0 ? -errno : fd;
}

/* Opening one end of a FIFO waits for the other. */
static bool may_wait(const struct request *r, const struct ak_object *o)
{
	return S_ISFIFO(o->st.st_mode) && !(r->flags & O_NONBLOCK) && (r->flags & O_ACCMODE) != O_RDWR;
}

/* A descriptor, or -errno; or ak_block() was called and `out` says so. */
static int open_existing(struct ak_call *c, const struct request *r, const struct ak_object *o, struct ak_outcome *out)
{
	bool strict = c->config->flags & AK_FLAG_STRICT_METADATA;
	int shape = shape_error(r, o);
	/* What is there is nobody's secret unless metadata is strict; then the answer must not tell. */
	if (shape && !strict && !(o->flags & AK_FOREIGN))
		return shape;
	if (shape == 0 && !c->may_block && may_wait(r, o)) {
		ak_block(c, out);       /* judged there, once */
		return out->kind == AK_LATER ? 0 : -EAGAIN;
	}
	int error = judge(c, r, o);
	if (error || shape)
		return error ? error : shape;
	bool device = S_ISCHR(o->st.st_mode) && major(o->st.st_rdev) != AK_MEM_MAJOR;
	out->only_copy = device || S_ISFIFO(o->st.st_mode);
	if (may_wait(r, o))
		return ak_open_fifo(c, o->fd, r->flags);
	if (device)
		return ak_open_device(c, o, r->flags);
	return ak_reopen(c, o->fd, r->flags);
}

/* O_PATH gives neither reading nor writing; what is done with the descriptor later is judged then. */
static int open_path_only(struct ak_call *c, const struct request *r, struct ak_object *o)
{
	if ((r->flags & O_DIRECTORY) && !S_ISDIR(o->st.st_mode))
		return -ENOTDIR;
	if (o->flags & AK_FOREIGN)
		return ak_judge_fs(c, AK_OP_OPEN, AK_READ, o->path, o->len, r->flags) ?: -EACCES;
	if (!(o->flags & AK_ANONYMOUS) && ak_hidden(c, o->path, o->len)) {
		int error = ak_record(c, AK_OP_OPEN, AK_DENY, 0, AK_NO_RULE, 0, ENOENT, r->flags, o->path, NULL);
		return error < 0 ? error : -ENOENT;
	}
	int fd = o->fd;
	o->fd = -1;
	return fd;
}

/* ---- new files --------------------------------------------------------------------------------------------------- */

/* The place where open(O_CREAT) makes the file: symlinks at the end of the path that lead nowhere are followed by hand,
 * because the kernel would follow them at once and create where nobody judged. */
static int find_place(struct ak_call *c, const struct request *r, struct ak_parent *place)
{
	char target[PATH_MAX];
	int error = ak_resolve_parent_from(c, r->base, r->path, r->resolve, place);
	for (int links = 0; error == 0; links++) {
		if (place->trailing_slash) {
			ak_parent_close(place);
			return -EISDIR;
		}
		ssize_t n = r->flags & O_EXCL ? -1 : readlinkat(place->fd, place->name, target, sizeof target - 1);
		if (n < 0)
			return 0;
		int dir = place->fd;
		if (links == LINKS_MAX || (r->flags & O_NOFOLLOW) || r->resolve) {
			close(dir);
			return -ELOOP;
		}
		target[n] = 0;
		error = ak_resolve_parent_from(c, dir, target, r->resolve, place);
		close(dir);
	}
	return error;
}

static int create(struct ak_call *c, const struct request *r)
{
	struct ak_parent place;
	int error = find_place(c, r, &place);
	if (error)
		return ak_hide_error(c, r->dirfd, r->path, error);
	error = ak_judge_fs(c, AK_OP_OPEN, need_of(r->flags) | AK_WRITE, place.path, place.len, r->flags);
	if (error == 0)
		error = ak_adopt_umask(c);
	if (error == 0) {
		unsigned flags = (r->flags & (REOPEN_FLAGS & ~O_TRUNC)) | O_CREAT | O_EXCL | O_NOCTTY | O_CLOEXEC;
		ak_names_lock();
		if (!ak_keeps_name(place.fd, place.path, place.dir_len))
			error = -EEXIST;        /* the directory was moved since: look again */
		else
			error = openat(place.fd, place.name, (int)flags, r->mode);
		if (error < 0 && error != -EEXIST)
			error = -errno;
		ak_names_unlock();
	}
	ak_parent_close(&place);
	return error;
}

/* A file without a name, in a directory that the agent may write below. Giving it a name later is a link(), judged then. */
static int create_unnamed(struct ak_call *c, const struct request *r)
{
	struct ak_object dir;
	static const char child[] = "/#unnamed";
	int error = ak_resolve_from(c, r->base, r->path, r->flags & O_NOFOLLOW ? AK_NOFOLLOW : 0, r->resolve, &dir);
	if (error)
		return ak_hide_error(c, r->dirfd, r->path, error);
	if (!S_ISDIR(dir.st.st_mode) && !(dir.flags & AK_FOREIGN))
		error = -ENOTDIR;
	else if (dir.len + sizeof child > sizeof dir.path)
		error = -ENAMETOOLONG;
	if (error == 0) {
		size_t root = dir.len == 1;     /* "/" brings its own slash */
		memcpy(dir.path + dir.len, child + root, sizeof child - root);
		unsigned need = need_of(r->flags) | AK_WRITE;
		error = ak_judge_fs(c, AK_OP_OPEN, need, dir.path, dir.len + sizeof child - 1 - root, r->flags);
	}
	if (error == 0)
		error = ak_adopt_umask(c);
	if (error == 0) {
		unsigned flags = (r->flags & (REOPEN_FLAGS | O_EXCL)) | TMPFILE_BIT | O_NOCTTY | O_CLOEXEC;
		error = openat(dir.fd, ".", (int)flags, r->mode);
		if (error < 0)
			error = -errno;
	}
	ak_object_close(&dir);
	return error;
}

/* ---- the calls --------------------------------------------------------------------------------------------------- */

static int open_once(struct ak_call *c, const struct request *r, struct ak_outcome *out)
{
	struct ak_object o;
	bool nofollow = (r->flags & O_NOFOLLOW) || (r->flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL);
	if (r->flags & TMPFILE_BIT)
		return create_unnamed(c, r);
	int error = ak_resolve_from(c, r->base, r->path, nofollow ? AK_NOFOLLOW : 0, r->resolve, &o);
	if (error == -ENOENT && (r->flags & O_CREAT))
		return create(c, r);
	if (error)
		return ak_hide_error(c, r->dirfd, r->path, error);
	int fd = r->flags & O_PATH ? open_path_only(c, r, &o) : open_existing(c, r, &o, out);
	if (fd >= 0 && out->kind != AK_LATER && r->text)
		ak_known_add(&o, r->text);
	ak_object_close(&o);
	return fd;
}

static void do_open(struct ak_call *c, struct request *r, int dirfd, uint64_t path_addr, struct ak_outcome *out)
{
	char path[PATH_MAX], text[PATH_MAX];
	ssize_t len = ak_read_path(c, path_addr, path);
	bool from_base = len > 0 && (path[0] != '/' || (r->resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT)));
	int fd = -EAGAIN;
	size_t text_len = len > 0 && r->resolve == 0 ? ak_full_text(c, dirfd, path, (size_t)len, text) : 0;
	if (text_len && ak_open_quick(c, path, text, text_len, r->flags, out))
		return;
	r->text = text_len ? text : NULL;
	r->path = path;
	r->dirfd = dirfd;
	r->base = from_base ? ak_task_base(c, dirfd) : AT_FDCWD;
	if (len <= 0 || (from_base && r->base < 0)) {
		ak_deny(out, len < 0 ? (int)-len : len == 0 ? ENOENT : -r->base);
		return;
	}
	for (int i = 0; i < RACES_MAX; i++) {
		fd = open_once(c, r, out);
		/* Not there when we looked, there when we made it: somebody else did. Then it is an existing file. */
		if (fd != -EEXIST || (r->flags & O_EXCL))
			break;
		fd = -EAGAIN;
	}
	if (from_base)
		close(r->base);
	if (out->kind == AK_LATER)
		return;
	if (fd < 0)
		ak_deny(out, -fd);
	else
		ak_install(out, fd, r->flags & O_CLOEXEC);
}

static void open_plain(struct ak_call *c, int dirfd, uint64_t path, uint64_t flags, uint64_t mode, struct ak_outcome *out)
{
	struct request r = {.resolve = 0};
	int error = plain_flags(&r, flags, mode);
	if (error)
		ak_deny(out, -error);
	else if ((r.flags & O_PATH) && !(c->config->flags & AK_FLAG_STRICT_METADATA))
		ak_continue(out);       /* nothing is judged, so nothing that was judged can change */
	else
		do_open(c, &r, dirfd, path, out);
}

static void call_openat(struct ak_call *c, struct ak_outcome *out)
{
	const uint64_t *a = c->stop->args;
	open_plain(c, ak_int(a[0]), a[1], a[2], a[3], out);
}

static void call_openat2(struct ak_call *c, struct ak_outcome *out)
{
	const uint64_t *a = c->stop->args;
	struct request r = {.resolve = 0};
	struct open_how how;
	int error = read_how(c, a[2], a[3], &how);
	if (error == 0)
		error = how_flags(&r, &how);
	if (error)
		ak_deny(out, -error);
	else
		do_open(c, &r, ak_int(a[0]), a[1], out);
}

#ifdef SYS_open
static void call_open(struct ak_call *c, struct ak_outcome *out)
{
	const uint64_t *a = c->stop->args;
	open_plain(c, AT_FDCWD, a[0], a[1], a[2], out);
}

static void call_creat(struct ak_call *c, struct ak_outcome *out)
{
	const uint64_t *a = c->stop->args;
	open_plain(c, AT_FDCWD, a[0], O_CREAT | O_WRONLY | O_TRUNC, a[1], out);
}
#endif

const struct ak_handler_entry ak_open_handlers[] = {
#ifdef SYS_open
	{SYS_open, call_open},
	{SYS_creat, call_creat},
#endif
	{SYS_openat, call_openat},
	{SYS_openat2, call_openat2},
	{-1, NULL},
};
