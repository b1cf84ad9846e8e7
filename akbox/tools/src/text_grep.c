/* text_grep: the lines of a text, or of a file, in which a pattern is: a fixed string, or a POSIX extended regular
 * expression (regex(7)). What that may cost is bounded by the tool's fuel and time. */
#include <regex.h>
#include <strings.h>

#include "ak_tool.h"

AK_IMPORT(fs_read) int32_t fs_read(const char *request, int32_t size);

static int matches(const char *line, const char *pattern, const regex_t *compiled, int ignore_case)
{
	if (compiled)
		return regexec(compiled, line, 0, NULL, 0) == 0;
	size_t size = strlen(pattern);
	if (!ignore_case)
		return strstr(line, pattern) != NULL;
	for (; *line; line++)
		if (strncasecmp(line, pattern, size) == 0)
			return 1;
	return size == 0;
}

static int yes(struct json v) { return json_is(v, 't'); }

/* The text that is searched: `text`, or what fs_read gives of `path`. */
static int load(struct json params, struct text *text)
{
	struct json path = json_member(params, "path");
	if (!path.at) {
		*text = json_string(json_member(params, "text"));
		return 1;
	}
	struct text request = {0};
	text_str(&request, "{\"path\":");
	text_add(&request, path.at, (size_t)(path.end - path.at));
	text_str(&request, ",\"max_bytes\":8388608}");
	int well;
	struct text reply = ak_call(fs_read, &request, &well);
	struct json found = json_of(&reply);
	if (well && json_is(json_member(found, "encoding"), '"') && json_member(found, "encoding").at[1] == 'u') {
		*text = json_string(json_member(found, "content"));
		return 1;
	}
	if (well)
		fputs("the file is not text", stderr);
	else
		fwrite(reply.at, 1, reply.size, stderr);
	return 0;
}

int main(void)
{
	struct text in = ak_input(), text = {0}, out = {0};
	struct json params = json_of(&in);
	int ignore_case = yes(json_member(params, "ignore_case")), invert = yes(json_member(params, "invert"));
	long long limit = json_number(json_member(params, "limit"), 100), found = 0, number = 0;
	struct text pattern = json_string(json_member(params, "pattern"));
	text_add(&pattern, "", 1);
	regex_t regex, *compiled = NULL;
	if (yes(json_member(params, "regex"))) {
		int error = regcomp(&regex, pattern.at, REG_EXTENDED | REG_NOSUB | (ignore_case ? REG_ICASE : 0));
		if (error) {
			char why[128] = "pattern: ";
			regerror(error, &regex, why + 9, sizeof why - 9);
			return ak_fail(why);
		}
		compiled = &regex;
	}
	if (!load(params, &text))
		return 1;
	text_add(&text, "", 1);
	text_str(&out, "{\"matches\":[");
	for (char *line = text.at, *end = text.at + text.size - 1; line < end;) {
		char *stop = memchr(line, '\n', (size_t)(end - line));
		stop = stop ? stop : end;
		*stop = 0;
		number++;
		if (matches(line, pattern.at, compiled, ignore_case) != invert && ++found <= limit) {
			text_str(&out, found > 1 ? ",{\"line\":" : "{\"line\":");
			text_number(&out, number);
			text_str(&out, ",\"text\":");
			text_json(&out, line, strlen(line));
			text_str(&out, "}");
		}
		line = stop + 1;
	}
	text_str(&out, "],\"count\":");
	text_number(&out, found);
	text_str(&out, "}");
	return ak_result(out.at, out.size);
}
