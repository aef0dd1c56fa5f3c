/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which MSRs of a vCPU are saved, and how they are put back. For cpu_state.c.
 *
 * The list is KVM's own (KVM_GET_MSR_INDEX_LIST) with what that lacks (MTRRs,
 * machine check banks), and without what is not the guest's: the TSC and its
 * deadline, which are saved apart, and the capabilities of virtualization that
 * guests here do not have.
 *
 * Threads: as cpu_state.h.
 */
#ifndef QUIRE_X86_MSR_STATE_H
#define QUIRE_X86_MSR_STATE_H

#include "kvm/vcpu.h"
#include "state/state.h"

/* An entry: index (4 bytes) and value (8 bytes), little-endian. */
#define MSR_STATE_BYTES 12u
#define MSR_STATE_MAX	1024u /* entries */

#define MSR_STATE_TSC	       0x10u
#define MSR_STATE_TSC_DEADLINE 0x6e0u

/* -ENOENT: KVM does not know it, or this vCPU has it not. */
__must_check int msr_state_read(const struct kvm_vcpu *vcpu, uint32_t index,
				uint64_t *ret);
__must_check int msr_state_write(const struct kvm_vcpu *vcpu, uint32_t index,
				 uint64_t value);

/* All that can be read; blob is empty before, and the caller's after. */
__must_check int msr_state_get(const struct kvm_vcpu *vcpu,
			       struct state_blob *blob);

/*
 * blob is whole entries, and hostile. Those that differ from what is there are
 * written, and only such as msr_state_get() could have said of this vCPU.
 */
__must_check int msr_state_set(const struct kvm_vcpu *vcpu,
			       const struct state_blob *blob, struct err *err);

#endif
