/* The launcher: one child, from clone to execve, in C and without an allocation.
 *
 * The child is cloned with a shared descriptor table (CLONE_FILES, no CLONE_VM): the listener that its seccomp filter
 * makes is thereby the parent's too, without sendmsg (trapped by then) and without pidfd_getfd (refused in containers).
 * It leaves the shared table with close_range(CLOSE_RANGE_UNSHARE) before it touches a descriptor.
 */
#ifndef AK_LAUNCH_H
#define AK_LAUNCH_H

#include <linux/filter.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

/* Where a launch failed; ak_launch_step_name() has the words. */
enum ak_launch_step {
	AK_STEP_NONE = 0,
	AK_STEP_PARENT_GONE,
	AK_STEP_SESSION,
	AK_STEP_TERMINAL,
	AK_STEP_IDENTITY,
	AK_STEP_CHDIR,
	AK_STEP_LIMITS,
	AK_STEP_NO_NEW_PRIVS,
	AK_STEP_CAPABILITIES,
	AK_STEP_LANDLOCK,
	AK_STEP_SECCOMP,
	AK_STEP_UNSHARE_FILES,
	AK_STEP_STDIO,
	AK_STEP_CLOSE,
	AK_STEP_EXECVE,
};

struct ak_limit {
	int resource;
	struct rlimit value;
};

/* Everything is made before the clone; the child only reads it. */
struct ak_launch_plan {
	const char *exec_path;
	char *const *argv;
	char *const *envp;
	int cwd_fd;
	int stdio[3];
	const int *keep_fds;            /* ascending, all above 2 */
	size_t n_keep_fds;
	int ruleset_fd;                 /* -1: no Landlock (a waived layer) */
	const int *outer_rulesets;      /* those of the agents above, applied first: the domain is within each of them */
	size_t n_outer_rulesets;
	struct sock_fprog filter;
	unsigned filter_flags;          /* SECCOMP_FILTER_FLAG_* */
	const struct ak_limit *limits;
	size_t n_limits;
	int tty_fd;                     /* becomes the controlling terminal; -1: none */
	bool drop_ids;
	uid_t uid;
	gid_t gid;
};

/* One page shared with the child until its execve. */
struct ak_launch_status;

/* Clones the child, which stops itself (on a futex) ready to be seized. Returns its pid, or -errno. */
pid_t ak_launch(const struct ak_launch_plan *plan, struct ak_launch_status **status);
/* Waits for the child to be ready to be seized. 0, or -errno with *step. */
int ak_launch_ready(struct ak_launch_status *status, pid_t pid, enum ak_launch_step *step);
/* Lets it go on; waits until its filter is in place and its descriptors are its own. The listener, -1 (none) or -errno
 * with *step (then the child is dead or dying). */
int ak_launch_go(struct ak_launch_status *status, pid_t pid, int *listener, enum ak_launch_step *step);
/* After the child's end: the errno with which it failed to get to its program, 0 if it got there. */
int ak_launch_failure(const struct ak_launch_status *status, enum ak_launch_step *step);
void ak_launch_release(struct ak_launch_status *status);
const char *ak_launch_step_name(enum ak_launch_step step);

#endif
