/* SHA-256, written from FIPS 180-4; see sha256.h. Tested against hashlib on every length around the block borders, for the
 * portable path and for the one that the processor gets (tests/unit/test_native_chain.py). */
#include "sha256.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#ifndef HWCAP_SHA2
#define HWCAP_SHA2 (1 << 6)
#endif
#endif

static const uint32_t round_keys[64] __attribute__((aligned(16))) = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t load_be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline void store_be32(uint8_t *p, uint32_t x)
{
	p[0] = (uint8_t)(x >> 24);
	p[1] = (uint8_t)(x >> 16);
	p[2] = (uint8_t)(x >> 8);
	p[3] = (uint8_t)x;
}

/* ---- portable ---------------------------------------------------------------------------------------------------- */

static inline uint32_t rotr(uint32_t x, unsigned n)
{
	return x >> n | x << (32 - n);
}

void ak_sha256_portable(uint32_t state[8], const uint8_t *data, size_t count)
{
	for (; count; count--, data += AK_SHA256_BLOCK) {
		uint32_t w[64], v[8];
		for (int t = 0; t < 16; t++)
			w[t] = load_be32(data + 4 * t);
		for (int t = 16; t < 64; t++) {
			uint32_t s0 = rotr(w[t - 15], 7) ^ rotr(w[t - 15], 18) ^ w[t - 15] >> 3;
			uint32_t s1 = rotr(w[t - 2], 17) ^ rotr(w[t - 2], 19) ^ w[t - 2] >> 10;
			w[t] = w[t - 16] + s0 + w[t - 7] + s1;
		}
		memcpy(v, state, sizeof v);
		for (int t = 0; t < 64; t++) {
			uint32_t a = v[0], e = v[4];
			uint32_t t1 = v[7] + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + ((e & v[5]) ^ (~e & v[6])) +
				      round_keys[t] + w[t];
			uint32_t t2 = (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
			memmove(v + 1, v, 7 * sizeof *v);
			v[4] += t1;
			v[0] = t1 + t2;
		}
		for (int i = 0; i < 8; i++)
			state[i] += v[i];
	}
}

/* ---- x86: the SHA extensions (Intel SDM vol. 2, SHA256RNDS2, SHA256MSG1, SHA256MSG2) ---------------------------------- */

#if defined(__x86_64__)

__attribute__((target("sha,sse4.1,ssse3")))
static void blocks_shani(uint32_t state[8], const uint8_t *data, size_t count)
{
	const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
	/* The instructions want the words of the state as {a b e f} and {c d g h}. */
	__m128i low = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xb1);
	__m128i high = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(state + 4)), 0x1b);
	__m128i abef = _mm_alignr_epi8(low, high, 8);
	__m128i cdgh = _mm_blend_epi16(high, low, 0xf0);

	for (; count; count--, data += AK_SHA256_BLOCK) {
		const __m128i abef_before = abef, cdgh_before = cdgh;
		__m128i w[4];
		for (int i = 0; i < 4; i++)
			w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(data + 16 * i)), swap);
#pragma GCC unroll 16
		for (int i = 0; i < 16; i++) {          /* four rounds each */
			__m128i keyed = _mm_add_epi32(w[i & 3], _mm_load_si128((const __m128i *)(round_keys + 4 * i)));
			cdgh = _mm_sha256rnds2_epu32(cdgh, abef, keyed);
			abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(keyed, 0x0e));
			if (i < 12) {
				__m128i sevens = _mm_alignr_epi8(w[(i + 3) & 3], w[(i + 2) & 3], 4);
				__m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]), sevens);
				w[i & 3] = _mm_sha256msg2_epu32(sum, w[(i + 3) & 3]);
			}
		}
		abef = _mm_add_epi32(abef, abef_before);
		cdgh = _mm_add_epi32(cdgh, cdgh_before);
	}
	low = _mm_shuffle_epi32(abef, 0x1b);
	high = _mm_shuffle_epi32(cdgh, 0xb1);
	_mm_storeu_si128((__m128i *)state, _mm_blend_epi16(low, high, 0xf0));
	_mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(high, low, 8));
}

static ak_sha256_blocks *detect(void)
{
	unsigned a, b, c, d, b7, c7;
	if (!__get_cpuid(1, &a, &b, &c, &d) || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d))
		return ak_sha256_portable;
	return c & bit_SSSE3 && c & bit_SSE4_1 && b7 & bit_SHA ? blocks_shani : ak_sha256_portable;
}

