/* Rules on names: which addresses were handed out for which names (pins), and which sockets of the agent lead to the
 * supervisor's own DNS server instead of the resolver that they were pointed at.
 *
 * Python (akbox/linux/dns.py) answers the queries and pins the answers here; peer.c judges connects through the pins,
 * call_recv.c gives the replies the source address that the agent expects. One struct for each run whose policy has
 * rules on names; thread-safe.
 */
#ifndef AK_NAMES_H
#define AK_NAMES_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "policy.h"

#define AK_DNS_PORT 53
#define AK_HOST_MAX 253                 /* bytes of a host name (RFC 1035, 3.1) */
#define AK_PINS_MAX 16384u              /* addresses pinned at one time */
#define AK_PIN_FOREVER UINT32_MAX

struct ak_pin_rule { uint32_t rule; uint16_t low, high; uint8_t effect, proto; };      /* effect: 0 allow, 1 ask, 2 deny */

/* Where the supervisor's own servers listen. Length 0: there is none of that kind. */
enum { AK_RELAY_NAMED = 1, AK_RELAY_ALL = 2 };  /* connections that rules on names allow; all TCP, whose bytes are counted */
struct ak_own_server { struct sockaddr_storage v4, v6; socklen_t v4_len, v6_len; };

/* A socket that was led to one of our servers: who made the call, and where it meant to go. */
struct ak_led {
	struct sockaddr_storage meant;
	socklen_t meant_len;
	pid_t tgid, tid;
	int32_t nr;
	bool named;                     /* a rule on a name allowed it */
};

struct ak_names;

/* `udp`, `tcp`: the DNS server; `relay`: where connections go that `relayed` (AK_RELAY_*) says. `above`: of the
 * agent that started this one, NULL for none; it must outlive this. NULL: ENOMEM. */
struct ak_names *ak_names_new(const struct ak_own_server *udp, const struct ak_own_server *tcp,
			      const struct ak_own_server *relay, unsigned relayed, struct ak_names *above);
/* Does the policy have rules on names, so that port 53 is ours? */
bool ak_names_serves_dns(const struct ak_names *n);
unsigned ak_names_relayed(const struct ak_names *n);
/* The budget of bytes is spent: nothing more is let out. */
void ak_names_spend(struct ak_names *n);
bool ak_names_spent(const struct ak_names *n);
void ak_names_free(struct ak_names *n);

/* `addr`: 16 bytes, IPv4 as mapped IPv6. `seconds`: AK_PIN_FOREVER, or how long it may be used from now on; a pin of the
 * same name and address is replaced. 0, -ENOMEM, -ENOSPC (AK_PINS_MAX in use) or -EINVAL. */
int ak_pin(struct ak_names *n, const uint8_t addr[16], const char *name, size_t name_len, uint32_t seconds,
	   const struct ak_pin_rule *rules, size_t count);

/* Connecting to `addr` (4 or 16 bytes), by rules on addresses and by those on the names that it was handed out for, deny >
 * ask > allow over all of them, and only what every agent above may do too. `name` gets the name whose rule decided, or, where
 * no rule did, one of the address's; else "". */
struct ak_verdict ak_judge_named(const struct ak_policy *p, struct ak_names *n, enum ak_net_proto proto, const uint8_t *addr,
				 size_t addr_len, uint16_t port, char name[AK_HOST_MAX + 1]);

/* Turns `addr` (AF_INET or AF_INET6) into that of our DNS server, in the same family. False: there is none. */
bool ak_lead_to_dns(const struct ak_names *n, enum ak_net_proto proto, struct sockaddr_storage *addr, socklen_t *len);
bool ak_lead_to_relay(const struct ak_names *n, struct sockaddr_storage *addr, socklen_t *len);
/* Is it our UDP server's address? */
bool ak_is_own_dns(const struct ak_names *n, const struct sockaddr_storage *addr);

/* UDP: by the socket, for as long as it lives. */
void ak_led_udp(struct ak_names *n, uint64_t inode, const struct ak_led *led);
bool ak_find_led_udp(struct ak_names *n, uint64_t inode, struct ak_led *out);

/* TCP: by local port, from before the connection can be seen by our server until it is claimed by it, once. The lock is
 * held over the connect and the look at the port that it got. */
void ak_led_lock(struct ak_names *n);
void ak_led_unlock(struct ak_names *n);
void ak_led_tcp(struct ak_names *n, uint16_t port, const struct ak_led *led);          /* Precondition: ak_led_lock() */
bool ak_claim_tcp(struct ak_names *n, uint16_t port, struct ak_led *out);

#endif
