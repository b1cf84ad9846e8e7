/* The Merkle tree of RFC 6962 2.1; see merkle.h. */
#include "merkle.h"

#include <string.h>

void ak_merkle_extend(struct ak_merkle *tree, ak_sha256_blocks *blocks, const uint8_t *leaves, size_t count)
{
	/* The first byte keeps a leaf and an inner node from ever being taken for each other. */
	uint8_t leaf[1 + AK_SHA256_BYTES] = {0}, node[1 + 2 * AK_SHA256_BYTES] = {1};
	for (; count; count--, leaves += AK_SHA256_BYTES) {
		memcpy(leaf + 1, leaves, AK_SHA256_BYTES);
		ak_sha256(blocks, leaf, sizeof leaf, tree->edge[tree->edge_count++]);
		for (uint64_t size = tree->size++; size & 1; size >>= 1) {
			tree->edge_count--;
			memcpy(node + 1, tree->edge[tree->edge_count - 1], 2 * AK_SHA256_BYTES);
			ak_sha256(blocks, node, sizeof node, tree->edge[tree->edge_count - 1]);
		}
	}
}
