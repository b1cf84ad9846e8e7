/* try_call NAME [ARG...]: performs one system call (or one short sequence) and says what the kernel answered.
 *
 * Prints "ok VALUE" and exits 0, or "errno=NAME" and exits 1; 2 means it was called wrongly. It forbids nothing and
 * checks nothing: it is the hand that tries the door, inside a sandbox and outside.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"

static const struct attempt *const families[] = {
	namespace_attempts, process_attempts, kernel_attempts, file_attempts, attribute_attempts, run_attempts,
	control_attempts, network_attempts,
};

long sys(long nr, long a, long b, long c, long d, long e, long f)
{
	long value = syscall(nr, a, b, c, d, e, f);

	return value == -1 ? -errno : value;
}

long number(const char *text)
{
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 0);
	if (errno != 0 || end == text || *end != '\0') {
		fprintf(stderr, "try_call: not a number: %s\n", text);
		exit(2);
	}
	return value;
}

static const struct attempt *find(const char *name)
{
	for (size_t family = 0; family < sizeof families / sizeof families[0]; family++)
		for (const struct attempt *a = families[family]; a->name != NULL; a++)
			if (strcmp(a->name, name) == 0)
				return a;
	return NULL;
}

int main(int argc, char **argv)
{
	const struct attempt *attempt = argc < 2 ? NULL : find(argv[1]);
	long value;

	if (attempt == NULL || argc - 2 != attempt->arguments) {
		fprintf(stderr, "try_call: unknown attempt or wrong number of arguments: %s\n", argc < 2 ? "" : argv[1]);
		return 2;
	}
	value = attempt->run(argv + 1);
	if (value < 0) {
		printf("errno=%s\n", strerrorname_np((int)-value));
		return 1;
	}
	printf("ok %ld\n", value);
	return 0;
}
