/* Hostile ring records through the audit chain: scan and render must agree on what is damaged, write whole lines and never
 * leave their buffers; every SHA-256 path must agree with the portable one, and so must the Merkle tree in one or many steps.
 *
 *	cc -g -O1 -D_GNU_SOURCE -fsanitize=address,undefined -fno-sanitize-recover=all -Inative tests/fuzz/chain.c \
 *		native/chain.c native/merkle.c native/sha256.c -o /tmp/fuzz-chain && /tmp/fuzz-chain [ROUNDS [SEED]]
 */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain.h"
#include "merkle.h"
#include "ring.h"

#define MOST_RECORDS 6
#define RECORD_MOST (sizeof(struct ak_event) + 2 * (UINT16_MAX + 1))

static uint64_t state;

static uint64_t any(uint64_t below)     /* xorshift64 */
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static const struct ak_op_name names[] = {{0x100, {"fs.open", 7}}, {0x200, {"net.connect", 11}}, {0xfffd, {"lifecycle", 9}}};
static const struct ak_text rules[] = {{"\"fs.read /app/**\"", 17}, {"\"x\"", 3}};

static size_t random_record(uint8_t *out)
{
	static const char troublesome[] = "abc\"\\\n\x01\x7f/\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xff\xed\xa0\x80";
	struct ak_event e;
	for (size_t i = 0; i < sizeof e; i++)
		((uint8_t *)&e)[i] = (uint8_t)any(256);
	e.decision = any(4) ? 1 : (uint8_t)any(3);
	if (any(2))
		e.op = any(4) ? names[any(3)].op : AK_EVENT_PAD;
	e.rule = any(2) ? (uint32_t)any(4) : UINT32_MAX;
	e.target_len = (uint16_t)(any(16) ? any(80) : any(4) ? any(9000) : UINT16_MAX);
	e.target2_len = (uint16_t)(any(3) ? 0 : any(80));
	size_t text = (size_t)e.target_len + e.target2_len;
	e.len = (uint32_t)(sizeof e + text + 7) & ~7u;
	memcpy(out, &e, sizeof e);
	uint64_t kind = any(3);
	for (size_t i = sizeof e; i < e.len; i++)
		out[i] = kind == 0 ? (uint8_t)any(256) : kind == 1 ? (uint8_t)troublesome[any(sizeof troublesome)] : 'a';
	return e.len;
}

/* Records of exact size on the heap, some of them damaged, so that a byte read too many is found. */
static uint8_t *random_records(size_t *len)
{
	uint8_t *wide = malloc(MOST_RECORDS * RECORD_MOST);
	assert(wide);
	*len = 0;
	for (uint64_t n = any(MOST_RECORDS); n; n--)
		*len += random_record(wide + *len);
	if (*len && !any(3))
		for (uint64_t n = 1 + any(4); n; n--)
			wide[any(*len)] ^= (uint8_t)(1 << any(8));
	if (*len && !any(5))
		*len -= any(*len);
	uint8_t *exact = malloc(*len ? *len : 1);
	assert(exact);
	memcpy(exact, wide, *len);
	free(wide);
	return exact;
}

static enum ak_chain_result scan(const uint8_t *records, size_t len, size_t *at, size_t *count)
{
	enum ak_chain_result result;
	struct ak_refused refused[2];
	do {
		size_t n = 0;
		result = ak_chain_scan(records, len, at, count, refused, 2, &n);
		for (size_t i = 0; i < n; i++)
			assert(refused[i].start < refused[i].end && refused[i].end <= len && refused[i].index < *count);
	} while (result == AK_CHAIN_FULL);
	return result;
}

static void check_tree(const struct ak_chain *chain, const uint8_t *hashes, size_t count)
{
	struct ak_merkle at_once = {0}, one_by_one = {0};
	ak_merkle_extend(&at_once, chain->blocks, hashes, count);
	for (size_t i = 0; i < count; i++)
		ak_merkle_extend(&one_by_one, ak_sha256_portable, hashes + 32 * i, 1);
	assert(at_once.size == count && at_once.edge_count == one_by_one.edge_count);
	assert(!memcmp(at_once.edge, one_by_one.edge, 32 * at_once.edge_count));
}

static size_t check_records(void)
{
	size_t len, at = 0, count = 0, ends = 0, cap = any(3000);
	uint8_t *records = random_records(&len), agent[16] = {1};
	enum ak_chain_result scanned = scan(records, len, &at, &count), rendered;
	struct ak_chain chain = {any(2) ? ak_sha256_best() : ak_sha256_portable, {9}, names, 3, rules, 2};
	struct ak_chain_head head = {.seq = any(3) ? 1 + any(1000) : any(UINT64_MAX)};
	struct ak_chain_pass pass = {.records = records, .records_len = len, .lines_cap = cap, .hashes_cap = 32 * count};
	pass.lines = malloc(cap + 1);
	pass.hashes = malloc(pass.hashes_cap + 1);
	assert(pass.lines && pass.hashes);
	while ((rendered = ak_chain_render(&chain, agent, &head, &pass)) == AK_CHAIN_FULL) {
		pass.lines_cap = pass.lines_cap * 2 + 17;
		char *more = malloc(pass.lines_cap);
		assert(more);
		memcpy(more, pass.lines, pass.lines_len);
		free(pass.lines);
		pass.lines = more;
	}
	for (size_t i = 0; i < pass.lines_len; i++)
		ends += pass.lines[i] == '\n';
	assert(rendered == scanned && pass.records_at == at && pass.hashes_len == 32 * count && ends == count);
	check_tree(&chain, pass.hashes, count);
	free(pass.hashes);
	free(pass.lines);
	free(records);
	return count;
}

static void check_sha256(void)
{
	uint8_t data[300] = {0}, whole[32], pieces[32];
	size_t len = any(sizeof data), at = 0;
	for (size_t i = 0; i < len; i++)
		data[i] = (uint8_t)any(256);
	ak_sha256(ak_sha256_portable, data, len, whole);
	struct ak_sha256 h;
	ak_sha256_init(&h, ak_sha256_best());
	while (at < len) {
		size_t n = any(len - at + 1);
		ak_sha256_update(&h, data + at, n);
		at += n;
	}
	ak_sha256_final(&h, pieces);
	assert(!memcmp(whole, pieces, sizeof whole));
}

int main(int argc, char **argv)
{
	uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 100000, lines = 0;
	state = 0x9e3779b97f4a7c15u * ((argc > 2 ? strtoull(argv[2], NULL, 10) : 0) * 2 + 1);
	for (uint64_t i = 0; i < rounds; i++) {
		lines += check_records();
		check_sha256();
	}
	printf("%" PRIu64 " rounds, %" PRIu64 " lines: nothing found\n", rounds, lines);
	return 0;
}
