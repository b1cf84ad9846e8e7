/* The enforcer: one stopped system call in, one outcome out. Both interposers use it (notify.c answers a seccomp
 * notification with the outcome, akbox/linux/tracer.py applies it to a ptrace stop), so a call is judged and carried out
 * by the same code whichever way it came.
 *
 * Rules that every handler keeps (design 03):
 *  - the agent's memory is read once; what was read is what is judged and what is done;
 *  - decisions are on canonical objects (an O_PATH descriptor and its real path), never on the string that was passed;
 *  - the event is in the ring before the outcome is returned;
 *  - AK_CONTINUE only where nothing that can change was judged, or Landlock enforces the identical rule;
 *  - every error path denies.
 */
#ifndef AK_ENFORCE_H
#define AK_ENFORCE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "policy.h"
#include "ring.h"

struct ak_stop {
	pid_t tid;              /* the task that made the call */
	uint32_t arch;          /* AUDIT_ARCH_* */
	int nr;
	uint64_t args[6];
	bool (*still_valid)(void *ctx);     /* is the task still stopped in this call? asked after each read of its memory */
	void *ctx;
};

enum ak_outcome_kind {
	AK_RESULT = 0,          /* the call returns `value` (negative: -errno) */
	AK_CONTINUE,            /* the kernel carries the call out */
	AK_INSTALL_FD,          /* the call returns a new descriptor: a duplicate of `fd`, close-on-exec if `cloexec` */
	AK_LATER,               /* somebody else answers (a blocking call's own thread, or the Python side) */
};

struct ak_outcome {
	enum ak_outcome_kind kind;
	int64_t value;
	int fd;                 /* owned by whoever applies the outcome */
	bool cloexec;
	bool only_copy;         /* ours must be closed before the call returns: who else has it open can be told (FIFOs, terminals) */
};

#endif
