/* libFuzzer: any call with any arguments and any memory behind them, handed to the enforcer as its interposers do. Nothing that
 * the policy keeps from the agent may be changed or opened, no descriptor left behind. agent.h says against what.
 *
 * Input: number, looks until the agent is gone, six arguments of a kind byte and up to 8 bytes, then the agent's memory.
 * `scripts/fuzz calls` builds and runs it; with -DSTANDALONE it makes random calls: [ROUNDS [SEED]].
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RENEW_EVERY 2048

struct input { const uint8_t *at, *end; };

static uint64_t take(struct input *in, size_t bytes)
{
	uint64_t value = 0;
	for (size_t i = 0; i < bytes && in->at < in->end; i++)
		value |= (uint64_t)*in->at++ << (8 * i);
	return value;
}

static const struct ak_handler_entry *const families[] = {
	ak_open_handlers, ak_exec_handlers, ak_mutate_handlers, ak_attr_handlers,
	ak_meta_handlers, ak_net_handlers, ak_pty_handlers, ak_misc_handlers,
};

/* By place among the calls that have a handler, as far as they go; past them the number itself. */
static int number(unsigned place)
{
	for (size_t i = 0; i < sizeof families / sizeof *families; i++)
		for (const struct ak_handler_entry *h = families[i]; h->nr >= 0; h++)
			if (place-- == 0)
				return h->nr;
	return (int)place;
}

static uint64_t argument(struct input *in, const struct agent *a)
{
	uint64_t kind = take(in, 1);
	switch (kind % 8) {
	case 0:
		return take(in, 8);
	case 1:
	case 2:
		return (uint64_t)(uintptr_t)MEMORY + take(in, 2) % (MEMORY_BYTES + 64);
	case 3:
		return FIRST_FD + take(in, 1) % FDS;
	case 4:
		return (uint64_t)(int64_t)(int8_t)take(in, 1);
	case 5:
		return take(in, 4);
	case 6:
		return kind & 8 ? (uint64_t)(int64_t)AT_FDCWD : 0xdead000000000000u | (uint32_t)AT_FDCWD;
	default:
		return (kind & 8) ? (uint64_t)a->pid : (uint64_t)getpid();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct agent *a;
	static unsigned calls;
	struct input in = {data, data + size};
	struct ak_outcome out;
	uint64_t args[6];

	if (!a)
		a = agent_start(getenv("AKBOX_FUZZ_STRICT") ? AK_FLAG_STRICT_METADATA : 0);
	if (calls++ % RENEW_EVERY == 0 || !agent_lives(a))
		agent_renew(a);
	agent_begin();
	int nr = number((unsigned)take(&in, 1));
	unsigned looks = (unsigned)take(&in, 1);
	for (int i = 0; i < 6; i++)
		args[i] = argument(&in, a);
	size_t rest = (size_t)(in.end - in.at);
	memcpy(MEMORY, in.at, rest < MEMORY_BYTES ? rest : MEMORY_BYTES);
	a->enforcer->net_names = looks & 1 ? a->names : NULL;
	agent_call(a, nr, args, looks & 0x80 ? looks & 15 : 10000, &out);
	if (out.kind == AK_INSTALL_FD)
		close(out.fd);
	agent_check(a);
	return 0;
}

#ifdef STANDALONE
int main(int argc, char **argv)
{
	unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 2000;
	static const char *const paths[] = {"ok", "new", "d/secret", "d", "out", "in", "../host/h", "../read/a", "fifo", "/proc/self/fd/22"};
	static uint8_t data[256];

	srandom(argc > 2 ? (unsigned)atoi(argv[2]) : 1);
	for (unsigned long i = 0; i < rounds; i++) {
		size_t size = 64 + (size_t)random() % (sizeof data - 64);
		for (size_t n = 0; n < size; n++)
			data[n] = (uint8_t)random();
		data[1] = (uint8_t)(random() % 8 ? data[1] & 0x7f : data[1]);
		/* Half of them with a directory, a path and another one where most calls have them. */
		static const uint8_t heads[][12] = {{6 | 8, 1, 0, 0}, {1, 0, 0}, {6 | 8, 1, 0, 0, 6 | 8, 1, 32, 0}, {1, 0, 0, 1, 32, 0}, {3, 7}};
		static const uint8_t lengths[] = {4, 3, 8, 6, 2};
		unsigned kind = (unsigned)random() % 10;
		if (kind < 5) {
			size_t at = 2;
			memcpy(data + at, heads[kind], lengths[kind]);
			at += lengths[kind];
			while (at < 40) {               /* flags and modes: little numbers */
				data[at++] = 5;
				data[at++] = (uint8_t)random();
				data[at++] = (uint8_t)(random() % 2);
				data[at++] = 0;
				data[at++] = 0;
			}
		}
		/* Memory begins behind the sixth argument; that is somewhere in the first 56 bytes, so fill all of it. */
		for (size_t n = 0; kind < 5 && n < 2; n++) {
			struct input in = {data + 2, data + size};
			struct agent none = {.pid = 1};
			for (int j = 0; j < 6; j++)
				(void)argument(&in, &none);
			const char *path = paths[(size_t)random() % (sizeof paths / sizeof *paths)];
			if (in.at + 32 * n + strlen(path) + 1 <= data + size)
				memcpy((uint8_t *)(uintptr_t)in.at + 32 * n, path, strlen(path) + 1);
		}
		(void)LLVMFuzzerTestOneInput(data, size);
	}
	printf("%lu rounds: nothing found\n", rounds);
	return 0;
}
#endif
