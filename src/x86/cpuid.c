/* SPDX-License-Identifier: Apache-2.0 */
#include "x86/cpuid.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"

/* Entries that cpuid_set_* may add to a table. */
#define CPUID_SPARE_ENTRIES 16

int cpuid_table_init(struct cpuid_table *table,
		     const struct kvm_cpuid_entry2 *entries, unsigned int num)
{
	unsigned int capacity = num + CPUID_SPARE_ENTRIES;
	struct kvm_cpuid2 *cpuid;

	cpuid = calloc(1, sizeof(*cpuid) + capacity * sizeof(*entries));
	if (!cpuid)
		return -ENOMEM;
	cpuid->nent = num;
	memcpy(cpuid->entries, entries, num * sizeof(*entries));
	table->cpuid = cpuid;
	table->capacity = capacity;
	return 0;
}

void cpuid_table_fini(struct cpuid_table *table)
{
	free(table->cpuid);
	table->cpuid = NULL;
}

struct kvm_cpuid_entry2 *cpuid_find(const struct cpuid_table *table,
				    uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < table->cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *e = &table->cpuid->entries[i];

		if (e->function == function &&
		    (e->index == index ||
		     !(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX)))
			return e;
	}
	return NULL;
}

static uint32_t *entry_reg(struct kvm_cpuid_entry2 *e, enum cpuid_reg reg)
{
	switch (reg) {
	case CPUID_EAX:
		return &e->eax;
	case CPUID_EBX:
		return &e->ebx;
	case CPUID_ECX:
		return &e->ecx;
	case CPUID_EDX:
		break;
	}
	return &e->edx;
}

uint32_t cpuid_get(const struct cpuid_table *table, uint32_t function,
		   uint32_t index, enum cpuid_reg reg)
{
	struct kvm_cpuid_entry2 *e = cpuid_find(table, function, index);

	return e ? *entry_reg(e, reg) : 0;
}

static void remove_leaf(struct cpuid_table *table, uint32_t function)
{
	struct kvm_cpuid2 *cpuid = table->cpuid;
	uint32_t kept = 0;

	for (uint32_t i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function != function)
			cpuid->entries[kept++] = cpuid->entries[i];
	cpuid->nent = kept;
}

static struct kvm_cpuid_entry2 *add_entry(struct cpuid_table *table,
					  uint32_t function, uint32_t index,
					  uint32_t flags)
{
	struct kvm_cpuid2 *cpuid = table->cpuid;
	struct kvm_cpuid_entry2 *e;

	/* The spare entries cover every caller below, called once each. */
	BUG_ON(cpuid->nent >= table->capacity);
	e = &cpuid->entries[cpuid->nent++];
	*e = (struct kvm_cpuid_entry2){
		.function = function,
		.index = index,
		.flags = flags,
	};
	return e;
}

static struct kvm_cpuid_entry2 *find_or_add(struct cpuid_table *table,
					    uint32_t function)
{
	struct kvm_cpuid_entry2 *e = cpuid_find(table, function, 0);

	return e ? e : add_entry(table, function, 0, 0);
}

/* Raise the highest leaf of function's range, so that guests look at it. */
static void raise_max_leaf(struct cpuid_table *table, uint32_t function)
{
	struct kvm_cpuid_entry2 *e = find_or_add(table, function & 0xffff0000);

	e->eax = MAX(e->eax, function);
}

static bool is_amd(const struct cpuid_table *table)
{
	static const char names[][13] = { "AuthenticAMD", "HygonGenuine" };
	char vendor[12];

	le32_store(vendor, cpuid_get(table, CPUID_MAX_LEAF, 0, CPUID_EBX));
	le32_store(vendor + 4, cpuid_get(table, CPUID_MAX_LEAF, 0, CPUID_EDX));
	le32_store(vendor + 8, cpuid_get(table, CPUID_MAX_LEAF, 0, CPUID_ECX));
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (!memcmp(vendor, names[i], sizeof(vendor)))
			return true;
	return false;
}

/* ---- what guests do not get ---- */

#define XFEATURE_AMX ((1u << 17) | (1u << 18)) /* tile config, tile data */

