/* Addresses of the agent's sockets: what may be reached, and the address that reaches exactly that. See peer.h.
 *
 * A unix path is resolved to its inode and used through /proc/self/fd/N, so a name that changes meanwhile changes
 * nothing. An unspecified IP address means loopback when it is a destination; it is made so before it is judged.
 */
#include "peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/netlink.h>

#include "abstract.h"
#include "enforcer.h"

#define SIN6_LEN_MIN 24                 /* RFC 2133: without the scope id */
#define PATH_AT offsetof(struct sockaddr_un, sun_path)

static int option(int fd, int name)
{
	int value = 0;
	socklen_t len = sizeof value;
	return getsockopt(fd, SOL_SOCKET, name, &value, &len) < 0 ? -errno : value;
}

int ak_socket_get(struct ak_call *c, int fd, struct ak_socket *s)
{
	return ak_socket_of(ak_own_copy(c, fd), s);
}

int ak_socket_of(int copy, struct ak_socket *s)
{
	s->fd = copy;
	if (s->fd < 0)
		return s->fd;
	int flags = fcntl(s->fd, F_GETFL);
	s->domain = option(s->fd, SO_DOMAIN);
	s->type = option(s->fd, SO_TYPE);
	s->protocol = option(s->fd, SO_PROTOCOL);
	s->nonblocking = flags >= 0 && (flags & O_NONBLOCK);
	if (flags >= 0 && s->domain >= 0 && s->type >= 0 && s->protocol >= 0)
		return 0;
	int error = flags >= 0 && (flags & O_PATH) ? -EBADF : s->domain < 0 ? s->domain : -ENOTSOCK;
	ak_socket_close(s);
	return error;
}

void ak_socket_close(struct ak_socket *s)
{
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}

void ak_peer_close(struct ak_peer *p)
{
	if (p->hold >= 0)
		close(p->hold);
	p->hold = -1;
}

int ak_read_address(struct ak_call *c, uint64_t addr, int len, struct sockaddr_storage *out)
{
	memset(out, 0, sizeof *out);
	if (len < 0 || (size_t)len > sizeof *out)
		return -EINVAL;
	return len ? ak_read(c, addr, out, (size_t)len) : 0;
}

int ak_peer_record(struct ak_call *c, uint16_t op, const struct ak_peer *p, int result)
{
	if (!p->record)
		return result;
	int error = ak_record(c, op, p->error ? AK_DENY : AK_ALLOW, 0, p->verdict.rule, 0, result < 0 ? -result : 0, p->port,
			      p->target, p->target2[0] ? p->target2 : NULL);
	return error < 0 ? error : result;
}

/* ---- IP ---------------------------------------------------------------------------------------------------------- */

/* The transport that rules speak of, or -1: what is neither TCP nor UDP has no rules. */
static int transport(const struct ak_socket *s)
{
	if (s->type == SOCK_STREAM && s->protocol == IPPROTO_TCP)
		return AK_TCP;
	return s->type == SOCK_DGRAM && s->protocol == IPPROTO_UDP ? AK_UDP : -1;
}

uint64_t ak_socket_inode(const struct ak_socket *s)
{
	struct stat st;
	return fstat(s->fd, &st) == 0 ? st.st_ino : 0;
}

/* Also by the names that the address was handed out for. An address that no rule is about is called by its name, so that the
 * entry says what a rule would have to say. */
static void judge_by_name(struct ak_call *c, const struct ak_socket *s, const char *kind, const uint8_t *ip, size_t ip_len,
			  struct ak_peer *p)
{
	char name[AK_HOST_MAX + 1];
	p->verdict = ak_judge_named(c->config->policy, c->enforcer->net_names, (enum ak_net_proto)transport(s), ip, ip_len,
				    (uint16_t)p->port, name);
	if (!name[0])
		return;
	snprintf(p->target2, sizeof p->target2, "%.*s", (int)sizeof p->target2 - 1, p->target);
	snprintf(p->target, sizeof p->target, "%sdns:%s:%u", kind, name, (unsigned)p->port);
}

/* A query goes to the supervisor, whatever resolver it was meant for. */
static void lead_to_dns(struct ak_call *c, const struct ak_socket *s, struct ak_peer *p)
{
	struct ak_led led = {.meant = p->addr, .meant_len = p->len, .tgid = ak_call_tgid(c), .tid = c->stop->tid, .nr = c->stop->nr};
	uint64_t inode = ak_socket_inode(s);
	bool udp = transport(s) == AK_UDP;
	if (inode == 0 || !ak_lead_to_dns(c->enforcer->net_names, udp ? AK_UDP : AK_TCP, &p->addr, &p->len))
		return;
	if (udp)
		ak_led_udp(c->enforcer->net_names, inode, &led);
	p->led_tcp = !udp;
	p->led = led;
	p->verdict = (struct ak_verdict){.rule = AK_NO_RULE, .decision = AK_ALLOW};
	snprintf(p->target2, sizeof p->target2, "akbox:dns");
}

