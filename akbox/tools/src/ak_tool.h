/* What a tool in C needs of akbox: host calls, and its parameters and result as JSON. Header only; docs/tools.md.
 *
 * JSON is looked at where it lies, never made into a tree: `struct json` is a place in text that akbox has checked
 * (a tool's input is strict JSON already, and so are replies of host calls).
 */
#ifndef AK_TOOL_H
#define AK_TOOL_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AK_IMPORT(name) __attribute__((import_module("ak"), import_name(#name)))

/* Each takes a request (JSON). The reply's length; negative, when the reply says what went wrong. */
typedef int32_t ak_host_call(const char *request, int32_t size);

/* Copies the last reply, as far as there is room; its length. */
AK_IMPORT(reply) int32_t ak_reply(char *buffer, int32_t room);

struct text {
	char *at;
	size_t size, room;
};

struct json {
	const char *at, *end;   /* the value's text; at == NULL: there is none */
};

static inline void *ak_memory(void *old, size_t size)
{
	void *p = realloc(old, size ? size : 1);
	if (!p) {
		fputs("out of memory\n", stderr);
		exit(1);
	}
	return p;
}

static inline void text_add(struct text *t, const void *data, size_t size)
{
	if (t->room - t->size < size) {
		t->room = (t->size + size) * 2;
		t->at = ak_memory(t->at, t->room);
	}
	memcpy(t->at + t->size, data, size);
	t->size += size;
}

static inline void text_str(struct text *t, const char *s) { text_add(t, s, strlen(s)); }

static inline void text_number(struct text *t, long long n)
{
	char digits[24];
	text_add(t, digits, (size_t)snprintf(digits, sizeof digits, "%lld", n));
}

