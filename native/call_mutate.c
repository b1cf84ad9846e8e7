/* Calls that change directory entries: unlink, rmdir, mkdir, rename, link, symlink, mknod; and truncate by name.
 *
 * Each resolves the directory once, judges the canonical name directory/last, and is made on that directory's descriptor
 * with that last name: the agent's string is never used again. What cannot happen anyway (a source that is not there, a
 * name that is taken) is answered with the kernel's errno and leaves no entry. Not for opens (call_open.c), attributes
 * (call_attr.c) or socket nodes (call_net.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "behalf.h"

#define RENAME_TRIES 64         /* times that names may change under one rename or link before it is refused with EBUSY */
#define CHANGED 1               /* not an errno: what was judged is no longer what is there */

struct leaf {
	char text[NAME_MAX + 2];
};

/* The last name for the kernel. A trailing slash is kept, because it decides between errnos; these calls never follow a
 * symlink for it. A name that is too long is left to the kernel to refuse. */
static const char *leaf_name(const struct ak_parent *p, struct leaf *leaf)
{
	if (!p->trailing_slash || strlen(p->name) > NAME_MAX)
		return p->name;
	snprintf(leaf->text, sizeof leaf->text, "%s/", p->name);
	return leaf->text;
}

/* 0 and *st, or -errno: -ENOENT when there is no such entry. */
static int entry_stat(const struct ak_parent *p, struct stat *st)
{
	return fstatat(p->fd, p->name, st, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

/* For a call that takes an entry away: the kernel's errno if there is none. A hidden name is judged without a look, so
 * that both answers are the same. */
static int must_exist(const struct ak_call *c, const struct ak_parent *p)
{
	struct stat st;
	return ak_hidden(c, p->path, p->len) ? 0 : entry_stat(p, &st);
}

/* For a call that makes an entry: -EEXIST if the name is taken. Other errors are left to the call itself. */
static int must_be_free(const struct ak_call *c, const struct ak_parent *p)
{
	struct stat st;
	return !ak_hidden(c, p->path, p->len) && entry_stat(p, &st) == 0 ? -EEXIST : 0;
}

/* ---- unlink, rmdir ----------------------------------------------------------------------------------------------- */

static int64_t remove_entry(struct ak_call *c, int dirfd, uint64_t addr, int flags)
{
	struct ak_parent p;
	struct leaf leaf;
	int error = ak_parent_arg(c, dirfd, addr, &p);
	if (error < 0)
		return error;
	error = must_exist(c, &p);
	if (error == 0)
		error = ak_judge_fs(c, flags ? AK_OP_RMDIR : AK_OP_UNLINK, AK_WRITE, p.path, p.len, 0);
	if (error == 0 && unlinkat(p.fd, leaf_name(&p, &leaf), flags) < 0)
		error = -errno;
	ak_parent_close(&p);
	return error;
}

static void call_unlinkat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	int flags = ak_int(a[2]);
	ak_result(o, flags & ~AT_REMOVEDIR ? -EINVAL : remove_entry(c, ak_int(a[0]), a[1], flags));
}

/* ---- mkdir, mknod, symlink: one new entry ------------------------------------------------------------------------ */

struct new_entry {
	uint16_t op;
	mode_t mode;            /* with S_IFMT */
	const char *contents;   /* of a symlink, else NULL */
};

/* A directory or symlink that comes into being could stand where another call has just looked; hence the lock. */
static int make_entry(const struct ak_parent *p, const struct new_entry *e)
{
	struct leaf leaf;
	const char *name = leaf_name(p, &leaf);
	int r;
	ak_names_lock();
	if (S_ISDIR(e->mode))
		r = mkdirat(p->fd, name, e->mode & ~S_IFMT);
	else if (e->contents)
		r = symlinkat(e->contents, p->fd, name);
	else
		r = mknodat(p->fd, name, e->mode, 0);
	r = r < 0 ? -errno : 0;
	ak_names_unlock();
	return r;
}

static int64_t new_entry(struct ak_call *c, int dirfd, uint64_t addr, const struct new_entry *e)
{
	struct ak_parent p;
	int error = ak_parent_arg(c, dirfd, addr, &p);
	if (error < 0)
		return error;
	error = must_be_free(c, &p);
	if (error == 0)
		error = ak_judge_fs(c, e->op, AK_WRITE, p.path, p.len, e->mode);
	if (error == 0)
		error = ak_adopt_umask(c);
	if (error == 0)
		error = make_entry(&p, e);
	ak_parent_close(&p);
	return error;
}

static int64_t make_directory(struct ak_call *c, int dirfd, uint64_t addr, uint64_t mode)
{
	struct new_entry e = {AK_OP_MKDIR, S_IFDIR | ((mode_t)mode & 07777), NULL};
	return new_entry(c, dirfd, addr, &e);
}

static void call_mkdirat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, make_directory(c, ak_int(a[0]), a[1], a[2]));
}

