/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much of guest RAM each of the two page tables maps, by size of entry: the
 * host's from /proc/self/smaps, the second stage from KVM's statistics
 * ("pages_4k", "pages_2m", "pages_1g", which count what is mapped now).
 *
 * Any thread; a kvm_stats reader is one thread's.
 */
#ifndef QUIRE_MEM_COVERAGE_H
#define QUIRE_MEM_COVERAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "mem/ram.h"

struct kvm_stats;

/* In bytes. */
struct coverage_table {
	uint64_t by_4k, by_2m, by_1g;
};

static inline uint64_t coverage_total(const struct coverage_table *t)
{
	return t->by_4k + t->by_2m + t->by_1g;
}

/* Walks the page tables: for reports, not for hot paths. */
__must_check int coverage_read_host(const struct ram *ram,
				    struct coverage_table *ret);

/* Three small reads. -ENOENT: this KVM keeps no such counts. */
__must_check int coverage_read_second_stage(struct kvm_stats *vm_stats,
					    struct coverage_table *ret);

#endif
