/* The audit chain's hot path; see chain.h. One line is written into the caller's buffer, then hashed from where its parts
 * lie in it: what is hashed as `req` is the same text in another order. */
#include "chain.h"

#include <stdbool.h>
#include <string.h>

#include "ring.h"
#include "utf8.h"

#define DENIED_AT "POLICY"              /* the stage at which the compiled matcher refuses (event_lines.py) */
#define MAX_SAFE_INT 9007199254740991u  /* 2^53 - 1: larger numbers are strings in canonical JSON (RFC 8785) */
#define NO_RULE UINT32_MAX
#define ALLOW 1
#define DECISIONS 3
#define NS_PER_S 1000000000u

static const char hex_digits[] = "0123456789abcdef";
static const char *const decision_names[DECISIONS] = {"deny", "allow", "ask"};
static const char *const need_names[8] = {
	"", "read", "write", "read+write", "exec", "read+exec", "write+exec", "read+write+exec",
};

/* ---- text into a buffer that may end ----------------------------------------------------------------------------- */

struct out {
	char *at, *end;
	bool full;              /* something did not fit: what follows `at` is not to be used */
};

static char *take(struct out *o, size_t n)
{
	if (n > (size_t)(o->end - o->at)) {
		o->full = true;
		o->end = o->at;
		return NULL;
	}
	char *p = o->at;
	o->at += n;
	return p;
}

static void put(struct out *o, const char *text, size_t n)
{
	char *p = take(o, n);
	if (p)
		memcpy(p, text, n);
}

#define PUT(o, literal) put(o, literal, sizeof(literal) - 1)

static void put_string(struct out *o, const char *text)
{
	put(o, text, strlen(text));
}

static void put_hex(struct out *o, const uint8_t *data, size_t n)
{
	char *p = take(o, 2 * n);
	if (!p)
		return;
	for (size_t i = 0; i < n; i++) {
		*p++ = hex_digits[data[i] >> 4];
		*p++ = hex_digits[data[i] & 15];
	}
}

static void put_unsigned(struct out *o, uint64_t n)
{
	char digits[20], *p = digits + sizeof digits;
	do
		*--p = (char)('0' + n % 10);
	while (n /= 10);
	put(o, p, (size_t)(digits + sizeof digits - p));
}

static void put_signed(struct out *o, int64_t n)
{
	if (n < 0)
		PUT(o, "-");
	put_unsigned(o, n < 0 ? 0 - (uint64_t)n : (uint64_t)n);
}

/* As %0*x with the given least width. */
static void put_hex_number(struct out *o, uint64_t n, size_t width)
{
	char digits[16], *p = digits + sizeof digits;
	do
		*--p = hex_digits[n & 15];
	while ((n >>= 4) || (size_t)(digits + sizeof digits - p) < width);
	put(o, p, (size_t)(digits + sizeof digits - p));
}

/* ---- names as JSON strings --------------------------------------------------------------------------------------- */

