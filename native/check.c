/* The lines of a log, checked where they lie; see check.h. Nothing is built: what is hashed as `req` is the line's own text
 * in another order, once it is certain that the text is the canonical one. */
#include "check.h"

#include <stdbool.h>
#include <string.h>

#include "utf8.h"

#define DEPTH_MAX 32            /* kernel/strictjson.py allows 64 */
#define MEMBERS_MAX 32          /* of `req` itself */
#define DIGITS_MAX 15           /* always less than 2^53 */

struct in {
	const uint8_t *at, *end;
};

struct span {
	const uint8_t *start, *end;
};

static bool literal(struct in *in, const char *text, size_t n)
{
	if ((size_t)(in->end - in->at) < n || memcmp(in->at, text, n) != 0)
		return false;
	in->at += n;
	return true;
}

#define LITERAL(in, text) literal(in, text, sizeof(text) - 1)

static bool is_digit(uint8_t c)
{
	return c >= '0' && c <= '9';
}

/* ---- canonical JSON (RFC 8785), as far as it is common ----------------------------------------------------------- */

/* What follows a backslash: the two-character escapes, and \u00xx for the other control characters. */
static bool escape(struct in *in)
{
	static const char shorts[] = "\"\\bfnrt";
	if (in->at == in->end)
		return false;
	uint8_t c = *in->at++;
	if (c && memchr(shorts, c, sizeof shorts - 1))
		return true;
	if (c != 'u' || !LITERAL(in, "00") || in->end - in->at < 2)
		return false;
	uint8_t high = *in->at++, low = *in->at++;
	if ((high != '0' && high != '1') || !(is_digit(low) || (low >= 'a' && low <= 'f')))
		return false;
	unsigned value = (unsigned)(high - '0') * 16 + (unsigned)(is_digit(low) ? low - '0' : low - 'a' + 10);
	return value != '\b' && value != '\f' && value != '\n' && value != '\r' && value != '\t';
}

/* *plain: ASCII without escapes, whose order by bytes is the order by UTF-16. */
static bool string(struct in *in, bool *plain)
{
	*plain = true;
	if (!LITERAL(in, "\""))
		return false;
	while (in->at < in->end) {
		uint8_t c = *in->at;
		if (c == '"') {
			in->at++;
			return true;
		}
		if (c == '\\') {
			*plain = false;
			in->at++;
			if (!escape(in))
				return false;
		} else if (c < 0x20) {
			return false;
		} else if (c < 0x80) {
			in->at++;
		} else {
			size_t n = ak_utf8_length(in->at, (size_t)(in->end - in->at));
			if (n == 0)
				return false;
			*plain = false;
			in->at += n;
		}
	}
	return false;
}

/* A small whole number in its one form. What makes it another number (".", "e", a digit) is no JSON behind it. */
static bool integer(struct in *in)
{
	const uint8_t *start = in->at;
	if (in->at < in->end && *in->at == '-')
		in->at++;
	const uint8_t *digits = in->at;
	while (in->at < in->end && is_digit(*in->at))
		in->at++;
	size_t n = (size_t)(in->at - digits);
	if (n == 0 || n > DIGITS_MAX)
		return false;
	return *digits != '0' || (n == 1 && digits == start);
}

static int compare(struct span a, struct span b)
{
	size_t m = (size_t)(a.end - a.start), n = (size_t)(b.end - b.start);
	int order = memcmp(a.start, b.start, m < n ? m : n);
	return order ? order : (m > n) - (m < n);
}

static bool value(struct in *in, int depth);

/* One "key":value, whose key must come after `last`. */
static bool member(struct in *in, struct span *key, struct span last, int depth)
{
	bool plain;
	key->start = in->at + 1;
	if (!string(in, &plain) || !plain)
		return false;
	key->end = in->at - 1;
	return (!last.start || compare(last, *key) < 0) && LITERAL(in, ":") && value(in, depth);
}

static bool value(struct in *in, int depth)
{
	bool plain;
	if (in->at == in->end || depth > DEPTH_MAX)
		return false;
	switch (*in->at) {
	case '"':
		return string(in, &plain);
	case 'n':
		return LITERAL(in, "null");
	case 't':
		return LITERAL(in, "true");
	case 'f':
		return LITERAL(in, "false");
	case '[':
		in->at++;
		if (LITERAL(in, "]"))
			return true;
		do
			if (!value(in, depth + 1))
				return false;
		while (LITERAL(in, ","));
		return LITERAL(in, "]");
	case '{':
		in->at++;
		if (LITERAL(in, "}"))
			return true;
		for (struct span key, last = {NULL, NULL};; last = key) {
			if (!member(in, &key, last, depth + 1))
				return false;
			if (!LITERAL(in, ","))
				return LITERAL(in, "}");
		}
	default:
		return integer(in);
	}
}

/* ---- the fields of a line ---------------------------------------------------------------------------------------- */

/* What is hashed with `req`, under these names and in this order (entry.HASHED_WITH_REQ). */
enum { DECISION, NAME, PID, RULE, STAGE, TARGET, TS, FIELDS };

