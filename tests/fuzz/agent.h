/* For fuzz targets that ask the enforcer itself: an enforcer with a real policy, and a real process in the agent's place,
 * whose memory and descriptors it reads. In AKBOX_FUZZ_DIR, made by `seeds.py calls`: policy.blob, work/ (may be changed, but
 * for work/d/secret), read/ (may be read), host/ (nothing may be done).
 */
#ifndef AKBOX_FUZZ_AGENT_H
#define AKBOX_FUZZ_AGENT_H

#include "enforcer.h"
#include "names.h"

#define MEMORY ((uint8_t *)0x200000000000)      /* the agent's, at this address in both processes; what follows is unmapped */
#define MEMORY_BYTES 16384u
#define FIRST_FD 10                             /* the agent's descriptors, see agent.c */
#define FDS 20

enum agent_file { WORK_OK, SECRET, READ_A, HOST_H, AGENT_FILES };

struct agent {
	pid_t pid;
	struct ak_enforcer *enforcer;
	const struct ak_policy *policy;
	struct ak_names *names;
	char dir[200];                          /* canonical */
};

/* Once; ends the process when it cannot be made. Afterwards this thread has no capabilities and a umask of its own. */
struct agent *agent_start(uint32_t flags);

/* A fresh process and fresh files in work/. Called by agent_start(), and now and then since each call changes them. */
void agent_renew(struct agent *a);
bool agent_lives(const struct agent *a);

/* One call as a tracer would hand it in, served again where waiting is allowed for as long as 5 ms. The caller closes
 * an installed descriptor. Ends the process when something happened that no policy allows. */
void agent_call(struct agent *a, int nr, const uint64_t args[6], unsigned valid_looks, struct ak_outcome *out);

/* A stop of the agent's that stays valid for `looks` looks, for what is asked below ak_enforce(). */
struct ak_stop agent_stop(struct agent *a, int nr, unsigned looks);

/* Around each input: nothing that the policy keeps from the agent was changed, no descriptor was left open. Reads the ring, too,
 * which nobody else does here. */
void agent_begin(void);
void agent_check(struct agent *a);

#endif
