/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cpus.h"

#include <errno.h>
#include <sched.h>
#include <stddef.h>

/* Far above any kernel's NR_CPUS. */
#define CPUS_MAX (1u << 20)

unsigned int cpus_allowed(void)
{
	unsigned int found = 1;

	/* The kernel refuses a mask shorter than its own: grow until it fits.
	 */
	for (unsigned int num = CPU_SETSIZE; num <= CPUS_MAX; num *= 2) {
		cpu_set_t *set = CPU_ALLOC(num);
		size_t bytes = CPU_ALLOC_SIZE(num);
		int r;

		if (!set)
			return found;
		r = sched_getaffinity(0, bytes, set) ? errno : 0;
		if (!r)
			found = (unsigned int)CPU_COUNT_S(bytes, set);
		CPU_FREE(set);
		if (r != EINVAL)
			break;
	}
	return found ? found : 1;
}
