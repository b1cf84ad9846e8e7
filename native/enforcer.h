/* The enforcer's own state, shared by task.c, resolve.c, enforce.c, notify.c and py_enforce.c; handlers see call.h only.
 *
 * One enforcer serves one run. Everything here is set up before the first thread starts and read-only afterwards, but
 * for the fields that say otherwise.
 */
#ifndef AK_ENFORCER_H
#define AK_ENFORCER_H

#include <pthread.h>
#include <stdatomic.h>

#include "call.h"

#define AK_SYSCALL_MAX 1024             /* one past the largest system call number that can have a handler or a refusal */
#define AK_NAME_BYTES 32                 /* of a system call's name, NUL included */
#define AK_BLOCKED_MAX 256              /* threads that may wait on behalf of the agent at one time */
#define AK_UPCALLS_MAX 1024             /* calls waiting for the Python side at one time */
#define AK_STACK_BYTES (1u << 20)       /* of a thread that acts for the agent; handlers keep paths on the stack */
#define AK_REQUEST_MAX (1024u * 1024u)  /* bytes of one authority request */

/* What ak_stop.ctx is for a seccomp notification. */
struct ak_notif {
	int listener;
	uint64_t id;
};

/* A call that only the Python side can answer. */
struct ak_upcall {
	struct ak_upcall *next;
	uint64_t cookie;
	struct ak_stop stop;
	struct ak_notif notif;          /* stop.ctx points here when a notification waits */
	bool by_notify;                 /* else: the serving thread sleeps on `answered` */
	bool taken;                     /* handed to Python already */
	bool replying;                  /* the reply is being written: the serving thread must not free this */
	bool answered;
	int64_t value;
	pid_t tgid;
	int nr;                         /* authority number as the agent gave it; AK_NR_ASK: an effect that waits for approval, `request` is struct ak_ask_record */
	unsigned flags;                 /* 1: FETCH */
	uint64_t resp;
	uint64_t resp_cap;
	size_t request_len;
	char *request;
};

/* What the Python side is asked about an effect that an `approve` rule covers; then the names, not terminated. */
struct ak_ask_record {
	uint16_t op;
	uint8_t need;
	uint8_t pad;
	uint32_t rule;
	uint16_t target_len, target2_len;
};

#define AK_NR_ASK (-1)                  /* no number of an agent's, which has 15 bits */
#define AK_APPROVED_EXECS 64            /* executables a person has approved lately */

#define AK_OWN_SOCKETS 64

struct ak_node {                        /* a file, told apart from one that has its number again */
	uint64_t dev, ino, born_s, born_ns;     /* compared as bytes: no padding */
};

struct ak_counters {
	atomic_ullong calls, allowed, denied, continued, installed, blocked, upcalls, gone;
};

/* Which notify threads wait for the next call, see notify.c. */
struct ak_turns {
	atomic_uint receiving;                  /* threads in RECV */
	atomic_uint received;                   /* calls that they got; wraps */
	atomic_uint asleep;                     /* threads that stand by and look at nothing until `turn` */
	pthread_cond_t turn;                    /* there are calls again, or one of the next two has changed */
	bool wanted;                            /* calls queue up; this and the next are guarded by the enforcer's lock */
	bool over;
};

struct ak_ptys;
struct ak_names;

struct ak_enforcer {
	struct ak_enforcer_config config;
	ak_handler *handlers[AK_SYSCALL_MAX];
	uint16_t refusals[AK_SYSCALL_MAX];      /* errno; 0: none */
	char (*names)[AK_NAME_BYTES];           /* by number, for entries about refused calls; ours */
	size_t n_names;
	uint8_t *kernel_reads;                  /* one bit for each rule, see ak_kernel_reads(); ours */
	size_t n_kernel_reads;                  /* bytes */
	int proc_dir;                           /* O_PATH of /proc */
	int proc_fd_dir;                        /* O_PATH of /proc/self/fd */
	struct ak_counters counters;
	struct ak_ptys *ptys;                   /* call_pty.c; has a lock of its own */
	struct ak_names *net_names;             /* names.c, with locks of its own; NULL: the policy has no rules on names */