/* Device and socket nodes are never created: a device node is the kernel's driver under a name of the agent's choice. */
static int64_t refuse_node(struct ak_call *c, int dirfd, uint64_t addr, mode_t mode)
{
	struct ak_parent p;
	int error = ak_parent_arg(c, dirfd, addr, &p);
	if (error < 0)
		return error;
	error = ak_record(c, AK_OP_OPEN, AK_DENY, AK_WRITE, AK_NO_RULE, AK_WRITE, EPERM, mode, p.path, NULL);
	ak_parent_close(&p);
	return error < 0 ? error : -EPERM;
}

/* Recorded as an open for writing, which is what it comes to: O_CREAT makes the same regular file. */
static int64_t make_node(struct ak_call *c, int dirfd, uint64_t addr, uint64_t mode_arg)
{
	mode_t mode = (mode_t)mode_arg & 0xffff;        /* umode_t is 16 bits */
	struct new_entry e = {AK_OP_OPEN, mode & S_IFMT ? mode : mode | S_IFREG, NULL};
	switch (e.mode & S_IFMT) {
	case S_IFREG:
	case S_IFIFO:
		return new_entry(c, dirfd, addr, &e);
	case S_IFCHR:
	case S_IFBLK:
	case S_IFSOCK:
		return refuse_node(c, dirfd, addr, mode);
	case S_IFDIR:
		return -EPERM;
	default:
		return -EINVAL;
	}
}

static void call_mknodat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, make_node(c, ak_int(a[0]), a[1], a[2]));
}

/* Where the link leads is not judged: whoever opens it is judged on what it leads to. */
static int64_t make_symlink(struct ak_call *c, uint64_t contents_addr, int dirfd, uint64_t addr)
{
	char contents[PATH_MAX];
	struct new_entry e = {AK_OP_LINK, S_IFLNK | 0777, contents};
	ssize_t len = ak_read_path(c, contents_addr, contents);
	if (len < 0)
		return len;
	return len == 0 ? -ENOENT : new_entry(c, dirfd, addr, &e);
}

static void call_symlinkat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, make_symlink(c, a[0], ak_int(a[1]), a[2]));
}

/* ---- rename ------------------------------------------------------------------------------------------------------ */

struct rename {
	struct ak_parent from, to;
	unsigned flags;
	bool from_dir, to_dir;          /* judged as a directory: what lies below was asked for too */
};

/* What the kernel would refuse whoever asks: no entry in the log for it. */
static int rename_possible(struct ak_call *c, struct rename *r)
{
	struct stat st;
	int error = entry_stat(&r->from, &st);
	r->from_dir = error == 0 && S_ISDIR(st.st_mode);
	if (error < 0 && !ak_hidden(c, r->from.path, r->from.len))
		return error;
	error = entry_stat(&r->to, &st);
	r->to_dir = error == 0 && S_ISDIR(st.st_mode);
	if (ak_hidden(c, r->to.path, r->to.len))
		return 0;
	if (error == 0 && (r->flags & RENAME_NOREPLACE))
		return -EEXIST;
	return error < 0 && (r->flags & RENAME_EXCHANGE) ? error : 0;
}

static int judge_rename(struct ak_call *c, const struct rename *r)
{
	int error = ak_judge_move(c, AK_OP_RENAME, r->from.path, r->from.len, r->to.path, r->to.len, r->from_dir);
	if (error == 0 && (r->flags & RENAME_EXCHANGE))
		error = ak_judge_move(c, AK_OP_RENAME, r->to.path, r->to.len, r->from.path, r->from.len, r->to_dir);
	return error;
}

static bool removed(const struct ak_parent *p)
{
	struct stat st;
	return fstat(p->fd, &st) == 0 && st.st_nlink == 0;
}