static bool plain(uint8_t c)
{
	return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

/* What RFC 8785 3.2.2.2 asks for: two-character escapes where JSON has them, else \u00xx, in lower case. */
static void put_escaped(struct out *o, uint8_t c)
{
	static const char shorts[] = "\"\"\\\\\bb\ff\nn\rr\tt";
	char pair[2] = {'\\', 0};
	for (const char *s = shorts; *s; s += 2)
		if ((uint8_t)s[0] == c)
			pair[1] = s[1];
	if (pair[1]) {
		put(o, pair, 2);
	} else {
		PUT(o, "\\u00");
		put_hex(o, &c, 1);
	}
}

/* A name as a JSON string. Bytes that are not UTF-8 are shown as \xNN (whose backslash JSON escapes in turn), as Python's
 * error handler "backslashreplace" does. Returns whether all was UTF-8. */
static bool put_name(struct out *o, const uint8_t *s, size_t len)
{
	bool whole = true;
	PUT(o, "\"");
	for (size_t i = 0; i < len;) {
		size_t run = i;
		while (run < len && plain(s[run]))
			run++;
		if (run > i) {
			put(o, (const char *)s + i, run - i);
			i = run;
			continue;
		}
		size_t n = ak_utf8_length(s + i, len - i);
		if (n == 0) {
			PUT(o, "\\\\x");
			put_hex(o, s + i, 1);
			whole = false;
		} else if (n == 1) {
			put_escaped(o, s[i]);
		} else {
			put(o, (const char *)s + i, n);
		}
		i += n ? n : 1;
	}
	PUT(o, "\"");
	return whole;
}

/* ---- records ----------------------------------------------------------------------------------------------------- */

struct record {
	struct ak_event e;
	const uint8_t *target, *target2;
};

enum found { FOUND_EVENT, FOUND_PADDING, FOUND_DAMAGE };

/* The record at *at, which then moves behind it. Accepts what events.parse_events accepts. Precondition: *at < len. */
static enum found next_record(const uint8_t *data, size_t len, size_t *at, struct record *r)
{
	const uint8_t *p = data + *at;
	size_t left = len - *at;
	if (left < 8)
		return FOUND_DAMAGE;
	memcpy(&r->e, p, 8);            /* a padding record may be no longer */
	size_t size = r->e.len;
	if (size < 8 || size % 8 || size > left)
		return FOUND_DAMAGE;
	if (r->e.op == AK_EVENT_PAD) {
		*at += size;
		return FOUND_PADDING;
	}
	if (size < sizeof r->e)
		return FOUND_DAMAGE;
	memcpy(&r->e, p, sizeof r->e);
	if ((size_t)r->e.target_len + r->e.target2_len > size - sizeof r->e || r->e.decision >= DECISIONS)
		return FOUND_DAMAGE;
	r->e.need &= 7;
	r->e.missing &= 7;
	r->target = p + sizeof r->e;
	r->target2 = r->target + r->e.target_len;
	*at += size;
	return FOUND_EVENT;
}

enum ak_chain_result ak_chain_scan(const uint8_t *records, size_t len, size_t *at, size_t *count,
				   struct ak_refused *refused, size_t cap, size_t *refused_count)
{
	struct record r;
	while (*at < len) {
		size_t start = *at;
		if (*refused_count == cap)
			return AK_CHAIN_FULL;
		enum found found = next_record(records, len, at, &r);
		if (found == FOUND_DAMAGE)
			return AK_CHAIN_DAMAGED;
		if (found == FOUND_PADDING)
			continue;
		if (r.e.decision != ALLOW)
			refused[(*refused_count)++] = (struct ak_refused){start, *at, *count};
		(*count)++;
	}
	return AK_CHAIN_DONE;
}

/* ---- one line ---------------------------------------------------------------------------------------------------- */

/* What is the same for the lines of a pass, and what was last: most lines share their second and their op. */
struct context {
	const struct ak_chain *chain;
	const uint8_t *agent;
	char agent_hex[32], run_hex[32];
	uint64_t second;
	char second_text[20];           /* 2026-01-01T00:00:00. */
	const struct ak_op_name *name;
};

static void two_digits(char *p, unsigned n)
{
	p[0] = (char)('0' + n / 10 % 10);
	p[1] = (char)('0' + n % 10);
}

/* Seconds since 1970 in the Gregorian calendar, counted from March so that the leap day is a year's last. A u64 of
 * nanoseconds ends in 2554, so years have four digits. */
static void format_second(char text[20], uint64_t second)
{
	unsigned day = (unsigned)(second / 86400), rest = (unsigned)(second % 86400);
	unsigned z = day + 719468, era = z / 146097, of_era = z % 146097;      /* 400 years have 146,097 days */
	unsigned year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
	unsigned of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	unsigned month = (5 * of_year + 2) / 153;                               /* 0 is March */
	unsigned year = era * 400 + year_of_era + (month >= 10);
	memcpy(text, "0000-00-00T00:00:00.", 20);
	two_digits(text, year / 100);
	two_digits(text + 2, year);
	two_digits(text + 5, month < 10 ? month + 3 : month - 9);
	two_digits(text + 8, of_year - (153 * month + 2) / 5 + 1);
	two_digits(text + 11, rest / 3600);
	two_digits(text + 14, rest / 60 % 60);
	two_digits(text + 17, rest % 60);
}

static void put_time(struct out *o, struct context *c, uint64_t ts_ns)
{
	char nanos[10];
	unsigned n = (unsigned)(ts_ns % NS_PER_S);
	if (ts_ns / NS_PER_S != c->second) {
		c->second = ts_ns / NS_PER_S;
		format_second(c->second_text, c->second);
	}
	for (int i = 8; i >= 0; i--, n /= 10)
		nanos[i] = (char)('0' + n % 10);
	nanos[9] = 'Z';
	put(o, c->second_text, sizeof c->second_text);
	put(o, nanos, sizeof nanos);
}

static void put_op_name(struct out *o, struct context *c, uint16_t op)
{
	const struct ak_chain *chain = c->chain;
	if (!c->name || c->name->op != op) {
		size_t low = 0, high = chain->name_count;
		while (low < high) {
			size_t middle = low + (high - low) / 2;
			if (chain->names[middle].op < op)
				low = middle + 1;
			else
				high = middle;
		}
		c->name = low < chain->name_count && chain->names[low].op == op ? chain->names + low : NULL;
	}
	if (c->name) {
		put(o, c->name->name.text, c->name->name.len);
	} else {
		PUT(o, "op:0x");
		put_hex_number(o, op, 1);
	}
}

static void put_rule(struct out *o, const struct ak_chain *chain, uint32_t rule)
{
	if (rule == NO_RULE) {
		PUT(o, "null");
	} else if (rule < chain->rule_count) {
		put(o, chain->rules[rule].text, chain->rules[rule].len);
	} else {
		PUT(o, "\"rule ");
		put_unsigned(o, rule);
		PUT(o, "\"");
	}
}

/* Parts of a line by where they begin; each goes on to the beginning of the next unless said otherwise. */
struct parts {
	const char *ts, *ts_end, *name, *target, *decision, *stage, *rule, *trace, *pid, *req;
	const char *arg, *missing, *need, *raw, *tail, *tail_end;
};

/* The fields of `req`, in canonical order. */
static void put_request(struct out *o, const struct record *r, bool raw, struct parts *p)
{
	const struct ak_event *e = &r->e;
	p->arg = o->at;
	PUT(o, "\"arg\":");
	if (e->arg > MAX_SAFE_INT) {
		PUT(o, "\"");
		put_unsigned(o, e->arg);
		PUT(o, "\"");
	} else {
		put_unsigned(o, e->arg);
	}
	PUT(o, ",");
	p->missing = o->at;
	if (e->missing) {
		PUT(o, "\"missing\":\"");
		put_string(o, need_names[e->missing]);
		PUT(o, "\",");
	}
	p->need = o->at;
	PUT(o, "\"need\":\"");
	put_string(o, need_names[e->need]);
	PUT(o, "\",\"nr\":");
	put_signed(o, e->nr);
	PUT(o, ",");
	p->raw = o->at;
	if (raw) {
		PUT(o, "\"raw\":\"");
		put_hex(o, r->target, e->target_len);
		PUT(o, "\",");
	}
	p->tail = o->at;
	if (e->target2_len) {
		/* "raw2" comes before "target2": it is written when the name turns out to need it, over the name. */
		PUT(o, "\"target2\":");
		if (!put_name(o, r->target2, e->target2_len) && !o->full) {
			o->at = (char *)p->tail;
			PUT(o, "\"raw2\":\"");
			put_hex(o, r->target2, e->target2_len);
			PUT(o, "\",");
			p->tail = o->at;
			PUT(o, "\"target2\":");
			put_name(o, r->target2, e->target2_len);
		}
		PUT(o, ",");
	}
	PUT(o, "\"tid\":");
	put_signed(o, e->tid);
	p->tail_end = o->at;
}

/* The line up to and including `req`. */
static void put_event(struct out *o, struct context *c, const struct record *r, uint64_t seq, struct parts *p)
{
	const struct ak_event *e = &r->e;
	PUT(o, "{\"seq\":");
	put_unsigned(o, seq);
	PUT(o, ",");
	p->ts = o->at;
	PUT(o, "\"ts\":\"");
	put_time(o, c, e->ts_ns);
	PUT(o, "\"");
	p->ts_end = o->at;
	PUT(o, ",\"agent\":\"");
	put(o, c->agent_hex, sizeof c->agent_hex);
	PUT(o, "\",\"run\":\"");
	put(o, c->run_hex, sizeof c->run_hex);
	PUT(o, "\",\"op\":");
	put_unsigned(o, e->op);
	PUT(o, ",");
	p->name = o->at;
	PUT(o, "\"name\":\"");
	put_op_name(o, c, e->op);
	PUT(o, "\",");
	p->target = o->at;
	PUT(o, "\"target\":");
	bool raw = !put_name(o, r->target, e->target_len);
	PUT(o, ",");
	p->decision = o->at;
	PUT(o, "\"decision\":\"");
	put_string(o, decision_names[e->decision]);
	PUT(o, "\",");
	p->stage = o->at;
	put_string(o, e->decision == ALLOW ? "\"stage\":null," : "\"stage\":\"" DENIED_AT "\",");
	p->rule = o->at;
	PUT(o, "\"rule\":");
	put_rule(o, c->chain, e->rule);
	PUT(o, ",");
	p->trace = o->at;
	PUT(o, "\"trace\":\"");
	put(o, c->run_hex, 8);
	put_hex_number(o, seq, 8);
	PUT(o, "\",");
	p->pid = o->at;
	PUT(o, "\"pid\":");
	put_signed(o, e->tgid);
	PUT(o, ",");
	p->req = o->at;
	PUT(o, "\"req\":{");
	put_request(o, r, raw, p);
	PUT(o, "},");
}

/* req_hash: the canonical JSON of `req` with what docs/audit.md adds to it, gathered from the line. */
static void hash_request(const struct context *c, const struct parts *p, uint8_t digest[AK_SHA256_BYTES])
{
	const struct {
		const char *start, *end;
	} pieces[] = {
		{p->arg, p->missing},     {p->decision, p->stage}, {p->missing, p->need}, {p->name, p->target},
		{p->need, p->raw},        {p->pid, p->req},        {p->raw, p->tail},     {p->rule, p->trace},
		{p->stage, p->rule},      {p->target, p->decision}, {p->tail, p->tail_end},
	};
	struct ak_sha256 h;
	ak_sha256_init(&h, c->chain->blocks);
	ak_sha256_update(&h, "{", 1);
	for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
		ak_sha256_update(&h, pieces[i].start, (size_t)(pieces[i].end - pieces[i].start));
	ak_sha256_update(&h, ",", 1);
	ak_sha256_update(&h, p->ts, (size_t)(p->ts_end - p->ts));
	ak_sha256_update(&h, "}", 1);
	ak_sha256_final(&h, digest);
}

static void store_le(uint8_t *p, uint64_t n, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++, n >>= 8)
		p[i] = (uint8_t)n;
}

