/* Pins and led sockets; see names.h. Nothing here reads the agent. */
#include "names.h"

#include "policy_blob.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BUCKETS 1024u           /* of pins, by address */
#define LED_MAX 2048u           /* sockets remembered; the oldest is forgotten first, its queries are then not answered */

struct pin {
	struct pin *next;               /* of the same bucket */
	uint8_t addr[16];
	uint64_t until_ns;              /* CLOCK_BOOTTIME; UINT64_MAX: as long as the run */
	size_t count;
	const char *name;               /* behind the rules */
	struct ak_pin_rule rules[];
};

struct ak_names {
	struct ak_own_server udp, tcp, relay;   /* read-only */
	unsigned relayed;
	struct ak_names *above;
	atomic_bool spent;

	pthread_mutex_t pins_lock;      /* guards the pins */
	struct pin *buckets[BUCKETS];
	unsigned pins;

	pthread_mutex_t led_lock;       /* guards what follows */
	uint64_t udp_inode[LED_MAX];    /* beside the rest, so that a search touches little memory */
	struct ak_led udp_led[LED_MAX];
	unsigned next_udp;
	uint16_t tcp_port[LED_MAX];
	struct ak_led tcp_led[LED_MAX];
	unsigned next_tcp;
};

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_BOOTTIME, &t);      /* a TTL runs on while the machine sleeps */
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

struct ak_names *ak_names_new(const struct ak_own_server *udp, const struct ak_own_server *tcp,
			      const struct ak_own_server *relay, unsigned relayed, struct ak_names *above)
{
	struct ak_names *n = calloc(1, sizeof *n);
	if (!n)
		return NULL;
	n->udp = *udp;
	n->tcp = *tcp;
	n->relay = *relay;
	n->relayed = relayed;
	n->above = above;
	pthread_mutex_init(&n->pins_lock, NULL);
	pthread_mutex_init(&n->led_lock, NULL);
	return n;
}

void ak_names_free(struct ak_names *n)
{
	if (!n)
		return;
	for (unsigned i = 0; i < BUCKETS; i++) {
		while (n->buckets[i]) {
			struct pin *p = n->buckets[i];
			n->buckets[i] = p->next;
			free(p);
		}
	}
	free(n);
}

/* ---- pins -------------------------------------------------------------------------------------------------------- */

static void as_v6(const uint8_t *addr, size_t len, uint8_t out[16])
{
	static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	if (len == 4) {
		memcpy(out, mapped, sizeof mapped);
		memcpy(out + 12, addr, 4);
	} else {
		memcpy(out, addr, 16);
	}
}

static unsigned bucket_of(const uint8_t addr[16])
{
	uint32_t h = 2166136261u;       /* FNV-1a; an agent that finds collisions slows its own connects */
	for (int i = 0; i < 16; i++)
		h = (h ^ addr[i]) * 16777619u;
	return (h ^ h >> 16) % BUCKETS;
}

/* Precondition: pins_lock. Frees what is over in one bucket, and the pin of this name and address. */
static void weed(struct ak_names *n, unsigned bucket, uint64_t now, const uint8_t *addr, const char *name)
{
	for (struct pin **at = &n->buckets[bucket]; *at;) {
		struct pin *p = *at;
		bool same = addr && memcmp(p->addr, addr, 16) == 0 && strcmp(p->name, name) == 0;
		if (p->until_ns > now && !same) {
			at = &p->next;
			continue;
		}
		*at = p->next;
		n->pins--;
		free(p);
	}
}

static struct pin *pin_new(const uint8_t addr[16], const char *name, size_t name_len, const struct ak_pin_rule *rules,
			   size_t count)
{
	struct pin *p = malloc(sizeof *p + count * sizeof *rules + name_len + 1);
	if (!p)
		return NULL;
	char *text = (char *)(p->rules + count);
	memcpy(p->addr, addr, 16);
	if (count)
		memcpy(p->rules, rules, count * sizeof *rules);
	memcpy(text, name, name_len);
	text[name_len] = 0;
	p->name = text;
	p->count = count;
	return p;
}