static bool became_directory(const struct ak_parent *p, bool judged_as_directory)
{
	struct stat st;
	return !judged_as_directory && entry_stat(p, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Between the judgement and here a sibling may have put a directory where a file was judged, or moved one of the two
 * directories to where other rules hold. Under the lock neither can happen any more. */
static int carry_out_rename(const struct rename *r)
{
	struct leaf from, to;
	int result = CHANGED;
	ak_names_lock();
	if (removed(&r->from) || removed(&r->to))
		result = -ENOENT;
	else if (ak_keeps_name(r->from.fd, r->from.path, r->from.dir_len) &&
	    ak_keeps_name(r->to.fd, r->to.path, r->to.dir_len) &&
	    !became_directory(&r->from, r->from_dir) &&
	    !((r->flags & RENAME_EXCHANGE) && became_directory(&r->to, r->to_dir)))
		result = syscall(SYS_renameat2, r->from.fd, leaf_name(&r->from, &from), r->to.fd, leaf_name(&r->to, &to),
				 r->flags) < 0 ? -errno : 0;
	ak_names_unlock();
	return result;
}

/* A whiteout is a device node; bare it takes CAP_MKNOD, which nothing in a run has. */
static int refuse_whiteout(struct ak_call *c, const struct rename *r)
{
	int error = ak_record(c, AK_OP_RENAME, AK_DENY, AK_WRITE, AK_NO_RULE, AK_WRITE, EPERM, r->flags, r->from.path,
			      r->to.path);
	return error < 0 ? error : -EPERM;
}

static int rename_once(struct ak_call *c, int from_dir, const char *from, int to_dir, const char *to, struct rename *r)
{
	int error = ak_resolve_parent(c, from_dir, from, &r->from);
	if (error < 0)
		return error;
	error = ak_resolve_parent(c, to_dir, to, &r->to);
	if (error < 0) {
		ak_parent_close(&r->from);
		return error;
	}
	if (r->flags & RENAME_WHITEOUT)
		error = refuse_whiteout(c, r);
	if (error == 0)
		error = rename_possible(c, r);
	if (error == 0)
		error = judge_rename(c, r);
	if (error == 0)
		error = carry_out_rename(r);
	ak_parent_close(&r->from);
	ak_parent_close(&r->to);
	return error;
}

static int64_t rename_entry(struct ak_call *c, int from_dir, uint64_t from_addr, int to_dir, uint64_t to_addr,
			    unsigned flags)
{
	char from[PATH_MAX], to[PATH_MAX];
	struct rename r = {.flags = flags};
	if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT))
		return -EINVAL;
	if ((flags & RENAME_EXCHANGE) && (flags & (RENAME_NOREPLACE | RENAME_WHITEOUT)))
		return -EINVAL;
	ssize_t len = ak_read_path(c, from_addr, from);
	if (len >= 0)
		len = ak_read_path(c, to_addr, to);
	if (len < 0)
		return len;
	for (int i = 0; i < RENAME_TRIES; i++) {
		int error = rename_once(c, from_dir, from, to_dir, to, &r);
		if (error != CHANGED)
			return error;
	}
	return -EBUSY;
}

static void call_renameat2(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, rename_entry(c, ak_int(a[0]), a[1], ak_int(a[2]), a[3], (unsigned)ak_int(a[4])));
}

/* ---- link -------------------------------------------------------------------------------------------------------- */

/* A file that has no name yet (O_TMPFILE) brings no rights with it: what the agent wrote gets the name's rights. A file
 * whose names are merely gone from where it was opened may have others, so it is judged by its last name. */
static int judge_link(struct ak_call *c, const struct ak_object *from, const struct ak_parent *to)
{
	if (S_ISDIR(from->st.st_mode))
		return -EPERM;
	if ((from->flags & AK_ANONYMOUS) && from->st.st_nlink == 0)
		return ak_judge_fs(c, AK_OP_LINK, AK_WRITE, to->path, to->len, 0);
	return ak_judge_move(c, AK_OP_LINK, from->path, from->len, to->path, to->len, false);
}

/* On the object itself, not on its name: what was judged is what gets the second name. */
static int carry_out_link(const struct ak_object *from, const struct ak_parent *to)
{
	struct leaf leaf;
	int result = CHANGED;
	ak_names_lock();
	if (removed(to))
		result = -ENOENT;
	else if (((from->flags & AK_ANONYMOUS) || ak_keeps_name(from->fd, from->path, from->len)) &&
	    ak_keeps_name(to->fd, to->path, to->dir_len))
		result = linkat(AT_FDCWD, ak_proc_fd(from->fd).text, to->fd, leaf_name(to, &leaf), AT_SYMLINK_FOLLOW) < 0 ?
				 -errno : 0;
	ak_names_unlock();
	return result;
}

