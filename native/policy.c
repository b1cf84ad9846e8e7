/* The matcher: an automaton over path segments and a table of networks, both read from one checked blob.
 *
 * Written by akbox/policy/blob.py; the twin in akbox/policy/matcher.py explains what a node is. Layout, all little-endian
 * u32 unless said otherwise: a header {magic, length of the blob, number of rules, 0, 0, 0, then offset and count of each
 * section}, then the sections in the order of enum section. Node 0 is the root, and a child's number is higher than its
 * parent's, so no walk can loop; 0 as a child means "none".
 *
 * After ak_policy_parse() nothing here allocates, locks or writes to the policy.
 */
#include "policy.h"

#include <stdlib.h>
#include <string.h>

#define MAGIC 0x504B4101u
#define LIVE_MAX 512            /* LIVE_MAX of matcher.py: a path that makes more nodes live is refused by both */

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

static const uint32_t record_size[SECTIONS] = {
	sizeof(struct node), sizeof(struct bucket), sizeof(struct group), sizeof(struct glob), sizeof(struct accept),
	sizeof(uint32_t), 1, sizeof(struct net_length), sizeof(struct net_prefix), sizeof(struct net_interval),
	sizeof(struct net_entry),
};

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
	uint32_t crc_table[256];        /* CRC-32 of zlib: incremental, so one pass gives the hash of every prefix */
};

/* ---- parsing: nothing in the blob is believed ------------------------------------------------------------------- */

static bool in_range(uint32_t first, uint32_t count, uint32_t total)
{
	return first <= total && count <= total - first;
}

static const char *check_groups(const struct ak_policy *p)
{
	for (uint32_t i = 0; i < p->n[S_GROUPS]; i++) {
		const struct group *g = &p->groups[i];

		if (g->parent >= p->n[S_NODES] || !in_range(g->text, g->len, p->n[S_STRINGS]) || g->kind > K_SUFFIX)
			return "a group points outside";
		if (g->kind == K_LITERAL) {
			if (g->first <= g->parent || g->first >= p->n[S_NODES] || g->count != 1)
				return "a literal edge does not lead down";
			continue;
		}
		if (!in_range(g->first, g->count, p->n[S_GLOBS]))
			return "a group's globs lie outside";
		for (uint32_t j = g->first; j < g->first + g->count; j++)
			if (p->globs[j].child <= g->parent)
				return "a glob edge does not lead down";
	}
	for (uint32_t i = 0; i < p->n[S_GLOBS]; i++)
		if (p->globs[i].child >= p->n[S_NODES] || !in_range(p->globs[i].text, p->globs[i].len, p->n[S_STRINGS]))
			return "a glob points outside";
	return NULL;
}

static const char *check_nodes(const struct ak_policy *p)
{
	if (!p->n[S_NODES])
		return "no root";
	for (uint32_t i = 0; i < p->n[S_NODES]; i++) {
		const struct node *n = &p->nodes[i];

		if (n->any >= p->n[S_NODES] || n->star >= p->n[S_NODES] || (n->any && n->any <= i) || (n->star && n->star <= i))
			return "an edge does not lead down";
		if (n->star && (!(p->nodes[n->star].flags & FLAG_LOOP) || p->nodes[n->star].star))
			return "a ** leads to a node that does not loop, or to another **";
		if (!in_range(n->first_bucket, n->buckets, p->n[S_BUCKETS]) || !in_range(n->first_accept, n->accepts, p->n[S_ACCEPTS]))
			return "a node's lists lie outside";
	}
	for (uint32_t i = 0; i < p->n[S_BUCKETS]; i++)
		if (p->buckets[i].kind != K_PREFIX && p->buckets[i].kind != K_SUFFIX)
			return "a bucket of an unknown kind";
	for (uint32_t i = 0; i < p->n[S_ACCEPTS]; i++) {
		const struct accept *a = &p->accepts[i];

		if (a->rule >= p->rules || a->effect >= EFFECTS || a->needs > 7 || a->exact > 1 || a->domain > D_UNIX)
			return "an accept is out of range";
	}
	return NULL;
}

