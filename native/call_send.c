/* sendto with an address, sendmsg, sendmmsg: always carried out here, on a duplicate of the agent's socket.
 *
 * A message without a name is not CONTINUEd either: the name, its length and (by dup2) the socket itself could all be
 * others when the kernel looks again, and nothing else stands between the agent and a datagram to anywhere. Data is
 * copied in chunks; a datagram of more than 1 MiB is refused with EMSGSIZE. Descriptors passed along are duplicates;
 * a receiver that asks for credentials (SO_PASSCRED) sees the supervisor's pid.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "control.h"
#include "peer.h"
#include "wait.h"

#define DATAGRAM_MAX (1024u * 1024u)
#define CHUNK_BYTES (256u * 1024u)      /* of a stream, per call to the kernel */
#define SMALL_BYTES 8192u               /* sent from the stack; a blocking stream with more goes to its own thread */
#define MESSAGES_MAX 1024u              /* UIO_MAXIOV, also of iovecs in a message */
#define PAUSE_MS 2u                     /* where poll says "ready" and the receiver is still full (unix datagrams) */
#define MUST_WAIT INT64_MIN             /* nothing was sent: serve the whole call again where waiting is allowed */

#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif
#define MSG_CMSG_COMPAT_BIT 0x80000000u

struct outgoing {
	const struct ak_socket *s;
	int flags;
	bool waits;                     /* the agent's call would wait for room */
	bool named;
	int name_len;
	struct sockaddr_storage name;
	size_t total;
	size_t iov_count;
	struct iovec iov[MESSAGES_MAX]; /* the agent's addresses */
	struct ak_peer peer;
	struct ak_control control;
};

/* ---- the message ------------------------------------------------------------------------------------------------- */

static bool is_stream(const struct ak_socket *s)
{
	return s->type == SOCK_STREAM;
}

/* MSG_FASTOPEN connects by itself, to an address that no connect was asked about. */
static int check_flags(struct ak_call *c, const struct ak_socket *s, int *flags)
{
	int zerocopy = 0;
	socklen_t len = sizeof zerocopy;
	if ((unsigned)*flags & MSG_CMSG_COMPAT_BIT)
		return -EINVAL;
	if (*flags & MSG_FASTOPEN) {
		ak_record(c, AK_OP_SEND, AK_DENY, 0, AK_NO_RULE, 0, EPERM, (unsigned)*flags, "msg:fastopen", NULL);
		return -EPERM;
	}
	/* The pages would be ours, and gone before they are sent. ENOBUFS is what such programs are prepared for. */
	if ((*flags & MSG_ZEROCOPY) && getsockopt(s->fd, SOL_SOCKET, SO_ZEROCOPY, &zerocopy, &len) == 0 && zerocopy)
		return -ENOBUFS;
	*flags &= ~MSG_ZEROCOPY;
	return 0;
}

/* Lengths as the kernel checks them, and their sum. */
static int sum_up(struct outgoing *m)
{
	m->total = 0;
	for (size_t i = 0; i < m->iov_count; i++) {
		if ((ssize_t)m->iov[i].iov_len < 0)
			return -EINVAL;
		if (m->iov[i].iov_len > INT32_MAX - m->total)
			m->iov[i].iov_len = INT32_MAX - m->total;
		m->total += m->iov[i].iov_len;
	}
	return !is_stream(m->s) && m->total > DATAGRAM_MAX ? -EMSGSIZE : 0;
}

/* `len` bytes of the message from `offset` on. */
static int gather(struct ak_call *c, const struct outgoing *m, size_t offset, char *buf, size_t len)
{
	for (size_t i = 0; i < m->iov_count && len > 0; i++) {
		size_t here = m->iov[i].iov_len;
		if (offset >= here) {
			offset -= here;
			continue;
		}
		size_t n = here - offset < len ? here - offset : len;
		int error = ak_read(c, (uint64_t)(uintptr_t)m->iov[i].iov_base + offset, buf, n);
		if (error < 0)
			return error;
		buf += n;
		len -= n;
		offset = 0;
	}
	return len ? -EFAULT : 0;
}

/* ---- sending ----------------------------------------------------------------------------------------------------- */

