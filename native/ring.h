/* The event ring: where a trapped call's decision is written before the call continues.
 *
 * A file in the run's directory, mapped shared: when the supervisor is killed the pages stay with the kernel and
 * `akbox audit recover` (and verify, and the next start) replays what the log does not hold yet. Many C threads write,
 * one Python thread reads. A full ring blocks the writers (the agent waits; no entry is ever dropped).
 *
 * File: a 4,096-byte header {magic "AKRING1\0", u64 size of the data area, u64 head, u64 tail, u8 run[16]}, then the data
 * area (a power of two). head and tail are byte counts since the start, never wrapped; head is moved by the writers when a record is
 * complete, tail by the reader when its entries are durable in the log. A record never straddles the end: a record
 * with op AK_EVENT_PAD fills the rest. Everything is little-endian.
 */
#ifndef AK_RING_H
#define AK_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AK_RING_HEADER 4096u
#define AK_EVENT_PAD 0u
#define AK_EVENT_TARGET_MAX 4095u
#define AK_EVENT_MAX (64u + 2 * (AK_EVENT_TARGET_MAX + 1))      /* no record is longer */
#define AK_RING_GATHER_MS 20

struct ak_event {               /* 64 bytes, then target, then target2, zero-padded to a multiple of 8 */
	uint32_t len;           /* whole record */
	uint16_t op;            /* effect op of design 02 (0x100 fs.open ...), AK_EVENT_PAD = filler */
	uint8_t decision;       /* enum ak_decision */
	uint8_t need;           /* enum ak_need bits asked for */
	uint64_t ts_ns;         /* CLOCK_REALTIME */
	int32_t tgid, tid;      /* who, in the supervisor's pid namespace */
	int32_t nr;             /* system call number on this architecture */
	int32_t error;          /* errno the caller got (0: it succeeded or was let through) */
	uint32_t rule;          /* index in CompiledPolicy.rules, or UINT32_MAX */
	uint32_t missing;       /* enum ak_need bits that no rule gave */
	uint64_t arg;           /* open flags; mode; port; signal: by op */
	uint16_t target_len, target2_len;
	uint32_t reserved[3];   /* 0 */
};
_Static_assert(sizeof(struct ak_event) == 64, "the record header is 64 bytes on disk");

struct ak_ring;

struct ak_ring *ak_ring_open(int fd, size_t data_size, const uint8_t run[16]);   /* fd: empty O_RDWR file; NULL + errno */
void ak_ring_close(struct ak_ring *r);

/* Copies the event (ts_ns and len are filled in here) and its strings in; blocks while the ring is full.
 * Returns 0, or -1 once the ring was closed for writing: the caller then denies. */
int ak_ring_put(struct ak_ring *r, struct ak_event *e, const char *target, const char *target2);
void ak_ring_shut(struct ak_ring *r);

/* The one reader. peek copies whole records, without padding ones, and leaves them there; consume gives back the space of
 * the first n bytes of what the last peek returned (0, or -1 when n is not the end of a record). */
size_t ak_ring_waiting(struct ak_ring *r);             /* bytes, padding included */
size_t ak_ring_peek(struct ak_ring *r, void *buf, size_t cap);
int ak_ring_consume(struct ak_ring *r, size_t n);
/* True when there is something to read. To let records gather it returns up to AK_RING_GATHER_MS after the first one,
 * sooner when half of the ring is full or a writer waits; shutting the ring ends the wait at once. */
bool ak_ring_wait(struct ak_ring *r, int timeout_ms);

#endif
