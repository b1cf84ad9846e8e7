/* The tracer's wait loop: continues what needs no decision, hands the rest to Python (akbox/linux/tracer.py).
 *
 * seize, wait and resume must be called on one thread, which ptrace takes for the tracer; the others may come from any.
 */
#ifndef AK_TRACER_H
#define AK_TRACER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum ak_stop_kind {
	AK_STOP_NOTHING = 0,    /* only without `block`: no stop is waiting */
	AK_STOP_SYSCALL = 1,    /* an authority number (RET_TRAP): value = the number */
	AK_STOP_SECCOMP,        /* RET_TRACE of our own filter (interposer ptrace): value = the call's number */
	AK_STOP_EXEC,           /* a new image, before its first instruction: value = the former tid */
	AK_STOP_STOPPED,        /* the main process is in a group stop: value = the signal. Already listening; do not resume */
	AK_STOP_MAIN_EXIT,      /* the main process ended: value = wait status. Do not resume */
	AK_STOP_ALL_GONE,       /* no tracee is left */
	AK_STOP_ACCEPTED,       /* a connection was accepted: value = the call's number << 32 | its descriptor */
	AK_STOP_TOO_MANY,       /* a process more than allowed was refused: value = its number. Do not resume */
};

struct ak_tracer;

struct ak_stop_event {
	enum ak_stop_kind kind;
	pid_t tid;
	int64_t value;
};

/* `trapped`: one bit for each call number below `n_calls` that the filter hands to the listener; such a call is
 * restarted when a signal came before the supervisor had received it. trace_seccomp: RET_TRACE stops are ours (interposer ptrace);
 * otherwise they come from a filter of the agent's own, where nobody traces, and are answered ENOSYS as without a tracer. Those
 * of accept with the data 1 are ours in any case: the kernel carries the call out, and AK_STOP_ACCEPTED follows.
 * max_processes: more than so many at one time are refused with EAGAIN (threads do not count); 0: no limit. count_io: what ended
 * tasks read and wrote is added up. above: of the agent that started this one, or NULL; what runs here counts there, too, and it
 * has to live longer. */
struct ak_tracer *ak_tracer_new(const uint8_t *trapped, size_t n_calls, bool trace_seccomp,
				size_t max_processes, bool count_io, struct ak_tracer *above);
void ak_tracer_free(struct ak_tracer *t);

int ak_tracer_seize(struct ak_tracer *t, pid_t pid);            /* the main process; 0 or -errno, -EAGAIN: one too many */
int ak_tracer_wait(struct ak_tracer *t, struct ak_stop_event *event, bool block);
int ak_tracer_resume(struct ak_tracer *t, pid_t tid, int signal);
/* The stopped call is not made; it returns `value` (negative: -errno) and is never restarted. Resumes the task. */
int ak_tracer_answer(struct ak_tracer *t, pid_t tid, int64_t value);
/* SIGKILL to every task; from now on each stop is answered with SIGKILL too, until ak_tracer_wait() says ALL_GONE. */
void ak_tracer_kill(struct ak_tracer *t);
size_t ak_tracer_count(struct ak_tracer *t);
/* CPU time of every process of the tree, ended ones included. */
uint64_t ak_tracer_cpu_ns(struct ak_tracer *t);
bool ak_tracer_io_bytes(struct ak_tracer *t, uint64_t *sum);    /* see ak_taskset_io_bytes() */
/* The numbers of tasks, or of processes, that live, at most `most`; returns how many there are. */
size_t ak_tracer_tasks(struct ak_tracer *t, pid_t *tids, size_t most, bool processes);

#endif
