/* Between the parts of name resolution: object.c (an object's canonical path), walk.c (the walk that takes the agent's
 * place) and resolve.c (the fast way, and the calls of call.h). */
#ifndef AK_RESOLVE_H
#define AK_RESOLVE_H

#include "enforcer.h"

/* object.c */

/* The kernel's own path of what our descriptor refers to. Length, or -errno. */
int ak_kernel_path(struct ak_call *c, int fd, char path[PATH_MAX]);
/* Fill in st, path and len of an object whose descriptor is open. */
int ak_describe(struct ak_call *c, struct ak_object *o);
/* The same, finished, for one in procfs, found in the directory `dir` (-1: not known). */
int ak_describe_proc(struct ak_call *c, int dir, struct ak_object *o);
bool ak_on_procfs(int fd, const struct stat *st);
/* "/proc/123/rest" -> 123 and "/rest"; 0 when the path is not below a process's directory. */
pid_t ak_proc_pid(const char *path, const char **rest);
/* Is the process whose directory `dir` lies in (`rest`: its path below /proc/PID) one of the run? */
bool ak_dir_in_run(struct ak_call *c, int dir, const char *rest);

/* walk.c: component by component, /proc/self being the agent's. `base` is not used for an absolute path. */
int ak_walk(struct ak_call *c, int base, const char *path, unsigned flags, uint64_t resolve, struct ak_object *out);

#endif
