/* Accepted connections: nothing is judged here (the listener was, when it was bound and listened), but who came is recorded.
 *
 * The kernel carries the call out, so waiting, O_NONBLOCK, signals and a full descriptor table are as bare; the tracer stops the
 * task at its end (tracer.c). Another thread of the agent may have put something else in the descriptor's place by then:
 * then the entry says what is there.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <unistd.h>

#include "enforcer.h"
#include "peer.h"

static bool as_stopped(void *ctx)
{
	(void)ctx;
	return true;            /* under ptrace, until we resume it */
}

/* "ip:1.2.3.4:80", "unix:/path"; the port. An address that cannot be said is "socket:?". */
static uint64_t say(const struct sockaddr_storage *addr, socklen_t len, char *out, size_t cap)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)addr;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)addr;
	char text[INET6_ADDRSTRLEN], path[110];
	if (len >= sizeof *in && addr->ss_family == AF_INET) {
		inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
		snprintf(out, cap, "ip:%s:%u", text, ntohs(in->sin_port));
		return ntohs(in->sin_port);
	}
	if (len >= sizeof *in6 && addr->ss_family == AF_INET6) {
		bool mapped = IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr);
		inet_ntop(mapped ? AF_INET : AF_INET6, in6->sin6_addr.s6_addr + (mapped ? 12 : 0), text, sizeof text);
		snprintf(out, cap, mapped ? "ip:%s:%u" : "ip:[%s]:%u", text, ntohs(in6->sin6_port));
		return ntohs(in6->sin6_port);
	}
	if (len < sizeof(sa_family_t) || addr->ss_family != AF_UNIX)
		snprintf(out, cap, "socket:?");
	else if (ak_unix_path(addr, (int)len, path))
		snprintf(out, cap, "unix:%s", path);
	else
		ak_abstract_target(addr, (int)len, out, cap);
	return 0;
}

int ak_accepted(struct ak_enforcer *e, pid_t tid, int nr, int fd)
{
	struct ak_stop stop = {.tid = tid, .nr = nr, .still_valid = as_stopped};
	struct ak_call c = {.enforcer = e, .config = &e->config, .stop = &stop};
	struct sockaddr_storage own = {0}, peer = {0};
	socklen_t own_len = 0, peer_len = 0;
	char target[512], from[512];
	int copy = ak_task_dup(&c, fd);
	if (copy >= 0) {
		own_len = peer_len = sizeof own;
		if (getsockname(copy, (struct sockaddr *)&own, &own_len) < 0)
			own_len = 0;
		if (getpeername(copy, (struct sockaddr *)&peer, &peer_len) < 0)         /* gone already */
			peer_len = 0;
		close(copy);
	}
	uint64_t port = say(&own, own_len, target, sizeof target);
	say(&peer, peer_len, from, sizeof from);
	return ak_record(&c, AK_OP_ACCEPT, AK_ALLOW, 0, AK_NO_RULE, 0, 0, port, target, from);
}