/* this_hash: SHA-256 of prev and the packed record of docs/audit.md (entry.PACKED). */
static void hash_entry(const struct context *c, const struct ak_chain_head *head, uint16_t op, const uint8_t *req_hash,
		       const uint8_t *res_hash, uint8_t digest[AK_SHA256_BYTES])
{
	uint8_t packed[32 + 8 + 16 + 16 + 2 + 32 + 32], *p = packed;
	memcpy(p, head->prev, 32);
	store_le(p + 32, head->seq, 8);
	memcpy(p + 40, c->agent, 16);
	memcpy(p + 56, c->chain->run, 16);
	store_le(p + 72, op, 2);
	memcpy(p + 74, req_hash, 32);
	memcpy(p + 106, res_hash, 32);
	ak_sha256(c->chain->blocks, packed, sizeof packed, digest);
}

/* The whole line; false when it does not fit. `this` is its this_hash. */
static bool put_line(struct out *o, struct context *c, const struct record *r, const struct ak_chain_head *head,
		     uint8_t this[AK_SHA256_BYTES])
{
	uint8_t req_hash[AK_SHA256_BYTES], res_hash[AK_SHA256_BYTES];
	struct parts p;
	put_event(o, c, r, head->seq, &p);
	PUT(o, "\"res\":");
	const char *res = o->at;
	PUT(o, "{\"errno\":");
	put_signed(o, r->e.error);
	PUT(o, "}");
	if (o->full)
		return false;
	hash_request(c, &p, req_hash);
	ak_sha256(c->chain->blocks, res, (size_t)(o->at - res), res_hash);
	hash_entry(c, head, r->e.op, req_hash, res_hash, this);
	PUT(o, ",\"req_hash\":\"");
	put_hex(o, req_hash, sizeof req_hash);
	PUT(o, "\",\"res_hash\":\"");
	put_hex(o, res_hash, sizeof res_hash);
	PUT(o, "\",\"prev_hash\":\"");
	put_hex(o, head->prev, sizeof head->prev);
	PUT(o, "\",\"this_hash\":\"");
	put_hex(o, this, AK_SHA256_BYTES);
	PUT(o, "\"}\n");
	return !o->full;
}

