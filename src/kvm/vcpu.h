/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One virtual CPU: its descriptor, the shared kvm_run page and registers.
 *
 * Threads: all calls come from the thread that runs the vCPU (KVM serialises on
 * the vcpu mutex anyway), except kvm_vcpu_request_exit() and kvm_vcpu_kick(),
 * which are for others.
 */
#ifndef QUIRE_KVM_VCPU_H
#define QUIRE_KVM_VCPU_H

#include <pthread.h>

#include "kvm/kvm.h"

struct kvm_vcpu {
	int fd;
	unsigned int id;   /* = initial APIC id */
	int kvm_fd, vm_fd; /* what it belongs to; borrowed */
	struct kvm_run *run;
	size_t run_bytes;
};

__must_check int kvm_vcpu_create(struct kvm_vcpu *vcpu, const struct kvm_vm *vm,
				 unsigned int id, struct err *err);
void kvm_vcpu_close(struct kvm_vcpu *vcpu);

/* KVM_RUN: 0 after an exit, -EINTR when kicked, else another -errno. */
__must_check int kvm_vcpu_run(struct kvm_vcpu *vcpu);

/*
 * Make the next KVM_RUN return -EINTR (kvm_run.immediate_exit), until cleared.
 * This alone gets nobody out of the guest: kvm_vcpu_kick() does.
 */
void kvm_vcpu_request_exit(struct kvm_vcpu *vcpu);
void kvm_vcpu_clear_exit_request(struct kvm_vcpu *vcpu);

/*
 * Kicks use a real-time signal with an empty handler. setup installs it, for
 * the process, as often as one likes; accept lets it through on the calling
 * thread, which is to run a vCPU.
 */
__must_check int kvm_vcpu_setup_kick(void);
void kvm_vcpu_accept_kicks(void);

/*
 * kvm_vcpu_request_exit(), and a signal to the thread that runs the vCPU: its
 * current or next KVM_RUN returns -EINTR. thread is not joined yet.
 */
void kvm_vcpu_kick(struct kvm_vcpu *vcpu, pthread_t thread);

__must_check int kvm_vcpu_get_regs(const struct kvm_vcpu *, struct kvm_regs *);
__must_check int kvm_vcpu_set_regs(const struct kvm_vcpu *,
				   const struct kvm_regs *);
__must_check int kvm_vcpu_get_sregs(const struct kvm_vcpu *,
				    struct kvm_sregs *);
__must_check int kvm_vcpu_set_sregs(const struct kvm_vcpu *,
				    const struct kvm_sregs *);
__must_check int kvm_vcpu_set_fpu(const struct kvm_vcpu *,
				  const struct kvm_fpu *);
__must_check int kvm_vcpu_get_lapic(const struct kvm_vcpu *,
				    struct kvm_lapic_state *);
__must_check int kvm_vcpu_set_lapic(const struct kvm_vcpu *,
				    const struct kvm_lapic_state *);
__must_check int kvm_vcpu_get_mp_state(const struct kvm_vcpu *,
				       uint32_t *ret_state);
__must_check int kvm_vcpu_set_mp_state(const struct kvm_vcpu *, uint32_t state);
__must_check int kvm_vcpu_set_cpuid(const struct kvm_vcpu *,
				    const struct kvm_cpuid2 *);
/*
 * Set num MSRs. Returns how many the kernel took (it stops at the first it
 * refuses) or a negative errno.
 */
__must_check int kvm_vcpu_set_msrs(const struct kvm_vcpu *,
				   const struct kvm_msr_entry *entries,
				   unsigned int num);

/*
 * The host stopped this vCPU for a while: a guest that asks kvmclock then takes
 * no time that it missed for a lockup of its own (api.rst 4.70). -EINVAL: the
 * guest does not use kvmclock.
 */
__must_check int kvm_vcpu_tell_paused(const struct kvm_vcpu *vcpu);

/*
 * What KVM adds to the host's TSC for the guest (devices/vcpu.rst, section 4).
 * An error: this kernel (before 5.16) does not tell.
 */
__must_check int kvm_vcpu_get_tsc_offset(const struct kvm_vcpu *vcpu,
					 uint64_t *ret_offset);
__must_check int kvm_vcpu_set_tsc_offset(const struct kvm_vcpu *vcpu,
					 uint64_t offset);

/*
 * Map [gpa, gpa + bytes) of one memslot in the second stage
 * (KVM_PRE_FAULT_MEMORY, api.rst 4.143), all of it. From any one thread at a
 * time that finds the vCPU out of KVM_RUN, or waits until it is. -EOPNOTSUPP:
 * shadow paging; -ENOTTY or -EINVAL: the kernel does not know the call.
 */
__must_check int kvm_vcpu_prefault(const struct kvm_vcpu *vcpu, uint64_t gpa,
				   uint64_t bytes);

#endif
