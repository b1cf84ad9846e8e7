/* What may go along with a message, and in whose name; see control.h. */
#include "control.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "behalf.h"

#define SCM_CREDENTIALS_TYPE 2          /* SCM_CREDENTIALS without all of glibc's feature tests */

/* Everything else is refused: IP_RETOPTS and IPV6_RTHDR, for example, send the packet to another host first than the
 * one that was judged. Sources: ip_cmsg_send, ip6_datagram_send_ctl, __sock_cmsg_send, udp_cmsg_send, tls. */
static const struct { int level, type; } harmless[] = {
	{SOL_SOCKET, 36},               /* SO_MARK: takes a capability */
	{SOL_SOCKET, 37},               /* SO_TIMESTAMPING */
	{SOL_SOCKET, 61},               /* SCM_TXTIME */
	{SOL_SOCKET, 65},               /* SO_TIMESTAMPING_NEW */
	{SOL_SOCKET, 81},               /* SCM_TS_OPT_ID */
	{IPPROTO_IP, 1},                /* IP_TOS */
	{IPPROTO_IP, 2},                /* IP_TTL */
	{IPPROTO_IP, 8},                /* IP_PKTINFO: the source address and interface */
	{IPPROTO_IPV6, 2},              /* IPV6_2292PKTINFO */
	{IPPROTO_IPV6, 8},              /* IPV6_2292HOPLIMIT */
	{IPPROTO_IPV6, 50},             /* IPV6_PKTINFO */
	{IPPROTO_IPV6, 52},             /* IPV6_HOPLIMIT */
	{IPPROTO_IPV6, 62},             /* IPV6_DONTFRAG */
	{IPPROTO_IPV6, 67},             /* IPV6_TCLASS */
	{IPPROTO_UDP, 103},             /* UDP_SEGMENT */
	{282, 1},                       /* SOL_TLS, TLS_SET_RECORD_TYPE */
};

static bool is_harmless(const struct cmsghdr *h)
{
	for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
		if (h->cmsg_level == harmless[i].level && h->cmsg_type == harmless[i].type)
			return true;
	return false;
}

static int refuse(struct ak_call *c, const struct cmsghdr *h)
{
	char target[48];
	snprintf(target, sizeof target, "cmsg:%d:%d", h->cmsg_level, h->cmsg_type);
	int error = ak_record(c, AK_OP_SEND, AK_DENY, 0, AK_NO_RULE, 0, EPERM, 0, target, NULL);
	return error < 0 ? error : -EPERM;
}

/* The agent's numbers become those of our duplicates, in place. */
static int take_descriptors(struct ak_call *c, struct ak_control *control, struct cmsghdr *h)
{
	size_t count = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	unsigned char *at = CMSG_DATA(h);
	if (count > AK_RIGHTS_MAX - control->fd_count)
		return -EINVAL;
	for (size_t i = 0; i < count; i++) {
		int fd;
		memcpy(&fd, at + i * sizeof fd, sizeof fd);
		int own = ak_task_dup(c, fd);
		if (own < 0)
			return own;
		control->fds[control->fd_count++] = own;
		memcpy(at + i * sizeof own, &own, sizeof own);
	}
	return 0;
}

/* Credentials that are named must be true, and the kernel holds them against the sender, which is us: pid and all. */
static int take_header(struct ak_call *c, struct ak_control *control, struct cmsghdr *h)
{
	if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS)
		return take_descriptors(c, control, h);
	if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_CREDENTIALS_TYPE)
		return refuse(c, h);
	return is_harmless(h) ? 0 : refuse(c, h);
}

int ak_control_read(struct ak_call *c, uint64_t addr, uint64_t len, struct ak_control *out)
{
	out->len = 0;
	out->fd_count = 0;
	if (addr == 0 || len == 0)
		return 0;
	if (len > sizeof out->data)
		return -ENOBUFS;
	int error = ak_read(c, addr, out->data, len);
	if (error < 0)
		return error;
	out->len = len;
	/* The kernel's CMSG_OK and CMSG_NXTHDR: a rest too short for a header is not looked at. */
	for (size_t at = 0; error == 0 && len - at >= sizeof(struct cmsghdr);) {
		struct cmsghdr *h = (struct cmsghdr *)(out->data + at);
		if (h->cmsg_len < sizeof *h || h->cmsg_len > len - at)
			error = -EINVAL;
		else
			error = take_header(c, out, h);
		if (error < 0 || CMSG_ALIGN(h->cmsg_len) >= len - at)
			break;
		at += CMSG_ALIGN(h->cmsg_len);
	}
	if (error < 0)
		ak_control_close(out);
	return error;
}

void ak_control_close(struct ak_control *control)
{
	while (control->fd_count > 0)
		close(control->fds[--control->fd_count]);
}
