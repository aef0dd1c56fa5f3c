/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of guest memory nobody needs: pages that the guest says are free (a
 * balloon, free page reporting or hinting). Who moves memory leaves them out,
 * and they read as zeroes where it comes to.
 *
 * A device that hears of such pages offers the hints; vm_memory.hints has them.
 */
#ifndef QUIRE_MEM_HINTS_H
#define QUIRE_MEM_HINTS_H

#include <stdint.h>

#include "mem/gpa.h"

struct mem_hints {
	/*
	 * Set the bits of those pages in [gpa, gpa + len), at most 2 MiB and 4K
	 * aligned, whose content may be lost as of now; the others' are clear.
	 * Who asks has begun to log writes before: a page that is taken into
	 * use again is written then, and counts as any other. Any thread.
	 */
	void (*unused)(void *ctx, struct gpa gpa, uint64_t len, uint64_t *ret);
	void *ctx;
};

#endif
