/* connect, bind and listen: the address is read once, judged, and used on a duplicate of the agent's own socket.
 *
 * Nothing is ever CONTINUEd here, whatever was judged: until the kernel looks again the agent can change the address, and
 * by dup2 the socket. A peer on a unix socket that asks who connected or listens (SO_PEERCRED) sees the supervisor's pid,
 * and the uid and gid that we share with the agent. Sends are in call_send.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include "enforcer.h"
#include "peer.h"
#include "wait.h"

#ifndef SO_PASSRIGHTS                   /* Linux 6.16 */
#define SO_PASSRIGHTS 83
#endif

#define PATH_AT offsetof(struct sockaddr_un, sun_path)
#define MUST_WAIT 1             /* served again where waiting is allowed */
#define BACKLOG_FULL_MS 5       /* nothing tells when a unix listener has room again */

/* ---- connect ----------------------------------------------------------------------------------------------------- */

/* One attempt that does not wait. O_NONBLOCK belongs to the open file, which the agent has too, so it is set for a
 * moment only; the agent itself is in this very call. */
static int connect_now(const struct ak_socket *s, const struct sockaddr_storage *addr, socklen_t len)
{
	int flags = fcntl(s->fd, F_GETFL);
	bool borrow = flags >= 0 && !(flags & O_NONBLOCK);
	if (borrow && fcntl(s->fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	int r = connect(s->fd, (const struct sockaddr *)addr, len) < 0 ? -errno : 0;
	if (borrow)
		fcntl(s->fd, F_SETFL, flags);
	return r;
}

/* The first attempt. A server of our own takes only connections that were led to it. */
static int connect_first(struct ak_call *c, const struct ak_socket *s, const struct ak_peer *p)
{
	struct sockaddr_storage own;
	socklen_t len = sizeof own;
	if (!p->led_tcp)
		return connect_now(s, &p->addr, p->len);
	ak_led_lock(c->enforcer->net_names);
	int r = connect_now(s, &p->addr, p->len);
	if ((r == 0 || r == -EINPROGRESS) && getsockname(s->fd, (struct sockaddr *)&own, &len) == 0) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)&own;        /* the port is at the same place in both */
		ak_led_tcp(c->enforcer->net_names, ntohs(in->sin_port), &p->led);
	}
	ak_led_unlock(c->enforcer->net_names);
	return r;
}

/* The wait of a blocking connect: over when it is made or refused, SO_SNDTIMEO has passed, or a signal is due. */
static int connect_and_wait(struct ak_call *c, const struct ak_socket *s, const struct ak_peer *p)
{
	struct ak_wait w;
	bool started = false;
	ak_wait_begin(&w, s->fd, SO_SNDTIMEO);
	for (;;) {
		int r = started ? connect_now(s, &p->addr, p->len) : connect_first(c, s, p);
		if (r == -EISCONN && started)
			return 0;
		if (r != -EINPROGRESS && r != -EALREADY && r != -EAGAIN)
			return r;
		started = true;
		int over = r == -EAGAIN ? ak_wait_pause(c, &w, BACKLOG_FULL_MS) : ak_wait_ready(c, &w, POLLOUT);
		if (over < 0)
			return over == -EAGAIN && r != -EAGAIN ? -EINPROGRESS : over;
	}
}

/* UDP and netlink connects only remember the address. */
static bool connect_may_wait(const struct ak_socket *s)
{
	return !s->nonblocking && (s->type == SOCK_STREAM || s->domain == AF_UNIX);
}

/* Back to unconnected: reaches nobody, so nothing is judged. */
static int disconnect(const struct ak_socket *s)
{
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	return connect(s->fd, &none, sizeof none) < 0 ? -errno : 0;
}

static bool is_loopback(const struct sockaddr_storage *addr)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)addr;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)addr;
	if (addr->ss_family == AF_INET)
		return (ntohl(in->sin_addr.s_addr) >> 24) == 127;
	return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr) ||
	       (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) && in6->sin6_addr.s6_addr[12] == 127);
}

/* A blocking connect on a thread that must not wait. To this machine there is as a rule nothing to wait for: when connect()
 * returns, the handshake is over. What is not made at once is taken back, and all of it happens anew on another thread. */
