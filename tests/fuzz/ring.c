/* libFuzzer: the event ring under any order of writing, reading and giving back, against a plain queue. Input: pairs of bytes,
 * an operation and its size. What is read must be what was written, whole and in order, whatever the wrapping.
 *
 * `scripts/fuzz ring` builds and runs it; with -DSTANDALONE it runs random orders: [ROUNDS [SEED]].
 */
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ring.h"

#define DATA_BYTES (1u << 16)
#define QUEUE 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct queue { uint64_t arg[QUEUE]; uint16_t len[QUEUE]; size_t head, tail, bytes; };

static size_t record_len(size_t target) { return (sizeof(struct ak_event) + target + 7) & ~(size_t)7; }

static void put(struct ak_ring *r, struct queue *q, size_t target)
{
	static char text[AK_EVENT_TARGET_MAX + 1];
	struct ak_event e = {.op = 0x100, .decision = 1, .arg = q->head};

	/* It blocks when full, and may waste up to a record at the end: leave room for both. */
	if (q->bytes + 2 * record_len(AK_EVENT_TARGET_MAX) + record_len(target) > DATA_BYTES || q->head - q->tail == QUEUE)
		return;
	memset(text, 'a' + (int)(q->head % 26), target);
	text[target] = '\0';
	assert(ak_ring_put(r, &e, text, NULL) == 0);
	q->arg[q->head % QUEUE] = q->head;
	q->len[q->head % QUEUE] = (uint16_t)target;
	q->head++;
	q->bytes += record_len(target);
}

static void take(struct ak_ring *r, struct queue *q, size_t cap)
{
	uint8_t *buf = malloc(cap ? cap : 1);
	assert(buf);
	size_t n = ak_ring_peek(r, buf, cap), at = 0;

	assert(n <= cap);
	while (at < n) {
		struct ak_event e;

		memcpy(&e, buf + at, sizeof e);
		assert(q->tail < q->head && e.arg == q->arg[q->tail % QUEUE] && e.target_len == q->len[q->tail % QUEUE]);
		for (size_t i = 0; i < e.target_len; i++)
			assert(buf[at + sizeof e + i] == 'a' + (int)(q->tail % 26));
		assert(e.len == record_len(e.target_len) && at + e.len <= n);
		at += e.len;
		q->tail++;
		q->bytes -= e.len;
	}
	if (n)
		assert(ak_ring_consume(r, n) == 0);
	assert(ak_ring_consume(r, 1) < 0);      /* no end of a record */
	free(buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint8_t run[16] = {1};
	struct queue *q = calloc(1, sizeof *q);
	int fd = memfd_create("ring", MFD_CLOEXEC);
	struct ak_ring *r = ak_ring_open(fd, DATA_BYTES, run);

	assert(q && r);
	close(fd);
	for (size_t i = 0; i + 1 < size; i += 2) {
		if (data[i] & 1)
			take(r, q, (size_t)data[i + 1] * 130);
		else
			put(r, q, (size_t)(data[i] >> 1) * data[i + 1] % (AK_EVENT_TARGET_MAX + 1));
	}
	take(r, q, DATA_BYTES);
	assert(q->tail == q->head && ak_ring_waiting(r) == 0);
	ak_ring_shut(r);
	struct ak_event e = {.op = 0x100};
	assert(ak_ring_put(r, &e, "x", NULL) < 0);
	ak_ring_close(r);
	free(q);
	return 0;
}

#ifdef STANDALONE
int main(int argc, char **argv)
{
	unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 2000;
	static uint8_t data[512];

	srandom(argc > 2 ? (unsigned)atoi(argv[2]) : 1);
	for (unsigned long i = 0; i < rounds; i++) {
		size_t size = (size_t)random() % sizeof data;
		for (size_t n = 0; n < size; n++)
			data[n] = (uint8_t)random();
		(void)LLVMFuzzerTestOneInput(data, size);
	}
	printf("%lu rounds: nothing found\n", rounds);
	return 0;
}
#endif
