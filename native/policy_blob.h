/* The compiled policy's records, shared by policy_parse.c (checks them), policy.c (paths) and policy_net.c (addresses).
 *
 * Written by akbox/policy/blob.py; the twin in akbox/policy/matcher.py explains what a node is. Layout, all little-endian
 * u32 unless said otherwise: a header {magic, length of the blob, number of rules, 0, 0, 0, then offset and count of each
 * section}, then the sections in the order of enum section. Node 0 is the root, and a child's number is higher than its
 * parent's, so no walk can loop; 0 as a child means "none".
 */
#ifndef AK_POLICY_BLOB_H
#define AK_POLICY_BLOB_H

#include <stdatomic.h>

#include "policy.h"

enum section {
	S_NODES, S_BUCKETS, S_GROUPS, S_GLOBS, S_ACCEPTS, S_SLOTS, S_STRINGS,
	S_NET_LENGTHS, S_NET_PREFIXES, S_NET_INTERVALS, S_NET_ENTRIES,
	SECTIONS,
};

struct header { uint32_t magic, len, rules, reserved[3]; struct { uint32_t offset, count; } section[SECTIONS]; };
struct node { uint32_t any, star, first_bucket, first_accept; uint16_t buckets, accepts; uint32_t flags; };
struct bucket { uint16_t kind, len; };
struct group { uint32_t parent, hash, text; uint8_t kind, zero, pad[2]; uint16_t len, pad2; uint32_t first, count; };
struct glob { uint32_t child, text; uint16_t len, digits; };
struct accept { uint32_t rule; uint8_t effect, needs, exact, domain; };
struct net_length { uint8_t size, bits, pad[2]; uint32_t first, count; };
struct net_prefix { uint8_t addr[16]; uint32_t first, count; };
struct net_interval { uint16_t low, high; uint32_t first, count; };
struct net_entry { uint32_t rule; uint8_t op, proto, effect, zero; };

_Static_assert(sizeof(struct header) == 112 && sizeof(struct node) == 24 && sizeof(struct group) == 28, "blob.py");
_Static_assert(sizeof(struct glob) == 12 && sizeof(struct accept) == 8 && sizeof(struct net_length) == 12, "blob.py");
_Static_assert(sizeof(struct net_prefix) == 24 && sizeof(struct net_interval) == 12, "blob.py");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the blob is read in place");

enum { FLAG_LOOP = 1, FLAG_LITERALS = 2 };
enum { K_LITERAL, K_PREFIX, K_SUFFIX };
enum { E_ALLOW, E_ASK, E_DENY, E_GUARD, E_FREE, EFFECTS };
enum { D_FS, D_UNIX };

/* Bits of "which lists of patterns", as in matcher.py. */
#define LIST_FS_ALLOW 0x0007u
#define LIST_FS_ASK 0x0038u
#define LIST_FS_DENY 0x01c0u
#define LIST_FS_GUARD 0x0200u
#define LIST_UNIX_ALLOW 0x0800u
#define LIST_COUNT 16

struct lists { uint32_t at, below; };

struct ak_policy {
	uint8_t *blob;
	const struct node *nodes;
	const struct bucket *buckets;
	const struct group *groups;
	const struct glob *globs;
	const struct accept *accepts;
	const uint32_t *slots;
	const char *strings;
	const struct net_length *net_lengths;
	const struct net_prefix *net_prefixes;
	const struct net_interval *net_intervals;
	const struct net_entry *net_entries;
	struct lists *lists;            /* per node, computed here */
	uint32_t n[SECTIONS];
	uint32_t rules;
	uint32_t slot_mask;
	const struct ak_policy *parent; /* of a view; NULL: none */
	_Atomic(atomic_ullong *) ends;  /* of a view: when each rule is over, CLOCK_BOOTTIME ns, 0: never; NULL: no rule has an end */
	bool is_view;
	uint32_t crc_table[256];        /* CRC-32 of zlib: incremental, so one pass gives the hash of every prefix */
};

/* policy_net.c: ak_policy_net() without what the parent says. */
struct ak_verdict ak_policy_net_own(const struct ak_policy *p, enum ak_net_op op, enum ak_net_proto proto,
				    const uint8_t *addr, size_t addr_len, uint16_t port);
/* policy_view.c: does the rule grant nothing any more? */
bool ak_rule_over(const struct ak_policy *p, uint32_t rule);
/* The stricter of our verdict and the parent's, whose rules are numbered after ours. */
struct ak_verdict ak_stricter(const struct ak_policy *p, struct ak_verdict own, struct ak_verdict above);

static inline bool ak_has_ends(const struct ak_policy *p)
{
	return atomic_load_explicit(&p->ends, memory_order_acquire) != NULL;
}

static inline void ak_lower(uint32_t *have, uint32_t rule)
{
	if (rule < *have)
		*have = rule;
}

#endif
