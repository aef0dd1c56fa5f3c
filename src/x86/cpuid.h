/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Editing a CPUID table: find, add and remove leaves, and the changes that turn
 * what KVM supports into what a guest of this machine sees. Used by cpu.c only;
 * apart so that tables of any vendor can be tested without that vendor's CPU.
 *
 * A table belongs to its caller; nothing here allocates after cpuid_table_init
 * or does I/O. Source: Intel SDM 2A "CPUID", AMD APM 3 appendix E,
 * Documentation/virt/kvm/x86/cpuid.rst.
 */
#ifndef QUIRE_X86_CPUID_H
#define QUIRE_X86_CPUID_H

#include <asm/kvm_para.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "kvm/uapi.h"

enum cpuid_reg {
	CPUID_EAX,
	CPUID_EBX,
	CPUID_ECX,
	CPUID_EDX,
};

#define CPUID_MAX_LEAF	   0x0u
#define CPUID_FEATURES	   0x1u
#define CPUID_CACHE	   0x4u
#define CPUID_EXT_FEATURES 0x7u
#define CPUID_TOPOLOGY	   0xbu
#define CPUID_XSTATE	   0xdu
#define CPUID_TOPOLOGY_V2  0x1fu
#define CPUID_KVM_SIGN	   KVM_CPUID_SIGNATURE
#define CPUID_KVM_FEATURES KVM_CPUID_FEATURES
#define CPUID_EXT_MAX_LEAF 0x80000000u
#define CPUID_AMD_FEATURES 0x80000001u
#define CPUID_ADDR_SIZES   0x80000008u
#define CPUID_AMD_CACHE	   0x8000001du
#define CPUID_AMD_TOPOLOGY 0x8000001eu

#define CPUID_1_ECX_X2APIC	 (1u << 21)
#define CPUID_1_ECX_TSC_DEADLINE (1u << 24)
#define CPUID_1_ECX_XSAVE	 (1u << 26)
#define CPUID_1_ECX_HYPERVISOR	 (1u << 31)
#define CPUID_1_EDX_APIC	 (1u << 9)
#define CPUID_1_EDX_HTT		 (1u << 28)
#define CPUID_81_ECX_CMP_LEGACY	 (1u << 1)
#define CPUID_81_ECX_TOPOEXT	 (1u << 22)

struct cpuid_table {
	struct kvm_cpuid2 *cpuid; /* NULL: not initialised */
	unsigned int capacity;
};

struct cpuid_topology {
	unsigned int num_cpus; /* one package, APIC ids 0..num_cpus - 1 */
	unsigned int threads_per_core;
};

/* Copy num entries, with room for those that the functions below add. */
__must_check int cpuid_table_init(struct cpuid_table *table,
				  const struct kvm_cpuid_entry2 *entries,
				  unsigned int num);
void cpuid_table_fini(struct cpuid_table *table);

/* The entry, or NULL. index counts only where the leaf has sub-leaves. */
struct kvm_cpuid_entry2 *cpuid_find(const struct cpuid_table *table,
				    uint32_t function, uint32_t index);
/* One register of an entry; 0 when there is none. */
uint32_t cpuid_get(const struct cpuid_table *table, uint32_t function,
		   uint32_t index, enum cpuid_reg reg);

/* Clear what this machine does not give its guests; the list says why. */
void cpuid_drop_features(struct cpuid_table *table);
/* Clear what needs a local APIC, for machines without one. */
void cpuid_drop_lapic(struct cpuid_table *table);

/*
 * Packages, cores, threads and shared caches, in the encodings of both vendors,
 * as they are for CPU 0.
 */
void cpuid_set_topology(struct cpuid_table *table,
			const struct cpuid_topology *topo);
/* What differs between CPUs: APIC and core ids. */
void cpuid_set_apic_id(struct cpuid_table *table,
		       const struct cpuid_topology *topo, uint32_t apic_id);

/* Hypervisor bit and the KVM leaves with these feature and hint bits. */
void cpuid_set_kvm(struct cpuid_table *table, uint32_t features,
		   uint32_t hints);

/* Physical address bits that the table announces (36 if it is silent). */
unsigned int cpuid_phys_bits(const struct cpuid_table *table);
void cpuid_set_phys_bits(struct cpuid_table *table, unsigned int bits);

#endif