static bool is_unspecified(const uint8_t *ip, size_t len)
{
	static const uint8_t none[16];
	return memcmp(ip, none, len) == 0;
}

/* A connection goes to the relay, which asks where it was meant to go. */
static void lead_to_relay(struct ak_call *c, bool named, struct ak_peer *p)
{
	struct ak_led led = {.meant = p->addr, .meant_len = p->len, .tgid = ak_call_tgid(c), .tid = c->stop->tid,
			     .nr = c->stop->nr, .named = named};
	if (!ak_lead_to_relay(c->enforcer->net_names, &p->addr, &p->len)) {
		p->verdict = (struct ak_verdict){.rule = AK_NO_RULE};
		return;
	}
	p->led_tcp = true;
	p->led = led;
}

/* A budget of bytes is counted in the relay, through which only TCP that the agent opens goes: the rest is refused, and
 * everything once it is spent. */
static void judge_budget(struct ak_call *c, const struct ak_socket *s, enum ak_net_op op, struct ak_peer *p)
{
	bool countable = op == AK_NET_BIND || (op == AK_NET_CONNECT && transport(s) == AK_TCP);
	if (countable && !ak_names_spent(c->enforcer->net_names))
		return;
	p->verdict = (struct ak_verdict){.rule = AK_NO_RULE};
	snprintf(p->target2, sizeof p->target2, "budget:bytes");
}

static void judge_more(struct ak_call *c, const struct ak_socket *s, enum ak_net_op op, const char *kind, const uint8_t *ip,
		       size_t ip_len, struct ak_peer *p)
{
	struct ak_names *names = c->enforcer->net_names;
	bool dns = ak_names_serves_dns(names);
	if (op == AK_NET_BIND && dns && p->port == 0 && p->verdict.rule == AK_NO_RULE && is_unspecified(ip, ip_len))
		p->verdict.decision = AK_ALLOW; /* as the first send or connect would; resolvers bind before they ask */
	bool denied = p->verdict.decision == AK_DENY && p->verdict.rule != AK_NO_RULE;
	if (op == AK_NET_CONNECT && dns && p->port == AK_DNS_PORT && !denied)
		lead_to_dns(c, s, p);
	else if (op == AK_NET_CONNECT)
		judge_by_name(c, s, kind, ip, ip_len, p);
}

/* What is allowed, by a rule or a person, and has to go through the relay. */
static void send_through(struct ak_call *c, const struct ak_socket *s, enum ak_net_op op, struct ak_peer *p)
{
	struct ak_names *names = c->enforcer->net_names;
	bool named = strncmp(p->target, "dns:", 4) == 0;
	if (!names || transport(s) < 0 || p->led_tcp || strcmp(p->target2, "akbox:dns") == 0)
		return;
	unsigned relayed = ak_names_relayed(names);
	if (relayed & AK_RELAY_ALL)
		judge_budget(c, s, op, p);
	if (p->verdict.decision == AK_ALLOW && op == AK_NET_CONNECT && transport(s) == AK_TCP && relayed &&
	    (named || (relayed & AK_RELAY_ALL)))
		lead_to_relay(c, named, p);
	p->error = p->verdict.decision == AK_ALLOW ? 0 : EACCES;
}

static void judge_ip(struct ak_call *c, const struct ak_socket *s, enum ak_net_op op, const uint8_t *ip, size_t ip_len,
		     uint16_t port, uint32_t scope, struct ak_peer *p)
{
	char text[INET6_ADDRSTRLEN] = "?", zone[16] = "";
	const char *kind = transport(s) == AK_UDP ? "udp+" : transport(s) < 0 ? "raw+" : "";
	if (ip_len == 16 && IN6_IS_ADDR_V4MAPPED((const struct in6_addr *)ip)) {
		ip += 12;
		ip_len = 4;
	}
	inet_ntop(ip_len == 4 ? AF_INET : AF_INET6, ip, text, sizeof text);
	if (scope)
		snprintf(zone, sizeof zone, "%%%u", scope);
	if (ip_len == 4)
		snprintf(p->target, sizeof p->target, "%sip:%s:%u", kind, text, port);
	else
		snprintf(p->target, sizeof p->target, "%sip:[%s%s]:%u", kind, text, zone, port);
	p->port = port;
	p->record = true;
	if (transport(s) >= 0)
		p->verdict = ak_policy_net(c->config->policy, op, (enum ak_net_proto)transport(s), ip, ip_len, port);
	p->error = EACCES;
	if (transport(s) >= 0 && c->enforcer->net_names)
		judge_more(c, s, op, kind, ip, ip_len, p);
	if (p->verdict.decision == AK_ALLOW)
		p->error = 0;
}

