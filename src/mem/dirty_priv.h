/* SPDX-License-Identifier: Apache-2.0 */
/* What dirty.c and the methods share (private to mem/ and its tests). */
#ifndef QUIRE_MEM_DIRTY_PRIV_H
#define QUIRE_MEM_DIRTY_PRIV_H

#include <pthread.h>

#include "mem/dirty.h"

/*
 * The system calls that the proof in dirty.c is about, so that a test can put
 * a model of KVM, or a KVM that does things in the wrong order, in its place.
 * ctx is the const struct kvm_vm, for the real ones.
 */
struct dirty_kernel {
	int (*set_logging)(void *ctx, const struct ram *ram,
			   const struct ram_region *region, bool on);
	int (*get_log)(void *ctx, unsigned int slot, uint64_t *bitmap);
	int (*clear_log)(void *ctx, unsigned int slot, uint64_t first,
			 uint32_t num, const uint64_t *bitmap);
	int (*reset_rings)(void *ctx);
};

extern const struct dirty_kernel dirty_kernel_kvm;

/* One method; all its calls but protect() are made with the lock held. */
struct dirty_ops {
	enum dirty_method method;
	/* Enable it in the VM. -ENOTSUP with words. */
	int (*setup)(struct dirty_tracker *t, const struct dirty_config *cfg,
		     const struct kvm_dirty_offer *offer, struct err *err);
	void (*free)(struct dirty_tracker *t);
	/* Optional. */
	int (*add_vcpu)(struct dirty_tracker *t, const struct kvm_vcpu *vcpu,
			struct err *err);
	/* Before logging is switched on in the slots. Optional. */
	int (*prepare)(struct dirty_tracker *t);
	/* After it was switched off. */
	void (*finish)(struct dirty_tracker *t);
	/* Publish what is logged, and count it. */
	int (*harvest)(struct dirty_tracker *t);
	/* The same for the ring of vCPU i alone. Optional: rings. */
	int (*make_room)(struct dirty_tracker *t, unsigned int i);
	/* dirty_vcpu_entries(). Optional: rings. */
	uint64_t (*count_entries)(const struct dirty_tracker *t,
				  unsigned int i);
	/*
	 * Have the next write to each page in bits logged; first and num as
	 * KVM_CLEAR_DIRTY_LOG wants them. Lock not held, any thread. NULL: that
	 * is so for every page that harvest() publishes.
	 */
	int (*protect)(struct dirty_tracker *t, const struct ram_region *region,
		       uint64_t first, uint32_t num, const uint64_t *bits);
};

extern const struct dirty_ops dirty_bitmap_ops, dirty_ring_ops;

struct dirty_tracker {
	const struct dirty_ops *ops;
	const struct kvm_vm *vm;
	const struct dirty_kernel *kernel;
	void *kernel_ctx;
	pthread_mutex_t lock; /* start, stop, harvests */
	struct ram *ram;      /* from the first start on */
	void *state;	      /* the method's */
	uint32_t ring_entries;
	_Atomic bool tracking;

	_Atomic uint64_t starts, start_ns, rounds, round_pages;
	_Atomic uint64_t pages_initial, pages_kvm, pages_taken, pages_dropped;
	_Atomic uint64_t ring_full;
	_Atomic uint64_t log_calls, log_ns, clear_calls, clear_ns;
	uint64_t round_base; /* pages_kvm when the last round ended */
};

static inline void dirty_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/*
 * Set bits in a word of a region's map. Release: whoever takes them comes after
 * what the caller did before (a ring's reset). Returns how many were clear.
 */
static inline unsigned int dirty_publish(const struct ram_region *region,
					 uint64_t word, uint64_t bits)
{
	uint64_t old = atomic_fetch_or_explicit(&region->dirty_map[word], bits,
						memory_order_release);

	return (unsigned int)__builtin_popcountll(bits & ~old);
}

/* For tests: a ring of cfg.ring_entries in ordinary memory, as a vCPU's. */
int dirty_ring_add(struct dirty_tracker *t, struct kvm_dirty_gfn *ring);

#endif
