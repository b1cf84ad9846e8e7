/* execve and execveat: may this object be run, and, for a script, its interpreter?
 *
 * The kernel runs the call itself (AK_CONTINUE) and reads the path again, so what is judged here is verified after the
 * fact, before the first instruction of the new image (PTRACE_EVENT_EXEC), or Landlock holds the identical rule; without
 * either (AK_FLAG_EXEC_CONTINUE not set) nothing can be run.
 */
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "behalf.h"
#include "enforcer.h"
#include "open.h"

#define OP_EXEC 0x300
#define SCRIPTS_MAX 5                   /* the kernel gives ELOOP at the sixth file of a chain (fs/exec.c, exec_binprm) */
#define HEAD_BYTES 256                  /* BINPRM_BUF_SIZE: as much of the first line as the kernel looks at */

static int refuse(struct ak_call *c, const struct ak_object *o, int error)
{
	int recorded = ak_record(c, OP_EXEC, AK_DENY, AK_EXEC, AK_NO_RULE, AK_EXEC, error, 0, o->path, NULL);
	return recorded < 0 ? recorded : -error;
}

/* A dynamic linker run directly loads any file that can be read, executable or not: only an exact rule allows it. */
static bool is_dynamic_linker(const char *path)
{
	static const char *const names[] = {"ld-linux*", "ld-musl*", "ld-*.so*", "ld.so*", "ld64.so*"};
	const char *base = strrchr(path, '/');
	for (size_t i = 0; base && i < sizeof names / sizeof *names; i++)
		if (fnmatch(names[i], base + 1, 0) == 0)
			return true;
	return false;
}

bool ak_may_exec(const struct ak_policy *p, const char *path, size_t len)
{
	if (is_dynamic_linker(path) && !ak_policy_exec_exact(p, path, len))
		return false;
	return ak_policy_fs(p, AK_EXEC, path, len).decision == AK_ALLOW;
}

/* "#!interpreter argument": its length in `path`, 0 when this is no script, -errno. As load_script() of
 * fs/binfmt_script.c: blanks are skipped, the name ends at a blank or the end of the line, and a name that the buffer
 * cuts off is no name. */
static int shebang(const char *head, size_t len, char path[HEAD_BYTES])
{
	if (len < 2 || head[0] != '#' || head[1] != '!')
		return 0;
	const char *end = memchr(head, '\n', len);
	bool whole_line = end || len < HEAD_BYTES;
	if (!end)
		end = head + len;
	const char *start = head + 2;
	while (start < end && (*start == ' ' || *start == '\t'))
		start++;
	size_t n = 0;
	while (start + n < end && start[n] != ' ' && start[n] != '\t' && start[n] != 0)
		n++;
	if (n == 0 || (start + n == end && !whole_line))
		return -ENOEXEC;
	memcpy(path, start, n);
	path[n] = 0;
	return (int)n;
}

/* What the kernel says before any policy is asked; these are its own errors and are not recorded. */
static int kernel_error(const struct ak_object *o)
{
	if (S_ISLNK(o->st.st_mode))
		return -ELOOP;          /* AT_SYMLINK_NOFOLLOW */
	if (!S_ISREG(o->st.st_mode) || !(o->st.st_mode & 0111))
		return -EACCES;
	return 0;
}

/* Judge one file of the chain; its first bytes go to `head`. Their number, or -errno. */
static int judge_file(struct ak_call *c, const struct ak_object *o, char head[HEAD_BYTES])
{
	if (o->flags & AK_ANONYMOUS)    /* memfd or removed: nobody can say later what was run */
		return refuse(c, o, EACCES);
	if (!(o->flags & AK_FOREIGN) && !ak_hidden(c, o->path, o->len) && kernel_error(o))
		return kernel_error(o);
	if (is_dynamic_linker(o->path) && !ak_policy_exec_exact(c->config->policy, o->path, o->len))
		return refuse(c, o, EACCES);
	int error = ak_judge_fs(c, OP_EXEC, AK_EXEC, o->path, o->len, 0);
	if (error)
		return error;
	/* A process that runs a file it cannot read is not dumpable, and we could not read its memory any more. */
	int fd = ak_reopen(c, o->fd, O_RDONLY);
	if (fd < 0)
		return fd == -EACCES ? refuse(c, o, EACCES) : fd;
	ssize_t n = pread(fd, head, HEAD_BYTES, 0);
	int read_error = errno;
	close(fd);
	return n < 0 ? -read_error : (int)n;
}

/* The file and the interpreters its first line leads to. 0: the kernel may go on. */
static int judge_chain(struct ak_call *c, int dirfd, char *path, unsigned flags)
{
	char head[HEAD_BYTES], interpreter[HEAD_BYTES];
	for (int depth = 0; depth <= SCRIPTS_MAX; depth++) {
		struct ak_object o;
		int n = ak_resolve(c, dirfd, path, flags, &o);
		if (n < 0)
			return ak_hide_error(c, dirfd, path, n);
		n = judge_file(c, &o, head);
		ak_object_close(&o);
		if (n < 0)
			return n;
		n = shebang(head, (size_t)n, interpreter);
		if (n <= 0)
			return n == -ENOEXEC ? 0 : n;   /* not runnable: the kernel will say so */
		path = interpreter;
		dirfd = AT_FDCWD;               /* the kernel looks a relative interpreter up from the cwd */
		flags = 0;
	}
	return -ELOOP;
}

static void do_exec(struct ak_call *c, int dirfd, uint64_t path_addr, int at_flags, struct ak_outcome *out)
{
	char path[PATH_MAX];
	unsigned flags = (at_flags & AT_SYMLINK_NOFOLLOW ? AK_NOFOLLOW : 0) | (at_flags & AT_EMPTY_PATH ? AK_EMPTY_PATH : 0);
	ssize_t len = ak_read_path(c, path_addr, path);
	int error = len < 0 ? (int)len : judge_chain(c, dirfd, path, flags);
	if (error == 0 && !(c->config->flags & AK_FLAG_EXEC_CONTINUE))
		error = -EACCES;
	if (error) {
		ak_deny(out, -error);
		return;
	}
	ak_await_handovers(c);
	ak_continue(out);
}

static void call_execve(struct ak_call *c, struct ak_outcome *out)
{
	do_exec(c, AT_FDCWD, c->stop->args[0], 0, out);
}

static void call_execveat(struct ak_call *c, struct ak_outcome *out)
{
	const uint64_t *a = c->stop->args;
	do_exec(c, ak_int(a[0]), a[1], ak_int(a[4]), out);
}

const struct ak_handler_entry ak_exec_handlers[] = {
	{SYS_execve, call_execve},
	{SYS_execveat, call_execveat},
	{-1, NULL},
};
