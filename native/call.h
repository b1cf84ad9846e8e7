/* Inside the enforcer: one call being served, the agent's memory and names, and the handlers.
 *
 * task.c reads the agent (memory, cwd, descriptors, umask), resolve.c turns names into objects, call_*.c hold one family
 * of system calls each, enforce.c dispatches and records. Nothing here is called from Python directly.
 */
#ifndef AK_CALL_H
#define AK_CALL_H

#include <limits.h>
#include <sys/stat.h>

#include "enforce.h"

struct ak_enforcer;

struct ak_enforcer_config {
	const struct ak_policy *policy;
	struct ak_ring *ring;
	pid_t main_pid;         /* the first process of the run */
	pid_t tracer_tid;       /* 0: nothing traces */
	pid_t supervisor_pid;   /* this process */
	uint32_t flags;         /* AK_FLAG_* */
};

enum {
	AK_FLAG_STRICT_METADATA = 1,
	AK_FLAG_EXEC_CONTINUE = 2,      /* exec is verified afterwards by ptrace, or Landlock is exact for it */
	AK_FLAG_FDS_BY_PIDFD = 4,       /* pidfd_getfd works on this host */
};

struct ak_call {
	struct ak_enforcer *enforcer;
	const struct ak_enforcer_config *config;
	const struct ak_stop *stop;
	pid_t tgid;                     /* of stop->tid; 0 until ak_call_tgid() was asked */
	bool may_block;                 /* we are on a thread of our own: waiting is allowed */
	bool asks;                      /* a person has to be asked: what the handler answers is void, the call is served again there */
};

/* ---- task.c: the agent's side. All return 0 or more, or -errno; all check still_valid() after reading. ---------- */

pid_t ak_call_tgid(struct ak_call *c);
int ak_read(struct ak_call *c, uint64_t addr, void *buf, size_t len);           /* all of it, or -EFAULT */
ssize_t ak_read_path(struct ak_call *c, uint64_t addr, char buf[PATH_MAX]);     /* length, -EFAULT, -ENAMETOOLONG */
ssize_t ak_read_string(struct ak_call *c, uint64_t addr, char *buf, size_t cap);/* length, -EFAULT, -ERANGE */
int ak_write(struct ak_call *c, uint64_t addr, const void *buf, size_t len);    /* all of it, or -EFAULT */
int ak_task_cwd(struct ak_call *c);                     /* a new O_PATH descriptor of the agent's cwd */
/* What the kernel calls the agent's cwd (AT_FDCWD) or descriptor: its length, at most `cap`, without a NUL. For a
 * directory its canonical path, with " (deleted)" behind it once removed; for a pipe or the like no path at all. */
ssize_t ak_task_base_name(struct ak_call *c, int dirfd, char *buf, size_t cap);
int ak_task_object(struct ak_call *c, int fd);          /* a new O_PATH descriptor of what its descriptor `fd` refers to; -EBADF */
int ak_task_dup(struct ak_call *c, int fd);             /* a real duplicate (pidfd_getfd); -EPERM where that is refused */
int ak_task_fd_flags(struct ak_call *c, int fd);        /* its open flags (fdinfo), O_ACCMODE included */
int ak_task_umask(struct ak_call *c);
/* Take the agent's umask on for what this thread creates next (masking the mode by hand would be wrong where the
 * directory has a default ACL). 0; -EPERM when this thread has no umask of its own and the agent's is another. */
int ak_adopt_umask(struct ak_call *c);
struct ak_object;
/* Does the agent hold `object` open as its descriptor `fd` with all of the `need` bits already? False if in doubt. */
bool ak_task_holds(struct ak_call *c, int fd, const struct ak_object *object, unsigned need);
bool ak_pid_in_run(struct ak_call *c, pid_t pid);       /* traced by our tracer, or (no tracer) a descendant of main_pid */

/* ---- resolve.c: names to objects -------------------------------------------------------------------------------- */

enum {
	AK_NOFOLLOW = 1,        /* a last component that is a symlink is the object itself */
	AK_EMPTY_PATH = 2,      /* "" means the object that dirfd refers to (AT_EMPTY_PATH) */
	AK_OWN_FD = 4,          /* set in ak_object.flags: reached through the agent's own /proc/self/fd/N */
	AK_ANONYMOUS = 8,       /* set in ak_object.flags: pipe, socket, memfd, deleted or other object without a name */
	AK_FOREIGN = 16,        /* set in ak_object.flags: behind a magic link of a process outside the run. Nothing was opened
				 * (fd is the link itself), path is /proc/PID/..., which every policy denies */
};

struct ak_object {
	int fd;                 /* O_PATH, owned by the caller; -1 when not resolved */
	unsigned flags;
	int own_fd;             /* with AK_OWN_FD: which */
	struct stat st;
	size_t len;
	char path[PATH_MAX];    /* canonical; the agent's own /proc/PID is written /proc/self; a deleted object's last name */
};

struct ak_parent {
	int fd;                 /* O_PATH of the directory, owned by the caller */
	size_t dir_len;         /* length of the directory's canonical path in `path` */
	size_t len;
	char path[PATH_MAX];    /* canonical directory + "/" + name: what is judged */
	const char *name;       /* points at the last component in `path`; "." and ".." are refused as the kernel does (the
				 * errno is the one of the call being served) */
	bool trailing_slash;
};

