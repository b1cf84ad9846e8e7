/* Which rule covers an address and a port: one binary search per prefix length, one more over the network's port ranges. */
#include "policy_blob.h"

#include <string.h>

static const uint8_t mapped_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static void mask(uint8_t *addr, size_t size, unsigned bits)
{
	for (size_t i = 0; i < size; i++, bits = bits > 8 ? bits - 8 : 0)
		if (bits < 8)
			addr[i] &= (uint8_t)(0xff00u >> bits);
}

static const struct net_prefix *find_prefix(const struct ak_policy *p, const struct net_length *l, const uint8_t *addr)
{
	uint32_t low = l->first, high = l->first + l->count;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;
		int order = memcmp(p->net_prefixes[mid].addr, addr, l->size);

		if (!order)
			return &p->net_prefixes[mid];
		if (order < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return NULL;
}

static const struct net_interval *find_interval(const struct ak_policy *p, const struct net_prefix *n, uint16_t port)
{
	uint32_t low = n->first, high = n->first + n->count;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;
		const struct net_interval *i = &p->net_intervals[mid];

		if (port >= i->low && port <= i->high)
			return i;
		if (port > i->high)
			low = mid + 1;
		else
			high = mid;
	}
	return NULL;
}

/* v4-mapped v6 is v4; a connect to the unspecified address goes to loopback on Linux, so that is what is judged. */
static size_t canonical_address(uint8_t out[16], const uint8_t *addr, size_t len, enum ak_net_op op)
{
	static const uint8_t zero[16];

	if (len == 16 && !memcmp(addr, mapped_prefix, sizeof(mapped_prefix))) {
		addr += 12;
		len = 4;
	}
	memset(out, 0, 16);
	memcpy(out, addr, len);
	if (op == AK_NET_CONNECT && !memcmp(out, zero, len)) {
		out[0] = len == 4 ? 127 : 0;
		out[len - 1] = 1;
	}
	return len;
}

/* A rule that is over is passed by. Of several rules for the same network, ports and effect the table has the first only: when
 * that is over, what another of them would grant is refused too. */
static struct ak_verdict judge(const struct ak_policy *p, enum ak_net_op op, enum ak_net_proto proto, const uint8_t *addr,
			       size_t addr_len, uint16_t port)
{
	static const uint8_t decision[3] = {[E_ALLOW] = AK_ALLOW, [E_ASK] = AK_ASK, [E_DENY] = AK_DENY};
	struct ak_verdict v = {.rule = AK_NO_RULE, .decision = AK_DENY};
	uint32_t best[3] = {AK_NO_RULE, AK_NO_RULE, AK_NO_RULE};
	uint8_t whole_addr[16];
	size_t size;

	if (addr_len != 4 && addr_len != 16)
		return v;
	size = canonical_address(whole_addr, addr, addr_len, op);
	for (uint32_t i = 0; i < p->n[S_NET_LENGTHS]; i++) {
		const struct net_length *l = &p->net_lengths[i];
		const struct net_prefix *n;
		const struct net_interval *r;
		uint8_t masked[16];

		if (l->size != size)
			continue;
		memcpy(masked, whole_addr, sizeof(masked));
		mask(masked, size, l->bits);
		n = find_prefix(p, l, masked);
		r = n ? find_interval(p, n, port) : NULL;
		for (uint32_t j = 0; r && j < r->count; j++) {
			const struct net_entry *e = &p->net_entries[r->first + j];

			if (e->op == op && e->proto == proto && (e->effect == E_DENY || !ak_rule_over(p, e->rule)))
				ak_lower(&best[e->effect], e->rule);
		}
	}
	for (int effect = E_DENY; effect >= E_ALLOW; effect--) {
		if (best[effect] != AK_NO_RULE) {
			v.rule = best[effect];
			v.decision = decision[effect];
			break;
		}
	}
	return v;
}

struct ak_verdict ak_policy_net_own(const struct ak_policy *p, enum ak_net_op op, enum ak_net_proto proto,
				    const uint8_t *addr, size_t addr_len, uint16_t port)
{
	return judge(p, op, proto, addr, addr_len, port);
}

struct ak_verdict ak_policy_net(const struct ak_policy *p, enum ak_net_op op, enum ak_net_proto proto,
				const uint8_t *addr, size_t addr_len, uint16_t port)
{
	struct ak_verdict v = judge(p, op, proto, addr, addr_len, port);

	if (!p->parent || v.decision == AK_DENY)
		return v;
	return ak_stricter(p, v, ak_policy_net(p->parent, op, proto, addr, addr_len, port));
}