enum ak_chain_result ak_chain_render(const struct ak_chain *chain, const uint8_t agent[16], struct ak_chain_head *head,
				     struct ak_chain_pass *pass)
{
	struct context c = {.chain = chain, .agent = agent, .second = UINT64_MAX};
	struct out agent_hex = {c.agent_hex, c.agent_hex + 32, false}, run_hex = {c.run_hex, c.run_hex + 32, false};
	struct record r;
	put_hex(&agent_hex, agent, 16);
	put_hex(&run_hex, chain->run, 16);
	while (pass->records_at < pass->records_len) {
		size_t next = pass->records_at;
		enum found found = next_record(pass->records, pass->records_len, &next, &r);
		if (found == FOUND_DAMAGE)
			return AK_CHAIN_DAMAGED;
		if (found == FOUND_EVENT) {
			struct out o = {pass->lines + pass->lines_len, pass->lines + pass->lines_cap, false};
			uint8_t this[AK_SHA256_BYTES];
			if (pass->hashes_cap - pass->hashes_len < sizeof this || !put_line(&o, &c, &r, head, this))
				return AK_CHAIN_FULL;
			memcpy(pass->hashes + pass->hashes_len, this, sizeof this);
			pass->hashes_len += sizeof this;
			pass->lines_len = (size_t)(o.at - pass->lines);
			memcpy(head->prev, this, sizeof this);
			head->seq++;
		}
		pass->records_at = next;
	}
	return AK_CHAIN_DONE;
}