static ssize_t send_chunk(struct outgoing *m, char *buf, size_t len, bool first)
{
	struct iovec iov = {buf, len};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
	if (m->named) {
		h.msg_name = &m->peer.addr;
		h.msg_namelen = m->peer.len;
	}
	if (first && m->control.len) {
		h.msg_control = m->control.data;
		h.msg_controllen = m->control.len;
	}
	ssize_t n = sendmsg(m->s->fd, &h, m->flags | MSG_DONTWAIT | MSG_NOSIGNAL);
	return n < 0 ? -errno : n;
}

/* The socket said EAGAIN: 0 to try again, or the end of the call. */
static int64_t wait_for_room(struct ak_call *c, struct outgoing *m, struct ak_wait *w, bool again)
{
	if (!m->waits)
		return -EAGAIN;
	if (!c->may_block)
		return MUST_WAIT;
	if (again)
		return ak_wait_pause(c, w, PAUSE_MS);
	return ak_wait_ready(c, w, POLLOUT);
}

/* All of it, as far as the agent would have waited. What was sent before an error is the answer, as bare. */
static int64_t send_all(struct ak_call *c, struct outgoing *m, char *buf, size_t cap)
{
	struct ak_wait w;
	size_t sent = 0;
	bool full = false;
	ak_wait_begin(&w, m->s->fd, SO_SNDTIMEO);
	do {
		size_t len = m->total - sent < cap ? m->total - sent : cap;
		int64_t r = full ? 0 : gather(c, m, sent, buf, len);
		ssize_t n = r < 0 ? r : send_chunk(m, buf, len, sent == 0);
		if (n == -EAGAIN) {
			r = wait_for_room(c, m, &w, full);
			full = true;
			if (r == 0)
				continue;
			return sent ? (int64_t)sent : r;
		}
		if (n < 0)
			return sent ? (int64_t)sent : n;
		sent += (size_t)n;
		full = false;
	} while (full || (is_stream(m->s) && sent < m->total));
	return (int64_t)sent;
}

static int64_t send_data(struct ak_call *c, struct outgoing *m)
{
	char small[SMALL_BYTES], *buf = small;
	size_t cap = is_stream(m->s) && m->total > CHUNK_BYTES ? CHUNK_BYTES : m->total;
	/* Part of a stream must not be sent here and the whole again on another thread. */
	if (is_stream(m->s) && m->waits && m->total > sizeof small && !c->may_block)
		return MUST_WAIT;
	if (cap > sizeof small && !(buf = malloc(cap)))
		return -ENOBUFS;
	int64_t r = send_all(c, m, buf, cap);
	if (buf != small)
		free(buf);
	return r;
}

/* Only stream sockets raise it (sk_stream_error, unix_stream_sendmsg). */
static void raise_sigpipe(struct ak_call *c, const struct outgoing *m)
{
	pid_t tgid = ak_call_tgid(c);
	if (is_stream(m->s) && !(m->flags & MSG_NOSIGNAL) && tgid > 0 && c->stop->still_valid(c->stop->ctx))
		syscall(SYS_tgkill, tgid, c->stop->tid, SIGPIPE);
}

/* What the kernel does with a name, by kind of socket; only datagram sockets go where it says. */
static int settle_name(struct outgoing *m)
{
	struct sockaddr_storage peer;
	socklen_t len = sizeof peer;
	if (!m->named)
		return 0;
	if (m->s->domain == AF_UNIX && is_stream(m->s))
		return getpeername(m->s->fd, (struct sockaddr *)&peer, &len) == 0 ? -EISCONN : -EOPNOTSUPP;
	if (m->s->type != SOCK_DGRAM && m->s->type != SOCK_RAW)
		m->named = false;
	if (m->s->domain == AF_INET6 && m->name_len >= (int)sizeof(sa_family_t) && m->name.ss_family == AF_UNSPEC)
		m->named = false;
	return 0;
}

static int64_t send_message(struct ak_call *c, struct outgoing *m)
{
	int error = settle_name(m);
	if (error < 0)
		return error;
	if (m->named) {
		error = ak_peer_judge(c, m->s, AK_NET_CONNECT, &m->name, m->name_len, &m->peer);
		if (error < 0)
			return error;
	}
	int64_t r = m->named && m->peer.error ? -m->peer.error : send_data(c, m);
	if (r == -EPIPE)
		raise_sigpipe(c, m);
	if (m->named) {
		if (r != MUST_WAIT) {
			error = ak_peer_record(c, AK_OP_SEND, &m->peer, r < 0 ? (int)r : 0);
			r = error < 0 ? error : r;
		}
		ak_peer_close(&m->peer);
	}
	return r;
}

