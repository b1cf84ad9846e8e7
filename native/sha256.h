/* SHA-256 (FIPS 180-4): of the log's entries, the Merkle tree and what else the C side has to hash. Uses the processor's
 * SHA instructions where it has them; the portable path gives the same everywhere. */
#ifndef AK_SHA256_H
#define AK_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AK_SHA256_BYTES 32
#define AK_SHA256_BLOCK 64

/* Compresses `count` blocks of 64 bytes into the state. */
typedef void ak_sha256_blocks(uint32_t state[8], const uint8_t *data, size_t count);

struct ak_sha256 {
	ak_sha256_blocks *blocks;
	uint32_t state[8];
	uint64_t length;                        /* bytes so far */
	uint8_t waiting[AK_SHA256_BLOCK];       /* the length % 64 bytes that fill no block yet */
};

ak_sha256_blocks *ak_sha256_best(void);         /* for this processor; cheap to ask each time */
ak_sha256_blocks ak_sha256_portable;

void ak_sha256_init(struct ak_sha256 *h, ak_sha256_blocks *blocks);
void ak_sha256_update(struct ak_sha256 *h, const void *data, size_t len);
void ak_sha256_final(struct ak_sha256 *h, uint8_t digest[AK_SHA256_BYTES]);     /* h must be initialised anew afterwards */

/* All in one. */
void ak_sha256(ak_sha256_blocks *blocks, const void *data, size_t len, uint8_t digest[AK_SHA256_BYTES]);

#endif
