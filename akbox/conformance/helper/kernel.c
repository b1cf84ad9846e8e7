/* Calls that change the machine or open a large part of the kernel. The arguments are such that the call, where it is
 * let through, does nothing: an empty program, a bad descriptor, a size of zero. What counts is which errno comes back. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <sys/timex.h>

#include "call.h"

#ifndef SYS_quotactl_fd
#define SYS_quotactl_fd 443
#endif

static long try_io_uring_setup(char **argv)
{
	struct io_uring_params params = { 0 };

	(void)argv;
	return sys(SYS_io_uring_setup, GARBAGE(1), (long)&params, 0, 0, 0, 0);
}

static long try_io_uring_enter(char **argv)
{
	(void)argv;
	return sys(SYS_io_uring_enter, GARBAGE(-1), GARBAGE(0), GARBAGE(0), GARBAGE(0), 0, 0);
}

static long try_io_uring_register(char **argv)
{
	(void)argv;
	return sys(SYS_io_uring_register, GARBAGE(-2), GARBAGE(0), 0, GARBAGE(0), 0, 0);
}

static long try_bpf(char **argv)
{
	union bpf_attr attr;

	(void)argv;
	memset(&attr, 0, sizeof attr);
	attr.map_type = BPF_MAP_TYPE_ARRAY;
	attr.key_size = 4;
	attr.value_size = 4;
	attr.max_entries = 1;
	return sys(SYS_bpf, GARBAGE(BPF_MAP_CREATE), (long)&attr, GARBAGE(sizeof attr), 0, 0, 0);
}

static long try_perf_event_open(char **argv)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE, .size = sizeof attr,
					.config = PERF_COUNT_SW_TASK_CLOCK, .exclude_kernel = 1, .exclude_hv = 1 };

	(void)argv;
	return sys(SYS_perf_event_open, (long)&attr, GARBAGE(0), GARBAGE(-1), GARBAGE(-1), 0, 0);
}

static long try_userfaultfd(char **argv)
{
	(void)argv;
	return sys(SYS_userfaultfd, GARBAGE(O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */), 0, 0, 0, 0, 0);
}

static long try_add_key(char **argv)
{
	(void)argv;
	return sys(SYS_add_key, (long)"user", (long)"akbox-kit", (long)"x", 1, GARBAGE(-1 /* thread keyring */), 0);
}

static long try_request_key(char **argv)
{
	(void)argv;
	return sys(SYS_request_key, (long)"user", (long)"akbox-kit-none", 0, GARBAGE(0), 0, 0);
}

static long try_keyctl(char **argv)
{
	(void)argv;
	return sys(SYS_keyctl, GARBAGE(0 /* GET_KEYRING_ID */), GARBAGE(-1), GARBAGE(1), 0, 0, 0);
}

static long try_iopl(char **argv)
{
	(void)argv;
	return sys(SYS_iopl, GARBAGE(0), 0, 0, 0, 0, 0);
}

static long try_modify_ldt(char **argv)
{
	char ldt[16];

	(void)argv;
	return sys(SYS_modify_ldt, GARBAGE(0), (long)ldt, sizeof ldt, 0, 0, 0);
}

static long try_quotactl_fd(char **argv)
{
	(void)argv;
	return sys(SYS_quotactl_fd, GARBAGE(-1), GARBAGE(0), GARBAGE(0), 0, 0, 0);
}

/* In the control this runs in a pid namespace of its own, where rebooting means the end of its init (a signal). */
static long try_reboot(char **argv)
{
	return sys(SYS_reboot, GARBAGE(0xfee1dead), GARBAGE(672274793), GARBAGE(number(argv[1])), 0, 0, 0);
}

static long try_clock_settime(char **argv)
{
	struct timespec bad = { 0, -1 };

	(void)argv;
	return sys(SYS_clock_settime, GARBAGE(0), (long)&bad, 0, 0, 0, 0);
}

static long try_adjtimex(char **argv)
{
	struct timex change = { .modes = ADJ_TICK, .tick = -1 };

	(void)argv;
	return sys(SYS_adjtimex, (long)&change, 0, 0, 0, 0, 0);
}

static long try_personality(char **argv)
{
	return sys(SYS_personality, GARBAGE(number(argv[1])), 0, 0, 0, 0, 0);
}

/* Any call by number with six arguments; those that are ints in the kernel get garbage from the caller's table. */
static long try_number(char **argv)
{
	return sys(number(argv[1]), number(argv[2]), number(argv[3]), number(argv[4]), number(argv[5]), number(argv[6]),
		   number(argv[7]));
}

/* The 32-bit entry from 64-bit code: getpid is 20 there. */
static long try_int80(char **argv)
{
	long value;

	(void)argv;
#ifdef __x86_64__
	__asm__ volatile("int $0x80" : "=a"(value) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
#else
	value = -ENOSYS;
#endif
	return (int)value;
}

static long try_x32(char **argv)
{
	return sys(0x40000000L | number(argv[1]), 0, 0, 0, 0, 0, 0);
}

/* ioctl's request is an unsigned int: CVE-2019-10063 was a filter that compared all 64 bits of it. */
static long try_ioctl(char **argv)
{
	char byte = '\n';
	long request = number(argv[2]);

	if (strcmp(argv[3], "garbage") == 0)
		request = GARBAGE(request);
	return sys(SYS_ioctl, GARBAGE(number(argv[1])), request, (long)&byte, 0, 0, 0);
}

const struct attempt kernel_attempts[] = {
	{ "io_uring_setup", 0, try_io_uring_setup },
	{ "io_uring_enter", 0, try_io_uring_enter },
	{ "io_uring_register", 0, try_io_uring_register },
	{ "bpf", 0, try_bpf },
	{ "perf_event_open", 0, try_perf_event_open },
	{ "userfaultfd", 0, try_userfaultfd },
	{ "add_key", 0, try_add_key },
	{ "request_key", 0, try_request_key },
	{ "keyctl", 0, try_keyctl },
	{ "iopl", 0, try_iopl },
	{ "modify_ldt", 0, try_modify_ldt },
	{ "quotactl_fd", 0, try_quotactl_fd },
	{ "reboot", 1, try_reboot },
	{ "clock_settime", 0, try_clock_settime },
	{ "adjtimex", 0, try_adjtimex },
	{ "personality", 1, try_personality },
	{ "number", 7, try_number },
	{ "int80", 0, try_int80 },
	{ "x32", 1, try_x32 },
	{ "ioctl", 3, try_ioctl },
	{ NULL, 0, NULL },
};
