/* What the families of attempts share: the table's row, a raw system call that returns -errno, and garbage.
 *
 * GARBAGE() fills the upper half of an argument that the kernel takes as an int: a filter that compares all 64 bits
 * lets such a call through although the kernel sees the same number.
 */
#ifndef TRY_CALL_H
#define TRY_CALL_H

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GARBAGE(x) ((long)(0x5eedbeef00000000ULL | (uint32_t)(x)))

/* argv[0] is the attempt's name, argv[1..argc-1] what it works on; returns 0 or more, or -errno. */
struct attempt {
	const char *name;
	int arguments;
	long (*run)(char **argv);
};

long sys(long nr, long a, long b, long c, long d, long e, long f);
long number(const char *text);          /* any base; exits 2 on anything else */

extern const struct attempt namespace_attempts[], process_attempts[], kernel_attempts[], file_attempts[],
	attribute_attempts[], run_attempts[], control_attempts[], network_attempts[];

#endif
