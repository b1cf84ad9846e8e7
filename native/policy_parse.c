/* Checks a compiled policy once, so that nothing after it has to: every offset, count, number and edge. */
#include "policy_blob.h"

#include <stdlib.h>
#include <string.h>

#define MAGIC 0x504B4101u

static const uint32_t record_size[SECTIONS] = {
	sizeof(struct node), sizeof(struct bucket), sizeof(struct group), sizeof(struct glob), sizeof(struct accept),
	sizeof(uint32_t), 1, sizeof(struct net_length), sizeof(struct net_prefix), sizeof(struct net_interval),
	sizeof(struct net_entry),
};

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
	free(atomic_load(&p->ends));
	if (!p->is_view) {
		free(p->lists);
		free(p->blob);
	}
	free(p);
}