/*
 * AMX: the kernel wants a permission call per process and 8 KiB more state in
 * each vCPU. Nested virtualisation: its state would have to move in snapshots
 * and migrations, which they do not support. SGX, SEV: need memory and keys
 * of their own. LA57: the fifth level is paid for in each nested page walk and
 * buys nothing below 128 TiB. Invariant TSC: promises the guest a frequency
 * that the next host may not have; kvmclock is as fast and follows a move.
 */
static const struct {
	uint32_t function, index;
	enum cpuid_reg reg;
	uint32_t mask;
} dropped_bits[] = {
	{ CPUID_FEATURES, 0, CPUID_ECX, 1u << 5 /* VMX */ },
	{ CPUID_EXT_FEATURES, 0, CPUID_EBX, 1u << 2 /* SGX */ },
	{ CPUID_EXT_FEATURES, 0, CPUID_ECX,
	  1u << 30 /* SGX launch control */ | 1u << 16 /* LA57 */ },
	{ CPUID_EXT_FEATURES, 0, CPUID_EDX,
	  1u << 22 | 1u << 24 | 1u << 25 /* AMX BF16, TILE, INT8 */ },
	{ CPUID_EXT_FEATURES, 1, CPUID_EAX, 1u << 21 /* AMX FP16 */ },
	{ CPUID_EXT_FEATURES, 1, CPUID_EDX, 1u << 8 /* AMX COMPLEX */ },
	{ CPUID_XSTATE, 0, CPUID_EAX, XFEATURE_AMX },
	{ CPUID_XSTATE, 1, CPUID_EAX, 1u << 4 /* XFD, for AMX only */ },
	{ CPUID_AMD_FEATURES, 0, CPUID_ECX,
	  1u << 2 | 1u << 12 /* SVM, SKINIT */ },
	{ 0x80000007, 0, CPUID_EDX, 1u << 8 /* invariant TSC */ },
};

static const uint32_t dropped_leaves[] = {
	0x12 /* SGX */,	      0x1d /* AMX tiles */,	    0x1e /* AMX TMUL */,
	0x8000000a /* SVM */, 0x8000001f /* SME and SEV */, 0x80000026,
};

/* Size of the XSAVE area with all features of XCR0 that are left. */
static void fix_xsave_size(struct cpuid_table *table)
{
	struct kvm_cpuid_entry2 *head = cpuid_find(table, CPUID_XSTATE, 0);
	uint32_t bytes = 576; /* legacy area and header */

	if (!head)
		return;
	for (uint32_t i = 2; i < 32; i++) {
		const struct kvm_cpuid_entry2 *e;

		if (!(head->eax & (1u << i)))
			continue;
		e = cpuid_find(table, CPUID_XSTATE, i);
		if (e)
			bytes = MAX(bytes, e->eax + e->ebx);
	}
	/* EBX is the size for the current XCR0: KVM keeps it up to date. */
	head->ecx = MIN(head->ecx, bytes);
	head->ebx = MIN(head->ebx, bytes);
}

void cpuid_drop_features(struct cpuid_table *table)
{
	struct kvm_cpuid_entry2 *e;
	bool had_amx = cpuid_get(table, CPUID_XSTATE, 0, CPUID_EAX) &
		       XFEATURE_AMX;

	for (size_t i = 0; i < ARRAY_SIZE(dropped_bits); i++) {
		e = cpuid_find(table, dropped_bits[i].function,
			       dropped_bits[i].index);
		if (e)
			*entry_reg(e, dropped_bits[i].reg) &=
				~dropped_bits[i].mask;
	}
	/* KVM answers zeros for a leaf that is in range and not listed. */
	for (size_t i = 0; i < ARRAY_SIZE(dropped_leaves); i++)
		remove_leaf(table, dropped_leaves[i]);
	for (uint32_t i = 17; i <= 18; i++) {
		e = cpuid_find(table, CPUID_XSTATE, i);
		if (e)
			e->eax = e->ebx = e->ecx = e->edx = 0;
	}
	if (had_amx)
		fix_xsave_size(table);
}

