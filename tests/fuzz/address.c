/* libFuzzer: any socket address for any socket. What comes out as allowed is an address that the policy allows, in a family that
 * the kernel reads the same way; what is led elsewhere goes to our own servers; texts end where they must.
 *
 * Input: socket, operation and names, length, then the address. `scripts/fuzz address` builds and runs it; with -DSTANDALONE
 * it asks about random ones: [ROUNDS [SEED]].
 */
#include <assert.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent.h"
#include "peer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RENEW_EVERY 65536
#define PATH_AT offsetof(struct sockaddr_un, sun_path)

static const struct { int domain, type, protocol; } kinds[] = {
	{AF_INET, SOCK_STREAM, IPPROTO_TCP}, {AF_INET, SOCK_DGRAM, IPPROTO_UDP}, {AF_INET, SOCK_DGRAM, IPPROTO_ICMP},
	{AF_INET6, SOCK_STREAM, IPPROTO_TCP}, {AF_INET6, SOCK_DGRAM, IPPROTO_UDP}, {AF_UNIX, SOCK_STREAM, 0},
	{AF_UNIX, SOCK_DGRAM, 0}, {AF_UNIX, SOCK_SEQPACKET, 0}, {AF_NETLINK, SOCK_RAW, 0}, {AF_VSOCK, SOCK_STREAM, 0},
};

static bool is_server(const struct agent *a, const struct ak_peer *p)
{
	struct sockaddr_storage own = p->addr;
	socklen_t len = p->len;
	return ak_lead_to_relay(a->names, &own, &len) && len == p->len && memcmp(&own, &p->addr, len) == 0;
}

static void check_ip(const struct agent *a, const struct ak_socket *s, enum ak_net_op op, const struct ak_peer *p, bool names)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)&p->addr;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&p->addr;
	bool v4 = p->addr.ss_family == AF_INET;
	const uint8_t *ip = v4 ? (const uint8_t *)&in->sin_addr : in6->sin6_addr.s6_addr;
	enum ak_net_proto proto = s->type == SOCK_STREAM ? AK_TCP : AK_UDP;

	assert(s->protocol != IPPROTO_ICMP);    /* no rule is about it */
	assert(v4 || p->addr.ss_family == AF_INET6);
	assert(v4 ? p->len == sizeof *in : p->len >= 24 && p->len <= sizeof *in6);
	if (p->led_tcp || strcmp(p->target2, "akbox:dns") == 0) {
		assert(names && op == AK_NET_CONNECT && is_server(a, p));
		return;
	}
	if (op == AK_NET_CONNECT) {     /* the kernel would go to this machine */
		assert(!v4 || in->sin_addr.s_addr != INADDR_ANY);
		assert(v4 || !IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr));
		assert(v4 || !IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) || in6->sin6_addr.s6_addr32[3] != INADDR_ANY);
	}
	struct ak_verdict v = ak_policy_net(a->policy, op, proto, ip, v4 ? 4 : 16, ntohs(in->sin_port));
	assert(v.decision == AK_ALLOW || (names && (p->target2[0] || ntohs(in->sin_port) == 0)));
}

static void check_unix(const struct agent *a, const struct ak_peer *p)
{
	const struct sockaddr_un *un = (const struct sockaddr_un *)&p->addr;
	char name[PATH_MAX];

	assert(un->sun_family == AF_UNIX);
	if (p->hold < 0) {              /* abstract, and the run's own: the agent here has none */
		assert(!"an abstract socket of nobody's");
		return;
	}
	assert(strcmp(un->sun_path, ak_proc_fd(p->hold).text) == 0 && p->len == PATH_AT + strlen(un->sun_path) + 1);
	ssize_t n = readlink(un->sun_path, name, sizeof name);
	assert(n > 0);
	if (ak_policy_unix(a->policy, name, (size_t)n).decision != AK_ALLOW && strncmp(name, "/proc/", 6) != 0)
		assert(ak_policy_fs(a->policy, AK_WRITE, name, (size_t)n).decision == AK_ALLOW);
}