static const char *check_slots(struct ak_policy *p)
{
	uint32_t n = p->n[S_SLOTS], used = 0;

	if (!n || (n & (n - 1)))
		return "the hash table's size is not a power of two";
	for (uint32_t i = 0; i < n; i++) {
		if (p->slots[i] > p->n[S_GROUPS])
			return "a slot points outside";
		used += p->slots[i] != 0;
	}
	if (used == n)
		return "the hash table is full";        /* probing ends at an empty slot */
	p->slot_mask = n - 1;
	return NULL;
}

static const char *check_net(const struct ak_policy *p)
{
	for (uint32_t i = 0; i < p->n[S_NET_LENGTHS]; i++) {
		const struct net_length *l = &p->net_lengths[i];

		if ((l->size != 4 && l->size != 16) || l->bits > l->size * 8u || !in_range(l->first, l->count, p->n[S_NET_PREFIXES]))
			return "a network length is out of range";
	}
	for (uint32_t i = 0; i < p->n[S_NET_PREFIXES]; i++)
		if (!in_range(p->net_prefixes[i].first, p->net_prefixes[i].count, p->n[S_NET_INTERVALS]))
			return "a network's ports lie outside";
	for (uint32_t i = 0; i < p->n[S_NET_INTERVALS]; i++)
		if (!in_range(p->net_intervals[i].first, p->net_intervals[i].count, p->n[S_NET_ENTRIES]))
			return "a port range's rules lie outside";
	for (uint32_t i = 0; i < p->n[S_NET_ENTRIES]; i++) {
		const struct net_entry *e = &p->net_entries[i];

		if (e->rule >= p->rules || e->op > AK_NET_LISTEN || e->proto > AK_UDP || e->effect > E_DENY)
			return "a network rule is out of range";
	}
	return NULL;
}

static uint32_t lists_of(const struct accept *a)
{
	if (a->domain == D_UNIX)
		return LIST_UNIX_ALLOW << a->effect;
	if (a->effect >= E_GUARD)
		return LIST_FS_GUARD << (a->effect - E_GUARD);
	return (uint32_t)a->needs << (3 * a->effect);
}

/* Children come after their parents, so one pass from the end sees every child before its parent. */
static void fill_lists(struct ak_policy *p)
{
	for (uint32_t i = 0; i < p->n[S_GROUPS]; i++)
		for (uint32_t j = 0; p->groups[i].kind != K_LITERAL && j < p->groups[i].count; j++)
			p->lists[p->globs[p->groups[i].first + j].child].below = p->groups[i].parent;
	for (uint32_t i = 0; i < p->n[S_GROUPS]; i++)
		if (p->groups[i].kind == K_LITERAL)
			p->lists[p->groups[i].first].below = p->groups[i].parent;
	for (uint32_t i = 0; i < p->n[S_NODES]; i++) {
		if (p->nodes[i].any)
			p->lists[p->nodes[i].any].below = i;
		if (p->nodes[i].star)
			p->lists[p->nodes[i].star].below = i;
	}
	/* `below` holds the parent's number until its node is reached; `at` collects what comes from below. */
	for (uint32_t i = p->n[S_NODES]; i-- > 0;) {
		const struct node *n = &p->nodes[i];
		uint32_t parent = p->lists[i].below, at = 0;

		for (uint32_t j = 0; j < n->accepts; j++)
			at |= lists_of(&p->accepts[n->first_accept + j]);
		p->lists[i].below = p->lists[i].at | at;
		p->lists[i].at = at;
		if (i)
			p->lists[parent].at |= p->lists[i].below;
	}
}

static void fill_crc_table(uint32_t table[256])
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;

		for (int k = 0; k < 8; k++)
			c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
		table[i] = c;
	}
}

