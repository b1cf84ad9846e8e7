/* Abstract unix sockets have no inode that a rule could name, so the only question is whose they are: the run's own may
 * be reached. Landlock's scope would say the same for calls of the agent itself, but calls on its behalf are ours.
 *
 * /proc/net/unix gives the sockets of a name, the descriptors of the run's processes which of them are its own. A name
 * that the run gives up can be taken by somebody else between this look and the connect; that somebody would have to
 * choose the run's name at that moment.
 */
#include "abstract.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SOCKETS_MAX 64                  /* of one name: the bound one and those accepted from it */

struct inodes {
	unsigned long ino[SOCKETS_MAX];
	unsigned count, found;
};

/* The kernel prints a name with '@' for each NUL, so another name may print alike: then its sockets are asked about too,
 * and a stranger's denies. Sockets nobody has accepted yet have inode 0. */
static bool sockets_of_name(const char *name, size_t len, struct inodes *out)
{
	char line[512], printed[128];
	bool complete = true;
	FILE *table = fopen("/proc/net/unix", "re");
	if (!table)
		return false;
	for (size_t i = 0; i < len; i++)
		printed[i] = name[i] ? name[i] : '@';
	printed[len] = 0;
	out->count = 0;
	while (complete && fgets(line, sizeof line, table)) {
		unsigned long ino;
		int at = 0;
		if (sscanf(line, "%*x: %*x %*x %*x %*x %*x %lu %n", &ino, &at) != 1 || at == 0 || ino == 0)
			continue;
		line[strcspn(line, "\n")] = 0;
		if (strcmp(line + at, printed) != 0)
			continue;
		complete = out->count < SOCKETS_MAX;
		if (complete)
			out->ino[out->count++] = ino;
	}
	complete = complete && !ferror(table);
	fclose(table);
	return complete && out->count > 0;
}

static void strike_out(struct inodes *wanted, const char *link)
{
	unsigned long ino;
	if (sscanf(link, "socket:[%lu]", &ino) != 1)
		return;
	for (unsigned i = 0; i < wanted->count; i++) {
		if (wanted->ino[i] == ino) {
			wanted->ino[i] = 0;
			wanted->found++;
		}
	}
}

static void strike_out_of_process(const char *pid, struct inodes *wanted)
{
	char path[300], link[64];
	snprintf(path, sizeof path, "/proc/%s/fd", pid);
	DIR *fds = opendir(path);
	if (!fds)
		return;
	for (struct dirent *entry = readdir(fds); entry && wanted->found < wanted->count; entry = readdir(fds)) {
		ssize_t n = readlinkat(dirfd(fds), entry->d_name, link, sizeof link - 1);
		if (n > 0) {
			link[n] = 0;
			strike_out(wanted, link);
		}
	}
	closedir(fds);
}

bool ak_abstract_in_run(struct ak_call *c, const char *name, size_t len)
{
	struct inodes wanted = {.count = 0, .found = 0};
	/* fgets() would cut such a name in two. */
	if (len < 2 || len > 108 || memchr(name, '\n', len) || !sockets_of_name(name, len, &wanted))
		return false;
	DIR *proc = opendir("/proc");
	if (!proc)
		return false;
	for (struct dirent *entry = readdir(proc); entry && wanted.found < wanted.count; entry = readdir(proc))
		if (isdigit((unsigned char)entry->d_name[0]) && ak_pid_in_run(c, (pid_t)atoi(entry->d_name)))
			strike_out_of_process(entry->d_name, &wanted);
	closedir(proc);
	return wanted.found == wanted.count && c->stop->still_valid(c->stop->ctx);
}
