/* Sockets: every way to reach an address, each as the raw call with garbage in the upper halves of its int arguments. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "call.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

struct end {
	struct sockaddr_storage addr;
	socklen_t len;
	int family;
};

static struct end end_of(const char *host, const char *port)
{
	struct end e = { .family = strchr(host, ':') ? AF_INET6 : AF_INET };
	struct sockaddr_in *in = (struct sockaddr_in *)&e.addr;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&e.addr;
	void *to = e.family == AF_INET ? (void *)&in->sin_addr : (void *)&in6->sin6_addr;

	e.addr.ss_family = (sa_family_t)e.family;
	in->sin_port = htons((uint16_t)number(port));
	e.len = e.family == AF_INET ? sizeof *in : sizeof *in6;
	if (inet_pton(e.family, host, to) != 1) {
		fprintf(stderr, "try_call: not an address: %s\n", host);
		exit(2);
	}
	return e;
}

static long new_socket(int family, int type, int protocol)
{
	return sys(SYS_socket, GARBAGE(family), GARBAGE(type), GARBAGE(protocol), 0, 0, 0);
}

static long connected(int type, int protocol, char **argv)
{
	struct end e = end_of(argv[1], argv[2]);
	long fd = new_socket(e.family, type, protocol);
	long r = fd < 0 ? fd : sys(SYS_connect, GARBAGE(fd), (long)&e.addr, GARBAGE(e.len), 0, 0, 0);

	return r < 0 ? r : fd;
}

static long try_tcp(char **argv)
{
	long r = connected(SOCK_STREAM, 0, argv);

	return r < 0 ? r : 0;
}

static long try_mptcp(char **argv)
{
	long r = connected(SOCK_STREAM, IPPROTO_MPTCP, argv);

	return r < 0 ? r : 0;
}

/* argv[3]: sendto, sendmsg or sendmmsg. */
static long send_by(char **argv, int type, int flags)
{
	struct end e = end_of(argv[1], argv[2]);
	struct iovec iov = { "kit", 3 };
	struct mmsghdr m = { .msg_hdr = { .msg_name = &e.addr, .msg_namelen = e.len, .msg_iov = &iov, .msg_iovlen = 1 } };
	long fd = new_socket(e.family, type, 0);

	if (fd < 0)
		return fd;
	if (strcmp(argv[3], "sendto") == 0)
		return sys(SYS_sendto, GARBAGE(fd), (long)"kit", 3, GARBAGE(flags), (long)&e.addr, GARBAGE(e.len));
	if (strcmp(argv[3], "sendmsg") == 0)
		return sys(SYS_sendmsg, GARBAGE(fd), (long)&m.msg_hdr, GARBAGE(flags), 0, 0, 0);
	return sys(SYS_sendmmsg, GARBAGE(fd), (long)&m, GARBAGE(1), GARBAGE(flags), 0, 0);
}

static long try_fastopen(char **argv)
{
	return send_by(argv, SOCK_STREAM, MSG_FASTOPEN);
}

static long try_udp(char **argv)
{
	return send_by(argv, SOCK_DGRAM, 0);
}

static long try_udp_connected(char **argv)
{
	long fd = connected(SOCK_DGRAM, 0, argv);

	return fd < 0 ? fd : sys(SYS_sendto, GARBAGE(fd), (long)"kit", 3, GARBAGE(0), 0, GARBAGE(0));
}

/* Two datagrams in one call: to argv[1]:argv[2], then to the port argv[3]. Prints how many were sent. */
static long try_udp_two(char **argv)
{
	struct end one = end_of(argv[1], argv[2]), two = end_of(argv[1], argv[3]);
	struct iovec iov = { "kit", 3 };
	struct mmsghdr m[2] = {
		{ .msg_hdr = { .msg_name = &one.addr, .msg_namelen = one.len, .msg_iov = &iov, .msg_iovlen = 1 } },
		{ .msg_hdr = { .msg_name = &two.addr, .msg_namelen = two.len, .msg_iov = &iov, .msg_iovlen = 1 } },
	};
	long fd = new_socket(one.family, SOCK_DGRAM, 0);

	return fd < 0 ? fd : sys(SYS_sendmmsg, GARBAGE(fd), (long)m, GARBAGE(2), GARBAGE(0), 0, 0);
}