static const char *check_sections(struct ak_policy *p, size_t len)
{
	const struct header *h = (const struct header *)p->blob;
	const void *base[SECTIONS];

	if (h->magic != MAGIC || h->len != len || h->reserved[0] || h->reserved[1] || h->reserved[2])
		return "not a compiled policy of this version";
	for (int i = 0; i < SECTIONS; i++) {
		uint64_t end = h->section[i].offset + (uint64_t)h->section[i].count * record_size[i];

		if (h->section[i].offset < sizeof(*h) || h->section[i].offset % 4 || end > len)
			return "a section lies outside";
		base[i] = p->blob + h->section[i].offset;
		p->n[i] = h->section[i].count;
	}
	p->rules = h->rules;
	p->nodes = base[S_NODES];
	p->buckets = base[S_BUCKETS];
	p->groups = base[S_GROUPS];
	p->globs = base[S_GLOBS];
	p->accepts = base[S_ACCEPTS];
	p->slots = base[S_SLOTS];
	p->strings = base[S_STRINGS];
	p->net_lengths = base[S_NET_LENGTHS];
	p->net_prefixes = base[S_NET_PREFIXES];
	p->net_intervals = base[S_NET_INTERVALS];
	p->net_entries = base[S_NET_ENTRIES];
	return NULL;
}

struct ak_policy *ak_policy_parse(const void *blob, size_t len, const char **why)
{
	struct ak_policy *p = calloc(1, sizeof(*p));

	*why = "out of memory";
	if (!p)
		return NULL;
	if (len < sizeof(struct header) || len > UINT32_MAX) {
		*why = "too short or too long";
		goto fail;
	}
	p->blob = malloc(len);
	if (!p->blob)
		goto fail;
	memcpy(p->blob, blob, len);
	if ((*why = check_sections(p, len)) || (*why = check_nodes(p)) || (*why = check_groups(p)) ||
	    (*why = check_slots(p)) || (*why = check_net(p)))
		goto fail;
	*why = "out of memory";
	p->lists = calloc(p->n[S_NODES], sizeof(*p->lists));
	if (!p->lists)
		goto fail;
	fill_lists(p);
	fill_crc_table(p->crc_table);
	*why = NULL;
	return p;
fail:
	ak_policy_free(p);
	return NULL;
}

void ak_policy_free(struct ak_policy *p)
{
	if (!p)
		return;
	free(p->lists);
	free(p->blob);
	free(p);
}

/* ---- walking ---------------------------------------------------------------------------------------------------- */

/* Live nodes after some segments. A ** node, once live, stays live: `loops` only grows. */
struct live {
	uint32_t loops[LIVE_MAX], plain[2][LIVE_MAX];
	unsigned n_loops, n_plain, side;        /* plain[side] is current */
	bool over;
};

static void enter(const struct ak_policy *p, struct live *l, unsigned *n, uint32_t node)
{
	uint32_t star = p->nodes[node].star;

	if (*n == LIVE_MAX) {
		l->over = true;
		return;
	}
	l->plain[l->side][(*n)++] = node;
	if (!star)
		return;
	for (unsigned i = 0; i < l->n_loops; i++)
		if (l->loops[i] == star)
			return;
	if (l->n_loops == LIVE_MAX)
		l->over = true;
	else
		l->loops[l->n_loops++] = star;
}

static bool is_continuation(char c)
{
	return ((unsigned char)c & 0xc0) == 0x80;
}

/* `*` is any run of bytes, `?` one byte and the UTF-8 continuation bytes after it; see match_glob() in patterns.py. */
static bool match_glob(const char *pat, size_t pat_len, const char *name, size_t len)
{
	size_t q = 0, n = 0, star = SIZE_MAX, mark = 0;

	while (n < len) {
		if (q < pat_len && pat[q] == '*') {
			star = q++;
			mark = n;
		} else if (q < pat_len && pat[q] == '?') {
			q++;
			n++;
			while (n < len && is_continuation(name[n]))
				n++;
		} else if (q < pat_len && pat[q] == name[n]) {
			q++;
			n++;
		} else if (star != SIZE_MAX) {
			q = star + 1;
			n = ++mark;
		} else {
			return false;
		}
	}
	while (q < pat_len && pat[q] == '*')
		q++;
	return q == pat_len;
}

