/* Views: one agent's use of a compiled policy. When a rule is over (its capability was revoked, or had its time), and what the
 * policies above it say.
 *
 * A view costs its header and, once a rule has an end, eight bytes a rule. Verdicts read the ends without a lock: a rule
 * that is over before a call is judged grants that call nothing.
 */
#include "policy_blob.h"

#include <stdlib.h>
#include <time.h>

#define NOW 1u

struct ak_policy *ak_policy_view(const struct ak_policy *base, const struct ak_policy *parent)
{
	struct ak_policy *p = calloc(1, sizeof *p);

	if (!p)
		return NULL;
	*p = *base;
	p->parent = parent;
	p->is_view = true;
	atomic_init(&p->ends, NULL);
	return p;
}

bool ak_policy_end(struct ak_policy *p, uint32_t rule, uint64_t at_ns)
{
	atomic_ullong *ends = atomic_load(&p->ends);

	if (!p->is_view || rule >= p->rules)
		return false;
	if (!ends) {
		ends = calloc(p->rules, sizeof *ends);
		if (!ends)
			return false;
		atomic_store_explicit(&p->ends, ends, memory_order_release);
	}
	atomic_store(&ends[rule], at_ns ? at_ns : NOW);
	return true;
}

bool ak_rule_over(const struct ak_policy *p, uint32_t rule)
{
	atomic_ullong *ends = atomic_load_explicit(&p->ends, memory_order_acquire);
	struct timespec now;
	uint64_t at;

	if (!ends || rule >= p->rules)
		return false;
	at = atomic_load(&ends[rule]);
	if (at <= NOW)
		return at == NOW;
	clock_gettime(CLOCK_BOOTTIME, &now);
	return at <= (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct ak_verdict ak_stricter(const struct ak_policy *p, struct ak_verdict own, struct ak_verdict above)
{
	if (own.decision == AK_DENY || above.decision == AK_ALLOW || (own.decision == AK_ASK && above.decision == AK_ASK))
		return own;
	if (above.rule != AK_NO_RULE)
		above.rule += p->rules;
	return above;
}
