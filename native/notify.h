/* The seccomp notification interposer: threads that receive trapped calls from a listener and answer them. */
#ifndef AK_NOTIFY_H
#define AK_NOTIFY_H

#include "enforcer.h"

/* Takes the listener over and starts `count` threads (0: one per CPU, two at least and four at most). 0 or -errno. */
int ak_notify_start(struct ak_enforcer *e, int listener, unsigned count);
/* Ends the threads; calls received and not answered stay so until the listener is closed. */
void ak_notify_stop(struct ak_enforcer *e);
/* Closes the listener: whatever is trapped now or later fails with ENOSYS. */
void ak_notify_close(struct ak_enforcer *e);

void ak_notify_answer(struct ak_enforcer *e, const struct ak_notif *notif, struct ak_outcome *out);
bool ak_notify_still_valid(void *ctx);  /* ctx: struct ak_notif */

#endif
