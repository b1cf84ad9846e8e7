/* recvfrom with an address, recvmsg, recvmmsg: only trapped where the policy has rules on names (argument_rules.py).
 *
 * Receiving is never judged. But replies of our own DNS server come from its address, and libraries drop a reply that is
 * not from the resolver they asked (musl and c-ares compare it, so did older glibc). So for a UDP socket that was led to
 * our server the call is carried out here and the source named that the agent expects; every other is left to the kernel.
 */
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "enforcer.h"
#include "peer.h"
#include "wait.h"

#define DATAGRAM_MAX 65536u
#define IOV_MAX_KERNEL 1024u
#define MUST_WAIT INT64_MIN             /* served again where waiting is allowed */

struct incoming {
	struct ak_socket s;
	struct ak_led led;
	int flags;
	char *data;
	size_t cap;
	struct sockaddr_storage from;
	socklen_t from_len;
	int out_flags;
};

/* Is it for us to do? Then in->s is open. */
static bool is_ours(struct ak_call *c, struct incoming *in, int flags)
{
	struct ak_names *names = c->enforcer->net_names;
	if (!names || (flags & MSG_ERRQUEUE) || ak_socket_of(ak_task_dup(c, ak_int(c->stop->args[0])), &in->s) < 0)
		return false;
	in->flags = flags;
	in->data = NULL;
	if (in->s.type == SOCK_DGRAM && (in->s.domain == AF_INET || in->s.domain == AF_INET6) &&
	    ak_find_led_udp(names, ak_socket_inode(&in->s), &in->led))
		return true;
	ak_socket_close(&in->s);
	return false;
}

/* The resolver that the agent meant, as a socket of its kind shows it. */
static void name_source(struct ak_call *c, struct incoming *in)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)&in->led.meant;
	if (!in->from_len || !ak_is_own_dns(c->enforcer->net_names, &in->from))
		return;
	if (in->s.domain == AF_INET6 && v4->sin_family == AF_INET) {
		struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = v4->sin_port};
		six.sin6_addr.s6_addr[10] = six.sin6_addr.s6_addr[11] = 0xff;
		memcpy(six.sin6_addr.s6_addr + 12, &v4->sin_addr, 4);
		memcpy(&in->from, &six, sizeof six);
		in->from_len = sizeof six;
	} else {
		in->from = in->led.meant;
		in->from_len = in->s.domain == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	}
}

/* One datagram into in->data: what the call returns, -errno or MUST_WAIT. */
static int64_t receive(struct ak_call *c, struct incoming *in)
{
	struct ak_wait w;
	ak_wait_begin(&w, in->s.fd, SO_RCVTIMEO);
	for (;;) {
		struct iovec iov = {in->data, in->cap};
		struct msghdr h = {.msg_name = &in->from, .msg_namelen = sizeof in->from, .msg_iov = &iov, .msg_iovlen = 1};
		ssize_t n = recvmsg(in->s.fd, &h, (in->flags & ~(MSG_WAITFORONE | MSG_CMSG_CLOEXEC)) | MSG_DONTWAIT);
		if (n >= 0) {
			in->from_len = h.msg_namelen;
			in->out_flags = h.msg_flags;
			name_source(c, in);
			return n;
		}
		if (errno != EAGAIN || in->s.nonblocking || (in->flags & MSG_DONTWAIT))
			return -errno;
		if (!c->may_block)
			return MUST_WAIT;
		int over = ak_wait_ready(c, &w, POLLIN);
		if (over < 0)
			return over;
	}
}

static int make_room(struct incoming *in, size_t wanted)
{
	in->cap = wanted < DATAGRAM_MAX ? wanted : DATAGRAM_MAX;
	in->data = malloc(in->cap ? in->cap : 1);
	return in->data ? 0 : -ENOMEM;
}

static void finish(struct ak_call *c, struct ak_outcome *o, struct incoming *in, int64_t r)
{
	free(in->data);
	ak_socket_close(&in->s);
	if (r == MUST_WAIT)
		ak_block(c, o);
	else
		ak_result(o, r);
}

