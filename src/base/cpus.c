/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cpus.h"

#include <errno.h>

#include "base/numlist.h"

/* Far above any kernel's NR_CPUS. */
#define CPUS_MAX (1u << 20)

int cpus_mask_get(struct cpus_mask *ret)
{
	int r = EINVAL;

	*ret = (struct cpus_mask){ .set = NULL };
	/* The kernel refuses a mask shorter than its own: grow until it fits.
	 */
	for (unsigned int num = CPU_SETSIZE; r == EINVAL && num <= CPUS_MAX;
	     num *= 2) {
		cpus_mask_free(ret);
		ret->set = CPU_ALLOC(num);
		ret->bytes = CPU_ALLOC_SIZE(num);
		if (!ret->set)
			return -ENOMEM;
		CPU_ZERO_S(ret->bytes, ret->set);
		r = sched_getaffinity(0, ret->bytes, ret->set) ? errno : 0;
	}
	if (r)
		cpus_mask_free(ret);
	return -r;
}

int cpus_mask_apply(const struct cpus_mask *mask)
{
	return sched_setaffinity(0, mask->bytes, mask->set) ? -errno : 0;
}

int cpus_mask_pick(struct cpus_mask *ret, const struct cpus_mask *mask,
		   const char *text)
{
	unsigned int first, last;

	ret->bytes = mask->bytes;
	ret->set = CPU_ALLOC(mask->bytes * 8);
	if (!ret->set)
		return -ENOMEM;
	CPU_ZERO_S(ret->bytes, ret->set);
	while (numlist_next(&text, &first, &last)) {
		for (size_t cpu = first; cpu <= last && cpu < mask->bytes * 8;
		     cpu++) {
			if (CPU_ISSET_S(cpu, mask->bytes, mask->set))
				CPU_SET_S(cpu, ret->bytes, ret->set);
		}
	}
	if (CPU_COUNT_S(ret->bytes, ret->set))
		return 0;
	cpus_mask_free(ret);
	return -ENOENT;
}

void cpus_mask_free(struct cpus_mask *mask)
{
	if (mask->set)
		CPU_FREE(mask->set);
	*mask = (struct cpus_mask){ .set = NULL };
}

unsigned int cpus_allowed(void)
{
	struct cpus_mask mask;
	int found = 0;

	if (!cpus_mask_get(&mask))
		found = CPU_COUNT_S(mask.bytes, mask.set);
	cpus_mask_free(&mask);
	return found > 0 ? (unsigned int)found : 1;
}
