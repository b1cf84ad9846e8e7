/* The RFC 6962 Merkle tree over the log's entries; the C twin of akbox/kernel/merkle.py's MerkleTree. */
#ifndef AK_MERKLE_H
#define AK_MERKLE_H

#include "sha256.h"

#define AK_MERKLE_EDGE 64

/* The right edge of a growing tree: the roots of its complete subtrees, largest first. */
struct ak_merkle {
	uint64_t size;          /* leaves */
	size_t edge_count;      /* always the number of one bits in size */
	uint8_t edge[AK_MERKLE_EDGE + 1][AK_SHA256_BYTES];
};

/* Appends leaves; a leaf's data is an entry's this_hash. Precondition: size + count fits in 64 bits. */
void ak_merkle_extend(struct ak_merkle *tree, ak_sha256_blocks *blocks, const uint8_t *leaves, size_t count);

#endif