/* ---- the three calls --------------------------------------------------------------------------------------------- */

/* A message header of the agent's, read once. Lengths are cut and refused as copy_msghdr_from_user does. */
static int64_t send_header(struct ak_call *c, struct outgoing *m, uint64_t addr, int inherit)
{
	struct msghdr h;
	int error = ak_read(c, addr, &h, sizeof h);
	if (error < 0)
		return error;
	m->flags |= h.msg_flags & inherit;
	m->name_len = h.msg_name ? (int)h.msg_namelen : 0;
	if (m->name_len > (int)sizeof m->name)
		m->name_len = sizeof m->name;
	m->named = m->name_len != 0;
	error = ak_read_address(c, (uint64_t)(uintptr_t)h.msg_name, m->name_len, &m->name);
	if (error < 0)
		return error;
	if (h.msg_iovlen > MESSAGES_MAX)
		return -EMSGSIZE;
	m->iov_count = h.msg_iovlen;
	error = h.msg_iovlen ? ak_read(c, (uint64_t)(uintptr_t)h.msg_iov, m->iov, h.msg_iovlen * sizeof *m->iov) : 0;
	if (error == 0)
		error = sum_up(m);
	if (error == 0)
		error = ak_control_read(c, (uint64_t)(uintptr_t)h.msg_control, h.msg_controllen, &m->control);
	if (error < 0)
		return error;
	int64_t r = send_message(c, m);
	ak_control_close(&m->control);
	return r;
}

static int begin(struct ak_call *c, struct ak_socket *s, struct outgoing *m, int flags)
{
	int error = ak_socket_get(c, ak_int(c->stop->args[0]), s);
	if (error < 0)
		return error;
	m->s = s;
	m->flags = flags;
	m->waits = !s->nonblocking && !(flags & MSG_DONTWAIT);
	m->named = false;
	m->control.len = 0;
	m->control.fd_count = 0;
	error = check_flags(c, s, &m->flags);
	if (error < 0)
		ak_socket_close(s);
	return error;
}

static void answer(struct ak_call *c, struct ak_outcome *o, struct ak_socket *s, int64_t r)
{
	ak_socket_close(s);
	if (r == MUST_WAIT)
		ak_block(c, o);
	else
		ak_result(o, r);
}

/* The filter lets sendto without an address pass: its peer was judged by connect, and both are in registers. */
void ak_call_sendto(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	struct ak_socket s;
	struct outgoing m;
	int64_t r = begin(c, &s, &m, ak_int(a[3]));
	if (r < 0)
		return ak_result(o, r);
	m.name_len = a[4] ? ak_int(a[5]) : 0;
	m.named = a[4] != 0 && (m.name_len != 0 || s.domain != AF_UNIX);
	m.iov_count = 1;
	m.iov[0] = (struct iovec){(void *)(uintptr_t)a[1], a[2]};
	r = ak_read_address(c, a[4], m.name_len, &m.name);
	if (r == 0)
		r = sum_up(&m);
	if (r == 0)
		r = send_message(c, &m);
	answer(c, o, &s, r);
}

void ak_call_sendmsg(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	struct ak_socket s;
	struct outgoing m;
	int64_t r = begin(c, &s, &m, ak_int(a[2]));
	if (r < 0)
		return ak_result(o, r);
	answer(c, o, &s, send_header(c, &m, a[1], 0));
}

/* Stops at the first message that is refused or would wait, as the kernel may at any time, once one is sent. */
void ak_call_sendmmsg(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	struct ak_socket s;
	struct outgoing m;
	unsigned count = (uint32_t)a[2] < MESSAGES_MAX ? (uint32_t)a[2] : MESSAGES_MAX, done = 0;
	int64_t r = begin(c, &s, &m, ak_int(a[3]));
	if (r < 0)
		return ak_result(o, r);
	int flags = m.flags;
	while (done < count && r >= 0) {
		uint64_t at = a[1] + done * sizeof(struct mmsghdr);
		m.flags = flags;
		r = send_header(c, &m, at, MSG_EOR);
		if (r < 0)
			break;
		unsigned len = (unsigned)r;
		r = ak_write(c, at + offsetof(struct mmsghdr, msg_len), &len, sizeof len);
		if (r == 0)
			done++;
	}
	answer(c, o, &s, done ? (int64_t)done : r);
}