/* As a JSON string, quotes included. */
static inline void text_json(struct text *t, const char *data, size_t size)
{
	text_add(t, "\"", 1);
	for (size_t i = 0; i < size; i++) {
		unsigned char c = (unsigned char)data[i];
		char escape[8];
		if (c == '"' || c == '\\')
			text_add(t, (char[]){'\\', (char)c}, 2);
		else if (c < 0x20)
			text_add(t, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", c));
		else
			text_add(t, data + i, 1);
	}
	text_add(t, "\"", 1);
}

static inline struct text ak_input(void)
{
	struct text t = {0};
	char part[4096];
	size_t n;
	while ((n = fread(part, 1, sizeof part, stdin)) > 0)
		text_add(&t, part, n);
	return t;
}

/* The result; a tool does this once. */
static inline int ak_result(const char *data, size_t size)
{
	return fwrite(data, 1, size, stdout) == size && fflush(stdout) == 0 ? 0 : 1;
}

/* Why there is none. */
static inline int ak_fail(const char *why)
{
	fputs(why, stderr);
	return 1;
}

/* Makes a host call; *well says whether the reply is one of success. */
static inline struct text ak_call(ak_host_call *call, const struct text *request, int *well)
{
	int32_t size = call(request->at, (int32_t)request->size);
	*well = size >= 0;
	struct text t = {0};
	t.size = t.room = (size_t)(size < 0 ? -(int64_t)size : size);
	t.at = ak_memory(NULL, t.room);
	t.size = (size_t)ak_reply(t.at, (int32_t)t.size);
	return t;
}

/* ---- JSON in place --------------------------------------------------------------------------------------------- */

static inline const char *json_blank(const char *p, const char *end)
{
	while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r'))
		p++;
	return p;
}

/* The end of the value that begins at p. */
static inline const char *json_skip(const char *p, const char *end)
{
	int depth = 0;
	while (p < end) {
		if (*p == '"') {
			for (p++; p < end && *p != '"'; p++)
				p += *p == '\\' && p + 1 < end;
			p = p < end ? p + 1 : end;
		} else if (*p == '{' || *p == '[') {
			depth++, p++;
		} else if (*p == '}' || *p == ']') {
			if (depth == 0)
				return p;
			depth--, p++;
		} else if (depth == 0 && (*p == ',' || *p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')) {
			return p;
		} else {
			p++;
			if (depth)
				continue;
			while (p < end && !strchr(",]} \n\r\t", *p))
				p++;
			return p;
		}
		if (depth == 0)
			return p;
	}
	return end;
}

static inline struct json json_of(const struct text *t)
{
	struct json v = {json_blank(t->at, t->at + t->size), t->at + t->size};
	v.end = json_skip(v.at, v.end);
	return v;
}

static inline int json_is(struct json v, char first) { return v.at && v.at < v.end && *v.at == first; }

/* A string's characters as UTF-8, not terminated; for what is no string, nothing. */
static inline struct text json_string(struct json v)
{
	struct text t = {0};
	if (!json_is(v, '"'))
		return t;
	for (const char *p = v.at + 1; p < v.end - 1; p++) {
		if (*p != '\\') {
			text_add(&t, p, 1);
			continue;
		}
		p++;
		static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
		const char *known = strchr(from, *p);
		if (*p != 'u') {
			text_add(&t, known && *p ? &to[known - from] : p, 1);
			continue;
		}
		unsigned long c = strtoul((char[]){p[1], p[2], p[3], p[4], 0}, NULL, 16);
		p += 4;
		if (c >= 0xD800 && c < 0xDC00 && v.end - p > 6 && p[1] == '\\' && p[2] == 'u') {
			unsigned long low = strtoul((char[]){p[3], p[4], p[5], p[6], 0}, NULL, 16);
			c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
			p += 6;
		}
		char utf8[4];
		size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
		static const unsigned char lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
		for (size_t i = n; i-- > 1; c >>= 6)
			utf8[i] = (char)(0x80 | (c & 0x3F));
		utf8[0] = (char)(lead[n] | c);
		text_add(&t, utf8, n);
	}
	return t;
}

/* The next member of an object or item of an array, or at == NULL. *place begins at NULL; key may be NULL. */
static inline struct json json_next(struct json whole, const char **place, struct json *key)
{
	struct json none = {NULL, NULL};
	const char *p = *place ? *place : whole.at + 1;
	p = json_blank(p, whole.end);
	if (p < whole.end && *p == ',')
		p = json_blank(p + 1, whole.end);
	if (p >= whole.end - 1)
		return none;
	if (*whole.at == '{') {
		const char *after = json_skip(p, whole.end);
		if (key)
			*key = (struct json){p, after};
		p = json_blank(after, whole.end);
		p = json_blank(p + (p < whole.end && *p == ':'), whole.end);
	}
	struct json v = {p, json_skip(p, whole.end)};
	*place = v.end;
	return v;
}

static inline struct json json_get(struct json object, const char *name, size_t size)
{
	const char *place = NULL;
	struct json key, v;
	if (!json_is(object, '{'))
		return (struct json){NULL, NULL};
	while ((v = json_next(object, &place, &key)).at) {
		struct text k = json_string(key);
		int same = k.size == size && memcmp(k.at, name, size) == 0;
		free(k.at);
		if (same)
			return v;
	}
	return v;
}

static inline struct json json_member(struct json object, const char *name)
{
	return json_get(object, name, strlen(name));
}

static inline long long json_number(struct json v, long long otherwise)
{
	return v.at && v.at < v.end && (*v.at == '-' || (*v.at >= '0' && *v.at <= '9')) ? strtoll(v.at, NULL, 10)
											: otherwise;
}

/* A tool that is one host call: its parameters, with `more` (members and a comma, or "") before them, are the
 * request, the reply is its result. */
static inline int ak_forward(ak_host_call *call, const char *more)
{
	struct text in = ak_input(), request = {0};
	struct json params = json_of(&in);
	const char *rest = json_blank(params.at + 1, params.end);
	text_str(&request, "{");
	text_add(&request, more, strlen(more) - (*more && *rest == '}'));
	text_add(&request, rest, (size_t)(params.end - rest));
	int well;
	struct text reply = ak_call(call, &request, &well);
	if (well)
		return ak_result(reply.at, reply.size);
	fwrite(reply.at, 1, reply.size, stderr);
	return 1;
}

#endif