int ak_pin(struct ak_names *n, const uint8_t addr[16], const char *name, size_t name_len, uint32_t seconds,
	   const struct ak_pin_rule *rules, size_t count)
{
	if (name_len == 0 || name_len > AK_HOST_MAX || memchr(name, 0, name_len) || count > UINT16_MAX)
		return -EINVAL;
	struct pin *p = pin_new(addr, name, name_len, rules, count);
	if (!p)
		return -ENOMEM;
	unsigned bucket = bucket_of(addr);
	uint64_t now = now_ns();
	int error = 0;
	p->until_ns = seconds == AK_PIN_FOREVER ? UINT64_MAX : now + seconds * 1000000000ull;
	pthread_mutex_lock(&n->pins_lock);
	weed(n, bucket, now, addr, p->name);
	for (unsigned i = 0; n->pins >= AK_PINS_MAX && i < BUCKETS; i++)
		weed(n, i, now, NULL, NULL);
	if (n->pins < AK_PINS_MAX) {
		p->next = n->buckets[bucket];
		n->buckets[bucket] = p;
		n->pins++;
	} else {
		free(p);
		error = -ENOSPC;
	}
	pthread_mutex_unlock(&n->pins_lock);
	return error;
}

/* What the rules say on the names that the address was handed out for in this table. A rule that is over is passed by. */
static struct ak_verdict judge_pins(const struct ak_policy *p, struct ak_names *n, enum ak_net_proto proto, const uint8_t *addr,
				    size_t addr_len, uint16_t port, char name[AK_HOST_MAX + 1])
{
	static const uint8_t decision[3] = {AK_ALLOW, AK_ASK, AK_DENY};
	struct ak_verdict v = {.rule = AK_NO_RULE, .decision = AK_DENY};
	uint8_t whole[16];
	int best = -1;
	as_v6(addr, addr_len, whole);
	name[0] = 0;
	uint64_t now = now_ns();
	pthread_mutex_lock(&n->pins_lock);
	for (const struct pin *pin = n->buckets[bucket_of(whole)]; pin; pin = pin->next) {
		if (pin->until_ns <= now || memcmp(pin->addr, whole, 16) != 0)
			continue;
		if (!name[0])
			memcpy(name, pin->name, strlen(pin->name) + 1);
		for (size_t i = 0; i < pin->count; i++) {
			const struct ak_pin_rule *r = &pin->rules[i];
			if (r->proto != proto || port < r->low || port > r->high || r->effect > 2)
				continue;
			if (r->effect < best || (r->effect == best && r->rule >= v.rule))
				continue;
			if (r->effect != 2 && ak_rule_over(p, r->rule))
				continue;
			best = r->effect;
			v.rule = r->rule;
			memcpy(name, pin->name, strlen(pin->name) + 1);
		}
	}
	pthread_mutex_unlock(&n->pins_lock);
	if (best >= 0)
		v.decision = decision[best];
	return v;
}

/* deny > ask > allow > no rule at all. */
static int weight(struct ak_verdict v)
{
	if (v.rule == AK_NO_RULE)
		return 0;
	return v.decision == AK_ALLOW ? 1 : v.decision == AK_ASK ? 2 : 3;
}

struct ak_verdict ak_judge_named(const struct ak_policy *p, struct ak_names *n, enum ak_net_proto proto, const uint8_t *addr,
				 size_t addr_len, uint16_t port, char name[AK_HOST_MAX + 1])
{
	char unused[AK_HOST_MAX + 1];
	struct ak_verdict v = ak_policy_net_own(p, AK_NET_CONNECT, proto, addr, addr_len, port), by_name = {.rule = AK_NO_RULE};
	name[0] = 0;
	if (n)
		by_name = judge_pins(p, n, proto, addr, addr_len, port, name);
	if (weight(by_name) > weight(v) || (weight(by_name) == weight(v) && by_name.rule < v.rule))
		v = by_name;            /* of two that say the same the policy's first is named, as everywhere */
	else if (weight(v))
		name[0] = 0;            /* a rule on addresses decided */
	if (!p->parent || v.decision == AK_DENY)
		return v;
	return ak_stricter(p, v, ak_judge_named(p->parent, n ? n->above : NULL, proto, addr, addr_len, port, unused));
}

/* ---- led sockets ------------------------------------------------------------------------------------------------- */

/* The v4 server's address for a v6 socket that is not v6 only. */
static void as_mapped(const struct sockaddr_storage *v4, struct sockaddr_storage *out, socklen_t *len)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *)v4;
	struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = in->sin_port};
	as_v6((const uint8_t *)&in->sin_addr, 4, six.sin6_addr.s6_addr);
	memset(out, 0, sizeof *out);
	memcpy(out, &six, sizeof six);
	*len = sizeof six;
}

static bool lead_to(const struct ak_own_server *to, struct sockaddr_storage *addr, socklen_t *len)
{
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)addr;
	if (addr->ss_family == AF_INET6 && !IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) && to->v6_len) {
		*addr = to->v6;
		*len = to->v6_len;
		return true;
	}
	if (!to->v4_len)
		return false;
	if (addr->ss_family == AF_INET) {
		*addr = to->v4;
		*len = to->v4_len;
	} else {
		as_mapped(&to->v4, addr, len);
	}
	return true;
}

