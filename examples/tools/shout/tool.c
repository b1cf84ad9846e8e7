/* shout: gives its text in capitals. A template for tools in C: build it with `scripts/build-tools examples/tools/shout`. */
#include <ctype.h>

#include "ak_tool.h"

int main(void)
{
	struct text in = ak_input(), out = {0};
	struct text text = json_string(json_member(json_of(&in), "text"));
	for (size_t i = 0; i < text.size; i++)
		text.at[i] = (char)toupper((unsigned char)text.at[i]);
	text_str(&out, "{\"text\":");
	text_json(&out, text.at, text.size);
	text_str(&out, "}");
	return ak_result(out.at, out.size);
}