static bool all_digits(const char *name, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (name[i] < '0' || name[i] > '9')
			return false;
	return len > 0;
}

static uint32_t crc(const struct ak_policy *p, const char *s, size_t len)
{
	uint32_t c = UINT32_MAX;

	for (size_t i = 0; i < len; i++)
		c = p->crc_table[(c ^ (unsigned char)s[i]) & 0xff] ^ (c >> 8);
	return ~c;
}

/* slot_hash() of blob.py, then linear probing to an empty slot, which check_slots() made sure of. */
static const struct group *find_group(const struct ak_policy *p, uint32_t parent, uint32_t kind, const char *text,
				      size_t len, uint32_t hash)
{
	uint32_t h = hash ^ parent * 0x9E3779B1u ^ (uint32_t)(kind * 256 + len) * 0x85EBCA6Bu;

	h ^= h >> 15;
	h *= 0x2C1B3C6Du;
	h ^= h >> 13;
	for (uint32_t at = h & p->slot_mask; p->slots[at]; at = (at + 1) & p->slot_mask) {
		const struct group *g = &p->groups[p->slots[at] - 1];

		if (g->hash == hash && g->parent == parent && g->kind == kind && g->len == len &&
		    !memcmp(p->strings + g->text, text, len))
			return g;
	}
	return NULL;
}

static void step_globs(const struct ak_policy *p, struct live *l, unsigned *n, uint32_t id, const char *name, size_t len)
{
	const struct node *node = &p->nodes[id];

	for (uint32_t i = 0; i < node->buckets; i++) {
		const struct bucket *b = &p->buckets[node->first_bucket + i];
		const char *text = b->kind == K_PREFIX ? name : name + len - b->len;
		const struct group *g;

		if (b->len > len)
			continue;
		g = find_group(p, id, b->kind, text, b->len, crc(p, text, b->len));
		for (uint32_t j = 0; g && j < g->count; j++) {
			const struct glob *e = &p->globs[g->first + j];

			if (e->digits ? all_digits(name, len) : match_glob(p->strings + e->text, e->len, name, len))
				enter(p, l, n, e->child);
		}
	}
}

static void step(const struct ak_policy *p, struct live *l, const char *name, size_t len)
{
	unsigned n_loops = l->n_loops, n_plain = l->n_plain, n = 0;
	const uint32_t *plain = l->plain[l->side];
	uint32_t hash = crc(p, name, len);

	l->side ^= 1;
	for (unsigned i = 0; i < n_loops + n_plain; i++) {
		uint32_t id = i < n_loops ? l->loops[i] : plain[i - n_loops];
		const struct node *node = &p->nodes[id];

		if (node->flags & FLAG_LITERALS) {
			const struct group *g = find_group(p, id, K_LITERAL, name, len, hash);

			if (g)
				enter(p, l, &n, g->first);
		}
		if (node->any)
			enter(p, l, &n, node->any);
		if (node->buckets)
			step_globs(p, l, &n, id, name, len);
	}
	l->n_plain = n;
}

/* Reads a canonical path. A path that is not absolute, or too much for LIVE_MAX, ends `over`: the caller denies. */
static void walk(const struct ak_policy *p, struct live *l, const char *path, size_t len)
{
	size_t at = 0;

	l->n_loops = l->n_plain = l->side = 0;
	l->over = !len || path[0] != '/';
	enter(p, l, &l->n_plain, 0);
	while (at < len && !l->over) {
		const char *slash;
		size_t end;

		if (path[at] == '/') {
			at++;
			continue;
		}
		slash = memchr(path + at, '/', len - at);
		end = slash ? (size_t)(slash - path) : len;
		step(p, l, path + at, end - at);
		at = end;
	}
}

static uint32_t live_node(const struct live *l, unsigned i)
{
	return i < l->n_loops ? l->loops[i] : l->plain[l->side][i - l->n_loops];
}

/* ---- what a path's nodes grant ---------------------------------------------------------------------------------- */

