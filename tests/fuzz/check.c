/* Hostile lines through the fast half of verification: it stays in its buffer, and vouches for no line that was changed.
 * (That it vouches for nothing that Python refuses is tests/unit/test_native_check.py.)
 *
 *	cc -g -O1 -D_GNU_SOURCE -fsanitize=address,undefined -fno-sanitize-recover=all -Inative tests/fuzz/check.c \
 *		native/check.c native/chain.c native/sha256.c -o /tmp/fuzz-check && /tmp/fuzz-check [ROUNDS [SEED]]
 */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain.h"
#include "check.h"
#include "ring.h"

static uint64_t state;

static uint64_t any(uint64_t below)     /* xorshift64 */
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

/* Lines of a few events, by the writer. */
static size_t good_lines(char *lines, size_t cap)
{
	static const struct ak_op_name names[] = {{0x100, {"fs.open", 7}}};
	static const struct ak_text rules[] = {{"\"fs.read /app/**\"", 17}};
	static const char bytes[] = "/ab\"\\\n\x01\x7f\xc3\xa9\xff";
	struct ak_chain chain = {ak_sha256_best(), {9}, names, 1, rules, 1};
	struct ak_chain_head head = {.seq = 1};
	uint8_t records[4 * 256] = {0}, hashes[4 * 32], agent[16] = {1};
	size_t len = 0;
	for (uint64_t n = 1 + any(4); n; n--) {
		struct ak_event e = {.op = 0x100, .decision = (uint8_t)any(3), .need = 1, .ts_ns = any(UINT64_MAX), .nr = 257};
		e.target_len = (uint16_t)any(60);
		e.target2_len = (uint16_t)any(20);
		e.rule = any(2) ? 0 : UINT32_MAX;
		e.arg = any(2) ? any(UINT64_MAX) : any(1000);
		e.len = (uint32_t)(sizeof e + e.target_len + e.target2_len + 7) & ~7u;
		memcpy(records + len, &e, sizeof e);
		for (size_t i = sizeof e; i < sizeof e + e.target_len + e.target2_len; i++)
			records[len + i] = (uint8_t)bytes[any(sizeof bytes - 1)];
		len += e.len;
	}
	struct ak_chain_pass pass = {
		.records = records, .records_len = len, .lines = lines, .lines_cap = cap, .hashes = hashes, .hashes_cap = sizeof hashes,
	};
	assert(ak_chain_render(&chain, agent, &head, &pass) == AK_CHAIN_DONE);
	return pass.lines_len;
}

int main(int argc, char **argv)
{
	uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 100000, checked = 0;
	static char lines[1 << 16];
	state = 0x9e3779b97f4a7c15u * ((argc > 2 ? strtoull(argv[2], NULL, 10) : 0) * 2 + 1);
	for (uint64_t i = 0; i < rounds; i++) {
		size_t len = good_lines(lines, sizeof lines), at = 0, first_bad = SIZE_MAX;
		uint8_t *exact = malloc(len), hashes[8 * 32];
		assert(exact);
		memcpy(exact, lines, len);
		if (any(4)) {
			first_bad = any(len);
			uint8_t before = exact[first_bad];
			exact[first_bad] = any(2) ? (uint8_t)any(256) : before ^ (uint8_t)(1u << any(8));
			if (exact[first_bad] == before)
				first_bad = SIZE_MAX;
		}
		struct ak_check c = {.blocks = ak_sha256_best(), .run = {9}, .seq = 1};
		size_t n = ak_check_lines(&c, exact, any(4) ? len : len - any(len), &at, hashes, 8);
		assert(n == c.seq - 1 && at <= len && at <= first_bad);
		checked += n;
		free(exact);
	}
	printf("%" PRIu64 " rounds, %" PRIu64 " lines vouched for: nothing found\n", rounds, checked);
	return 0;
}