/* ---- ARMv8: the SHA2 instructions (Arm ARM, SHA256H, SHA256H2, SHA256SU0, SHA256SU1) ---------------------------------- */

#elif defined(__aarch64__)

__attribute__((target("+crypto")))
static void blocks_armv8(uint32_t state[8], const uint8_t *data, size_t count)
{
	uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
	for (; count; count--, data += AK_SHA256_BLOCK) {
		const uint32x4_t abcd_before = abcd, efgh_before = efgh;
		uint32x4_t w[4];
		for (int i = 0; i < 4; i++)
			w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * i)));
#pragma GCC unroll 16
		for (int i = 0; i < 16; i++) {          /* four rounds each */
			uint32x4_t keyed = vaddq_u32(w[i & 3], vld1q_u32(round_keys + 4 * i)), abcd_now = abcd;
			abcd = vsha256hq_u32(abcd, efgh, keyed);
			efgh = vsha256h2q_u32(efgh, abcd_now, keyed);
			if (i < 12)
				w[i & 3] = vsha256su1q_u32(vsha256su0q_u32(w[i & 3], w[(i + 1) & 3]),
							   w[(i + 2) & 3], w[(i + 3) & 3]);
		}
		abcd = vaddq_u32(abcd, abcd_before);
		efgh = vaddq_u32(efgh, efgh_before);
	}
	vst1q_u32(state, abcd);
	vst1q_u32(state + 4, efgh);
}

static ak_sha256_blocks *detect(void)
{
	return getauxval(AT_HWCAP) & HWCAP_SHA2 ? blocks_armv8 : ak_sha256_portable;
}

#else

static ak_sha256_blocks *detect(void)
{
	return ak_sha256_portable;
}

#endif

ak_sha256_blocks *ak_sha256_best(void)
{
	/* Threads that come here at once find the same: no lock. Asking the processor costs a VM exit, so it is asked once. */
	static _Atomic(ak_sha256_blocks *) found;
	ak_sha256_blocks *best = atomic_load_explicit(&found, memory_order_relaxed);
	if (!best) {
		best = detect();
		atomic_store_explicit(&found, best, memory_order_relaxed);
	}
	return best;
}

/* ---- any length -------------------------------------------------------------------------------------------------- */

void ak_sha256_init(struct ak_sha256 *h, ak_sha256_blocks *blocks)
{
	static const uint32_t initial[8] = {
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
	};
	h->blocks = blocks;
	memcpy(h->state, initial, sizeof initial);
	h->length = 0;
}

void ak_sha256_update(struct ak_sha256 *h, const void *data, size_t len)
{
	const uint8_t *at = data;
	size_t held = h->length % AK_SHA256_BLOCK, room = AK_SHA256_BLOCK - held;
	h->length += len;
	if (len < room) {
		if (len)
			memcpy(h->waiting + held, at, len);
		return;
	}
	if (held) {
		memcpy(h->waiting + held, at, room);
		h->blocks(h->state, h->waiting, 1);
		at += room;
		len -= room;
	}
	h->blocks(h->state, at, len / AK_SHA256_BLOCK);
	memcpy(h->waiting, at + (len - len % AK_SHA256_BLOCK), len % AK_SHA256_BLOCK);
}

void ak_sha256_final(struct ak_sha256 *h, uint8_t digest[AK_SHA256_BYTES])
{
	uint64_t bits = h->length * 8;
	size_t held = h->length % AK_SHA256_BLOCK;
	h->waiting[held++] = 0x80;
	if (held > AK_SHA256_BLOCK - 8) {
		memset(h->waiting + held, 0, AK_SHA256_BLOCK - held);
		h->blocks(h->state, h->waiting, 1);
		held = 0;
	}
	memset(h->waiting + held, 0, AK_SHA256_BLOCK - 8 - held);
	store_be32(h->waiting + AK_SHA256_BLOCK - 8, (uint32_t)(bits >> 32));
	store_be32(h->waiting + AK_SHA256_BLOCK - 4, (uint32_t)bits);
	h->blocks(h->state, h->waiting, 1);
	for (int i = 0; i < 8; i++)
		store_be32(digest + 4 * i, h->state[i]);
}

void ak_sha256(ak_sha256_blocks *blocks, const void *data, size_t len, uint8_t digest[AK_SHA256_BYTES])
{
	struct ak_sha256 h;
	ak_sha256_init(&h, blocks);
	ak_sha256_update(&h, data, len);
	ak_sha256_final(&h, digest);
}
