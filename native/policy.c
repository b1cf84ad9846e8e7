/* What a path may be used for: an automaton over its segments, walked without allocating, locking or writing to the policy.
 *
 * The twin in akbox/policy/matcher.py says what a node is; policy_blob.h is the layout.
 */
#include "policy_blob.h"

#include <string.h>

#define LIVE_MAX 512            /* LIVE_MAX of matcher.py: a path that makes more nodes live is refused by both */

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

static void add_accept(struct found *f, const struct accept *a)
{
	for (unsigned bit = 0; bit < 3; bit++) {
		if (!(a->needs & (1u << bit)))
			continue;
		ak_lower(&f->wide[a->effect][bit], a->rule);
		if (a->exact)
			ak_lower(&f->exact[a->effect][bit], a->rule);
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
				ak_lower(&f->guard, a->rule);
			else if (a->effect == E_FREE)
				is_free = true;
			else if (a->effect == E_DENY || !ak_rule_over(p, a->rule))
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
	struct ak_verdict v = judge(p, need, path, len, D_FS);

	return p->parent && v.decision != AK_DENY ? ak_stricter(p, v, ak_policy_fs(p->parent, need, path, len)) : v;
}

bool ak_policy_refuses(const struct ak_policy *p, unsigned need, const char *path, size_t len)
{
	struct live l;
	struct found f;

	if (p->parent && ak_policy_refuses(p->parent, need, path, len))
		return true;
	walk(p, &l, path, len);
	if (l.over)
		return true;
	collect(p, &l, &f, D_FS);
	for (unsigned bit = 0; bit < 3; bit++)
		if ((need & (1u << bit)) && (f.wide[E_DENY][bit] != AK_NO_RULE || f.wide[E_ASK][bit] != AK_NO_RULE))
			return true;
	return false;
}

struct ak_verdict ak_policy_unix(const struct ak_policy *p, const char *path, size_t len)
{
	struct ak_verdict v = judge(p, AK_WRITE, path, len, D_UNIX);

	return p->parent && v.decision != AK_DENY ? ak_stricter(p, v, ak_policy_unix(p->parent, path, len)) : v;
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
	return sets_of(p, &l).allow & (p->parent ? ak_policy_rights(p->parent, path, len) : 7u);
}

bool ak_policy_visible(const struct ak_policy *p, const char *path, size_t len)
{
	struct live l;
	struct sets s;
	uint32_t below = 0;

	if (p->parent && !ak_policy_visible(p->parent, path, len))
		return false;
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

	if (p->parent && !ak_policy_exec_exact(p->parent, path, len))
		return false;
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

/* Does the list hold for everything below? Only a ** at a pattern's end says so; and once a rule is over, no list of allows
 * can be relied on: the lists were made when it was not. */
static bool whole(const struct ak_policy *p, const struct live *l, uint32_t list)
{
	if (list & (LIST_FS_ALLOW | LIST_UNIX_ALLOW) && ak_has_ends(p))
		return false;
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

	if (p->parent && !ak_policy_move_keeps_rights(p->parent, from, from_len, to, to_len, is_dir))
		return false;
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