/* The lowest rule per effect and need; `exact` counts wildcard-free rules only. AK_NO_RULE is the highest number. */
struct found {
	uint32_t wide[3][3], exact[3][3];       /* [E_ALLOW..E_DENY][read, write, exec] */
	uint32_t guard;                         /* where one stands, only exact rules allow or ask */
};

static void lower(uint32_t *have, uint32_t rule)
{
	if (rule < *have)
		*have = rule;
}

static void add_accept(struct found *f, const struct accept *a)
{
	for (unsigned bit = 0; bit < 3; bit++) {
		if (!(a->needs & (1u << bit)))
			continue;
		lower(&f->wide[a->effect][bit], a->rule);
		if (a->exact)
			lower(&f->exact[a->effect][bit], a->rule);
	}
}

static void collect(const struct ak_policy *p, const struct live *l, struct found *f, uint8_t domain)
{
	bool is_free = false;

	memset(f, 0xff, sizeof(*f));    /* AK_NO_RULE everywhere */
	for (unsigned i = 0; i < l->n_loops + l->n_plain; i++) {
		const struct node *n = &p->nodes[live_node(l, i)];

		for (uint32_t j = 0; j < n->accepts; j++) {
			const struct accept *a = &p->accepts[n->first_accept + j];

			if (a->domain != domain)
				continue;
			if (a->effect == E_GUARD)
				lower(&f->guard, a->rule);
			else if (a->effect == E_FREE)
				is_free = true;
			else
				add_accept(f, a);
		}
	}
	if (is_free)
		f->guard = AK_NO_RULE;
}

static uint32_t found_rule(const struct found *f, unsigned effect, unsigned bit)
{
	return f->guard != AK_NO_RULE && effect != E_DENY ? f->exact[effect][bit] : f->wide[effect][bit];
}

static struct ak_verdict judge(const struct ak_policy *p, unsigned need, const char *path, size_t len, uint8_t domain)
{
	struct ak_verdict v = {.rule = AK_NO_RULE, .decision = AK_DENY, .missing = (uint8_t)(need & 7)};
	uint32_t denied = AK_NO_RULE, asked = AK_NO_RULE, allowed = AK_NO_RULE;
	struct live l;
	struct found f;

	if (!need || need & ~7u)
		return v;
	walk(p, &l, path, len);
	if (l.over)
		return v;
	collect(p, &l, &f, domain);
	v.missing = 0;
	/* The last bit that decides names the rule: exec before write before read. */
	for (unsigned bit = 0; bit < 3; bit++) {
		uint32_t deny, ask, allow;

		if (!(need & (1u << bit)))
			continue;
		deny = found_rule(&f, E_DENY, bit);
		ask = found_rule(&f, E_ASK, bit);
		allow = found_rule(&f, E_ALLOW, bit);
		denied = deny != AK_NO_RULE ? deny : denied;
		asked = ask != AK_NO_RULE ? ask : asked;
		allowed = allow != AK_NO_RULE ? allow : allowed;
		if (ask == AK_NO_RULE && allow == AK_NO_RULE)
			v.missing |= (uint8_t)(1u << bit);
	}
	if (denied != AK_NO_RULE) {
		v.rule = denied;
	} else if (v.missing) {
		v.rule = f.guard;
	} else if (asked != AK_NO_RULE) {
		v.rule = asked;
		v.decision = AK_ASK;
	} else {
		v.rule = allowed;
		v.decision = AK_ALLOW;
	}
	return v;
}

struct ak_verdict ak_policy_fs(const struct ak_policy *p, unsigned need, const char *path, size_t len)
{
	return judge(p, need, path, len, D_FS);
}

struct ak_verdict ak_policy_unix(const struct ak_policy *p, const char *path, size_t len)
{
	return judge(p, AK_WRITE, path, len, D_UNIX);
}

struct sets { unsigned allow, ask, deny; };

static struct sets sets_of(const struct ak_policy *p, const struct live *l)
{
	struct sets s = {0, 0, 0};
	struct found f;

