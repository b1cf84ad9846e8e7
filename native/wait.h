/* Waiting for a socket on behalf of a blocking call, on a thread of ak_block(). */
#ifndef AK_WAIT_H
#define AK_WAIT_H

#include <time.h>

#include "call.h"

struct ak_wait {
	int fd;
	bool limited;                   /* SO_SNDTIMEO is set */
	struct timespec deadline;       /* CLOCK_MONOTONIC */
};

/* `timeout_option`: SO_SNDTIMEO, whose value on the socket is the limit of the wait. */
void ak_wait_begin(struct ak_wait *w, int fd, int timeout_option);

/* Until poll() says one of `events`, or an error of the socket. 0, or the errno that ends the call: -EAGAIN past the
 * limit, -EINTR when the agent has a signal to act on or is gone. */
int ak_wait_ready(struct ak_call *c, struct ak_wait *w, short events);
/* Where nothing can be polled for: sleeps at most `ms`. The same answers. */
int ak_wait_pause(struct ak_call *c, struct ak_wait *w, unsigned ms);

#endif
