/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vCPU's state as section "vcpu" of a saved state (state/state.h).
 *
 * Threads: the vCPU is out of KVM_RUN and its last exit is completed; control
 * thread.
 *
 * Time. The TSC is saved as it was at one instant that the caller names, the
 * same for all vCPUs, and is loaded relative to another such instant: so it
 * goes on from there, and stays in step between vCPUs.
 *
 * Source: Documentation/virt/kvm/api.rst, KVM_GET_* of a vCPU.
 */
#ifndef QUIRE_X86_CPU_STATE_H
#define QUIRE_X86_CPU_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "kvm/vcpu.h"
#include "state/state.h"

/*
 * Append the section; its instance is the vCPU's id. host_tsc: the host's TSC
 * at the instant. The vCPU is not changed by it.
 */
__must_check int cpu_state_save(const struct kvm_vcpu *vcpu, uint64_t host_tsc,
				struct state_writer *w, struct err *err);

/*
 * Load it into a vCPU that has not run, whose CPUID was made for this host and
 * this machine's configuration (x86/cpu.h): the saved CPU may have no feature
 * beyond those, and is put in its place. host_tsc: the host's TSC at the
 * instant from which the guest's goes on. What the host refuses is an error
 * that names it; the vCPU cannot be used then.
 */
__must_check int cpu_state_load(const struct kvm_vcpu *vcpu, uint64_t host_tsc,
				struct state_reader *r, struct err *err);

/*
 * Are all features of the saved table offered by ours? -EINVAL names the first
 * that is not. For cpu_state_load(), and for tests.
 */
struct kvm_cpuid2;
__must_check int cpu_state_check_cpuid(const struct kvm_cpuid2 *saved,
				       const struct kvm_cpuid2 *ours,
				       struct err *err);

#endif