static int connect_at_once(struct ak_call *c, const struct ak_socket *s, const struct ak_peer *p)
{
	struct pollfd ready = {.fd = s->fd, .events = POLLOUT};
	if (!is_loopback(&p->addr))
		return MUST_WAIT;
	int r = connect_first(c, s, p);
	if (r == -EINPROGRESS && poll(&ready, 1, 0) == 1) {
		r = connect_now(s, &p->addr, p->len);
		return r == -EISCONN ? 0 : r;
	}
	if (r == -EINPROGRESS)
		return disconnect(s) < 0 ? -EACCES : MUST_WAIT;
	return r == -EALREADY || r == -EAGAIN ? MUST_WAIT : r;
}

/* ---- descriptors from host programs ------------------------------------------------------------------------------ */

static bool node_of(int dir, const char *name, int flags, struct ak_node *out)
{
	struct statx st;
	if (statx(dir, name, flags | AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC, STATX_INO | STATX_BTIME, &st) < 0)
		return false;
	*out = (struct ak_node){.dev = makedev(st.stx_dev_major, st.stx_dev_minor), .ino = st.stx_ino};
	if (st.stx_mask & STATX_BTIME) {
		out->born_s = (uint64_t)st.stx_btime.tv_sec;
		out->born_ns = st.stx_btime.tv_nsec;
	}
	return true;
}

/* Peer credentials do not tell whose a socket is: listen() was made on the agent's behalf. */
static void remember_own(struct ak_enforcer *e, const struct ak_parent *p)
{
	struct ak_node node;
	if (!node_of(p->fd, p->name, 0, &node))
		return;
	pthread_mutex_lock(&e->lock);
	e->own_sockets[e->next_own_socket++ % AK_OWN_SOCKETS] = node;
	pthread_mutex_unlock(&e->lock);
}

static bool is_own(struct ak_enforcer *e, int fd)
{
	struct ak_node node;
	bool found = false;
	if (fd < 0 || !node_of(fd, "", AT_EMPTY_PATH, &node))
		return false;
	pthread_mutex_lock(&e->lock);
	for (unsigned i = 0; i < AK_OWN_SOCKETS && !found; i++)
		found = memcmp(&e->own_sockets[i], &node, sizeof node) == 0;
	pthread_mutex_unlock(&e->lock);
	return found;
}

/* A host program that the agent may reach could hand it any descriptor (SCM_RIGHTS): such a message is refused at the sender,
 * from before the connection is made. What the run itself bound is left alone. */
static void refuse_descriptors(struct ak_call *c, const struct ak_socket *s, const struct ak_peer *p)
{
	static const int off = 0;
	if (s->domain == AF_UNIX && s->type != SOCK_DGRAM && p->hold >= 0 && !is_own(c->enforcer, p->hold))
		(void)setsockopt(s->fd, SOL_SOCKET, SO_PASSRIGHTS, &off, sizeof off);   /* before 6.16: see SECURITY.md */
}

static int connect_judged(struct ak_call *c, const struct ak_socket *s, const struct sockaddr_storage *addr, int len)
{
	struct ak_peer p;
	int r = ak_peer_judge(c, s, AK_NET_CONNECT, addr, len, &p);
	if (r < 0)
		return r;
	if (!p.error)
		refuse_descriptors(c, s, &p);
	if (p.error)
		r = -p.error;
	else if (!connect_may_wait(s))
		r = connect_first(c, s, &p);
	else
		r = c->may_block ? connect_and_wait(c, s, &p) : connect_at_once(c, s, &p);
	if (r != MUST_WAIT)
		r = ak_peer_record(c, AK_OP_CONNECT, &p, r);
	ak_peer_close(&p);
	return r;
}

static void call_connect(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	struct sockaddr_storage addr;
	struct ak_socket s;
	int len = ak_int(a[2]);
	int r = ak_socket_get(c, ak_int(a[0]), &s);
	if (r < 0)
		return ak_result(o, r);
	if (s.domain == AF_UNIX && connect_may_wait(&s) && !c->may_block)
		r = MUST_WAIT;          /* nothing was judged yet: all of it happens on the other thread */
	else
		r = ak_read_address(c, a[1], len, &addr);
	if (r == 0 && len >= (int)sizeof addr.ss_family && addr.ss_family == AF_UNSPEC)
		r = disconnect(&s);
	else if (r == 0)
		r = connect_judged(c, &s, &addr, len);
	ak_socket_close(&s);
	if (r == MUST_WAIT)
		ak_block(c, o);
	else
		ak_result(o, r);
}