/* The address as move_addr_to_user() gives it: as much as there is room for, and how long it really is. */
static int give_source(struct ak_call *c, const struct incoming *in, uint64_t addr, uint64_t len_addr)
{
	int room, whole = (int)in->from_len;
	int error = addr ? ak_read(c, len_addr, &room, sizeof room) : 0;
	if (!addr || error < 0)
		return error;
	if (room < 0)
		return -EINVAL;
	size_t n = (size_t)room < in->from_len ? (size_t)room : in->from_len;
	error = n ? ak_write(c, addr, &in->from, n) : 0;
	return error < 0 ? error : ak_write(c, len_addr, &whole, sizeof whole);
}

void ak_call_recvfrom(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	struct incoming in;
	if (!is_ours(c, &in, ak_int(a[3])))
		return ak_continue(o);
	int64_t r = make_room(&in, a[2]);
	if (r == 0)
		r = receive(c, &in);
	if (r > 0) {
		int error = ak_write(c, a[1], in.data, (size_t)r < in.cap ? (size_t)r : in.cap);
		r = error < 0 ? error : r;
	}
	if (r >= 0) {
		int error = give_source(c, &in, a[4], a[5]);
		r = error < 0 ? error : r;
	}
	finish(c, o, &in, r);
}

/* The datagram into the agent's buffers. */
static int scatter(struct ak_call *c, const struct iovec *iov, size_t count, const char *data, size_t len)
{
	for (size_t i = 0; i < count && len > 0; i++) {
		size_t n = iov[i].iov_len < len ? iov[i].iov_len : len;
		int error = n ? ak_write(c, (uint64_t)(uintptr_t)iov[i].iov_base, data, n) : 0;
		if (error < 0)
			return error;
		data += n;
		len -= n;
	}
	return 0;
}

static int give_header(struct ak_call *c, const struct incoming *in, uint64_t addr, struct msghdr *h)
{
	if (h->msg_name) {
		size_t n = h->msg_namelen < in->from_len ? h->msg_namelen : in->from_len;
		int error = n ? ak_write(c, (uint64_t)(uintptr_t)h->msg_name, &in->from, n) : 0;
		if (error < 0)
			return error;
		h->msg_namelen = in->from_len;
	}
	h->msg_controllen = 0;
	h->msg_flags = in->out_flags;
	return ak_write(c, addr, h, sizeof *h);
}

/* What recvmsg on the header at `addr` returns. */
static int64_t receive_header(struct ak_call *c, struct incoming *in, uint64_t addr)
{
	struct msghdr h;
	struct iovec iov[IOV_MAX_KERNEL];
	size_t total = 0;
	int error = ak_read(c, addr, &h, sizeof h);
	if (error < 0)
		return error;
	if (h.msg_iovlen > IOV_MAX_KERNEL)
		return -EMSGSIZE;
	error = h.msg_iovlen ? ak_read(c, (uint64_t)(uintptr_t)h.msg_iov, iov, h.msg_iovlen * sizeof *iov) : 0;
	for (size_t i = 0; error == 0 && i < h.msg_iovlen; i++) {
		if ((ssize_t)iov[i].iov_len < 0)
			return -EINVAL;
		total += iov[i].iov_len < DATAGRAM_MAX ? iov[i].iov_len : DATAGRAM_MAX;
	}
	error = error < 0 ? error : make_room(in, total);
	if (error < 0)
		return error;
	int64_t r = receive(c, in);
	if (r < 0)
		return r;
	error = scatter(c, iov, h.msg_iovlen, in->data, (size_t)r < in->cap ? (size_t)r : in->cap);
	error = error < 0 ? error : give_header(c, in, addr, &h);
	return error < 0 ? error : r;
}

void ak_call_recvmsg(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	struct incoming in;
	if (!is_ours(c, &in, ak_int(a[2])))
		return ak_continue(o);
	finish(c, o, &in, receive_header(c, &in, a[1]));
}

/* One message, as the kernel too may return fewer than it was asked for. */
void ak_call_recvmmsg(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	struct incoming in;
	if ((uint32_t)a[2] == 0 || !is_ours(c, &in, ak_int(a[3])))
		return ak_continue(o);
	int64_t r = receive_header(c, &in, a[1]);
	if (r >= 0) {
		unsigned len = (unsigned)r;
		int error = ak_write(c, a[1] + offsetof(struct mmsghdr, msg_len), &len, sizeof len);
		r = error < 0 ? error : 1;
	}
	finish(c, o, &in, r);
}