bool ak_lead_to_dns(const struct ak_names *n, enum ak_net_proto proto, struct sockaddr_storage *addr, socklen_t *len)
{
	return lead_to(proto == AK_UDP ? &n->udp : &n->tcp, addr, len);
}

bool ak_lead_to_relay(const struct ak_names *n, struct sockaddr_storage *addr, socklen_t *len)
{
	return lead_to(&n->relay, addr, len);
}

bool ak_names_serves_dns(const struct ak_names *n)
{
	return n->udp.v4_len != 0;
}

unsigned ak_names_relayed(const struct ak_names *n)
{
	return n->relayed;
}

void ak_names_spend(struct ak_names *n)
{
	atomic_store(&n->spent, true);
}

bool ak_names_spent(const struct ak_names *n)
{
	return atomic_load(&n->spent);
}

static bool same_end(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
	if (a->ss_family != b->ss_family)
		return false;
	if (a->ss_family == AF_INET) {
		const struct sockaddr_in *x = (const struct sockaddr_in *)a, *y = (const struct sockaddr_in *)b;
		return x->sin_port == y->sin_port && x->sin_addr.s_addr == y->sin_addr.s_addr;
	}
	const struct sockaddr_in6 *x = (const struct sockaddr_in6 *)a, *y = (const struct sockaddr_in6 *)b;
	return x->sin6_port == y->sin6_port && memcmp(&x->sin6_addr, &y->sin6_addr, 16) == 0;
}

bool ak_is_own_dns(const struct ak_names *n, const struct sockaddr_storage *addr)
{
	struct sockaddr_storage mapped;
	socklen_t len;
	if (addr->ss_family == AF_INET)
		return n->udp.v4_len && same_end(addr, &n->udp.v4);
	if (addr->ss_family != AF_INET6)
		return false;
	if (n->udp.v6_len && same_end(addr, &n->udp.v6))
		return true;
	as_mapped(&n->udp.v4, &mapped, &len);
	return n->udp.v4_len && same_end(addr, &mapped);
}

/* Precondition: led_lock. LED_MAX when it is not there. */
static unsigned find_udp(const struct ak_names *n, uint64_t inode)
{
	unsigned at = 0;
	while (at < LED_MAX && n->udp_inode[at] != inode)
		at++;
	return at;
}

void ak_led_udp(struct ak_names *n, uint64_t inode, const struct ak_led *led)
{
	pthread_mutex_lock(&n->led_lock);
	unsigned at = find_udp(n, inode);
	if (at == LED_MAX) {
		at = n->next_udp;
		n->next_udp = (n->next_udp + 1) % LED_MAX;
	}
	n->udp_inode[at] = inode;
	n->udp_led[at] = *led;
	pthread_mutex_unlock(&n->led_lock);
}

bool ak_find_led_udp(struct ak_names *n, uint64_t inode, struct ak_led *out)
{
	if (inode == 0)
		return false;
	pthread_mutex_lock(&n->led_lock);
	unsigned at = find_udp(n, inode);
	if (at < LED_MAX)
		*out = n->udp_led[at];
	pthread_mutex_unlock(&n->led_lock);
	return at < LED_MAX;
}

void ak_led_lock(struct ak_names *n)
{
	pthread_mutex_lock(&n->led_lock);
}

void ak_led_unlock(struct ak_names *n)
{
	pthread_mutex_unlock(&n->led_lock);
}

void ak_led_tcp(struct ak_names *n, uint16_t port, const struct ak_led *led)
{
	n->tcp_led[n->next_tcp] = *led;
	n->tcp_port[n->next_tcp] = port;
	n->next_tcp = (n->next_tcp + 1) % LED_MAX;
}

bool ak_claim_tcp(struct ak_names *n, uint16_t port, struct ak_led *out)
{
	bool found = false;
	if (port == 0)
		return false;
	pthread_mutex_lock(&n->led_lock);
	for (unsigned i = 0; i < LED_MAX && !found; i++) {
		unsigned at = (n->next_tcp + LED_MAX - 1 - i) % LED_MAX;       /* the youngest of that port */
		found = n->tcp_port[at] == port;
		if (found) {
			*out = n->tcp_led[at];
			n->tcp_port[at] = 0;
		}
	}
	pthread_mutex_unlock(&n->led_lock);
	return found;
}