	if (l->over)
		return (struct sets){.deny = 7};
	collect(p, l, &f, D_FS);
	for (unsigned bit = 0; bit < 3; bit++) {
		if (found_rule(&f, E_DENY, bit) != AK_NO_RULE)
			s.deny |= 1u << bit;
		else if (found_rule(&f, E_ASK, bit) != AK_NO_RULE)
			s.ask |= 1u << bit;
		else if (found_rule(&f, E_ALLOW, bit) != AK_NO_RULE)
			s.allow |= 1u << bit;
	}
	return s;
}

unsigned ak_policy_rights(const struct ak_policy *p, const char *path, size_t len)
{
	struct live l;

	walk(p, &l, path, len);
	return sets_of(p, &l).allow;
}

bool ak_policy_visible(const struct ak_policy *p, const char *path, size_t len)
{
	struct live l;
	struct sets s;
	uint32_t below = 0;

	walk(p, &l, path, len);
	s = sets_of(p, &l);
	if (s.deny == 7)
		return false;
	for (unsigned i = 0; i < l.n_loops + l.n_plain; i++)
		below |= p->lists[live_node(&l, i)].below;
	return s.allow || s.ask || below & (LIST_FS_ALLOW | LIST_FS_ASK);
}

bool ak_policy_exec_exact(const struct ak_policy *p, const char *path, size_t len)
{
	struct live l;
	struct found f;

	walk(p, &l, path, len);
	if (!(sets_of(p, &l).allow & AK_EXEC))
		return false;
	collect(p, &l, &f, D_FS);
	return f.exact[E_ALLOW][2] != AK_NO_RULE;
}

/* ---- moves ------------------------------------------------------------------------------------------------------ */

static bool is_live(const struct live *l, uint32_t node)
{
	for (unsigned i = 0; i < l->n_loops + l->n_plain; i++)
		if (live_node(l, i) == node)
			return true;
	return false;
}

/* Is every node of `a` that belongs to the list live in `b` too? */
static bool within(const struct ak_policy *p, const struct live *a, const struct live *b, uint32_t list)
{
	for (unsigned i = 0; i < a->n_loops + a->n_plain; i++) {
		uint32_t node = live_node(a, i);

		if (p->lists[node].below & list && !is_live(b, node))
			return false;
	}
	return true;
}

/* Does the list hold for everything below? Only a ** at a pattern's end says so. */
static bool whole(const struct ak_policy *p, const struct live *l, uint32_t list)
{
	for (unsigned i = 0; i < l->n_loops; i++)
		if (p->lists[l->loops[i]].at & list)
			return true;
	return false;
}

/* For everything that may lie below: no list of allows grows, no other list changes. */
static bool trees_alike(const struct ak_policy *p, const struct live *from, const struct live *to)
{
	for (uint32_t list = 1; list < 1u << LIST_COUNT; list <<= 1) {
		if (list & (LIST_FS_ALLOW | LIST_UNIX_ALLOW)) {
			if (!whole(p, from, list) && !within(p, to, from, list))
				return false;
			continue;
		}
		if (list & LIST_FS_DENY && whole(p, to, list))
			continue;
		if (!within(p, to, from, list) || !within(p, from, to, list))
			return false;
	}
	return true;
}

bool ak_policy_move_keeps_rights(const struct ak_policy *p, const char *from, size_t from_len,
				 const char *to, size_t to_len, bool is_dir)
{
	struct live a, b;
	struct sets had, gets;

	walk(p, &a, from, from_len);
	walk(p, &b, to, to_len);
	if (a.over || b.over)
		return false;
	had = sets_of(p, &a);
	gets = sets_of(p, &b);
	if (gets.allow & ~had.allow || gets.ask & ~(had.allow | had.ask) || had.deny & ~gets.deny)
		return false;
	return !is_dir || trees_alike(p, &a, &b);
}

/* ---- network ---------------------------------------------------------------------------------------------------- */

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

struct ak_verdict ak_policy_net(const struct ak_policy *p, enum ak_net_op op, enum ak_net_proto proto,
				const uint8_t *addr, size_t addr_len, uint16_t port)
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

			if (e->op == op && e->proto == proto)
				lower(&best[e->effect], e->rule);
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
