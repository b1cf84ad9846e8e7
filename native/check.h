/* Checks lines of a log: the fast half of akbox/kernel/verify.py.
 *
 * It only ever says yes. A line that it does not vouch for may be bad, or may be good in a way that is rare (a number that
 * is not a small integer, a key that is not plain ASCII, deep nesting): the caller then asks Python, which also knows what
 * is wrong with it. So an error in here can make verification slow, and what must be right is that it vouches for nothing
 * that Python refuses (tests/unit/test_native_check.py, tests/fuzz/check.c).
 */
#ifndef AK_CHECK_H
#define AK_CHECK_H

#include <stddef.h>
#include <stdint.h>

#include "sha256.h"

/* Where a chain is: the number that the next line must have, the hash that it must follow, and whose run it is. */
struct ak_check {
	ak_sha256_blocks *blocks;
	uint8_t run[16];
	uint64_t seq;
	uint8_t prev[AK_SHA256_BYTES];
};

/* Is `line` (with its newline) the entry that the writer would have written at this place? Then its this_hash is in
 * c->prev and c->seq is one more. Otherwise false, and *c is as it was. */
int ak_check_line(struct ak_check *c, const uint8_t *line, size_t len);

/* Checks whole lines from *at on until one is not vouched for, the data ends or `cap` hashes were written. Returns the
 * number of hashes; *at is behind the last line that was. */
size_t ak_check_lines(struct ak_check *c, const uint8_t *data, size_t len, size_t *at, uint8_t *hashes, size_t cap);

#endif
