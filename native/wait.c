/* Waiting on behalf of the agent; see wait.h.
 *
 * A call that has been received is not interrupted by signals that do not kill, and under a tracer not even by all of
 * those that do, so the wait looks for them itself: a signal that the agent has queued and not blocked ends the call with
 * EINTR, and is delivered when it returns. (Bare, a handler with SA_RESTART would see no EINTR.)
 */
#include "wait.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define SLICE_MS 20             /* between two looks whether the agent is gone or has a signal */

static uint64_t mask_of(const char *status, const char *key)
{
	const char *line = strstr(status, key);
	return line ? strtoull(line + strlen(key), NULL, 16) : 0;
}

/* What happens without a handler to these is nothing, or a stop, after which a bare call goes on waiting. */
static const int without_effect[] = {SIGCHLD, SIGURG, SIGWINCH, SIGCONT, SIGTSTP, SIGTTIN, SIGTTOU, SIGSTOP};

static bool signal_is_due(struct ak_call *c)
{
	char name[40], text[4096];
	snprintf(name, sizeof name, "/proc/%d/status", c->stop->tid);
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return true;
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	uint64_t queued = mask_of(text, "\nSigPnd:\t") | mask_of(text, "\nShdPnd:\t");
	uint64_t caught = mask_of(text, "\nSigCgt:\t"), passed = mask_of(text, "\nSigBlk:\t") | mask_of(text, "\nSigIgn:\t");
	for (size_t i = 0; i < sizeof without_effect / sizeof *without_effect; i++)
		passed |= 1ull << (without_effect[i] - 1) & ~caught;
	return queued & ~passed;
}

static int64_t left_ms(const struct ak_wait *w)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (w->deadline.tv_sec - now.tv_sec) * 1000 + (w->deadline.tv_nsec - now.tv_nsec) / 1000000;
}

void ak_wait_begin(struct ak_wait *w, int fd, int timeout_option)
{
	struct timeval limit = {0, 0};
	socklen_t len = sizeof limit;
	w->fd = fd;
	w->limited = getsockopt(fd, SOL_SOCKET, timeout_option, &limit, &len) == 0 && (limit.tv_sec || limit.tv_usec);
	clock_gettime(CLOCK_MONOTONIC, &w->deadline);
	w->deadline.tv_sec += limit.tv_sec;
	w->deadline.tv_nsec += limit.tv_usec * 1000;
	if (w->deadline.tv_nsec >= 1000000000) {
		w->deadline.tv_sec++;
		w->deadline.tv_nsec -= 1000000000;
	}
}

static int must_end(struct ak_call *c, const struct ak_wait *w)
{
	if (!ak_wait_ms(c, 0) || signal_is_due(c))
		return -EINTR;
	return w->limited && left_ms(w) <= 0 ? -EAGAIN : 0;
}

int ak_wait_ready(struct ak_call *c, struct ak_wait *w, short events)
{
	struct pollfd p = {.fd = w->fd, .events = events};
	for (;;) {
		int64_t slice = w->limited && left_ms(w) < SLICE_MS ? left_ms(w) : SLICE_MS;
		int n = poll(&p, 1, slice > 0 ? (int)slice : 0);
		if (n > 0)
			return 0;
		int over = must_end(c, w);
		if (over < 0)
			return over;
	}
}

int ak_wait_pause(struct ak_call *c, struct ak_wait *w, unsigned ms)
{
	if (!ak_wait_ms(c, ms))
		return -EINTR;
	return must_end(c, w);
}
