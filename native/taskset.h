/* The tasks of one traced tree: which there are, how many processes, how much CPU time they and their dead used.
 *
 * Thread-safe: the tracer's thread adds and drops, others count, sum and kill.
 */
#ifndef AK_TASKSET_H
#define AK_TASKSET_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct ak_task {
	pid_t tid;              /* 0: free; -1: deleted, searches go past it */
	bool leads;             /* a process; else one more thread of one */
	bool exiting;           /* its I/O is in ended_io_bytes */
};

struct ak_taskset {
	pthread_mutex_t lock;   /* guards all below */
	struct ak_task *slots;  /* open addressing, a power of two, at most half used */
	size_t n_slots, n_used; /* n_used counts deleted slots too */
	size_t n_tasks, n_processes;
	uint64_t ended_cpu_ns;  /* of processes that are no more */
	uint64_t ended_io_bytes;        /* of tasks that are exiting or no more */
	bool ending;
	struct ak_taskset *above;       /* of the agent that started this one; outlives it; never changes */
	atomic_size_t all_processes;    /* of this one and all below it: without a lock, as whoever is below adds to it */
};

bool ak_taskset_init(struct ak_taskset *s, struct ak_taskset *above);
void ak_taskset_free(struct ak_taskset *s);

/* Notes a task; *is_new: it was not known. False: out of memory (the caller must not let it run). */
bool ak_taskset_add(struct ak_taskset *s, pid_t tid, bool *is_new);
bool ak_taskset_has(struct ak_taskset *s, pid_t tid);
/* It will run no more: takes down what it read and wrote. */
void ak_taskset_exiting(struct ak_taskset *s, pid_t tid);
/* `cpu_ns`: what it used, for a process that has ended. */
void ak_taskset_drop(struct ak_taskset *s, pid_t tid, uint64_t cpu_ns);
/* SIGKILL to every task, and ending() is true from now on. */
void ak_taskset_kill(struct ak_taskset *s);
bool ak_taskset_ending(struct ak_taskset *s);
size_t ak_taskset_count(struct ak_taskset *s);
/* The task behind the one that this returned last for `cursor`, all of them in turn; 0: there is none. */
pid_t ak_taskset_next(struct ak_taskset *s, size_t *cursor);
/* With those of the sets below it. */
size_t ak_taskset_processes(struct ak_taskset *s);
/* CPU time of all processes, ended ones included. */
uint64_t ak_taskset_cpu_ns(struct ak_taskset *s);
/* Bytes that all tasks read and wrote, ended ones included. False when tasks came and went too fast to be added up. */
bool ak_taskset_io_bytes(struct ak_taskset *s, uint64_t *sum);
/* The tasks that live, up to `most` of them; with `leads`, only one for each process. Returns how many there are. */
size_t ak_taskset_list(struct ak_taskset *s, pid_t *tids, size_t most, bool leads);
/* A process's CPU time so far, also of a zombie; 0 for a thread that is not its leader. */
uint64_t ak_process_cpu_ns(pid_t pid);
/* Bytes that one task (not its process) read and wrote so far (proc_pid_io(5)): by calls, or what went to and from the disk
 * for its memory maps if that is more. -errno: ENOENT or ESRCH when it is gone, EACCES when it is a zombie. */
int ak_task_io_bytes(pid_t tid, uint64_t *bytes);

#endif