struct fields {
	struct span known[FIELDS];      /* each as "name":value */
	struct span members[MEMBERS_MAX], keys[MEMBERS_MAX];    /* of `req` */
	size_t member_count;
	struct span res;
	uint8_t agent[16];
	uint16_t op;
};

static bool number_at(const uint8_t *p, size_t digits, unsigned *n)
{
	*n = 0;
	for (size_t i = 0; i < digits; i++) {
		if (!is_digit(p[i]))
			return false;
		*n = *n * 10 + (unsigned)(p[i] - '0');
	}
	return true;
}

/* 2026-01-01T00:00:00.000000000Z, a time that there is. Python looks at the years that a u64 of nanoseconds has not. */
static bool time_text(struct in *in)
{
	static const uint8_t days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	const uint8_t *p = in->at;
	unsigned year, month, day, hour, minute, second, nanos;
	if (in->end - p < 30 || p[4] != '-' || p[7] != '-' || p[10] != 'T' || p[13] != ':' || p[16] != ':' || p[19] != '.' ||
	    p[29] != 'Z')
		return false;
	if (!number_at(p, 4, &year) || !number_at(p + 5, 2, &month) || !number_at(p + 8, 2, &day) ||
	    !number_at(p + 11, 2, &hour) || !number_at(p + 14, 2, &minute) || !number_at(p + 17, 2, &second) ||
	    !number_at(p + 20, 9, &nanos))
		return false;
	if (year < 1970 || year > 2553 || month < 1 || month > 12 || hour > 23 || minute > 59 || second > 59)
		return false;
	bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
	if (day < 1 || day > days[month - 1] + (unsigned)(leap && month == 2))
		return false;
	in->at += 30;
	return true;
}

static int hex_value(uint8_t c)
{
	return is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool hex(struct in *in, uint8_t *out, size_t n)
{
	if ((size_t)(in->end - in->at) < 2 * n)
		return false;
	for (size_t i = 0; i < n; i++, in->at += 2) {
		int high = hex_value(in->at[0]), low = hex_value(in->at[1]);
		if (high < 0 || low < 0)
			return false;
		out[i] = (uint8_t)(high << 4 | low);
	}
	return true;
}

static bool same_hex(struct in *in, const uint8_t *wanted, size_t n)
{
	uint8_t found[AK_SHA256_BYTES];
	return hex(in, found, n) && memcmp(found, wanted, n) == 0;
}

/* The decimal digits of n, which must not be followed by another (what follows is a literal). */
static bool same_number(struct in *in, uint64_t n)
{
	char digits[20], *p = digits + sizeof digits;
	do
		*--p = (char)('0' + n % 10);
	while (n /= 10);
	return literal(in, p, (size_t)(digits + sizeof digits - p));
}

static bool same_trace(struct in *in, const struct ak_check *c)
{
	static const char hex_digits[] = "0123456789abcdef";
	char digits[16], *p = digits + sizeof digits;
	uint64_t n = c->seq;
	do
		*--p = hex_digits[n & 15];
	while ((n >>= 4) || digits + sizeof digits - p < 8);
	return same_hex(in, c->run, 4) && literal(in, p, (size_t)(digits + sizeof digits - p));
}

static bool op_number(struct in *in, uint16_t *op)
{
	const uint8_t *start = in->at;
	unsigned n = 0;
	if (in->at == in->end || *start == '-' || !integer(in) || in->at - start > 5)
		return false;
	number_at(start, (size_t)(in->at - start), &n);
	*op = (uint16_t)n;
	return n <= UINT16_MAX;
}

static bool text_or_null(struct in *in)
{
	bool plain;
	return LITERAL(in, "null") || string(in, &plain);
}

static bool is_known(struct span key)
{
	static const char *const names[FIELDS] = {"decision", "name", "pid", "rule", "stage", "target", "ts"};
	for (size_t i = 0; i < FIELDS; i++)
		if (strlen(names[i]) == (size_t)(key.end - key.start) && !memcmp(names[i], key.start, strlen(names[i])))
			return true;
	return false;
}

/* `req`'s members, of which none may have a name of the line's own. */
static bool request(struct in *in, struct fields *f)
{
	struct span last = {NULL, NULL};
	if (!LITERAL(in, "{"))
		return false;
	if (LITERAL(in, "}"))
		return true;
	do {
		size_t n = f->member_count;
		if (n == MEMBERS_MAX)
			return false;
		f->members[n].start = in->at;
		if (!member(in, &f->keys[n], last, 1) || is_known(f->keys[n]))
			return false;
		f->members[n].end = in->at;
		last = f->keys[n];
		f->member_count++;
	} while (LITERAL(in, ","));
	return LITERAL(in, "}");
}

#define KNOWN(f, in, what, read) ((f)->known[what].start = (in)->at, (read) && ((f)->known[what].end = (in)->at, true))

static bool parse(struct in *in, const struct ak_check *c, struct fields *f)
{
	bool plain;
	return LITERAL(in, "{\"seq\":") && same_number(in, c->seq) && LITERAL(in, ",") &&
	       KNOWN(f, in, TS, LITERAL(in, "\"ts\":\"") && time_text(in) && LITERAL(in, "\"")) &&
	       LITERAL(in, ",\"agent\":\"") && hex(in, f->agent, sizeof f->agent) && LITERAL(in, "\",\"run\":\"") &&
	       same_hex(in, c->run, sizeof c->run) && LITERAL(in, "\",\"op\":") && op_number(in, &f->op) && LITERAL(in, ",") &&
	       KNOWN(f, in, NAME, LITERAL(in, "\"name\":") && string(in, &plain)) && LITERAL(in, ",") &&
	       KNOWN(f, in, TARGET, LITERAL(in, "\"target\":") && string(in, &plain)) && LITERAL(in, ",") &&
	       KNOWN(f, in, DECISION, LITERAL(in, "\"decision\":\"") &&
		     (LITERAL(in, "allow\"") || LITERAL(in, "deny\"") || LITERAL(in, "ask\""))) && LITERAL(in, ",") &&
	       KNOWN(f, in, STAGE, LITERAL(in, "\"stage\":") && text_or_null(in)) && LITERAL(in, ",") &&
	       KNOWN(f, in, RULE, LITERAL(in, "\"rule\":") && text_or_null(in)) && LITERAL(in, ",\"trace\":\"") &&
	       same_trace(in, c) && LITERAL(in, "\",") && KNOWN(f, in, PID, LITERAL(in, "\"pid\":") && integer(in)) &&
	       LITERAL(in, ",\"req\":") && request(in, f) && LITERAL(in, ",\"res\":") &&
	       (f->res.start = in->at, in->at < in->end && *in->at == '{' && value(in, 0)) && (f->res.end = in->at, true);
}

/* The canonical JSON of `req` with what the line adds to it: two sorted lists, merged. */
static void hash_request(const struct ak_check *c, const struct fields *f, uint8_t digest[AK_SHA256_BYTES])
{
	struct ak_sha256 h;
	size_t known = 0, own = 0;
	ak_sha256_init(&h, c->blocks);
	for (const char *before = "{"; known < FIELDS || own < f->member_count; before = ",") {
		struct span next;
		bool take_known = own == f->member_count;
		if (!take_known && known < FIELDS) {
			const uint8_t *start = f->known[known].start + 1;
			struct span name = {start, memchr(start, '"', (size_t)(f->known[known].end - start))};
			take_known = compare(name, f->keys[own]) < 0;
		}
		next = take_known ? f->known[known++] : f->members[own++];
		ak_sha256_update(&h, before, 1);
		ak_sha256_update(&h, next.start, (size_t)(next.end - next.start));
	}
	ak_sha256_update(&h, "}", 1);
	ak_sha256_final(&h, digest);
}

static void store_le(uint8_t *p, uint64_t n, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++, n >>= 8)
		p[i] = (uint8_t)n;
}