void cpuid_drop_lapic(struct cpuid_table *table)
{
	struct kvm_cpuid_entry2 *e = cpuid_find(table, CPUID_FEATURES, 0);

	if (e) {
		e->edx &= ~CPUID_1_EDX_APIC;
		e->ecx &= ~(CPUID_1_ECX_X2APIC | CPUID_1_ECX_TSC_DEADLINE);
	}
	e = cpuid_find(table, CPUID_KVM_FEATURES, 0);
	if (e)
		e->eax &= ~(1u << KVM_FEATURE_PV_EOI |
			    1u << KVM_FEATURE_PV_UNHALT |
			    1u << KVM_FEATURE_PV_SEND_IPI |
			    1u << KVM_FEATURE_PV_SCHED_YIELD |
			    1u << KVM_FEATURE_ASYNC_PF_INT |
			    1u << KVM_FEATURE_MSI_EXT_DEST_ID);
}

/* ---- topology ---- */

/* Bits needed to count n things: 1 -> 0, 2 -> 1, 3 -> 2, 4 -> 2. */
static unsigned int order(unsigned int n)
{
	return n <= 1 ? 0 : 32 - (unsigned int)__builtin_clz(n - 1);
}

static uint32_t set_bits(uint32_t reg, unsigned int low, unsigned int width,
			 uint32_t value)
{
	uint32_t mask = (width == 32 ? ~0u : (1u << width) - 1) << low;

	return (reg & ~mask) | ((value << low) & mask);
}

/* Sub-leaves for threads, cores and the end, as leaf 0xb or its successor. */
static void set_topology_leaf(struct cpuid_table *table, uint32_t function,
			      const struct cpuid_topology *topo)
{
	const struct {
		uint32_t shift, cpus, type;
	} levels[] = {
		{ order(topo->threads_per_core), topo->threads_per_core, 1 },
		{ order(topo->num_cpus), topo->num_cpus, 2 },
		{ 0, 0, 0 },
	};

	remove_leaf(table, function);
	for (uint32_t i = 0; i < ARRAY_SIZE(levels); i++) {
		struct kvm_cpuid_entry2 *e = add_entry(
			table, function, i, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);

		e->eax = levels[i].shift;
		e->ebx = levels[i].cpus;
		e->ecx = i | levels[i].type << 8;
	}
}

/*
 * Cache sub-leaves of either vendor have the type in EAX[4:0], the level in
 * EAX[7:5] and who shares it in EAX[25:14]. The last level is the package's,
 * the others a core's: hosts share them alike, and schedulers look at this.
 */
static void set_caches(struct cpuid_table *table, uint32_t function,
		       const struct cpuid_topology *topo)
{
	struct kvm_cpuid2 *cpuid = table->cpuid;

	for (uint32_t i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid->entries[i];
		unsigned int level = (e->eax >> 5) & 7;
		unsigned int sharing;

		if (e->function != function || !(e->eax & 0x1f))
			continue;
		sharing = level >= 3 ? topo->num_cpus : topo->threads_per_core;
		/* Counted in APIC ids, hence a power of two. */
		sharing = MIN(1u << order(sharing), 1u << 12);
		e->eax = set_bits(e->eax, 14, 12, sharing - 1);
		if (function == CPUID_CACHE) {
			unsigned int cores = 1u
					     << (order(topo->num_cpus) -
						 order(topo->threads_per_core));

			e->eax = set_bits(e->eax, 26, 6, MIN(cores, 64u) - 1);
		}
	}
}

/* Legacy counts of 0x80000001 and 0x80000008, and 0x8000001d and e. */
static void set_amd_topology(struct cpuid_table *table,
			     const struct cpuid_topology *topo)
{
	struct kvm_cpuid_entry2 *e = cpuid_find(table, CPUID_AMD_FEATURES, 0);
	bool topoext;

	/*
	 * The bit only says that 0x8000001e is there, and that leaf is ours.
	 * Without it Linux sees no threads on AMD.
	 */
	if (e && topo->threads_per_core > 1)
		e->ecx |= CPUID_81_ECX_TOPOEXT;
	topoext = e && e->ecx & CPUID_81_ECX_TOPOEXT;

	/* Without it the count in leaf 1 would mean threads, not cores. */
	if (e && topo->num_cpus > 1)
		e->ecx |= CPUID_81_ECX_CMP_LEGACY;
	else if (e)
		e->ecx &= ~CPUID_81_ECX_CMP_LEGACY;

	e = cpuid_find(table, CPUID_ADDR_SIZES, 0);
	if (e) {
		e->ecx = set_bits(e->ecx, 0, 8, MIN(topo->num_cpus, 256u) - 1);
		e->ecx = set_bits(e->ecx, 12, 4, order(topo->num_cpus));
	}
	if (!topoext)
		return;
	raise_max_leaf(table, CPUID_AMD_TOPOLOGY);
	e = find_or_add(table, CPUID_AMD_TOPOLOGY);
	e->eax = e->ecx = e->edx = 0; /* APIC id; one node, number 0 */
	e->ebx = (topo->threads_per_core - 1) << 8;
}

