/* What Landlock does not cover: mode, owner, times, extended attributes and inode flags; and asking about a name. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/vfs.h>
#include <utime.h>

#include "call.h"

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif
#ifndef SYS_setxattrat
#define SYS_setxattrat 463
#define SYS_removexattrat 466
#endif
#ifndef SYS_file_setattr
#define SYS_file_setattr 469
#endif
#define NAME "user.akbox_kit"

/* The layout of struct xattr_args (linux/xattr.h, 6.13), which older headers lack. */
struct at_xattr { uint64_t value; uint32_t size, flags; };

static int read_only(const char *path)
{
	return open(path, O_RDONLY | O_CLOEXEC);
}

static long try_chmod(char **argv)
{
	return sys(SYS_chmod, (long)argv[1], GARBAGE(0700), 0, 0, 0, 0);
}

static long try_fchmod(char **argv)
{
	int fd = read_only(argv[1]);

	return fd < 0 ? -errno : sys(SYS_fchmod, GARBAGE(fd), GARBAGE(0700), 0, 0, 0, 0);
}

static long try_fchmodat(char **argv)
{
	return sys(SYS_fchmodat, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(0700), 0, 0, 0);
}

static long try_fchmodat2(char **argv)
{
	return sys(SYS_fchmodat2, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(0700), GARBAGE(0), 0, 0);
}

static long try_chown(char **argv)
{
	return sys(SYS_chown, (long)argv[1], GARBAGE(getuid()), GARBAGE(getgid()), 0, 0, 0);
}

static long try_lchown(char **argv)
{
	return sys(SYS_lchown, (long)argv[1], GARBAGE(getuid()), GARBAGE(getgid()), 0, 0, 0);
}

static long try_fchown(char **argv)
{
	int fd = read_only(argv[1]);

	return fd < 0 ? -errno : sys(SYS_fchown, GARBAGE(fd), GARBAGE(getuid()), GARBAGE(getgid()), 0, 0, 0);
}

static long try_fchownat(char **argv)
{
	return sys(SYS_fchownat, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(getuid()), GARBAGE(getgid()), GARBAGE(0), 0);
}

static long try_utimensat(char **argv)
{
	return sys(SYS_utimensat, GARBAGE(AT_FDCWD), (long)argv[1], 0, GARBAGE(0), 0, 0);
}

static long try_futimens(char **argv)
{
	int fd = read_only(argv[1]);

	return fd < 0 ? -errno : sys(SYS_utimensat, GARBAGE(fd), 0, 0, GARBAGE(0), 0, 0);
}

static long try_utime(char **argv)
{
	return sys(SYS_utime, (long)argv[1], 0, 0, 0, 0, 0);
}

static long try_utimes(char **argv)
{
	return sys(SYS_utimes, (long)argv[1], 0, 0, 0, 0, 0);
}

static long try_futimesat(char **argv)
{
	return sys(SYS_futimesat, GARBAGE(AT_FDCWD), (long)argv[1], 0, 0, 0, 0);
}

static long try_setxattr(char **argv)
{
	return sys(SYS_setxattr, (long)argv[1], (long)NAME, (long)"x", 1, GARBAGE(0), 0);
}

static long try_lsetxattr(char **argv)
{
	return sys(SYS_lsetxattr, (long)argv[1], (long)NAME, (long)"x", 1, GARBAGE(0), 0);
}

static long try_fsetxattr(char **argv)
{
	int fd = read_only(argv[1]);

	return fd < 0 ? -errno : sys(SYS_fsetxattr, GARBAGE(fd), (long)NAME, (long)"x", 1, GARBAGE(0), 0);
}

static long try_setxattrat(char **argv)
{
	struct at_xattr args = { (uint64_t)(uintptr_t)"x", 1, 0 };

	return sys(SYS_setxattrat, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(0), (long)NAME, (long)&args, sizeof args);
}

static long try_removexattr(char **argv)
{
	return sys(SYS_removexattr, (long)argv[1], (long)argv[2], 0, 0, 0, 0);
}

static long try_fremovexattr(char **argv)
{
	int fd = read_only(argv[1]);

	return fd < 0 ? -errno : sys(SYS_fremovexattr, GARBAGE(fd), (long)argv[2], 0, 0, 0, 0);
}

static long try_removexattrat(char **argv)
{
	return sys(SYS_removexattrat, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(0), (long)argv[2], 0, 0);
}

