/* Names and contents of files: every call that opens, moves, links or removes one. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "call.h"

/* What was opened is printed, so that a kit can look for bytes that must not be there. */
static long show(long fd)
{
	char bytes[256];
	ssize_t n;

	if (fd < 0)
		return fd;
	n = read((int)fd, bytes, sizeof bytes);
	if (n > 0)
		(void)fwrite(bytes, 1, (size_t)n, stdout);
	return fd;
}

static long try_open(char **argv)
{
	return show(sys(SYS_open, (long)argv[1], GARBAGE(number(argv[2])), GARBAGE(0600), 0, 0, 0));
}

static long try_creat(char **argv)
{
	return sys(SYS_creat, (long)argv[1], GARBAGE(0600), 0, 0, 0, 0);
}

static long try_openat(char **argv)
{
	return show(sys(SYS_openat, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(number(argv[2])), GARBAGE(0600), 0, 0));
}

static long try_openat2(char **argv)
{
	struct open_how how = { .flags = (uint64_t)number(argv[2]) };

	return show(sys(SYS_openat2, GARBAGE(AT_FDCWD), (long)argv[1], (long)&how, sizeof how, 0, 0));
}

/* Below an O_PATH descriptor of a directory that may be looked at. */
static long try_open_below(char **argv)
{
	int dir = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC);

	return dir < 0 ? -errno : show(sys(SYS_openat, GARBAGE(dir), (long)argv[2], GARBAGE(O_RDONLY), 0, 0, 0));
}

/* First a descriptor that only names the object, then the object through it. */
static long try_reopen(char **argv)
{
	char path[64];
	int fd = open(argv[1], (int)number(argv[2]) | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	(void)snprintf(path, sizeof path, "%s/%d", argv[3], fd);
	return show(sys(SYS_openat, GARBAGE(AT_FDCWD), (long)path, GARBAGE(number(argv[4])), 0, 0, 0));
}

static long try_handle(char **argv)
{
	struct { struct file_handle head; unsigned char bytes[MAX_HANDLE_SZ]; } handle = { .head.handle_bytes = MAX_HANDLE_SZ };
	int mount_id, dir = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	long value = sys(SYS_name_to_handle_at, GARBAGE(AT_FDCWD), (long)argv[1], (long)&handle, (long)&mount_id, GARBAGE(0), 0);

	if (value < 0 && strcmp(argv[2], "name") == 0)
		return value;
	return show(sys(SYS_open_by_handle_at, GARBAGE(dir), (long)&handle, GARBAGE(O_RDONLY), 0, 0, 0));
}

static long try_rename(char **argv)
{
	return sys(SYS_rename, (long)argv[1], (long)argv[2], 0, 0, 0, 0);
}

static long try_renameat(char **argv)
{
	return sys(SYS_renameat, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(AT_FDCWD), (long)argv[2], 0, 0);
}

static long try_renameat2(char **argv)
{
	return sys(SYS_renameat2, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(AT_FDCWD), (long)argv[2],
		   GARBAGE(number(argv[3])), 0);
}

static long try_link(char **argv)
{
	return sys(SYS_link, (long)argv[1], (long)argv[2], 0, 0, 0, 0);
}

static long try_linkat(char **argv)
{
	return sys(SYS_linkat, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(AT_FDCWD), (long)argv[2], GARBAGE(0), 0);
}

/* A name for an open file, through its descriptor's magic link. */
static long try_link_fd(char **argv)
{
	char path[64];
	int fd = open(argv[1], O_PATH | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return sys(SYS_linkat, GARBAGE(AT_FDCWD), (long)path, GARBAGE(AT_FDCWD), (long)argv[2],
		   GARBAGE(AT_SYMLINK_FOLLOW), 0);
}

static long try_unlink(char **argv)
{
	return sys(SYS_unlink, (long)argv[1], 0, 0, 0, 0, 0);
}

static long try_unlinkat(char **argv)
{
	return sys(SYS_unlinkat, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(number(argv[2])), 0, 0, 0);
}

static long try_truncate(char **argv)
{
	return sys(SYS_truncate, (long)argv[1], 0, 0, 0, 0, 0);
}

static long try_mkdirat(char **argv)
{
	return sys(SYS_mkdirat, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(0700), 0, 0, 0);
}

static long try_symlinkat(char **argv)
{
	return sys(SYS_symlinkat, (long)argv[1], GARBAGE(AT_FDCWD), (long)argv[2], 0, 0, 0);
}

/* type: c, b, p or s; a char device 0:0 (an overlay whiteout) may be made by anybody. */
static long make_node(long nr, char **argv)
{
	mode_t kind = argv[2][0] == 'c' ? S_IFCHR : argv[2][0] == 'b' ? S_IFBLK : argv[2][0] == 's' ? S_IFSOCK : S_IFIFO;
	dev_t device = makedev((unsigned)number(argv[3]), (unsigned)number(argv[4]));

	if (nr == SYS_mknod)
		return sys(nr, (long)argv[1], GARBAGE(kind | 0600), GARBAGE(device), 0, 0, 0);
	return sys(nr, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(kind | 0600), GARBAGE(device), 0, 0);
}

static long try_mknod(char **argv)
{
	return make_node(SYS_mknod, argv);
}

static long try_mknodat(char **argv)
{
	return make_node(SYS_mknodat, argv);
}

static long try_inotify(char **argv)
{
	int fd = inotify_init1(IN_CLOEXEC);

	return sys(SYS_inotify_add_watch, GARBAGE(fd), (long)argv[1], GARBAGE(IN_CREATE | IN_OPEN), 0, 0, 0);
}

static long try_fanotify(char **argv)
{
	(void)argv;
	return sys(SYS_fanotify_init, GARBAGE(FAN_CLASS_NOTIF | FAN_REPORT_FID), GARBAGE(O_RDONLY), 0, 0, 0, 0);
}

const struct attempt file_attempts[] = {
	{ "open", 2, try_open },
	{ "creat", 1, try_creat },
	{ "openat", 2, try_openat },
	{ "openat2", 2, try_openat2 },
	{ "open_below", 2, try_open_below },
	{ "reopen", 4, try_reopen },
	{ "handle", 2, try_handle },
	{ "rename", 2, try_rename },
	{ "renameat", 2, try_renameat },
	{ "renameat2", 3, try_renameat2 },
	{ "link", 2, try_link },
	{ "linkat", 2, try_linkat },
	{ "link_fd", 2, try_link_fd },
	{ "unlink", 1, try_unlink },
	{ "unlinkat", 2, try_unlinkat },
	{ "truncate", 1, try_truncate },
	{ "mkdirat", 1, try_mkdirat },
	{ "symlinkat", 2, try_symlinkat },
	{ "mknod", 4, try_mknod },
	{ "mknodat", 4, try_mknodat },
	{ "inotify", 1, try_inotify },
	{ "fanotify", 0, try_fanotify },
	{ NULL, 0, NULL },
};