static int peer_v4(struct ak_call *c, const struct ak_socket *s, enum ak_net_op op, int len, struct ak_peer *p)
{
	struct sockaddr_in *in = (struct sockaddr_in *)&p->addr;
	if (len < (int)sizeof *in)
		return -EINVAL;
	in->sin_family = AF_INET;       /* where AF_UNSPEC comes here, the kernel takes it for AF_INET too */
	p->len = sizeof *in;
	if (op == AK_NET_CONNECT && in->sin_addr.s_addr == INADDR_ANY)
		in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	judge_ip(c, s, op, (const uint8_t *)&in->sin_addr, 4, ntohs(in->sin_port), 0, p);
	return 0;
}

static int peer_v6(struct ak_call *c, const struct ak_socket *s, enum ak_net_op op, int len, struct ak_peer *p)
{
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&p->addr;
	struct in6_addr *ip = &in6->sin6_addr;
	if (len < SIN6_LEN_MIN)
		return -EINVAL;
	p->len = len < (int)sizeof *in6 ? (socklen_t)len : sizeof *in6;
	if (op == AK_NET_CONNECT && IN6_IS_ADDR_UNSPECIFIED(ip))
		*ip = in6addr_loopback;
	if (op == AK_NET_CONNECT && IN6_IS_ADDR_V4MAPPED(ip) && ip->s6_addr32[3] == INADDR_ANY)
		ip->s6_addr32[3] = htonl(INADDR_LOOPBACK);
	judge_ip(c, s, op, ip->s6_addr, 16, ntohs(in6->sin6_port), in6->sin6_scope_id, p);
	return 0;
}

/* A family that is not the socket's is refused by the kernel, but for v4 addresses on UDP sockets of v6. */
static int peer_ip(struct ak_call *c, const struct ak_socket *s, enum ak_net_op op, int len, struct ak_peer *p)
{
	sa_family_t family = p->addr.ss_family;
	if (len < (int)sizeof family)
		return -EINVAL;
	if (s->domain == AF_INET && (family == AF_INET || family == AF_UNSPEC))
		return peer_v4(c, s, op, len, p);
	if (s->domain == AF_INET6 && family == AF_INET6)
		return peer_v6(c, s, op, len, p);
	if (s->domain == AF_INET6 && family == AF_INET && s->type == SOCK_DGRAM && op == AK_NET_CONNECT)
		return peer_v4(c, s, op, len, p);
	return len < (s->domain == AF_INET ? (int)sizeof(struct sockaddr_in) : SIN6_LEN_MIN) ? -EINVAL : -EAFNOSUPPORT;
}

/* ---- unix -------------------------------------------------------------------------------------------------------- */

size_t ak_unix_path(const struct sockaddr_storage *addr, int len, char path[110])
{
	size_t room = len > (int)PATH_AT ? (size_t)len - PATH_AT : 0;
	const char *from = (const char *)addr + PATH_AT;
	size_t used = strnlen(from, room > 108 ? 108 : room);
	memcpy(path, from, used);
	path[used] = 0;
	return used;
}

void ak_abstract_target(const struct sockaddr_storage *addr, int len, char *out, size_t cap)
{
	size_t used = (size_t)snprintf(out, cap, "unix:@");
	const unsigned char *name = (const unsigned char *)addr + PATH_AT + 1;
	for (int i = 0; i < len - (int)PATH_AT - 1 && used + 5 < cap; i++)
		used += (size_t)snprintf(out + used, cap - used, name[i] > ' ' && name[i] < 127 ? "%c" : "\\x%02x", name[i]);
}

void ak_unix_target(const char *path, size_t len, char out[AK_EVENT_TARGET_MAX + 1])
{
	size_t keep = len < AK_EVENT_TARGET_MAX - 5 ? len : AK_EVENT_TARGET_MAX - 5;
	memcpy(out, "unix:", 5);
	memcpy(out + 5, path, keep);
	out[5 + keep] = 0;
}

/* A named socket may be reached by a net.unix rule, or because the agent may write where it lies: so the run's own
 * sockets work. A rule or guard against it (authority sockets) stands against both. */
static struct ak_verdict judge_unix(struct ak_call *c, const struct ak_object *o)
{
	struct ak_verdict v = ak_policy_unix(c->config->policy, o->path, o->len);
	if (v.decision == AK_DENY && v.rule == AK_NO_RULE)
		v = ak_policy_fs(c->config->policy, AK_WRITE, o->path, o->len);
	return v;
}

