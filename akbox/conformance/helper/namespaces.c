/* Namespaces, mounts and roots: what a container escape is made of. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "call.h"

/* unshare(2) takes an unsigned long and refuses high bits itself: no garbage here. */
static long try_unshare(char **argv)
{
	return sys(SYS_unshare, number(argv[1]), 0, 0, 0, 0, 0);
}

/* clone(2) drops the upper half of its flags (lower_32_bits in kernel/fork.c), so a filter must look at the lower. */
static long try_clone(char **argv)
{
	long pid = sys(SYS_clone, GARBAGE(number(argv[1]) | SIGCHLD), 0, 0, 0, 0, 0);

	if (pid == 0)
		_exit(0);
	if (pid > 0)
		waitpid((pid_t)pid, NULL, 0);
	return pid;
}

static long try_clone3(char **argv)
{
	struct clone_args args = { .flags = (uint64_t)number(argv[1]), .exit_signal = SIGCHLD };
	long pid = sys(SYS_clone3, (long)&args, sizeof args, 0, 0, 0, 0);

	if (pid == 0)
		_exit(0);
	if (pid > 0)
		waitpid((pid_t)pid, NULL, 0);
	return pid;
}

/* By pidfd ("self" or a process), so that no file in /proc has to be opened first. */
static long try_setns(char **argv)
{
	pid_t pid = strcmp(argv[1], "self") == 0 ? getpid() : (pid_t)number(argv[1]);
	long pidfd = sys(SYS_pidfd_open, pid, 0, 0, 0, 0, 0);

	return pidfd < 0 ? pidfd : sys(SYS_setns, GARBAGE(pidfd), GARBAGE(number(argv[2])), 0, 0, 0, 0);
}

static long try_mount(char **argv)
{
	return sys(SYS_mount, (long)"none", (long)argv[1], (long)"tmpfs", 0, 0, 0);
}

/* Where mounting is possible at all (the control) there is something to unmount. */
static long try_umount2(char **argv)
{
	(void)mount("none", argv[1], "tmpfs", 0, NULL);
	return sys(SYS_umount2, (long)argv[1], GARBAGE(MNT_DETACH), 0, 0, 0, 0);
}

static long try_pivot_root(char **argv)
{
	(void)mount("none", argv[1], "tmpfs", 0, NULL);
	return sys(SYS_pivot_root, (long)argv[1], (long)argv[1], 0, 0, 0, 0);
}

static long try_chroot(char **argv)
{
	return sys(SYS_chroot, (long)argv[1], 0, 0, 0, 0, 0);
}

static long try_fsopen(char **argv)
{
	(void)argv;
	return sys(SYS_fsopen, (long)"tmpfs", GARBAGE(FSOPEN_CLOEXEC), 0, 0, 0, 0);
}

static long try_fsconfig(char **argv)
{
	long fs = sys(SYS_fsopen, (long)"tmpfs", FSOPEN_CLOEXEC, 0, 0, 0, 0);

	(void)argv;
	return sys(SYS_fsconfig, GARBAGE(fs), GARBAGE(FSCONFIG_CMD_CREATE), 0, 0, GARBAGE(0), 0);
}

static long try_fsmount(char **argv)
{
	long fs = sys(SYS_fsopen, (long)"tmpfs", FSOPEN_CLOEXEC, 0, 0, 0, 0);

	(void)argv;
	(void)sys(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0, 0);
	return sys(SYS_fsmount, GARBAGE(fs), GARBAGE(FSMOUNT_CLOEXEC), GARBAGE(0), 0, 0, 0);
}

static long try_fspick(char **argv)
{
	return sys(SYS_fspick, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(FSPICK_CLOEXEC), 0, 0, 0);
}

static long try_open_tree(char **argv)
{
	return sys(SYS_open_tree, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC), 0, 0, 0);
}

static long try_move_mount(char **argv)
{
	long tree = sys(SYS_open_tree, AT_FDCWD, (long)argv[1], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC, 0, 0, 0);

	return sys(SYS_move_mount, GARBAGE(tree), (long)"", GARBAGE(AT_FDCWD), (long)argv[2],
		   GARBAGE(MOVE_MOUNT_F_EMPTY_PATH), 0);
}

static long try_mount_setattr(char **argv)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };

	(void)mount("none", argv[1], "tmpfs", 0, NULL);
	return sys(SYS_mount_setattr, GARBAGE(AT_FDCWD), (long)argv[1], GARBAGE(0), (long)&attr, sizeof attr, 0);
}

const struct attempt namespace_attempts[] = {
	{ "unshare", 1, try_unshare },
	{ "clone", 1, try_clone },
	{ "clone3", 1, try_clone3 },
	{ "setns", 2, try_setns },
	{ "mount", 1, try_mount },
	{ "umount2", 1, try_umount2 },
	{ "pivot_root", 1, try_pivot_root },
	{ "chroot", 1, try_chroot },
	{ "fsopen", 0, try_fsopen },
	{ "fsconfig", 0, try_fsconfig },
	{ "fsmount", 0, try_fsmount },
	{ "fspick", 1, try_fspick },
	{ "open_tree", 1, try_open_tree },
	{ "move_mount", 2, try_move_mount },
	{ "mount_setattr", 1, try_mount_setattr },
	{ NULL, 0, NULL },
};
