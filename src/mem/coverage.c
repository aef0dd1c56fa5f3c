/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/coverage.h"

#include "base/arith.h"
#include "kvm/stats.h"
#include "mem/smaps.h"

int coverage_read_host(const struct ram *ram, struct coverage_table *ret)
{
	struct smaps_usage usage;
	int r = smaps_read(ram, &usage);

	if (r)
		return r;
	*ret = (struct coverage_table){
		.by_4k = usage.guest_resident_bytes - usage.guest_huge_bytes,
	};
	if (ram->page == RAM_PAGE_1G)
		ret->by_1g = usage.guest_huge_bytes;
	else
		ret->by_2m = usage.guest_huge_bytes;
	return 0;
}

int coverage_read_second_stage(struct kvm_stats *vm_stats,
			       struct coverage_table *ret)
{
	uint64_t n4k, n2m, n1g;
	int r = kvm_stats_read(vm_stats, "pages_4k", &n4k);

	if (!r)
		r = kvm_stats_read(vm_stats, "pages_2m", &n2m);
	if (!r)
		r = kvm_stats_read(vm_stats, "pages_1g", &n1g);
	if (r)
		return r;
	*ret = (struct coverage_table){
		.by_4k = n4k * PAGE_4K,
		.by_2m = n2m * PAGE_2M,
		.by_1g = n1g * PAGE_1G,
	};
	return 0;
}
