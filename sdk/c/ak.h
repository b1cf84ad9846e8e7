/* The C SDK for agents that run under akbox: authority calls, header only, C99, no dependencies but libc.
 *
 *     char reply[4096];
 *     long n = ak_call(AK_ALLOC, "{\"type\":\"t\",\"value\":1}", reply, sizeof reply);
 *     if (n < 0) fprintf(stderr, "%s\n", reply);      // -errno; the error's JSON is in the buffer, as far as it fits
 *
 * Requests and replies are JSON (README.md of the Python SDK says what is in them). A reply that does not fit gives -EMSGSIZE
 * and waits for ak_fetch() of the same thread. Outside akbox every call is -ENOSYS.
 */
#ifndef AK_H
#define AK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE             /* syscall(2); must come before the first header of libc */
#endif
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	AK_READ = 1024, AK_ALLOC, AK_WRITE, AK_DELETE, AK_QUERY, AK_BATCH, AK_COMMIT, AK_CALL, AK_SPAWN, AK_SEND, AK_RECV,
	AK_RESPOND, AK_ASSERT, AK_INFERENCE, AK_BUDGET_STATUS, AK_BUDGET_HISTORY, AK_LAST_ERROR, AK_TRACE, AK_POLICY_SUGGEST,
	AK_CAP, AK_APPROVAL,
};

#define AK_DOOR 0x414b0000      /* prctl option: "AK", bit 15 FETCH, then the number */
#define AK_DOOR_FETCH 0x8000

/* One try at each door. prctl answers EINVAL outside akbox, and the raw number ENOSYS, both without touching the buffer. */
static inline long ak_raw_call(int nr, const char *request, size_t len, char *reply, size_t capacity, int fetch)
{
	if (capacity)
		reply[0] = 0;
	long n = prctl(AK_DOOR | (fetch ? AK_DOOR_FETCH : 0) | nr, (unsigned long)request, len, (unsigned long)reply, capacity);
	if (n >= 0)
		return n;
	if (errno != EINVAL || (capacity && reply[0]))
		return -errno;
	n = syscall(nr, NULL, request, len, reply, capacity, fetch ? 1L : 0L);
	return n < 0 ? -errno : n;
}

/* The reply's length, or -errno. `request` is the arguments' JSON, or {"args": …, "cap": …}. NULL: no arguments. */
static inline long ak_call(int nr, const char *request, char *reply, size_t capacity)
{
	if (!request)
		request = "{}";
	return ak_raw_call(nr, request, strlen(request), reply, capacity, 0);
}

/* The reply of this thread's last call that did not fit. */
static inline long ak_fetch(int nr, char *reply, size_t capacity)
{
	return ak_raw_call(nr, "", 0, reply, capacity, 1);
}

#endif
