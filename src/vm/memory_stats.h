/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that is counted about a VM's memory: the coverage of both page tables,
 * the phases of population, background work, restoring, dirty tracking, and
 * KVM's own statistics. The JSON form is the body of the API's vm.memory-stats
 * and the "memory" object of
 * --summary-json (man quire-run).
 *
 * Control thread; the guest may run.
 */
#ifndef QUIRE_VM_MEMORY_STATS_H
#define QUIRE_VM_MEMORY_STATS_H

#include <jansson.h>
#include <stdbool.h>

#include "mem/coverage.h"
#include "vm/memory.h"

struct kvm_stats;

#define MEMORY_STATS_MAX_KVM 128

/* A KVM statistic; of vCPUs the sum. */
struct memory_stats_kvm {
	char name[48];
	uint64_t value;
};

struct memory_stats {
	uint64_t size_bytes;
	enum ram_page page;
	enum populate_mode populate;
	enum stage2_method method;
	bool has_host, has_second_stage; /* coverage that could be read */
	struct coverage_table host, second_stage;
	struct populate_result populated;
	struct histogram_snapshot host_page, second_stage_page;
	bool has_dirty;
	enum dirty_method dirty_method;
	uint32_t dirty_ring_entries;
	struct dirty_stats dirty;
	bool has_keeper;
	struct keeper_stats keeper;
	struct vm_paging_stats paging;
	bool has_landed;
	struct vm_landed landed;
	struct memory_stats_kvm vm[MEMORY_STATS_MAX_KVM];
	struct memory_stats_kvm vcpus[MEMORY_STATS_MAX_KVM];
	unsigned int num_vm, num_vcpus;
};

/* stats_fds: of the vCPUs to sum over (vcpu_stats_fd()). */
void memory_stats_take(struct memory_stats *s, const struct vm_memory *m,
		       const int *stats_fds, unsigned int num);

/* KVM's part of it only, which takes no walk over page tables. */
void memory_stats_take_kvm(struct memory_stats *s, const struct vm_memory *m,
			   const int *stats_fds, unsigned int num);

/* A statistic by name; 0 where this kernel keeps none. */
uint64_t memory_stats_vcpu(const struct memory_stats *s, const char *name);

/* NULL: out of memory. */
json_t *memory_stats_json(const struct memory_stats *s);

#endif