int ak_check_line(struct ak_check *c, const uint8_t *line, size_t len)
{
	struct in in = {line, line + len};
	struct fields f = {.member_count = 0};
	uint8_t packed[32 + 8 + 16 + 16 + 2 + 32 + 32], *p = packed, this[AK_SHA256_BYTES];
	if (!parse(&in, c, &f))
		return 0;
	memcpy(p, c->prev, 32);
	store_le(p + 32, c->seq, 8);
	memcpy(p + 40, f.agent, 16);
	memcpy(p + 56, c->run, 16);
	store_le(p + 72, f.op, 2);
	hash_request(c, &f, p + 74);
	ak_sha256(c->blocks, f.res.start, (size_t)(f.res.end - f.res.start), p + 106);
	ak_sha256(c->blocks, packed, sizeof packed, this);
	if (!LITERAL(&in, ",\"req_hash\":\"") || !same_hex(&in, p + 74, 32) || !LITERAL(&in, "\",\"res_hash\":\"") ||
	    !same_hex(&in, p + 106, 32) || !LITERAL(&in, "\",\"prev_hash\":\"") || !same_hex(&in, c->prev, 32) ||
	    !LITERAL(&in, "\",\"this_hash\":\"") || !same_hex(&in, this, 32) || !LITERAL(&in, "\"}\n") || in.at != in.end)
		return 0;
	memcpy(c->prev, this, sizeof this);
	c->seq++;
	return 1;
}

size_t ak_check_lines(struct ak_check *c, const uint8_t *data, size_t len, size_t *at, uint8_t *hashes, size_t cap)
{
	size_t count = 0;
	while (count < cap && *at < len) {
		const uint8_t *end = memchr(data + *at, '\n', len - *at);
		if (!end || !ak_check_line(c, data + *at, (size_t)(end + 1 - data) - *at))
			break;
		memcpy(hashes + count++ * AK_SHA256_BYTES, c->prev, AK_SHA256_BYTES);
		*at = (size_t)(end + 1 - data);
	}
	return count;
}
