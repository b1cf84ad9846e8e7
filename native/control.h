/* Control data of sendmsg: the agent's copied, its descriptors replaced by duplicates of ours. */
#ifndef AK_CONTROL_H
#define AK_CONTROL_H

#include <sys/socket.h>

#include "call.h"

#define AK_CONTROL_MAX 8192u            /* bytes; SCM_RIGHTS takes at most about 1,000 */
#define AK_RIGHTS_MAX 253u              /* SCM_MAX_FD of the kernel */

struct ak_control {
	size_t len;
	unsigned fd_count;
	int fds[AK_RIGHTS_MAX];         /* owned duplicates that `data` names */
	_Alignas(struct cmsghdr) char data[AK_CONTROL_MAX];
};

/* Reads `len` bytes at `addr`. 0, or -errno and nothing to close; what could change where a datagram goes, or whose it
 * is, is refused and recorded. */
int ak_control_read(struct ak_call *c, uint64_t addr, uint64_t len, struct ak_control *out);
void ak_control_close(struct ak_control *control);

#endif
