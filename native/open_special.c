/* Opening what may wait or means something else to each process: FIFOs, terminals and other character devices. */
#include "open.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "enforcer.h"

#define WAIT_MAX_MS 16u                 /* between two looks for the other end */
#define TTY_MAJOR 4
#define TTYAUX_MAJOR 5                  /* 5:0 is /dev/tty */
#define PTMX_MINOR 2
#define PTS_MAJOR 136
#define SERIAL_MINOR 64                 /* 4:64 is /dev/ttyS0 */

/* ---- FIFOs ------------------------------------------------------------------------------------------------------- */

static int make_blocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);
	if (flags >= 0 && fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0)
		return fd;
	int error = errno;
	close(fd);
	return -error;
}

/* 0: wait on; else the -errno that ends the call. */
static int pause_for(struct ak_call *c, unsigned ms)
{
	if (!ak_wait_ms(c, ms))
		return -ESRCH;
	return -ak_interrupted(c);
}

static int open_writer(struct ak_call *c, int object, unsigned flags)
{
	for (unsigned ms = 1;; ms = ms < WAIT_MAX_MS ? 2 * ms : ms) {
		int fd = ak_reopen(c, object, flags | O_NONBLOCK);
		if (fd >= 0)
			return make_blocking(fd);
		if (fd != -ENXIO)               /* ENXIO: nobody reads yet */
			return fd;
		int end = pause_for(c, ms);
		if (end)
			return end;
	}
}

/* Is or was there a writer? tee() takes nothing out of the pipe, and tells an empty pipe with a writer (EAGAIN) from one
 * without (0); POLLHUP is set once a writer has come and gone. */
static bool saw_writer(int fd, int scratch)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	if (poll(&p, 1, 0) > 0 && (p.revents & (POLLIN | POLLHUP)))
		return true;
	ssize_t n = tee(fd, scratch, 1, SPLICE_F_NONBLOCK);
	return n > 0 || (n < 0 && errno == EAGAIN);
}

/* Our read end lets the writers in at once, as the agent's own would. */
static int open_reader(struct ak_call *c, int object, unsigned flags)
{
	int scratch[2], end = 0;
	int fd = ak_reopen(c, object, flags | O_NONBLOCK);
	if (fd < 0)
		return fd;
	if (pipe2(scratch, O_CLOEXEC | O_NONBLOCK) < 0) {
		end = -errno;
		close(fd);
		return end;
	}
	for (unsigned ms = 1; end == 0 && !saw_writer(fd, scratch[1]); ms = ms < WAIT_MAX_MS ? 2 * ms : ms)
		end = pause_for(c, ms);
	close(scratch[0]);
	close(scratch[1]);
	if (end == 0)
		return make_blocking(fd);
	close(fd);
	return end;
}

int ak_open_fifo(struct ak_call *c, int object, unsigned flags)
{
	return (flags & O_ACCMODE) == O_WRONLY ? open_writer(c, object, flags) : open_reader(c, object, flags);
}

/* ---- devices ----------------------------------------------------------------------------------------------------- */

/* The seventh field of /proc/TGID/stat, counted behind the name, which may hold anything. */
static int controlling_terminal(struct ak_call *c, dev_t *tty)
{
	char name[32], text[1024];
	int number = 0;
	snprintf(name, sizeof name, "%d/stat", ak_call_tgid(c));
	int fd = openat(c->enforcer->proc_dir, name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n <= 0 || !c->stop->still_valid(c->stop->ctx))
		return -ESRCH;
	text[n] = 0;
	char *behind = strrchr(text, ')');
	if (!behind || sscanf(behind + 1, " %*c %*d %*d %*d %d", &number) != 1 || number == 0)
		return -ENXIO;
	unsigned encoded = (unsigned)number;    /* linux/kdev_t.h, new_encode_dev() */
	*tty = makedev((encoded >> 8) & 0xfff, (encoded & 0xff) | ((encoded >> 12) & 0xfff00));
	return 0;
}

static int open_own_terminal(struct ak_call *c, unsigned flags)
{
	char name[32];
	struct stat st;
	dev_t tty;
	int error = controlling_terminal(c, &tty);
	if (error)
		return error;
	unsigned kind = major(tty), n = minor(tty);
	if (kind >= PTS_MAJOR && kind < PTS_MAJOR + 8)
		snprintf(name, sizeof name, "/dev/pts/%u", n);
	else if (kind == TTY_MAJOR)
		snprintf(name, sizeof name, n < SERIAL_MINOR ? "/dev/tty%u" : "/dev/ttyS%u", n < SERIAL_MINOR ? n : n - SERIAL_MINOR);
	else
		return -ENXIO;
	int object = open(name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (object < 0)
		return -ENXIO;
	bool same = fstat(object, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == tty;
	int fd = same ? ak_reopen(c, object, flags | O_NONBLOCK) : -ENXIO;
	close(object);
	return fd;
}

int ak_open_device(struct ak_call *c, const struct ak_object *o, unsigned flags)
{
	bool is_tty = o->st.st_rdev == makedev(TTYAUX_MAJOR, 0);
	int fd = is_tty ? open_own_terminal(c, flags) : ak_reopen(c, o->fd, flags | O_NONBLOCK);
	if (fd >= 0 && o->st.st_rdev == makedev(TTYAUX_MAJOR, PTMX_MINOR))
		ak_pty_opened(c, o, fd);
	return fd < 0 || (flags & O_NONBLOCK) ? fd : make_blocking(fd);
}