static void check_texts(const struct sockaddr_storage *addr, int len)
{
	char path[110], target[AK_EVENT_TARGET_MAX + 1], small[64];

	if (len < (int)sizeof(sa_family_t) || len > (int)sizeof(struct sockaddr_un))
		return;
	size_t used = ak_unix_path(addr, len, path);
	assert(used <= 108 && path[used] == 0 && strlen(path) == used && (int)used <= len);
	ak_unix_target(path, used, target);
	assert(strcmp(target + 5, path) == 0);
	ak_abstract_target(addr, len, target, sizeof target);
	ak_abstract_target(addr, len, small, sizeof small);
	assert(strlen(small) < sizeof small);
	for (const char *c = target; *c; c++)
		assert(*c > ' ' && *c < 127);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct agent *a;
	static unsigned asked;
	struct sockaddr_storage addr = {0};
	struct ak_peer p;

	if (!a)
		a = agent_start(0);
	if (size < 4)
		return 0;
	if (asked++ % RENEW_EVERY == 0)
		agent_renew(a);
	agent_begin();
	unsigned kind = data[0] % (sizeof kinds / sizeof *kinds);
	struct ak_socket s = {.fd = 0, .domain = kinds[kind].domain, .type = kinds[kind].type, .protocol = kinds[kind].protocol};
	enum ak_net_op op = s.domain == AF_UNIX ? AK_NET_CONNECT : (enum ak_net_op)(data[1] % 3);
	bool names = data[1] & 0x80;
	int len = (int8_t)data[2] < 0 && data[3] & 1 ? (int8_t)data[2] : data[2];
	struct ak_stop stop = agent_stop(a, SYS_connect, 10000);
	struct ak_call c = {.enforcer = a->enforcer, .config = &a->enforcer->config, .stop = &stop};

	memset(MEMORY, data[3], sizeof addr);
	memcpy(MEMORY, data + 4, size - 4 < sizeof addr ? size - 4 : sizeof addr);
	a->enforcer->net_names = names ? a->names : NULL;
	int r = ak_read_address(&c, (uint64_t)(uintptr_t)MEMORY, len, &addr);
	assert((r == 0) == (len >= 0 && (size_t)len <= sizeof addr));
	if (r == 0) {
		check_texts(&addr, len);
		r = ak_peer_judge(&c, &s, op, &addr, len, &p);
		assert(r <= 0 && r > -4096);
		if (r == 0 && !c.asks) {
			assert(memchr(p.target, 0, sizeof p.target) && memchr(p.target2, 0, sizeof p.target2) && p.len <= sizeof p.addr);
			assert(p.error || !p.record || p.verdict.decision == AK_ALLOW);
			if (!p.error && (s.domain == AF_INET || s.domain == AF_INET6))
				check_ip(a, &s, op, &p, names);
			if (!p.error && s.domain == AF_UNIX)
				check_unix(a, &p);
			assert(p.error || s.domain != AF_VSOCK);
			(void)ak_peer_record(&c, 0x200, &p, -p.error);
		}
		if (r == 0)
			ak_peer_close(&p);
	}
	agent_check(a);
	return 0;
}

#ifdef STANDALONE
int main(int argc, char **argv)
{
	unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 2000;
	static const uint8_t families[] = {AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC, AF_NETLINK};
	static uint8_t data[140];

	srandom(argc > 2 ? (unsigned)atoi(argv[2]) : 1);
	for (unsigned long i = 0; i < rounds; i++) {
		size_t size = 4 + (size_t)random() % (sizeof data - 4);
		for (size_t n = 0; n < size; n++)
			data[n] = random() % 3 ? (uint8_t)random() : 0;
		if (size > 6 && random() % 8) {
			data[4] = families[(size_t)random() % sizeof families];
			data[5] = 0;
			data[2] = (uint8_t)(random() % 2 ? 16 + random() % 13 : data[2]);
		}
		if (size > 12 && random() % 2) {        /* near what the policy allows */
			static const uint8_t near[] = {0, 9, 127, 0, 0, 1};
			memcpy(data + 6, near, sizeof near);
		}
		(void)LLVMFuzzerTestOneInput(data, size);
	}
	printf("%lu rounds: nothing found\n", rounds);
	return 0;
}
#endif