/* Inode flags need ownership, not a writable descriptor: the read-only open is all an agent needs (chattr +d). */
static long try_setflags(char **argv)
{
	int flags = FS_NODUMP_FL, fd = read_only(argv[1]);

	return fd < 0 ? -errno : sys(SYS_ioctl, GARBAGE(fd), GARBAGE(FS_IOC_SETFLAGS), (long)&flags, 0, 0, 0);
}

static long try_fssetxattr(char **argv)
{
	struct fsxattr attributes = { .fsx_xflags = FS_XFLAG_NODUMP };
	int fd = read_only(argv[1]);

	return fd < 0 ? -errno : sys(SYS_ioctl, GARBAGE(fd), GARBAGE(FS_IOC_FSSETXATTR), (long)&attributes, 0, 0, 0);
}

static long try_file_setattr(char **argv)
{
	uint64_t attributes[3] = { FS_XFLAG_NODUMP };      /* struct file_attr (linux/fs.h, 6.17), 24 bytes */

	return sys(SYS_file_setattr, GARBAGE(AT_FDCWD), (long)argv[1], (long)attributes, sizeof attributes, GARBAGE(0), 0);
}

static long try_stat(char **argv)
{
	struct stat st;

	return sys(SYS_stat, (long)argv[1], (long)&st, 0, 0, 0, 0);
}

static long try_newfstatat(char **argv)
{
	struct stat st;

	return sys(SYS_newfstatat, GARBAGE(AT_FDCWD), (long)argv[1], (long)&st, GARBAGE(0), 0, 0);
}

static long try_statx(char **argv)
{
	struct statx st;

	return sys(SYS_statx, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(0), GARBAGE(STATX_SIZE), (long)&st, 0);
}

static long try_statfs(char **argv)
{
	struct statfs st;

	return sys(SYS_statfs, (long)argv[1], (long)&st, 0, 0, 0, 0);
}

static long try_access(char **argv)
{
	return sys(SYS_access, (long)argv[1], GARBAGE(F_OK), 0, 0, 0, 0);
}

static long try_faccessat2(char **argv)
{
	return sys(SYS_faccessat2, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(F_OK), GARBAGE(0), 0, 0);
}

static long try_readlink(char **argv)
{
	char to[256];

	return sys(SYS_readlink, (long)argv[1], (long)to, GARBAGE(sizeof to), 0, 0, 0);
}

static long try_getxattr(char **argv)
{
	char value[16];

	return sys(SYS_getxattr, (long)argv[1], (long)argv[2], (long)value, sizeof value, 0, 0);
}

static long try_listxattr(char **argv)
{
	char names[256];

	return sys(SYS_listxattr, (long)argv[1], (long)names, sizeof names, 0, 0, 0);
}

static long try_chdir(char **argv)
{
	return sys(SYS_chdir, (long)argv[1], 0, 0, 0, 0, 0);
}

const struct attempt attribute_attempts[] = {
	{ "chmod", 1, try_chmod },
	{ "fchmod", 1, try_fchmod },
	{ "fchmodat", 1, try_fchmodat },
	{ "fchmodat2", 1, try_fchmodat2 },
	{ "chown", 1, try_chown },
	{ "lchown", 1, try_lchown },
	{ "fchown", 1, try_fchown },
	{ "fchownat", 1, try_fchownat },
	{ "utimensat", 1, try_utimensat },
	{ "futimens", 1, try_futimens },
	{ "utime", 1, try_utime },
	{ "utimes", 1, try_utimes },
	{ "futimesat", 1, try_futimesat },
	{ "setxattr", 1, try_setxattr },
	{ "lsetxattr", 1, try_lsetxattr },
	{ "fsetxattr", 1, try_fsetxattr },
	{ "setxattrat", 1, try_setxattrat },
	{ "removexattr", 2, try_removexattr },
	{ "fremovexattr", 2, try_fremovexattr },
	{ "removexattrat", 2, try_removexattrat },
	{ "setflags", 1, try_setflags },
	{ "fssetxattr", 1, try_fssetxattr },
	{ "file_setattr", 1, try_file_setattr },
	{ "stat", 1, try_stat },
	{ "newfstatat", 1, try_newfstatat },
	{ "statx", 1, try_statx },
	{ "statfs", 1, try_statfs },
	{ "access", 1, try_access },
	{ "faccessat2", 1, try_faccessat2 },
	{ "readlink", 1, try_readlink },
	{ "getxattr", 2, try_getxattr },
	{ "listxattr", 1, try_listxattr },
	{ "chdir", 1, try_chdir },
	{ NULL, 0, NULL },
};
