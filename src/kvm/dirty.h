/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM's two logs of what a guest wrote: thin checked wrappers. What they have
 * to be used for, and in which order, is mem/dirty.h's business.
 *
 * Source: Documentation/virt/kvm/api.rst, KVM_GET_DIRTY_LOG,
 * KVM_CLEAR_DIRTY_LOG, KVM_CAP_DIRTY_LOG_RING.
 */
#ifndef QUIRE_KVM_DIRTY_H
#define QUIRE_KVM_DIRTY_H

#include "kvm/vcpu.h"

/* What this KVM offers. */
struct kvm_dirty_offer {
	bool bitmap;	    /* with a CLEAR of its own (PROTECT2) */
	bool initially_set; /* the bitmap can start with all ones */
	uint32_t ring_cap;  /* KVM_CAP_DIRTY_LOG_RING*; 0: no rings */
	uint32_t ring_max_entries;
};

void kvm_dirty_probe(const struct kvm_vm *vm, struct kvm_dirty_offer *ret);

/*
 * Copy slot's log: one bit for each of its pages, in whole words. Nothing is
 * cleared (PROTECT2 is on).
 */
__must_check int kvm_dirty_get_log(const struct kvm_vm *vm, unsigned int slot,
				   uint64_t *bitmap);

/*
 * Clear the bits of [first, first + num) that are set in bitmap, whose first
 * bit is page first, and log the next write to each of those pages. first is a
 * multiple of 64, num as well unless the range reaches the slot's end.
 */
__must_check int kvm_dirty_clear_log(const struct kvm_vm *vm, unsigned int slot,
				     uint64_t first, uint32_t num,
				     const uint64_t *bitmap);

/*
 * Log the next write to each page whose ring entry is marked as harvested, in
 * all rings. Returns how many entries that were; fewer than were marked when a
 * signal came.
 */
__must_check int kvm_dirty_reset_rings(const struct kvm_vm *vm);

/* Map the vCPU's ring, whose size the VM was given. */
__must_check int kvm_dirty_map_ring(const struct kvm_vcpu *vcpu,
				    uint32_t entries,
				    struct kvm_dirty_gfn **ret,
				    struct err *err);
void kvm_dirty_unmap_ring(struct kvm_dirty_gfn *ring, uint32_t entries);

#endif
