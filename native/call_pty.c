/* ioctl, and with it pseudo-terminals: a run may use both ends of those that it made, and no others.
 *
 * The host's terminals lie in the same /dev/pts under numbers that are used again, so a name or a number says nothing
 * about whose a slave is. Both ways to one go by the object:
 *
 * TIOCGPTPEER (what glibc's openpty() asks first) is done here on a duplicate of the agent's own descriptor. Whoever holds
 * a master already reads and writes all that goes through it, so its slave is nothing new.
 *
 * open("/dev/pts/N"): when a master is opened for the run, an O_PATH descriptor of its slave is kept. It does not hold the
 * terminal open. When the last descriptor of the master is closed the kernel unlinks the slave (devpts_pty_kill(), in
 * drivers/tty/pty.c's pty_close()), so while that object has a link its number cannot be anybody else's; and an object
 * that was unlinked after we looked cannot be opened any more (EIO, pts_unix98_lookup()).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>

#include "behalf.h"
#include "enforcer.h"
#include "open.h"

#define PTYS_MAX 64                     /* kept at one time; the slaves of more are opened by TIOCGPTPEER only */
#define PTS_MAJOR 136
#define PTS_MAJORS 8
#define PEER_FLAGS (O_ACCMODE | O_NONBLOCK)

struct ak_ptys {
	pthread_mutex_t lock;           /* guards the field below */
	int slaves[PTYS_MAX];           /* O_PATH, or -1 */
};

static const char *const master_names[] = {"/dev/ptmx", "/dev/pts/ptmx"};

/* ---- whose a slave is -------------------------------------------------------------------------------------------- */

struct ak_ptys *ak_ptys_new(void)
{
	struct ak_ptys *p = malloc(sizeof *p);
	if (!p)
		return NULL;
	pthread_mutex_init(&p->lock, NULL);
	for (unsigned i = 0; i < PTYS_MAX; i++)
		p->slaves[i] = -1;
	return p;
}

void ak_ptys_free(struct ak_ptys *p)
{
	for (unsigned i = 0; p && i < PTYS_MAX; i++)
		if (p->slaves[i] >= 0)
			close(p->slaves[i]);
	free(p);
}

/* The slave of a master, as an O_PATH descriptor. The number that the master gives counts within its own instance of
 * devpts: that is the one at /dev/pts if the master's node lies on it, or is /dev/ptmx itself and lies on none, for then
 * the kernel takes the "pts" beside it (devpts_mntget()). */
static int slave_of(const struct ak_object *node, int master)
{
	char name[32];
	struct stat st;
	struct statfs fs;
	unsigned number;
	if (ioctl(master, TIOCGPTN, &number) < 0 || fstatfs(master, &fs) < 0)
		return -1;
	snprintf(name, sizeof name, "/dev/pts/%u", number);
	int slave = open(name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (slave < 0)
		return -1;
	bool same = fstat(slave, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(PTS_MAJOR, number);
	same = same && (fs.f_type == DEVPTS_SUPER_MAGIC ? st.st_dev == node->st.st_dev
							: strcmp(node->path, master_names[0]) == 0);
	if (same)
		return slave;
	close(slave);
	return -1;
}

void ak_pty_opened(struct ak_call *c, const struct ak_object *node, int master)
{
	struct ak_ptys *p = c->enforcer->ptys;
	struct stat st;
	int slave = slave_of(node, master);
	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < PTYS_MAX; i++) {
		int *kept = &p->slaves[i];
		if (*kept >= 0 && (fstat(*kept, &st) < 0 || st.st_nlink == 0)) {
			close(*kept);
			*kept = -1;
		}
		if (*kept < 0) {
			*kept = slave;
			slave = -1;
		}
	}
	pthread_mutex_unlock(&p->lock);
	if (slave >= 0)
		close(slave);
}

bool ak_pty_of_run(struct ak_call *c, const struct ak_object *o)
{
	struct ak_ptys *p = c->enforcer->ptys;
	struct stat st;
	bool found = false;
	unsigned kind = major(o->st.st_rdev);
	if (!S_ISCHR(o->st.st_mode) || kind < PTS_MAJOR || kind >= PTS_MAJOR + PTS_MAJORS || (o->flags & AK_ANONYMOUS))
		return false;
	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < PTYS_MAX && !found; i++)
		found = p->slaves[i] >= 0 && fstat(p->slaves[i], &st) == 0 && st.st_nlink > 0 && st.st_ino == o->st.st_ino &&
			st.st_dev == o->st.st_dev && st.st_rdev == o->st.st_rdev;
	pthread_mutex_unlock(&p->lock);
	return found;
}

int ak_judge_pty(struct ak_call *c, unsigned need, const char *path, size_t len, uint64_t arg)
{
	const struct ak_policy *policy = c->config->policy;
	for (unsigned i = 0; i < 2 && !ak_policy_refuses(policy, need, path, len); i++) {
		struct ak_verdict v = ak_policy_fs(policy, need, master_names[i], strlen(master_names[i]));
		if (v.decision == AK_ALLOW)
			return ak_record(c, AK_OP_OPEN, AK_ALLOW, need, v.rule, 0, 0, arg, path, NULL);
	}
	return ak_judge_fs(c, AK_OP_OPEN, need, path, len, arg);
}

/* ---- ioctl ------------------------------------------------------------------------------------------------------- */

static int open_peer(struct ak_call *c, int fd, unsigned flags)
{
	static const unsigned needs[] = {AK_READ, AK_WRITE, AK_READ | AK_WRITE, AK_READ | AK_WRITE};
	char path[32];
	struct stat st;
	unsigned number;
	int master = ak_task_dup(c, fd);        /* -EPERM on hosts without pidfd_getfd: glibc then opens it by name */
	if (master < 0)
		return master;
	int peer = -ENOTTY;
	if (fstat(master, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(5, 2) &&
	    ioctl(master, TIOCGPTN, &number) == 0) {
		int len = snprintf(path, sizeof path, "/dev/pts/%u", number);
		peer = ak_judge_pty(c, needs[flags & O_ACCMODE], path, (size_t)len, flags);
		if (peer == 0)
			peer = ioctl(master, TIOCGPTPEER, (int)((flags & PEER_FLAGS) | O_NOCTTY | O_CLOEXEC));
		if (peer == -1)
			peer = -errno;
	}
	close(master);
	return peer;
}

/* What the filter sends here is refused but for TIOCGPTPEER: Landlock would judge the slave by its name. */
static void call_ioctl(struct ak_call *c, struct ak_outcome *out)
{
	unsigned command = (unsigned)ak_int(c->stop->args[1]), flags = (unsigned)ak_int(c->stop->args[2]);
	if (command != TIOCGPTPEER) {
		ak_record(c, AK_OP_REFUSED, AK_DENY, 0, AK_NO_RULE, 0, EPERM, command, "syscall:ioctl", NULL);
		return ak_deny(out, EPERM);
	}
	int peer = open_peer(c, ak_int(c->stop->args[0]), flags);
	if (peer < 0)
		ak_deny(out, -peer);
	else {
		out->only_copy = true;
		ak_install(out, peer, flags & O_CLOEXEC);
	}
}

const struct ak_handler_entry ak_pty_handlers[] = {
	{SYS_ioctl, call_ioctl},
	{-1, NULL},
};
