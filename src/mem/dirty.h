/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of guest memory were written, found out while the guest runs.
 *
 * One bit per 4K page and region (ram_region.dirty) gathers what KVM logged of
 * the guest's stores and what the accessors of mem/ram.h wrote. Consumers (a
 * migration's senders, a snapshot's writers) take bits out of it and copy the
 * pages:
 *
 *	dirty_setup_vm -> dirty_add_vcpu* -> [dirty_start -> ... -> dirty_stop]*
 *		-> dirty_free
 *	... =	rounds of dirty_harvest, then dirty_take over all pages;
 *		at last, with the vCPUs out of the guest and the devices still,
 *		dirty_final and a round of dirty_take
 *
 * dirty_start() makes every page dirty, so the first round copies everything.
 * What is then copied last for each page is what the page holds in the end: no
 * write is lost, whoever made it (the proof is in dirty.c). A page may be
 * reported though nobody wrote it again.
 *
 * Two methods do the part that is KVM's, the bitmap (dirty_bitmap.c) and rings
 * (dirty_ring.c). Which, is settled before the first vCPU is made: rings cannot
 * be had later.
 *
 * While tracking is on, KVM maps 4K pages only: large pages of the second stage
 * are split, which a guest feels as misses in its TLB. dirty_stop() lets KVM
 * make them large again, for which it zaps the small ones (before Linux 6.13):
 * coverage by population is then gone.
 *
 * Threads: any, as each function says. Nothing here stops a vCPU.
 *
 * Source: Documentation/virt/kvm/api.rst 4.8, 4.117, 7.18, 7.36.
 */
#ifndef QUIRE_MEM_DIRTY_H
#define QUIRE_MEM_DIRTY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "kvm/dirty.h"
#include "mem/ram.h"

enum dirty_method {
	DIRTY_AUTO, /* as dirty_policy() says */
	DIRTY_BITMAP,
	DIRTY_RING,
};

/* "auto", "bitmap", "ring", indexed by enum dirty_method. */
extern const char *const dirty_method_names[3];

#define DIRTY_RING_DEFAULT_ENTRIES 4096u
#define DIRTY_RING_MAX_ENTRIES	   65536u

struct dirty_kernel;

struct dirty_config {
	enum dirty_method method;
	uint64_t memory_bytes; /* for the policy */
	uint64_t pages_per_s;  /* expected to get dirty; 0: not known */
	uint32_t ring_entries; /* of each vCPU, a power of two; 0: default */
	const struct dirty_kernel *kernel; /* for tests; NULL: KVM itself */
	void *kernel_ctx;
};

/*
 * The method for a machine, never DIRTY_AUTO; by figures, see there. With
 * nothing on offer it is DIRTY_BITMAP, which dirty_setup_vm() then refuses.
 */
enum dirty_method dirty_policy(const struct kvm_dirty_offer *offer,
			       uint64_t memory_bytes, uint64_t pages_per_s);

struct dirty_tracker;

/*
 * Prepare vm for tracking, after it is made and before its first vCPU. -ENOTSUP
 * with words: this KVM has no such log, or not that many entries. Tracking is
 * off still and costs nothing but the rings' memory.
 */
__must_check int dirty_setup_vm(struct dirty_tracker **ret,
				const struct kvm_vm *vm,
				const struct dirty_config *cfg,
				struct err *err);

/*
 * vCPU number 0, 1, ... in order, before it first runs: all that run or may be
 * filled through while tracking is on.
 */
__must_check int dirty_add_vcpu(struct dirty_tracker *t,
				const struct kvm_vcpu *vcpu, struct err *err);

/*
 * The vCPUs' threads have ended, and so have harvests and takes. The kernel
 * keeps the VM until then, for the rings are mapped. NULL is fine.
 */
void dirty_free(struct dirty_tracker *t);

enum dirty_method dirty_method(const struct dirty_tracker *t);
uint32_t dirty_ring_entries(const struct dirty_tracker *t); /* 0: no rings */

