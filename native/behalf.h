/* What the handlers that carry calls out on the agent's behalf share: arguments to objects, strict metadata, and the order
 * of looks and calls. Used by call_*.c, peer.c and control.c. */
#ifndef AK_BEHALF_H
#define AK_BEHALF_H

#include "call.h"

/* Effect ops of design 02 that these families record. */
enum {
	AK_OP_OPEN = 0x100,             /* also mknod: a new FIFO or regular file */
	AK_OP_UNLINK = 0x101,
	AK_OP_RENAME = 0x102,
	AK_OP_MKDIR = 0x103,
	AK_OP_RMDIR = 0x104,
	AK_OP_STAT = 0x105,
	AK_OP_METADATA = 0x106,
	AK_OP_LINK = 0x107,             /* also symlink */
	AK_OP_TRUNCATE = 0x108,
	AK_OP_CONNECT = 0x200,
	AK_OP_BIND = 0x202,
	AK_OP_LISTEN = 0x203,
	AK_OP_ACCEPT = 0x204,
	AK_OP_SEND = 0x205,
	AK_OP_SIGNAL = 0x301,           /* also scheduling and limits: reaching into another process */
	AK_OP_REFUSED = 0x3FF,          /* a call that no policy grants, as in enforce.c */
};

/* An int or unsigned argument: the kernel looks at 32 bits of the register, whatever the agent left in the others. */
static inline int ak_int(uint64_t argument)
{
	return (int)(uint32_t)argument;
}

static inline bool ak_strict(const struct ak_call *c)
{
	return c->config->flags & AK_FLAG_STRICT_METADATA;
}

/* Under strict metadata: a canonical name that does not exist for the agent. */
bool ak_hidden(const struct ak_call *c, const char *path, size_t len);

/* The agent made it, or was given it, without a name in any file system: pipes, sockets, memfds, epoll and the like. A
 * deleted file is not such an object: others may hold it too, so it is judged by its last name. */
bool ak_nameless(const struct ak_object *object);

/* A path argument, read once and resolved. Under strict metadata a hidden name is -ENOENT, recorded as a refusal of `op`
 * and no error of a path that leads through a hidden directory tells more. On an error `out` needs no closing. */
int ak_object_arg(struct ak_call *c, uint16_t op, int dirfd, uint64_t addr, unsigned flags, struct ak_object *out);
int ak_parent_arg(struct ak_call *c, int dirfd, uint64_t addr, struct ak_parent *out);

/* The errno of a look-up that failed, as a strict agent may see it: ENOTDIR, ELOOP or EACCES on the way through a hidden
 * directory would tell what is in it, so they become ENOENT. The longest part of `path` that resolves decides; `path` is
 * cut in the process. */
int ak_hide_error(struct ak_call *c, int dirfd, char *path, int error);

/* ak_task_dup() for a call that cannot be made without: where the host refuses duplicates that has an entry, since it is
 * neither the policy nor the kernel that refuses the call. */
int ak_own_copy(struct ak_call *c, int fd);

/* What the agent's descriptor refers to. -EBADF for an O_PATH descriptor unless `path_only` ones will do. */
int ak_object_of_fd(struct ak_call *c, int fd, bool path_only, struct ak_object *out);

/* Does the descriptor still have the canonical name that was judged? Asked while ak_names_lock() is held. */
bool ak_keeps_name(int fd, const char *path, size_t len);

/* Held between a last look at names and the call that uses them. Every call that can put a directory or a symlink in
 * place of something else is trapped, and its handler takes this lock, so nobody inside any run of this supervisor can
 * change what the look has seen. One lock for all: the kernel itself serialises renames of directories. */
void ak_names_lock(void);
void ak_names_unlock(void);

#endif
