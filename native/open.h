/* Between call_open.c (what to open) and open_special.c (how to open what may block: FIFOs and devices). */
#ifndef AK_OPEN_H
#define AK_OPEN_H

#include "call.h"

#define AK_MEM_MAJOR 1                  /* /dev/null, zero, full, random: opening them never waits */

/* Open for real the object behind our O_PATH descriptor. Always close-on-exec and never a controlling terminal of ours.
 * These three: a descriptor or -errno. */
int ak_reopen(struct ak_call *c, int object, unsigned flags);
/* Waits for the other end of a FIFO, as the agent's reader or writer. Precondition: c->may_block. */
int ak_open_fifo(struct ak_call *c, int object, unsigned flags);
/* A character device other than memory: never waits for a carrier; /dev/tty is the agent's terminal, not ours. */
int ak_open_device(struct ak_call *c, const struct ak_object *o, unsigned flags);

/* call_pty.c: a master was opened for the run; is this the slave of such a master that somebody still holds? Its opening is
 * judged, and recorded under its own `path`, by the rule that gave the master, unless a rule refuses or asks for `path`. */
void ak_pty_opened(struct ak_call *c, const struct ak_object *node, int master);
bool ak_pty_of_run(struct ak_call *c, const struct ak_object *o);
int ak_judge_pty(struct ak_call *c, unsigned need, const char *path, size_t len, uint64_t arg);

/* open_quick.c: a quick way for a path without RESOLVE_* flags. `text` is the path in full (ak_full_text()). True: answered
 * in `out`; false: nothing was recorded, take the long way. ak_known_add() remembers an object that was just opened. */
size_t ak_full_text(struct ak_call *c, int dirfd, const char *path, size_t len, char text[PATH_MAX]);
bool ak_open_quick(struct ak_call *c, const char *path, const char *text, size_t len, unsigned flags, struct ak_outcome *out);
void ak_known_add(const struct ak_object *o, const char *text);

#endif
