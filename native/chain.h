/* From ring records to the log: the lines of docs/audit.md and their hash chain, without Python.
 *
 * The bytes are exactly those of akbox/kernel/event_lines.py (EventRenderer), which stays as the reference; a property test
 * holds the two together. Records may come from a file that anybody could have written (recovery), so every length in them
 * is checked, and what is not a whole, consistent record is refused. Nothing here allocates; nothing is shared between
 * calls but what an ak_chain holds, which never changes.
 */
#ifndef AK_CHAIN_H
#define AK_CHAIN_H

#include <stddef.h>
#include <stdint.h>

#include "sha256.h"

struct ak_text {
	const char *text;
	size_t len;
};

struct ak_op_name {
	uint16_t op;
	struct ak_text name;            /* plain ASCII that JSON does not escape */
};

/* What is the same for every line of a run. The texts are borrowed. */
struct ak_chain {
	ak_sha256_blocks *blocks;
	uint8_t run[16];
	const struct ak_op_name *names; /* ascending by op */
	size_t name_count;
	const struct ak_text *rules;    /* by rule number, as JSON strings with their quotes */
	size_t rule_count;
};

/* Where a chain is: the number the next entry gets and the hash of the entry before it. */
struct ak_chain_head {
	uint64_t seq;
	uint8_t prev[AK_SHA256_BYTES];
};

enum ak_chain_result {
	AK_CHAIN_DONE,          /* all of `records` was rendered */
	AK_CHAIN_FULL,          /* the next line or hash does not fit; what was rendered is whole */
	AK_CHAIN_DAMAGED,       /* the next record is none; what was rendered is whole */
};

/* One pass over whole records. The counters say how far it came and may be kept for the next call. */
struct ak_chain_pass {
	const uint8_t *records;
	size_t records_len, records_at;
	char *lines;
	size_t lines_cap, lines_len;
	uint8_t *hashes;                /* this_hash of each line */
	size_t hashes_cap, hashes_len;  /* in bytes */
};

enum ak_chain_result ak_chain_render(const struct ak_chain *chain, const uint8_t agent[16], struct ak_chain_head *head,
				     struct ak_chain_pass *pass);

/* A record that was not allowed, for Python, which merges floods of them. */
struct ak_refused {
	size_t start, end;      /* its bytes */
	size_t index;           /* among the records, padding ones not counted */
};

/* Checks all records from *at on; stops when `refused` is full. *count is the number of records so far. Returns
 * AK_CHAIN_DONE, AK_CHAIN_FULL or AK_CHAIN_DAMAGED (*at is then the bad record). */
enum ak_chain_result ak_chain_scan(const uint8_t *records, size_t len, size_t *at, size_t *count,
				   struct ak_refused *refused, size_t cap, size_t *refused_count);

#endif