static long try_socket(char **argv)
{
	long fd = new_socket((int)number(argv[1]), (int)number(argv[2]), (int)number(argv[3]));

	return fd < 0 ? fd : 0;
}

/* "FAMILY:TYPE:PROTOCOL ...", all of which must be refused alike: prints what was made, returns how many, or -EACCES. */
static long try_sockets(char **argv)
{
	long made = 0;

	for (char *next = argv[1], *word; (word = strsep(&next, " ")) != NULL;) {
		char *kind = strchr(word, ':'), *protocol = kind == NULL ? NULL : strchr(kind + 1, ':');
		long fd;

		if (protocol == NULL)
			return -EINVAL;
		*kind++ = *protocol++ = 0;
		fd = new_socket((int)number(word), (int)number(kind), (int)number(protocol));
		if (fd >= 0 || fd != -EACCES)
			printf("%s:%s:%s %s\n", word, kind, protocol, fd >= 0 ? "made" : strerrorname_np((int)-fd));
		made += fd >= 0 || fd != -EACCES;
	}
	return made ? made : -EACCES;
}

static long try_bind(char **argv)
{
	struct end e = end_of(argv[1], argv[2]);
	long fd = new_socket(e.family, SOCK_STREAM, 0);

	return fd < 0 ? fd : sys(SYS_bind, GARBAGE(fd), (long)&e.addr, GARBAGE(e.len), 0, 0, 0);
}

static long try_listen(char **argv)
{
	struct end e = end_of(argv[1], argv[2]);
	long fd = new_socket(e.family, SOCK_STREAM, 0);
	long r = fd < 0 ? fd : sys(SYS_bind, GARBAGE(fd), (long)&e.addr, GARBAGE(e.len), 0, 0, 0);

	return r < 0 ? r : sys(SYS_listen, GARBAGE(fd), GARBAGE(5), 0, 0, 0, 0);
}

/* A socket that is not bound listens on a port of every address. */
static long try_listen_unbound(char **argv)
{
	long fd = new_socket(AF_INET, SOCK_STREAM, 0);

	(void)argv;
	return fd < 0 ? fd : sys(SYS_listen, GARBAGE(fd), GARBAGE(5), 0, 0, 0, 0);
}

/* A path, or "@name" for an abstract one. */
static long try_unix(char **argv)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	size_t len = strlen(argv[1]);
	long fd = new_socket(AF_UNIX, SOCK_STREAM, 0);

	if (len >= sizeof un.sun_path)
		return -ENAMETOOLONG;
	memcpy(un.sun_path, argv[1], len);
	if (argv[1][0] == '@')
		un.sun_path[0] = 0;
	len += offsetof(struct sockaddr_un, sun_path) + (argv[1][0] != '@');
	return fd < 0 ? fd : sys(SYS_connect, GARBAGE(fd), (long)&un, GARBAGE(len), 0, 0, 0);
}

const struct attempt network_attempts[] = {
	{ "tcp", 2, try_tcp },
	{ "mptcp", 2, try_mptcp },
	{ "fastopen", 3, try_fastopen },
	{ "udp", 3, try_udp },
	{ "udp_connected", 2, try_udp_connected },
	{ "udp_two", 3, try_udp_two },
	{ "socket", 3, try_socket },
	{ "sockets", 1, try_sockets },
	{ "bind", 2, try_bind },
	{ "listen", 2, try_listen },
	{ "listen_unbound", 0, try_listen_unbound },
	{ "unix", 1, try_unix },
	{ NULL, 0, NULL },
};