	pthread_mutex_t lock;                   /* guards the fields below */
	pthread_cond_t changed;                 /* broadcast when one of them changes */
	bool stopping;
	unsigned blocked;                       /* threads of ak_block() and ak_enforcer_serve() */
	unsigned upcall_count;
	uint64_t next_cookie;
	struct ak_upcall *upcalls;              /* oldest first */
	char *approved_execs[AK_APPROVED_EXECS];        /* canonical paths; the image that an exec loads must be one of them */
	unsigned next_approved_exec;
	struct ak_node own_sockets[AK_OWN_SOCKETS];     /* those that were bound last in the run */
	unsigned next_own_socket;

	pthread_rwlock_t handovers;             /* held for reading from before the agent gets a descriptor until ours is closed */
	int listener;                           /* -1 until ak_notify_start() */
	struct ak_turns turns;
	unsigned thread_count;
	struct ak_notify_thread *threads;
};

/* enforce.c */
struct ak_enforcer *ak_enforcer_new(const struct ak_enforcer_config *config, const uint32_t *refusals, size_t pairs);
void ak_enforcer_free(struct ak_enforcer *e);           /* after ak_enforcer_stop() */
void ak_enforcer_stop(struct ak_enforcer *e);
/* Judge and carry out one call. Never blocks unless may_block. */
void ak_enforce(struct ak_enforcer *e, const struct ak_stop *stop, bool may_block, struct ak_outcome *out);
/* The same from a thread that must keep its own umask and credentials: runs on a new thread and waits for it. */
/* One cell of AK_NAME_BYTES for each number from 0. False: out of memory. Before the first thread starts. */
bool ak_enforcer_set_names(struct ak_enforcer *e, const char *cells, size_t count);
/* A little-endian bit for each rule that ak_kernel_reads() is true for. False: out of memory, or told already. */
bool ak_enforcer_set_kernel_reads(struct ak_enforcer *e, const uint8_t *bits, size_t bytes);
int ak_enforcer_serve(struct ak_enforcer *e, const struct ak_stop *stop, bool may_block, struct ak_outcome *out);
/* A thread that acts for the agent: no capabilities, no signals, its own umask and cwd. False: it must not serve. */
bool ak_thread_prepare(const char *name);

/* task.c: the same question as ak_pid_in_run() about the process whose directory in /proc `dir` lies in; status_path leads
 * from `dir` to its status file ("status", "../status"). */
bool ak_status_in_run(struct ak_call *c, int dir, const char *status_path);
/* enforce.c: has this thread an fs struct (umask, cwd) of its own? */
bool ak_thread_has_own_fs(void);

/* call_accept.c: records the connection that the stopped task `tid` is about to get as its descriptor `fd` from
 * the call `nr`. 0, or -EPERM: the ring is shut. */
int ak_accepted(struct ak_enforcer *e, pid_t tid, int nr, int fd);

/* call_pty.c. NULL: out of memory. */
struct ak_ptys *ak_ptys_new(void);
void ak_ptys_free(struct ak_ptys *p);

/* upcall.c: calls that wait for the Python side */
bool ak_is_authority_door(const struct ak_stop *stop);
void ak_authority_door(struct ak_call *c, struct ak_outcome *out);
/* 0 and a copy whose `request` the caller frees; -ETIMEDOUT; -EPIPE once stopped. */
int ak_upcall_next(struct ak_enforcer *e, int timeout_ms, struct ak_upcall *out);
int ak_upcall_reply(struct ak_enforcer *e, uint64_t cookie, int64_t value, const void *body, size_t len);
/* May the image with this path run because a person approved it? Each approval lasts as long as it is among the last ones. */
bool ak_exec_was_approved(struct ak_enforcer *e, const char *path, size_t len);
void ak_upcall_abandon(struct ak_enforcer *e);          /* at the end: frees what nobody answered */

#endif
