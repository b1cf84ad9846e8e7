/* A socket of the agent's and the address of a call on it: read once, judged, and turned into what the call is made with. */
#ifndef AK_PEER_H
#define AK_PEER_H

#include <sys/socket.h>

#include "behalf.h"
#include "names.h"

struct ak_socket {
	int fd;                 /* our duplicate of the agent's descriptor; owned */
	int domain, type, protocol;
	bool nonblocking;
};

struct ak_peer {
	struct sockaddr_storage addr;   /* what the call is made with: never the agent's memory again */
	socklen_t len;
	int hold;                       /* descriptor that `addr` leads through (/proc/self/fd/N), or -1; owned */
	bool record;                    /* false: nothing was judged (an address that only disconnects, the kernel's own) */
	int error;                      /* 0, or the errno that refuses the call */
	struct ak_verdict verdict;
	uint64_t port;
	bool led_tcp;                   /* `addr` is one of our own servers, which asks for `led` (ak_claim_tcp()) */
	struct ak_led led;
	char target[AK_EVENT_TARGET_MAX + 1];
	char target2[AK_HOST_MAX + 48]; /* by name: the address; led to our own server: which */
};

/* A duplicate of descriptor `fd` and what it is. -EBADF, -ENOTSOCK, -EPERM where duplicates are refused, with an entry. */
int ak_socket_get(struct ak_call *c, int fd, struct ak_socket *s);
/* The same of a duplicate that there is, whose owner `s` becomes; or of the -errno that came instead of it. */
int ak_socket_of(int copy, struct ak_socket *s);
void ak_socket_close(struct ak_socket *s);

/* The sockaddr argument of a call, at most 128 bytes as the kernel has it. 0 or -errno. */
int ak_read_address(struct ak_call *c, uint64_t addr, int len, struct sockaddr_storage *out);

/* Judge `len` bytes of address for a connect, send (AK_NET_CONNECT) or bind of IP or netlink, or a connect or send of a
 * unix socket. -errno: the kernel would refuse it whoever asks, nothing to record or close. 0: look at out->error. */
int ak_peer_judge(struct ak_call *c, const struct ak_socket *s, enum ak_net_op op, const struct sockaddr_storage *addr,
		  int len, struct ak_peer *out);
void ak_peer_close(struct ak_peer *p);

/* Record the call with what came of it (0 or -errno), which is what it answers. */
int ak_peer_record(struct ak_call *c, uint16_t op, const struct ak_peer *p, int result);

/* A unix socket's path: bytes of sun_path up to the NUL or the end, in `path`. 0 for an abstract or missing name. */
size_t ak_unix_path(const struct sockaddr_storage *addr, int len, char path[110]);
/* "unix:/path", cut where an event's target ends. */
void ak_unix_target(const char *path, size_t len, char out[AK_EVENT_TARGET_MAX + 1]);
/* "unix:@name" for an abstract address, "unix:@" for autobind. */
void ak_abstract_target(const struct sockaddr_storage *addr, int len, char *out, size_t cap);

/* The socket's inode, by which it is known wherever it is passed. 0 when it cannot be said. */
uint64_t ak_socket_inode(const struct ak_socket *s);

/* call_recv.c */
ak_handler ak_call_recvfrom, ak_call_recvmsg, ak_call_recvmmsg;
/* call_send.c */
ak_handler ak_call_sendto, ak_call_sendmsg, ak_call_sendmmsg;

#endif
