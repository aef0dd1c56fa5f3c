/* SPDX-License-Identifier: Apache-2.0 */
/* CPUs of the host, as far as this process may use them. Any thread. */
#ifndef QUIRE_BASE_CPUS_H
#define QUIRE_BASE_CPUS_H

#include <sched.h>
#include <stddef.h>

#include "base/compiler.h"

/* How many CPUs the calling thread may run on; at least 1. */
unsigned int cpus_allowed(void);

/* A set of CPUs as large as this kernel wants it. set NULL: there is none. */
struct cpus_mask {
	cpu_set_t *set;
	size_t bytes;
};

/* The CPUs the calling thread may run on. 0, or a negative errno and no set. */
__must_check int cpus_mask_get(struct cpus_mask *ret);

/* Let the calling thread run on those only. */
__must_check int cpus_mask_apply(const struct cpus_mask *mask);

/*
 * *ret: those of mask that text, a list ("0-3,8"), names. 0, -ENOMEM, or
 * -ENOENT when there are none.
 */
__must_check int cpus_mask_pick(struct cpus_mask *ret,
				const struct cpus_mask *mask, const char *text);

/* Fine on a zeroed one. */
void cpus_mask_free(struct cpus_mask *mask);

#endif
