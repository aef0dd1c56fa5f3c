/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this process has resident, split into guest RAM and the rest, from
 * /proc/self/smaps (Documentation/filesystems/proc.rst). Reading it walks the
 * page tables: for summaries, not for a running guest's hot path.
 */
#ifndef QUIRE_MEM_SMAPS_H
#define QUIRE_MEM_SMAPS_H

#include <stdint.h>

#include "mem/ram.h"

struct smaps_usage {
	uint64_t guest_resident_bytes; /* hugetlb included */
	uint64_t guest_huge_bytes;     /* THP, huge shmem, hugetlb */
	uint64_t other_resident_bytes; /* everything that is not guest RAM */
};

__must_check int smaps_read(const struct ram *ram, struct smaps_usage *ret);

#endif