/*
 * Begin, with the guest running or not: from here on every page counts as
 * dirty. ram outlives the vCPUs' threads. On failure tracking is off.
 * Control thread, as dirty_stop().
 */
__must_check int dirty_start(struct dirty_tracker *t, struct ram *ram,
			     struct err *err);
/* No harvest and no take is going on, or begins. What was marked is forgotten.
 */
void dirty_stop(struct dirty_tracker *t);

struct dirty_round {
	uint64_t pages; /* newly dirty by KVM's log, since the round before */
	uint64_t ns;
};

/*
 * Move what KVM logged so far into the regions' maps. Any thread; two take
 * turns. ret may be NULL. On failure nothing is lost: the next harvest has it.
 */
__must_check int dirty_harvest(struct dirty_tracker *t, struct dirty_round *ret,
			       struct err *err);

/*
 * The harvest that leaves nothing: every vCPU is out of KVM_RUN, and stays
 * out. (An exit whose completion writes guest memory, such as a string input,
 * is completed first: KVM_RUN with immediate_exit.) Devices are still.
 */
__must_check int dirty_final(struct dirty_tracker *t, struct dirty_round *ret,
			     struct err *err);

/* For vCPU i's own thread at KVM_EXIT_DIRTY_RING_FULL: make room. */
__must_check int dirty_ring_full(struct dirty_tracker *t, unsigned int i);

/*
 * Take the dirty pages of [first, first + num) of a region (its index in ram)
 * out of its map, into bits, whose first bit is page first: whole words, all of
 * them written. first is a multiple of 64, and num as well unless the range
 * ends with the region. Returns how many pages; from then on they are the
 * caller's to copy, and writes to them are logged anew. Negative errno: nothing
 * was taken.
 *
 * Any thread. Two may even take the same pages at once, each bit goes to one of
 * them; but who copies a page must be done before the next who takes it stores
 * his copy, so callers keep to disjoint ranges. Take late: a page that is
 * written again before it is taken is copied once instead of twice. Ranges of
 * 128 MiB to 1 GiB keep the number of KVM_CLEAR_DIRTY_LOG calls low, each of
 * which flushes TLBs.
 */
__must_check int64_t dirty_take(struct dirty_tracker *t, unsigned int region,
				uint64_t first, uint64_t num, uint64_t *bits);

/*
 * The next run of set bits among the first num_bits, at or after *at. False:
 * none is left. *at and *len say which; go on at *at + *len.
 */
bool dirty_next_run(const uint64_t *bits, uint64_t num_bits, uint64_t *at,
		    uint64_t *len);

/*
 * How many entries vCPU i's ring had, since the tracker was made and as far as
 * they were harvested: pages that it dirtied, each as often as it was logged.
 * 0 without rings: the bitmap does not say who. Any thread.
 */
uint64_t dirty_vcpu_entries(struct dirty_tracker *t, unsigned int i);

/* Since the tracker was made; each value exact, together nearly so. */
struct dirty_stats {
	bool tracking;
	uint64_t starts;
	uint64_t start_ns;	/* the last dirty_start(), all of it */
	uint64_t rounds;	/* dirty_harvest(), dirty_final() */
	uint64_t round_pages;	/* of the last round */
	uint64_t pages_initial; /* dirty by dirty_start() */
	uint64_t pages_kvm;	/* newly dirty by KVM's log */
	uint64_t pages_vmm;	/* newly dirty by the VMM's own writes */
	uint64_t pages_taken;
	uint64_t pages_waiting;		/* dirty now */
	uint64_t ring_full;		/* exits */
	uint64_t log_calls, log_ns;	/* GET; collecting from rings */
	uint64_t clear_calls, clear_ns; /* CLEAR; RESET of rings */
};

/*
 * Any thread. pages_waiting is counted by a look at all maps (32 KiB per GiB),
 * and pages_vmm is what the other counts leave; both are a little off while
 * others are at work.
 */
void dirty_stats_read(struct dirty_tracker *t, struct dirty_stats *ret);

#endif