/* ---- bind of a unix path ----------------------------------------------------------------------------------------- */

/* The socket keeps the string it is bound with as its address, which getsockname and peers see: so it has to be the
 * agent's own. It is safe to use once it is seen to lead to the judged directory, because the names lock keeps every run
 * of this supervisor from changing directories and symlinks until the bind is made. `base`: where a relative one begins. */
static bool leads_to(const struct ak_parent *p, int base, const char *path)
{
	char dir[110];
	struct stat here, judged;
	const char *slash = strrchr(path, '/');
	if (!slash)
		return false;
	size_t len = slash == path ? 1 : (size_t)(slash - path);
	memcpy(dir, path, len);
	dir[len] = 0;
	return fstatat(base, dir, &here, 0) == 0 && fstat(p->fd, &judged) == 0 && here.st_dev == judged.st_dev &&
	       here.st_ino == judged.st_ino;
}

static int bind_string(const struct ak_socket *s, const struct sockaddr_storage *addr, int len)
{
	return bind(s->fd, (const struct sockaddr *)addr, (socklen_t)len) < 0 ? -errno : 0;
}

/* In the judged directory, under an address that nobody but us could use. */
static int bind_by_descriptor(const struct ak_socket *s, const struct ak_parent *p)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct ak_proc_path dir = ak_proc_fd(p->fd);
	size_t dir_len = strlen(dir.text), name_len = strlen(p->name);
	if (dir_len + 1 + name_len >= sizeof un.sun_path)
		return -ENAMETOOLONG;
	memcpy(un.sun_path, dir.text, dir_len);
	un.sun_path[dir_len] = '/';
	memcpy(un.sun_path + dir_len + 1, p->name, name_len + 1);
	return bind(s->fd, (const struct sockaddr *)&un, (socklen_t)(PATH_AT + dir_len + name_len + 2)) < 0 ? -errno : 0;
}

/* A bare name is bound from inside the judged directory; a relative path from the agent's cwd. Both need a cwd of our
 * own. Precondition: names lock held, umask taken. */
static int bind_under_lock(const struct ak_socket *s, const struct ak_parent *p, int cwd, const char *path,
			   const struct sockaddr_storage *addr, int len)
{
	bool relative = path[0] != '/', bare = !strchr(path, '/');
	if (!relative)
		return leads_to(p, AT_FDCWD, path) ? bind_string(s, addr, len) : bind_by_descriptor(s, p);
	if (!ak_thread_has_own_fs() || fchdir(bare ? p->fd : cwd) < 0)
		return bind_by_descriptor(s, p);
	int r = bare || leads_to(p, AT_FDCWD, path) ? bind_string(s, addr, len) : bind_by_descriptor(s, p);
	return chdir("/") < 0 ? -EACCES : r;
}

static int bind_path(struct ak_call *c, const struct ak_socket *s, const struct ak_parent *p, const char *path,
		     const struct sockaddr_storage *addr, int len)
{
	int cwd = ak_task_cwd(c);
	if (cwd < 0)
		return cwd;
	int r = ak_adopt_umask(c);
	if (r == 0) {
		ak_names_lock();
		/* A directory that was moved since may be under other rules now. */
		r = ak_keeps_name(p->fd, p->path, p->dir_len) ? bind_under_lock(s, p, cwd, path, addr, len) : -EACCES;
		ak_names_unlock();
	}
	close(cwd);
	return r;
}

