/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest CPU is: CPUID, MSRs, first register state.
 *
 * CPUID starts from KVM_GET_SUPPORTED_CPUID and gets this machine's topology
 * (one package; cores, optionally threads), the APIC id of each vCPU, and the
 * KVM paravirtual leaf (Documentation/virt/kvm/x86/cpuid.rst).
 */
#ifndef QUIRE_X86_CPU_H
#define QUIRE_X86_CPU_H

#include <stdbool.h>

#include "kvm/vcpu.h"

/* KVM's own limit at most (KVM_MAX_VCPUS); the ACPI tables have room for it. */
#define CPU_MAX_VCPUS 4096u

struct cpu_config {
	unsigned int num_cpus;
	unsigned int threads_per_core; /* 1 or 2; divides num_cpus */
	/*
	 * More vCPUs than host CPUs they may run on: KVM_HINTS_REALTIME is
	 * never set then, so the guest halts in PV locks instead of spinning.
	 */
	bool overcommitted;
	/* A host CPU each: set KVM_HINTS_REALTIME (and no PV unhalt). */
	bool dedicated;
	/* 0: as the host supports; else leaf 0x80000008's physical bits. */
	unsigned int phys_bits;
	/*
	 * MSI addresses with 15 bits of APIC id reach KVM (the router turns
	 * them into KVM_X2APIC_API_USE_32BIT_IDS form). Without it Linux leaves
	 * CPUs with APIC ids above 254 off.
	 */
	bool msi_ext_dest_id;
};

struct cpu_model; /* the CPUID table of CPU 0, before per-CPU fields */

/* Build the model once per VM. Frees with cpu_model_free. */
__must_check int cpu_model_new(struct cpu_model **ret, const struct kvm *kvm,
			       const struct cpu_config *cfg, struct err *err);
void cpu_model_free(struct cpu_model *model);

/* Guest physical address bits this model announces. */
unsigned int cpu_model_phys_bits(const struct cpu_model *model);

/*
 * Load CPUID, default MSRs and LAPIC (when there is one) into a new vCPU. Its
 * id is below num_cpus.
 */
__must_check int cpu_model_apply(const struct cpu_model *model,
				 struct kvm_vcpu *vcpu, bool has_lapic,
				 struct err *err);

/*
 * For a vCPU that never enters the guest (stage2/helpers.h), whose id is
 * num_cpus or above: the CPUID all have, and nothing else.
 */
__must_check int cpu_model_apply_idle(const struct cpu_model *model,
				      struct kvm_vcpu *vcpu, struct err *err);

/*
 * Bring a vCPU that has run back to its state after power-on: MSRs (kvmclock
 * and the other areas that KVM writes in guest memory are off then), LAPIC,
 * pending events, debug registers, XCR0. General registers of the boot CPU come
 * from x86/start.h; the others start by INIT and SIPI. cpu_model_apply() has
 * done the same.
 */
__must_check int cpu_reset(struct kvm_vcpu *vcpu, bool has_lapic,
			   struct err *err);

/* One line for each KVM paravirtual feature the host offers, for doctor. */
struct cpu_pv_feature {
	unsigned int bit;
	const char *name; /* "steal-time" */
	const char *buys; /* what the guest gains */
};
extern const struct cpu_pv_feature cpu_pv_features[];
extern const unsigned int num_cpu_pv_features;
/* EAX of leaf 0x40000001 as supported by the host. */
__must_check int cpu_pv_supported(const struct kvm *kvm, uint32_t *ret_eax);

#endif
