/* The compiled policy: what a path, an address or a socket name may be used for.
 *
 * One flat, position-independent blob, made by akbox/policy/compile.py and checked once by ak_policy_parse(); after
 * that it is read-only and may be used by any number of threads. The Python matcher (akbox/policy/matcher.py) answers
 * the same questions from the same rules; tests/unit/test_matchers_agree.py holds the two together.
 *
 * Paths given to these functions are canonical: absolute, no ".", no "..", no "//", no trailing "/" (but "/" itself).
 */
#ifndef AK_POLICY_H
#define AK_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum ak_need { AK_READ = 1, AK_WRITE = 2, AK_EXEC = 4 };
enum ak_decision { AK_DENY = 0, AK_ALLOW = 1, AK_ASK = 2 };      /* ASK: only the Python side can say (approval) */
enum ak_net_op { AK_NET_CONNECT = 0, AK_NET_BIND = 1, AK_NET_LISTEN = 2 };
enum ak_net_proto { AK_TCP = 0, AK_UDP = 1 };

#define AK_NO_RULE UINT32_MAX

struct ak_verdict {
	uint32_t rule;          /* index in the policy's rule table (CompiledPolicy.rules), or AK_NO_RULE */
	uint8_t decision;       /* enum ak_decision; 0 is deny, so a zeroed verdict denies */
	uint8_t missing;        /* enum ak_need bits that no rule gave */
};

struct ak_policy;

/* Checks every offset, count and string of the blob; NULL and *why on the first thing wrong. The blob is copied. */
struct ak_policy *ak_policy_parse(const void *blob, size_t len, const char **why);
void ak_policy_free(struct ak_policy *p);

/* The same rules once more, with an end of their own for each of them (ak_policy_end), and, with `parent`, allowing only what
 * that allows too: a rule of the parent's is numbered after all of ours in verdicts. Shares the memory of `base`, which must
 * outlive it, as must `parent`. NULL: out of memory. */
struct ak_policy *ak_policy_view(const struct ak_policy *base, const struct ak_policy *parent);

/* From CLOCK_BOOTTIME `at_ns` on the rule allows nothing (and asks about nothing) any more; what it refuses stays refused. 1: now.
 * Every later verdict of any thread knows it. Only for a view; callers take turns. False: no such rule, or out of memory. */
bool ak_policy_end(struct ak_policy *p, uint32_t rule, uint64_t at_ns);

/* May `path` be used with all of the `need` bits? deny > approve > allow. */
struct ak_verdict ak_policy_fs(const struct ak_policy *p, unsigned need, const char *path, size_t len);

/* Does a rule refuse one of the `need` bits on `path`, or ask about it? Not: does no rule allow them. */
bool ak_policy_refuses(const struct ak_policy *p, unsigned need, const char *path, size_t len);

/* The need bits that ak_policy_fs() would allow, in one pass. */
unsigned ak_policy_rights(const struct ak_policy *p, const char *path, size_t len);

/* Strict metadata: does the name exist for the agent (it has a right on it, or it is an ancestor of such a name)? */
bool ak_policy_visible(const struct ak_policy *p, const char *path, size_t len);

/* May the object at `from` get the name `to` (rename, link) without gaining a right or losing a deny? Both ends also
 * need AK_WRITE, which the caller asks for separately. For a directory the question is asked for everything that could
 * lie below it, by comparing the live states of every pattern at the two names. */
bool ak_policy_move_keeps_rights(const struct ak_policy *p, const char *from, size_t from_len,
				 const char *to, size_t to_len, bool is_dir);

/* `addr` is 4 or 16 bytes in network order (v4-mapped v6 is judged as v4), `port` in host order. */
struct ak_verdict ak_policy_net(const struct ak_policy *p, enum ak_net_op op, enum ak_net_proto proto,
				const uint8_t *addr, size_t addr_len, uint16_t port);

/* A unix socket by canonical path (net.unix; authority sockets need an exact rule). */
struct ak_verdict ak_policy_unix(const struct ak_policy *p, const char *path, size_t len);

/* Is `path` allowed by AK_EXEC through an exact (wildcard-free) rule? Dynamic linkers may be run directly only then. */
bool ak_policy_exec_exact(const struct ak_policy *p, const char *path, size_t len);

#endif
