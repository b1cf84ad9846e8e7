/* libFuzzer: hostile compiled policies. A blob that ak_policy_parse() takes must answer every question about any path or
 * address without leaving its memory, and the answers must agree with each other. Input: u16 length of the blob, blob, path.
 *
 * `scripts/fuzz policy` builds and runs it; with -DSTANDALONE it runs over the files that it is given, under any sanitizer.
 */
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void ask_about_paths(const struct ak_policy *p, const char *path, size_t len, const char *to, size_t to_len)
{
	unsigned rights = ak_policy_rights(p, path, len);

	for (unsigned need = 1; need < 8; need++) {
		struct ak_verdict v = ak_policy_fs(p, need, path, len);

		assert(v.decision <= AK_ASK && v.missing <= 7);
		assert((v.decision == AK_ALLOW) == ((rights & need) == need) || v.decision == AK_ASK);
		if (v.decision == AK_ALLOW)
			assert(!ak_policy_refuses(p, need, path, len));
	}
	if (rights)
		assert(ak_policy_visible(p, path, len));
	if (ak_policy_exec_exact(p, path, len))
		assert(len > 0);
	(void)ak_policy_unix(p, path, len);
	for (int is_dir = 0; is_dir < 2; is_dir++)
		(void)ak_policy_move_keeps_rights(p, path, len, to, to_len, is_dir);
}

static void ask_about_addresses(const struct ak_policy *p, const uint8_t *data, size_t size)
{
	uint8_t addr[16] = {0};

	memcpy(addr, data, size < sizeof addr ? size : sizeof addr);
	for (int op = AK_NET_CONNECT; op <= AK_NET_LISTEN; op++)
		for (int proto = AK_TCP; proto <= AK_UDP; proto++) {
			(void)ak_policy_net(p, (enum ak_net_op)op, (enum ak_net_proto)proto, addr, 4, addr[4]);
			(void)ak_policy_net(p, (enum ak_net_op)op, (enum ak_net_proto)proto, addr, 16, (uint16_t)(addr[4] << 8));
		}
}

/* Canonical, as the callers' contract says: absolute, no empty, "." or ".." segment. */
static size_t canonical(const uint8_t *data, size_t size, char *out, size_t cap)
{
	size_t n = 0;

	for (size_t i = 0; i < size && n + 4 < cap; i++) {
		char c = data[i] ? (char)data[i] : 'a';

		if (n == 0 || (c == '/' && out[n - 1] == '/') || (c == '.' && out[n - 1] == '/'))
			c = n == 0 ? '/' : 'b';
		out[n++] = c;
	}
	if (n == 0)
		out[n++] = '/';
	if (n > 1 && out[n - 1] == '/')
		n--;
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *why = NULL;
	char path[512], to[512];
	size_t blob_len, rest;

	if (size < 2)
		return 0;
	blob_len = (size_t)(data[0] | data[1] << 8);
	if (blob_len > size - 2)
		blob_len = size - 2;
	rest = size - 2 - blob_len;
	struct ak_policy *p = ak_policy_parse(data + 2, blob_len, &why);
	assert(p != NULL || why != NULL);
	if (p == NULL)
		return 0;
	size_t len = canonical(data + 2 + blob_len, rest / 2, path, sizeof path);
	size_t to_len = canonical(data + 2 + blob_len + rest / 2, rest - rest / 2, to, sizeof to);
	/* Of exact size on the heap, so that a byte read too many is found. */
	char *exact = malloc(len), *exact_to = malloc(to_len);
	assert(exact && exact_to);
	memcpy(exact, path, len);
	memcpy(exact_to, to, to_len);
	ask_about_paths(p, exact, len, exact_to, to_len);
	ask_about_addresses(p, data + 2 + blob_len, rest);
	free(exact);
	free(exact_to);
	ak_policy_free(p);
	return 0;
}

#ifdef STANDALONE
int main(int argc, char **argv)
{
	static uint8_t data[1 << 17];
	int files = 0;

	for (int i = 1; i < argc; i++, files++) {
		FILE *file = fopen(argv[i], "rb");
		size_t size = file == NULL ? 0 : fread(data, 1, sizeof data, file);

		if (file == NULL || fclose(file) != 0)
			return 2;
		/* The input itself, and it with each of its bytes changed in turn. */
		(void)LLVMFuzzerTestOneInput(data, size);
		for (size_t at = 0; at < size; at++)
			for (int bit = 0; bit < 8; bit += 7) {
				data[at] ^= (uint8_t)(1 << bit);
				(void)LLVMFuzzerTestOneInput(data, size);
				data[at] ^= (uint8_t)(1 << bit);
			}
	}
	printf("%d inputs: nothing found\n", files);
	return 0;
}
#endif