/* Resolve as the agent would: its root is ours, its cwd and descriptors, /proc/self and /dev/fd are its own. Magic links
 * are followed only within its own /proc directory, and what they lead to is what is judged. -errno as the kernel's. */
int ak_resolve(struct ak_call *c, int dirfd, const char *path, unsigned flags, struct ak_object *out);
int ak_resolve_parent(struct ak_call *c, int dirfd, const char *path, struct ak_parent *out);
/* The same from a directory descriptor of ours, honouring RESOLVE_* of openat2(2). `base` is not used for an absolute path. */
int ak_resolve_from(struct ak_call *c, int base, const char *path, unsigned flags, uint64_t resolve, struct ak_object *out);
int ak_resolve_parent_from(struct ak_call *c, int base, const char *path, uint64_t resolve, struct ak_parent *out);
/* A new O_PATH descriptor of where a relative path begins: the agent's cwd for AT_FDCWD, else its descriptor. */
int ak_task_base(struct ak_call *c, int dirfd);
void ak_object_close(struct ak_object *o);
void ak_parent_close(struct ak_parent *p);

/* "/proc/self/fd/N" for our own descriptor `fd`: how an O_PATH object is opened or changed without a second look-up. */
struct ak_proc_path { char text[40]; };
struct ak_proc_path ak_proc_fd(int fd);

/* ---- call_exec.c ------------------------------------------------------------------------------------------------- */

/* May the object with this canonical path be a process's image? For the check after the fact (akbox/linux/tracer.py). */
bool ak_may_exec(const struct ak_policy *p, const char *path, size_t len);

/* ---- enforce.c: judge, record, answer --------------------------------------------------------------------------- */

/* Ask the policy about canonical path, record the event with the errno the agent will see, return 0 or -EACCES.
 * For an AK_ASK verdict a person is asked (ak_approved). `op` is an effect op of design 02. */
int ak_judge_fs(struct ak_call *c, uint16_t op, unsigned need, const char *path, size_t len, uint64_t arg);
/* Two-ended (rename, link): both need AK_WRITE and the move must keep rights. One event with both names. */
int ak_judge_move(struct ak_call *c, uint16_t op, const char *from, size_t from_len, const char *to, size_t to_len,
		  bool is_dir);
/* What an AK_ASK verdict becomes: true when the Python side says so. It waits on a thread of its own; elsewhere it is false at
 * once with c->asks set, and the handler returns any error without having done or recorded anything. */
bool ak_approved(struct ak_call *c, uint16_t op, unsigned need, uint32_t rule, const char *target, const char *target2);
/* Record a decision made elsewhere. Returns 0, or -EPERM when the ring is shut (then deny). */
int ak_record(struct ak_call *c, uint16_t op, enum ak_decision decision, unsigned need, uint32_t rule, unsigned missing,
	      int error, uint64_t arg, const char *target, const char *target2);

/* Does Landlock enforce this rule exactly for reading, so that the kernel may open the file itself? */
bool ak_kernel_reads(const struct ak_call *c, uint32_t rule);

void ak_deny(struct ak_outcome *o, int error);          /* kind RESULT, value -error */
void ak_result(struct ak_outcome *o, int64_t value);
void ak_continue(struct ak_outcome *o);
void ak_install(struct ak_outcome *o, int fd, bool cloexec);     /* keeps o->only_copy, which may be set before */

/* Waits until we have closed each descriptor that the agent was given before its call: a program that has just been
 * written is busy (ETXTBSY) while anybody, and be it us, holds it open for writing. */
void ak_await_handovers(struct ak_call *c);

/* Serve this call again on a thread of its own (c->may_block is true there); the outcome becomes LATER. Past 256 such
 * threads the call is refused with EAGAIN. The call's arguments are copied; memory is read anew on the new thread. */
void ak_block(struct ak_call *c, struct ak_outcome *o);
/* On such a thread: sleep up to `ms`, false when the agent's task is gone or the enforcer stops. */
bool ak_wait_ms(struct ak_call *c, unsigned ms);
/* Has the waiting task a signal to handle? Then the errno that ends its call (the kernel restarts the call after a handler
 * with SA_RESTART where the interposer lets it), else 0. */
int ak_interrupted(struct ak_call *c);

typedef void ak_handler(struct ak_call *c, struct ak_outcome *o);

/* One table per family, ended by {-1, NULL}; enforce.c joins them. Numbers are SYS_* of the architecture we are built for. */
struct ak_handler_entry { int nr; ak_handler *handler; };
extern const struct ak_handler_entry ak_open_handlers[];        /* call_open.c:   open, creat, openat, openat2 */
extern const struct ak_handler_entry ak_exec_handlers[];        /* call_exec.c:   execve, execveat */
extern const struct ak_handler_entry ak_mutate_handlers[];      /* call_mutate.c: unlink ... mknod, truncate */
extern const struct ak_handler_entry ak_attr_handlers[];        /* call_attr.c:   chmod, chown, utimes, xattr (also by descriptor) */
extern const struct ak_handler_entry ak_meta_handlers[];        /* call_meta.c:   strict metadata: stat, access, readlink, ..., inotify_add_watch */
extern const struct ak_handler_entry ak_net_handlers[];         /* call_net.c:    connect, bind, listen, sendto, sendmsg, sendmmsg */
extern const struct ak_handler_entry ak_pty_handlers[];         /* call_pty.c:    ioctl */
extern const struct ak_handler_entry ak_misc_handlers[];        /* call_misc.c:   prctl, kill family, sched and limits on other tasks */

#endif