static int link_once(struct ak_call *c, int from_dir, const char *from_path, unsigned flags, int to_dir,
		     const char *to_path)
{
	struct ak_object from;
	struct ak_parent to;
	int error = ak_resolve(c, from_dir, from_path, flags, &from);
	if (error < 0)
		return error;
	error = ak_resolve_parent(c, to_dir, to_path, &to);
	if (error == 0) {
		error = must_be_free(c, &to);
		if (error == 0)
			error = judge_link(c, &from, &to);
		if (error == 0)
			error = carry_out_link(&from, &to);
		ak_parent_close(&to);
	}
	ak_object_close(&from);
	return error;
}

static int64_t link_entry(struct ak_call *c, int from_dir, uint64_t from_addr, int to_dir, uint64_t to_addr, int flags)
{
	char from[PATH_MAX], to[PATH_MAX];
	if (flags & ~(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH))
		return -EINVAL;
	unsigned how = (flags & AT_SYMLINK_FOLLOW ? 0 : AK_NOFOLLOW) | (flags & AT_EMPTY_PATH ? AK_EMPTY_PATH : 0);
	ssize_t len = ak_read_path(c, from_addr, from);
	if (len >= 0)
		len = ak_read_path(c, to_addr, to);
	if (len < 0)
		return len;
	for (int i = 0; i < RENAME_TRIES; i++) {
		int error = link_once(c, from_dir, from, how, to_dir, to);
		if (error != CHANGED)
			return error;
	}
	return -EBUSY;
}

static void call_linkat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, link_entry(c, ak_int(a[0]), a[1], ak_int(a[2]), a[3], ak_int(a[4])));
}

/* ---- truncate ---------------------------------------------------------------------------------------------------- */

static void call_truncate(struct ak_call *c, struct ak_outcome *o)
{
	struct ak_object object;
	off_t length = (off_t)c->stop->args[1];
	if (length < 0)
		return ak_result(o, -EINVAL);
	int error = ak_object_arg(c, AK_OP_TRUNCATE, AT_FDCWD, c->stop->args[0], 0, &object);
	if (error < 0)
		return ak_result(o, error);
	if (!ak_nameless(&object))
		error = ak_judge_fs(c, AK_OP_TRUNCATE, AK_WRITE, object.path, object.len, (uint64_t)length);
	if (error == 0 && truncate(ak_proc_fd(object.fd).text, length) < 0)
		error = -errno;
	ak_object_close(&object);
	ak_result(o, error);
}

/* ---- the older calls, which x86-64 kept and arm64 never had ------------------------------------------------------ */

#ifdef SYS_unlink
static void call_unlink(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, remove_entry(c, AT_FDCWD, c->stop->args[0], 0));
}

static void call_rmdir(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, remove_entry(c, AT_FDCWD, c->stop->args[0], AT_REMOVEDIR));
}

static void call_mkdir(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, make_directory(c, AT_FDCWD, c->stop->args[0], c->stop->args[1]));
}

static void call_mknod(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, make_node(c, AT_FDCWD, c->stop->args[0], c->stop->args[1]));
}

static void call_symlink(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, make_symlink(c, c->stop->args[0], AT_FDCWD, c->stop->args[1]));
}

static void call_link(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, link_entry(c, AT_FDCWD, c->stop->args[0], AT_FDCWD, c->stop->args[1], 0));
}

static void call_rename(struct ak_call *c, struct ak_outcome *o)
{
	ak_result(o, rename_entry(c, AT_FDCWD, c->stop->args[0], AT_FDCWD, c->stop->args[1], 0));
}
#endif

#ifdef SYS_renameat
static void call_renameat(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	ak_result(o, rename_entry(c, ak_int(a[0]), a[1], ak_int(a[2]), a[3], 0));
}
#endif

const struct ak_handler_entry ak_mutate_handlers[] = {
#ifdef SYS_unlink
	{SYS_unlink, call_unlink},
	{SYS_rmdir, call_rmdir},
	{SYS_mkdir, call_mkdir},
	{SYS_mknod, call_mknod},
	{SYS_symlink, call_symlink},
	{SYS_link, call_link},
	{SYS_rename, call_rename},
#endif
#ifdef SYS_renameat
	{SYS_renameat, call_renameat},
#endif
	{SYS_unlinkat, call_unlinkat},
	{SYS_mkdirat, call_mkdirat},
	{SYS_mknodat, call_mknodat},
	{SYS_symlinkat, call_symlinkat},
	{SYS_linkat, call_linkat},
	{SYS_renameat2, call_renameat2},
	{SYS_truncate, call_truncate},
	{-1, NULL},
};