static int peer_unix_path(struct ak_call *c, char *path, struct ak_peer *p)
{
	struct ak_object o;
	struct sockaddr_un *un = (struct sockaddr_un *)&p->addr;
	int error = ak_resolve(c, AT_FDCWD, path, 0, &o);
	if (error < 0)
		return ak_hide_error(c, AT_FDCWD, path, error);
	memset(un, 0, sizeof *un);
	un->sun_family = AF_UNIX;
	snprintf(un->sun_path, sizeof un->sun_path, "%s", ak_proc_fd(o.fd).text);
	p->len = (socklen_t)(PATH_AT + strlen(un->sun_path) + 1);
	p->hold = o.fd;
	p->record = true;
	p->verdict = judge_unix(c, &o);
	bool nowhere = o.flags & (AK_ANONYMOUS | AK_FOREIGN);
	p->error = p->verdict.decision == AK_ALLOW && !nowhere ? 0 : ak_hidden(c, o.path, o.len) ? ENOENT : EACCES;
	ak_unix_target(o.path, o.len, p->target);
	return 0;
}

/* Landlock would ask whose socket it is, but our threads are outside the agent's domain, so we ask (abstract.c). */
static int peer_unix(struct ak_call *c, const struct sockaddr_storage *addr, int len, struct ak_peer *p)
{
	char path[110];
	if (len <= (int)PATH_AT || len > (int)sizeof(struct sockaddr_un) || addr->ss_family != AF_UNIX)
		return -EINVAL;
	if (ak_unix_path(addr, len, path))
		return peer_unix_path(c, path, p);
	p->len = (socklen_t)len;
	p->record = true;
	p->verdict.decision = ak_abstract_in_run(c, (const char *)addr + PATH_AT, (size_t)len - PATH_AT) ? AK_ALLOW : AK_DENY;
	p->error = p->verdict.decision == AK_ALLOW ? 0 : EPERM;        /* as Landlock's scope answers */
	ak_abstract_target(addr, len, p->target, sizeof p->target);
	return 0;
}

/* ---- netlink ----------------------------------------------------------------------------------------------------- */

/* Only routing sockets can be made. The kernel itself (pid 0, no groups) may be asked; another process may not be
 * written to. Binding chooses the socket's own number and what it hears. */
static int peer_netlink(enum ak_net_op op, int len, struct ak_peer *p)
{
	const struct sockaddr_nl *nl = (const struct sockaddr_nl *)&p->addr;
	if (len < (int)sizeof *nl || nl->nl_family != AF_NETLINK)
		return -EINVAL;
	p->len = sizeof *nl;
	if (op == AK_NET_BIND || (nl->nl_pid == 0 && nl->nl_groups == 0))
		return 0;
	p->record = true;
	p->error = EPERM;
	snprintf(p->target, sizeof p->target, "netlink:%u", nl->nl_pid);
	return 0;
}

static int judge_peer(struct ak_call *c, const struct ak_socket *s, enum ak_net_op op, const struct sockaddr_storage *addr,
		      int len, struct ak_peer *p)
{
	p->addr = *addr;
	p->len = 0;
	p->hold = -1;
	p->record = false;
	p->error = 0;
	p->verdict = (struct ak_verdict){.rule = AK_NO_RULE};
	p->port = 0;
	p->led_tcp = false;
	p->target[0] = 0;
	p->target2[0] = 0;
	switch (s->domain) {
	case AF_INET:
	case AF_INET6:
		return peer_ip(c, s, op, len, p);
	case AF_UNIX:
		return peer_unix(c, addr, len, p);
	case AF_NETLINK:
		return peer_netlink(op, len, p);
	default:
		p->record = true;
		p->error = EACCES;
		snprintf(p->target, sizeof p->target, "family:%d", s->domain);
		return 0;
	}
}

int ak_peer_judge(struct ak_call *c, const struct ak_socket *s, enum ak_net_op op, const struct sockaddr_storage *addr,
		  int len, struct ak_peer *p)
{
	static const uint16_t effects[] = {[AK_NET_CONNECT] = 0x200, [AK_NET_BIND] = 0x202, [AK_NET_LISTEN] = 0x203};
	int error = judge_peer(c, s, op, addr, len, p);
	bool ip = s->domain == AF_INET || s->domain == AF_INET6;
	if (error)
		return error;
	if (p->verdict.decision == AK_ASK && ak_approved(c, effects[op], 0, p->verdict.rule, p->target, NULL)) {
		p->verdict.decision = AK_ALLOW;
		p->error = 0;
	}
	if (ip && p->verdict.decision == AK_ALLOW)
		send_through(c, s, op, p);
	if (c->asks)                    /* answered anew on another thread; until then there is nothing to record */
		p->record = false;
	return 0;
}