void cpuid_set_topology(struct cpuid_table *table,
			const struct cpuid_topology *topo)
{
	struct kvm_cpuid_entry2 *e = find_or_add(table, CPUID_FEATURES);
	uint32_t had_max = cpuid_get(table, CPUID_MAX_LEAF, 0, CPUID_EAX);

	e->ebx = set_bits(e->ebx, 16, 8, MIN(topo->num_cpus, 255u));
	if (topo->num_cpus > 1)
		e->edx |= CPUID_1_EDX_HTT;
	else
		e->edx &= ~CPUID_1_EDX_HTT;

	/* With x2APIC, ids above 255 are found only there. */
	raise_max_leaf(table, CPUID_TOPOLOGY);
	set_topology_leaf(table, CPUID_TOPOLOGY, topo);
	if (had_max >= CPUID_TOPOLOGY_V2)
		set_topology_leaf(table, CPUID_TOPOLOGY_V2, topo);

	set_caches(table, CPUID_CACHE, topo);
	set_caches(table, CPUID_AMD_CACHE, topo);
	if (is_amd(table))
		set_amd_topology(table, topo);
	cpuid_set_apic_id(table, topo, 0);
}

void cpuid_set_apic_id(struct cpuid_table *table,
		       const struct cpuid_topology *topo, uint32_t apic_id)
{
	struct kvm_cpuid2 *cpuid = table->cpuid;

	for (uint32_t i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

		switch (e->function) {
		case CPUID_FEATURES:
			e->ebx = set_bits(e->ebx, 24, 8, apic_id);
			break;
		case CPUID_TOPOLOGY:
		case CPUID_TOPOLOGY_V2:
			e->edx = apic_id;
			break;
		case CPUID_AMD_TOPOLOGY:
			e->eax = apic_id;
			e->ebx = set_bits(e->ebx, 0, 8,
					  apic_id / topo->threads_per_core);
			break;
		default:
			break;
		}
	}
}

/* ---- KVM leaves ---- */

void cpuid_set_kvm(struct cpuid_table *table, uint32_t features, uint32_t hints)
{
	struct kvm_cpuid_entry2 *e = find_or_add(table, CPUID_FEATURES);

	e->ecx |= CPUID_1_ECX_HYPERVISOR;

	e = find_or_add(table, CPUID_KVM_SIGN);
	e->eax = CPUID_KVM_FEATURES;
	e->ebx = le32_load("KVMK");
	e->ecx = le32_load("VMKV");
	e->edx = le32_load("M\0\0");

	e = find_or_add(table, CPUID_KVM_FEATURES);
	e->eax = features;
	e->ebx = e->ecx = 0;
	e->edx = hints;
}

/* ---- address sizes ---- */

unsigned int cpuid_phys_bits(const struct cpuid_table *table)
{
	uint32_t eax = cpuid_get(table, CPUID_ADDR_SIZES, 0, CPUID_EAX);
	unsigned int bits = eax & 0xff;
	unsigned int mappable = (eax >> 16) & 0xff;

	if (!bits)
		return 36; /* what a CPU without the leaf has (SDM 3A 4.1.4) */
	/*
	 * KVM says in EAX[23:16] how much of it the second stage can map, from
	 * Linux 6.10 on.
	 */
	return mappable ? MIN(bits, mappable) : bits;
}

void cpuid_set_phys_bits(struct cpuid_table *table, unsigned int bits)
{
	struct kvm_cpuid_entry2 *e;
	unsigned int linear;

	raise_max_leaf(table, CPUID_ADDR_SIZES);
	e = find_or_add(table, CPUID_ADDR_SIZES);
	linear = (e->eax >> 8) & 0xff;
	e->eax = set_bits(e->eax, 0, 8, bits);
	/* LA57 is dropped, and a guest sees no second stage of its own. */
	e->eax = set_bits(e->eax, 8, 8, linear ? MIN(linear, 48u) : 48);
	e->eax = set_bits(e->eax, 16, 8, 0);
}