static int bind_unix_path(struct ak_call *c, const struct ak_socket *s, const char *path,
			  const struct sockaddr_storage *addr, int len)
{
	struct ak_parent p;
	struct stat st;
	char target[AK_EVENT_TARGET_MAX + 1];
	int r = ak_resolve_parent(c, AT_FDCWD, path, &p);
	if (r < 0)
		return r == -EEXIST ? -EADDRINUSE : r;
	if (!ak_hidden(c, p.path, p.len) && fstatat(p.fd, p.name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
		ak_parent_close(&p);
		return -EADDRINUSE;
	}
	struct ak_verdict v = ak_policy_fs(c->config->policy, AK_WRITE, p.path, p.len);
	r = v.decision == AK_ALLOW ? bind_path(c, s, &p, path, addr, len) : ak_hidden(c, p.path, p.len) ? -ENOENT : -EACCES;
	if (r == 0)
		remember_own(c->enforcer, &p);
	ak_unix_target(p.path, p.len, target);
	int error = ak_record(c, AK_OP_BIND, v.decision, AK_WRITE, v.rule, v.missing, -r, 0, target, NULL);
	ak_parent_close(&p);
	return error < 0 ? error : r;
}

/* Abstract names and autobind make no node; who may reach such a socket is Landlock's scope to say. */
static int bind_abstract(struct ak_call *c, const struct ak_socket *s, const struct sockaddr_storage *addr, int len)
{
	char target[512];
	int r = bind_string(s, addr, len);
	ak_abstract_target(addr, len, target, sizeof target);
	int error = ak_record(c, AK_OP_BIND, AK_ALLOW, 0, AK_NO_RULE, 0, -r, 0, target, NULL);
	return error < 0 ? error : r;
}

static int bind_unix(struct ak_call *c, const struct ak_socket *s, const struct sockaddr_storage *addr, int len)
{
	char path[110];
	if (len < (int)sizeof(sa_family_t) || len > (int)sizeof(struct sockaddr_un) || addr->ss_family != AF_UNIX)
		return -EINVAL;
	return ak_unix_path(addr, len, path) ? bind_unix_path(c, s, path, addr, len) : bind_abstract(c, s, addr, len);
}

/* ---- bind, listen ------------------------------------------------------------------------------------------------ */

static int bind_judged(struct ak_call *c, const struct ak_socket *s, const struct sockaddr_storage *addr, int len)
{
	struct ak_peer p;
	if (s->domain == AF_UNIX)
		return bind_unix(c, s, addr, len);
	int r = ak_peer_judge(c, s, AK_NET_BIND, addr, len, &p);
	if (r < 0)
		return r;
	r = p.error ? -p.error : bind(s->fd, (const struct sockaddr *)&p.addr, p.len) < 0 ? -errno : 0;
	r = ak_peer_record(c, AK_OP_BIND, &p, r);
	ak_peer_close(&p);
	return r;
}

static void call_bind(struct ak_call *c, struct ak_outcome *o)
{
	const uint64_t *a = c->stop->args;
	struct sockaddr_storage addr;
	struct ak_socket s;
	int len = ak_int(a[2]);
	int r = ak_socket_get(c, ak_int(a[0]), &s);
	if (r < 0)
		return ak_result(o, r);
	r = ak_read_address(c, a[1], len, &addr);
	if (r == 0)
		r = bind_judged(c, &s, &addr, len);
	ak_socket_close(&s);
	ak_result(o, r);
}

/* Judged on the address it is bound to; an unbound socket listens on port 0 of every address, and the kernel then picks
 * the port. A unix socket was judged when it was bound. */
static int listen_judged(struct ak_call *c, const struct ak_socket *s, int backlog)
{
	struct sockaddr_storage addr;
	struct ak_peer p = {.hold = -1, .verdict = {.rule = AK_NO_RULE}};
	socklen_t len = sizeof addr;
	int r = 0;
	if (s->type == SOCK_STREAM && s->domain != AF_UNIX) {
		if (getsockname(s->fd, (struct sockaddr *)&addr, &len) < 0)
			return -errno;
		r = ak_peer_judge(c, s, AK_NET_LISTEN, &addr, (int)len, &p);
		if (r < 0)
			return r;
	}
	r = p.error ? -p.error : listen(s->fd, backlog) < 0 ? -errno : 0;
	r = ak_peer_record(c, AK_OP_LISTEN, &p, r);
	ak_peer_close(&p);
	return r;
}

static void call_listen(struct ak_call *c, struct ak_outcome *o)
{
	struct ak_socket s;
	int r = ak_socket_get(c, ak_int(c->stop->args[0]), &s);
	if (r == 0) {
		r = listen_judged(c, &s, ak_int(c->stop->args[1]));
		ak_socket_close(&s);
	}
	ak_result(o, r);
}

const struct ak_handler_entry ak_net_handlers[] = {
	{SYS_connect, call_connect},
	{SYS_bind, call_bind},
	{SYS_listen, call_listen},
	{SYS_sendto, ak_call_sendto},
	{SYS_sendmsg, ak_call_sendmsg},
	{SYS_sendmmsg, ak_call_sendmmsg},
	{SYS_recvfrom, ak_call_recvfrom},
	{SYS_recvmsg, ak_call_recvmsg},
	{SYS_recvmmsg, ak_call_recvmmsg},
	{-1, NULL},
};
