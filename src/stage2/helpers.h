/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Helper vCPUs: descriptors to fill the second stage through while the guest
 * runs, since KVM lets nobody in through a vCPU that is in KVM_RUN.
 *
 * They are never run. No firmware table names them, so a guest does not know of
 * them; their local APIC is disabled, as after power-on, and takes no
 * interrupts. They have the CPUID of the others, so that KVM keeps one second
 * stage for all (its root is chosen by CPUID among others).
 *
 * Each costs the kernel some 30 KiB, and counts against the VM's vCPU limit.
 */
#ifndef QUIRE_STAGE2_HELPERS_H
#define QUIRE_STAGE2_HELPERS_H

#include "kvm/vcpu.h"

struct cpu_model;

#define STAGE2_MAX_HELPERS 16

struct stage2_helpers {
	unsigned int num;
	struct kvm_vcpu vcpus[STAGE2_MAX_HELPERS];
	struct kvm_vcpu *list[STAGE2_MAX_HELPERS]; /* to each, for stage2_env */
};

/*
 * Up to num of them, with ids from first_id on: as many as KVM allows, which
 * may be none.
 */
void stage2_helpers_init(struct stage2_helpers *h, const struct kvm_vm *vm,
			 const struct cpu_model *model, unsigned int first_id,
			 unsigned int num);
/* Nobody fills through them any more. Fine on a zeroed struct. */
void stage2_helpers_fini(struct stage2_helpers *h);

#endif
