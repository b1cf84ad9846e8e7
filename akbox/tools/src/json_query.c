/* json_query: the part of a JSON value at a path: `a.b[0].c`, or a JSON Pointer (RFC 6901, begins with `/`). */
#include "ak_tool.h"

static struct json item(struct json array, long long index)
{
	const char *place = NULL;
	struct json v = {NULL, NULL};
	if (!json_is(array, '[') || index < 0)
		return v;
	while ((v = json_next(array, &place, NULL)).at && index-- > 0)
		;
	return v;
}

static struct json step(struct json v, const char *name, size_t size)
{
	if (!json_is(v, '['))
		return json_get(v, name, size);
	char digits[16] = "";
	if (size == 0 || size >= sizeof digits || strspn(name, "0123456789") < size)
		return (struct json){NULL, NULL};
	memcpy(digits, name, size);
	return item(v, strtoll(digits, NULL, 10));
}

/* `~1` is `/` and `~0` is `~` in a pointer's token; done in place, the new size. */
static size_t unescape(char *at, size_t size)
{
	size_t n = 0;
	for (size_t i = 0; i < size; i++) {
		if (at[i] == '~' && i + 1 < size && (at[i + 1] == '0' || at[i + 1] == '1'))
			at[n++] = at[++i] == '0' ? '~' : '/';
		else
			at[n++] = at[i];
	}
	return n;
}

static struct json pointer(struct json v, char *p, char *end)
{
	while (v.at && p < end) {
		char *token = ++p;
		while (p < end && *p != '/')
			p++;
		v = step(v, token, unescape(token, (size_t)(p - token)));
	}
	return v;
}

static struct json path(struct json v, char *p, char *end)
{
	while (v.at && p < end) {
		if (*p == '.')
			p++;
		int index = p < end && *p == '[';
		char *token = p += index;
		while (p < end && !(index ? *p == ']' : *p == '.' || *p == '['))
			p++;
		v = index && !json_is(v, '[') ? (struct json){NULL, NULL} : step(v, token, (size_t)(p - token));
		p += index && p < end;
	}
	return v;
}

int main(void)
{
	struct text in = ak_input(), wanted, inner, out = {0};
	struct json params = json_of(&in);
	struct json value = json_member(params, "value"), text = json_member(params, "json");
	if (text.at) {   /* as text, such as the body that http_get gave */
		inner = json_string(text);
		value = json_of(&inner);
	}
	if (!value.at || value.at == value.end)
		return ak_fail("value or json: one of them is needed");
	wanted = json_string(json_member(params, "path"));
	text_add(&wanted, "", 1);   /* terminated */
	char *end = wanted.at + wanted.size - 1;
	struct json found = *wanted.at == '/' ? pointer(value, wanted.at, end) : path(value, wanted.at, end);
	text_str(&out, found.at ? "{\"found\":true,\"value\":" : "{\"found\":false");
	if (found.at)
		text_add(&out, found.at, (size_t)(found.end - found.at));
	text_str(&out, "}");
	return ak_result(out.at, out.size);
}
