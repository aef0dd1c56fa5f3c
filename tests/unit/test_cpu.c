/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86/cpuid.c on made-up Intel and AMD tables; x86/cpu.c and cpu_reset.c on the
 * host's KVM, where there is one.
 */
#include "kvm_guest.h"

#include <errno.h>
#include <stdlib.h>

#include "x86/cpu.h"
#include "x86/cpuid.h"
#include "x86/start.h"

#define SUB KVM_CPUID_FLAG_SIGNIFCANT_INDEX

#define ENTRY(leaf, sub, flag, a, b, c, d)                               \
	{                                                                \
		.function = leaf, .index = sub, .flags = flag, .eax = a, \
		.ebx = b, .ecx = c, .edx = d,                            \
	}

/* A server with more threads, AMX, VMX, SGX and 5-level paging. */
static const struct kvm_cpuid_entry2 intel[] = {
	ENTRY(0, 0, 0, 0x20, 0x756e6547, 0x6c65746e, 0x49656e69),
	ENTRY(1, 0, 0, 0x000806f8, 0x2a800800, 0x7ffefbff, 0xbfebfbff),
	ENTRY(4, 0, SUB, 0xfc004121, 0x02c0003f, 0x0000003f, 0),
	ENTRY(4, 1, SUB, 0xfc004122, 0x01c0003f, 0x0000003f, 0),
	ENTRY(4, 2, SUB, 0xfc01c143, 0x03c0003f, 0x000007ff, 0),
	ENTRY(4, 3, SUB, 0xfc1fc163, 0x0380003f, 0x0001bfff, 4),
	ENTRY(4, 4, SUB, 0, 0, 0, 0),
	ENTRY(7, 0, SUB, 2, 0xf3bfb7ef, 0xfb417ffe, 0xffdd4432),
	ENTRY(7, 1, SUB, 0x00201c30, 0, 0, 0x00004100),
	ENTRY(0xb, 0, SUB, 1, 2, 0x100, 0x2a),
	ENTRY(0xb, 1, SUB, 7, 0x70, 0x201, 0x2a),
	ENTRY(0xb, 2, SUB, 0, 0, 2, 0x2a),
	ENTRY(0xd, 0, SUB, 0x000602e7, 0x2b00, 0x2b00, 0),
	ENTRY(0xd, 1, SUB, 0x1f, 0x2b00, 0x1800, 0),
	ENTRY(0xd, 2, SUB, 0x100, 0x240, 0, 0),
	ENTRY(0xd, 5, SUB, 0x40, 0x440, 0, 0),
	ENTRY(0xd, 6, SUB, 0x200, 0x480, 0, 0),
	ENTRY(0xd, 7, SUB, 0x400, 0x680, 0, 0),
	ENTRY(0xd, 9, SUB, 8, 0xa80, 0, 0),
	ENTRY(0xd, 17, SUB, 0x40, 0xac0, 2, 0),
	ENTRY(0xd, 18, SUB, 0x2000, 0xb00, 6, 0),
	ENTRY(0x12, 0, SUB, 3, 1, 0, 0x241f),
	ENTRY(0x1d, 0, SUB, 1, 0, 0, 0),
	ENTRY(0x1e, 0, SUB, 0, 0x4010, 0, 0),
	ENTRY(0x1f, 0, SUB, 1, 2, 0x100, 0x2a),
	ENTRY(0x80000000, 0, 0, 0x80000008, 0, 0, 0),
	ENTRY(0x80000001, 0, 0, 0, 0, 0x121, 0x2c100800),
	ENTRY(0x80000007, 0, 0, 0, 0, 0, 0x100),
	ENTRY(0x80000008, 0, 0, 0x00303934, 0x200, 0, 0),
	ENTRY(0x40000000, 0, 0, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d),
	ENTRY(0x40000001, 0, 0, 0x01007efb, 0, 0, 0),
};

static const struct kvm_cpuid_entry2 amd[] = {
	ENTRY(0, 0, 0, 0x10, 0x68747541, 0x444d4163, 0x69746e65),
	ENTRY(1, 0, 0, 0x00a10f11, 0x15800800, 0x7ed8320b, 0x178bfbff),
	ENTRY(4, 0, SUB, 0, 0, 0, 0),
	ENTRY(7, 0, SUB, 1, 0xf1bf97a9, 0x405fce, 0x10000010),
	ENTRY(0xd, 0, SUB, 0x2e7, 0x988, 0x988, 0),
	ENTRY(0x80000000, 0, 0, 0x80000021, 0x68747541, 0x444d4163, 0x69746e65),
	ENTRY(0x80000001, 0, 0, 0x00a10f11, 0x40000000, 0x75c237ff, 0x2fd3fbff),
	ENTRY(0x80000008, 0, 0, 0x00003030, 0x791ef257, 0x0000705f, 0x10007),
	ENTRY(0x8000000a, 0, 0, 1, 0x8000, 0, 0x1ebfbcff),
	ENTRY(0x8000001d, 0, SUB, 0x4121, 0x01c0003f, 0x3f, 0),
	ENTRY(0x8000001d, 1, SUB, 0x4122, 0x01c0003f, 0x3f, 0),
	ENTRY(0x8000001d, 2, SUB, 0x4143, 0x01c0003f, 0x7ff, 2),
	ENTRY(0x8000001d, 3, SUB, 0x3c163, 0x03c0003f, 0x7fff, 1),
	ENTRY(0x8000001d, 4, SUB, 0, 0, 0, 0),
	ENTRY(0x8000001e, 0, 0, 0x15, 0x10a, 0x305, 0),
	ENTRY(0x8000001f, 0, 0, 0x0101fd3f, 0x4173, 0x1fd, 1),
};

static struct cpuid_table make(const struct kvm_cpuid_entry2 *entries,
			       unsigned int num, unsigned int cpus,
			       unsigned int threads)
{
	const struct cpuid_topology topo = { cpus, threads };
	struct cpuid_table t = { .cpuid = NULL };

	assert_int_equal(cpuid_table_init(&t, entries, num), 0);
	cpuid_drop_features(&t);
	cpuid_set_kvm(&t, 1u << KVM_FEATURE_STEAL_TIME, 0);
	cpuid_set_topology(&t, &topo);
	return t;
}
#define MAKE(table, cpus, threads) make(table, ARRAY_SIZE(table), cpus, threads)

static uint32_t bits(uint32_t v, unsigned int high, unsigned int low)
{
	return (uint32_t)(v >> low & ((1ull << (high - low + 1)) - 1));
}

#define EAX(leaf, index) cpuid_get(&t, leaf, index, CPUID_EAX)
#define EBX(leaf, index) cpuid_get(&t, leaf, index, CPUID_EBX)
#define ECX(leaf, index) cpuid_get(&t, leaf, index, CPUID_ECX)
#define EDX(leaf, index) cpuid_get(&t, leaf, index, CPUID_EDX)

static void check_leaf_b(const struct cpuid_table *table, uint32_t leaf,
			 uint32_t threads, uint32_t core_bits, uint32_t cpus)
{
	struct cpuid_table t = *table;

	assert_int_equal(EAX(leaf, 0), threads - 1);
	assert_int_equal(EBX(leaf, 0), threads);
	assert_int_equal(ECX(leaf, 0), 0x100);
	assert_int_equal(EAX(leaf, 1), core_bits);
	assert_int_equal(EBX(leaf, 1), cpus);
	assert_int_equal(ECX(leaf, 1), 0x201);
	assert_int_equal(EBX(leaf, 2), 0);
	assert_int_equal(bits(ECX(leaf, 2), 15, 8), 0);
}

static void test_intel_topology(void **state)
{
	const struct cpuid_topology topo = { 6, 2 };
	struct cpuid_table t = MAKE(intel, 6, 2);

	check_leaf_b(&t, 0xb, 2, 3, 6);
	check_leaf_b(&t, 0x1f, 2, 3, 6);
	assert_int_equal(bits(EBX(1, 0), 23, 16), 6);
	assert_int_equal(bits(EBX(1, 0), 15, 8), 8); /* CLFLUSH kept */
	assert_true(EDX(1, 0) & 1u << 28);
	/* 8 ids: 4 cores of 2. L1, L2 of the core, L3 of all. */
	for (uint32_t i = 0; i < 4; i++) {
		assert_int_equal(bits(EAX(4, i), 31, 26), 3);
		assert_int_equal(bits(EAX(4, i), 25, 14), i == 3 ? 7 : 1);
		assert_int_equal(bits(EAX(4, i), 13, 0),
				 bits(intel[2 + i].eax, 13, 0));
		assert_int_equal(EBX(4, i), intel[2 + i].ebx);
	}
	assert_int_equal(EAX(4, 4), 0);
	/* Intel reserves what AMD counts cores in. */
	assert_int_equal(ECX(0x80000008, 0), 0);
	assert_null(cpuid_find(&t, 0x8000001e, 0));

	for (uint32_t id = 0; id < 6; id++) {
		cpuid_set_apic_id(&t, &topo, id);
		assert_int_equal(bits(EBX(1, 0), 31, 24), id);
		for (uint32_t i = 0; i < 3; i++) {
			assert_int_equal(EDX(0xb, i), id);
			assert_int_equal(EDX(0x1f, i), id);
		}
	}
	cpuid_table_fini(&t);
}

static void test_amd_topology(void **state)
{
	const struct cpuid_topology topo = { 8, 2 };
	struct cpuid_table t = MAKE(amd, 8, 2);

	check_leaf_b(&t, 0xb, 2, 3, 8);
	assert_null(cpuid_find(&t, 0x1f, 0));
	assert_true(ECX(0x80000001, 0) & 1u << 1); /* CmpLegacy */
	assert_int_equal(bits(ECX(0x80000008, 0), 7, 0), 7);
	assert_int_equal(bits(ECX(0x80000008, 0), 15, 12), 3);
	for (uint32_t i = 0; i < 4; i++)
		assert_int_equal(bits(EAX(0x8000001d, i), 25, 14),
				 i == 3 ? 7 : 1);
	assert_int_equal(EAX(4, 0), 0);
	cpuid_set_apic_id(&t, &topo, 5);
	assert_int_equal(EAX(0x8000001e, 0), 5);
	assert_int_equal(EBX(0x8000001e, 0), 0x102); /* 2 threads, core 2 */
	assert_int_equal(ECX(0x8000001e, 0), 0);
	cpuid_table_fini(&t);
}

static void test_one_cpu(void **state)
{
	struct cpuid_table t = MAKE(amd, 1, 1);

	check_leaf_b(&t, 0xb, 1, 0, 1);
	assert_false(EDX(1, 0) & 1u << 28);
	assert_false(ECX(0x80000001, 0) & 1u << 1);
	assert_int_equal(bits(ECX(0x80000008, 0), 15, 0), 0);
	assert_int_equal(bits(EAX(0x8000001d, 3), 25, 14), 0);
	cpuid_table_fini(&t);
}

static void test_many_cpus(void **state)
{
	const struct cpuid_topology topo = { 1024, 1 };
	struct cpuid_table t = MAKE(intel, 1024, 1);

	check_leaf_b(&t, 0xb, 1, 10, 1024);
	assert_int_equal(bits(EBX(1, 0), 23, 16), 255);
	assert_int_equal(bits(EAX(4, 3), 31, 26), 63);
	assert_int_equal(bits(EAX(4, 3), 25, 14), 1023);
	cpuid_set_apic_id(&t, &topo, 1023);
	assert_int_equal(bits(EBX(1, 0), 31, 24), 0xff);
	assert_int_equal(EDX(0xb, 1), 1023);
	cpuid_table_fini(&t);
}

/* An emulated AMD CPU may lack TOPOEXT; threads cannot be told without it. */
static void test_amd_without_topoext(void **state)
{
	static const struct kvm_cpuid_entry2 plain[] = {
		ENTRY(0, 0, 0, 0xd, 0x68747541, 0x444d4163, 0x69746e65),
		ENTRY(1, 0, 0, 0x60fb1, 0x00000800, 0x80200001, 0x078bfbff),
		ENTRY(0x80000000, 0, 0, 0x8000000a, 0, 0, 0),
		ENTRY(0x80000001, 0, 0, 0x60fb1, 0, 0, 0x2c100800),
	};
	const struct cpuid_topology topo = { 4, 2 };
	struct cpuid_table t = MAKE(plain, 4, 1);

	assert_false(ECX(0x80000001, 0) & CPUID_81_ECX_TOPOEXT);
	assert_null(cpuid_find(&t, 0x8000001e, 0));
	cpuid_table_fini(&t);
	t = MAKE(plain, 4, 2);
	assert_true(ECX(0x80000001, 0) & CPUID_81_ECX_TOPOEXT);
	assert_int_equal(EAX(0x80000000, 0), 0x8000001e);
	cpuid_set_apic_id(&t, &topo, 3);
	assert_int_equal(EAX(0x8000001e, 0), 3);
	assert_int_equal(EBX(0x8000001e, 0), 0x101);
	cpuid_table_fini(&t);
}

/* A CPU model older than leaf 0xb, and one without any extended leaf. */
static void test_missing_leaves(void **state)
{
	static const struct kvm_cpuid_entry2 old[] = {
		ENTRY(0, 0, 0, 5, 0x68747541, 0x444d4163, 0x69746e65),
		ENTRY(1, 0, 0, 0x0f12, 0x00000800, 0x80200001, 0x078bfbff),
	};
	struct cpuid_table t = MAKE(old, 2, 1);

	assert_int_equal(EAX(0, 0), 0xb);
	assert_int_equal(EBX(0, 0), 0x68747541);
	check_leaf_b(&t, 0xb, 1, 1, 2);
	assert_null(cpuid_find(&t, 0x8000001e, 0));
	assert_int_equal(cpuid_phys_bits(&t), 36);
	cpuid_set_phys_bits(&t, 36);
	assert_int_equal(EAX(0x80000008, 0), 48 << 8 | 36);
	assert_int_equal(EAX(0x80000000, 0), 0x80000008);
	cpuid_table_fini(&t);
}

static void test_dropped(void **state)
{
	struct cpuid_table t = MAKE(intel, 2, 1);

	assert_false(ECX(1, 0) & 1u << 5);		 /* VMX */
	assert_false(EBX(7, 0) & 1u << 2);		 /* SGX */
	assert_false(ECX(7, 0) & (1u << 16 | 1u << 30)); /* LA57, SGX_LC */
	assert_false(EDX(7, 0) & (1u << 22 | 1u << 24 | 1u << 25));
	assert_false(EAX(7, 1) & 1u << 21);
	assert_false(EDX(7, 1) & 1u << 8);
	assert_int_equal(EAX(7, 0), 2);
	/* AMX state is gone; the area shrinks to where PKRU ends. */
	assert_int_equal(EAX(0xd, 0), 0x2e7);
	assert_int_equal(ECX(0xd, 0), 0xa88);
	assert_true(EBX(0xd, 0) <= 0xa88);
	assert_int_equal(EAX(0xd, 17) | EAX(0xd, 18), 0);
	assert_false(EAX(0xd, 1) & 1u << 4);
	assert_int_equal(EAX(0x12, 0) | EAX(0x1d, 0) | EBX(0x1e, 0), 0);
	assert_false(EDX(0x80000007, 0) & 1u << 8); /* invariant TSC */
	/* The rest is as it was. */
	assert_int_equal(EBX(7, 0), intel[7].ebx & ~(1u << 2));
	cpuid_table_fini(&t);

	t = MAKE(amd, 2, 1);
	assert_false(ECX(0x80000001, 0) & 1u << 2); /* SVM */
	assert_int_equal(EAX(0x8000000a, 0) | EAX(0x8000001f, 0), 0);
	assert_int_equal(EAX(0xd, 0), 0x2e7);
	assert_int_equal(ECX(0xd, 0), 0x988);
	cpuid_table_fini(&t);
}

static void test_phys_bits(void **state)
{
	struct cpuid_table t = MAKE(intel, 1, 1);

	/* 52 bits, of which the second stage maps 48. */
	assert_int_equal(cpuid_phys_bits(&t), 48);
	cpuid_set_phys_bits(&t, 46);
	assert_int_equal(EAX(0x80000008, 0), 48 << 8 | 46);
	assert_int_equal(cpuid_phys_bits(&t), 46);
	cpuid_table_fini(&t);
}

static void test_kvm_leaves(void **state)
{
	struct cpuid_table t = MAKE(amd, 1, 1);
	const uint32_t lapic_free = 1u << KVM_FEATURE_STEAL_TIME |
				    1u << KVM_FEATURE_CLOCKSOURCE2;

	cpuid_set_kvm(&t, ~0u, 1);
	assert_int_equal(EAX(0x40000000, 0), 0x40000001);
	assert_int_equal(EBX(0x40000000, 0), 0x4b4d564b);
	assert_int_equal(ECX(0x40000000, 0), 0x564b4d56);
	assert_int_equal(EDX(0x40000000, 0), 0x4d);
	assert_int_equal(EDX(0x40000001, 0), 1);
	assert_true(ECX(1, 0) & 1u << 31);
	cpuid_drop_lapic(&t);
	assert_int_equal(EAX(0x40000001, 0) & lapic_free, lapic_free);
	assert_false(EAX(0x40000001, 0) & (1u << KVM_FEATURE_PV_UNHALT |
					   1u << KVM_FEATURE_PV_SEND_IPI));
	assert_false(EDX(1, 0) & 1u << 9);
	assert_false(ECX(1, 0) & (1u << 21 | 1u << 24));
	cpuid_table_fini(&t);
}

/* ---- with KVM ---- */

static struct cpu_model *model_new(const struct kvm *kvm,
				   const struct cpu_config *cfg)
{
	struct err err = ERR_INIT;
	struct cpu_model *model = NULL;

	if (cpu_model_new(&model, kvm, cfg, &err) < 0)
		fail_msg("cpu_model_new: %s", err.text);
	return model;
}

/* What KVM holds for the vCPU. */
static struct cpuid_table read_back(const struct kvm_vcpu *vcpu)
{
	struct cpuid_table t;
	struct kvm_cpuid2 *cpuid = calloc(
		1, sizeof(*cpuid) + 256 * sizeof(cpuid->entries[0]));

	assert_non_null(cpuid);
	cpuid->nent = 256;
	assert_int_equal(kvm_ioctl(vcpu->fd, KVM_GET_CPUID2, cpuid), 0);
	assert_int_equal(cpuid_table_init(&t, cpuid->entries, cpuid->nent), 0);
	free(cpuid);
	return t;
}

static uint64_t get_msr(const struct kvm_vcpu *vcpu, uint32_t index)
{
	struct kvm_msrs *msrs = calloc(1, sizeof(*msrs) +
						  sizeof(msrs->entries[0]));
	uint64_t value;

	assert_non_null(msrs);
	msrs->nmsrs = 1;
	msrs->entries[0].index = index;
	assert_int_equal(kvm_ioctl(vcpu->fd, KVM_GET_MSRS, msrs), 1);
	value = msrs->entries[0].data;
	free(msrs);
	return value;
}

static uint32_t lapic_reg(const struct kvm_vcpu *vcpu, unsigned int offset)
{
	struct kvm_lapic_state apic;

	assert_int_equal(kvm_vcpu_get_lapic(vcpu, &apic), 0);
	return le32_load(apic.regs + offset);
}

static void apply(struct kvm_guest *g, const struct cpu_config *cfg,
		  bool has_lapic)
{
	struct cpu_model *model = model_new(&g->kvm, cfg);
	struct err err = ERR_INIT;

	if (cpu_model_apply(model, &g->vcpu, has_lapic, &err) < 0)
		fail_msg("cpu_model_apply: %s", err.text);
	cpu_model_free(model);
}

static void test_apply_boot_cpu(void **state)
{
	const struct cpu_config cfg = { .num_cpus = 4, .threads_per_core = 2 };
	struct cpuid_table t;
	struct kvm_guest g;
	struct kvm_mp_state mp = { .mp_state = ~0u };

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_KERNEL, 0);
	apply(&g, &cfg, true);
	t = read_back(&g.vcpu);
	assert_int_equal(bits(EBX(1, 0), 31, 16), 4);
	assert_true(ECX(1, 0) & CPUID_1_ECX_X2APIC);
	assert_true(ECX(1, 0) & CPUID_1_ECX_HYPERVISOR);
	if (kvm_cap(g.kvm.fd, KVM_CAP_TSC_DEADLINE_TIMER))
		assert_true(ECX(1, 0) & CPUID_1_ECX_TSC_DEADLINE);
	check_leaf_b(&t, 0xb, 2, 2, 4);
	cpuid_table_fini(&t);

	assert_int_equal(lapic_reg(&g.vcpu, 0x350), 0x700); /* ExtINT */
	assert_int_equal(lapic_reg(&g.vcpu, 0x360), 0x400); /* NMI */
	assert_int_equal(lapic_reg(&g.vcpu, 0x320), 0x10000);
	assert_int_equal(get_msr(&g.vcpu, 0x2ff), 0x806); /* write-back */
	assert_int_equal(get_msr(&g.vcpu, 0x1a0) & 1, 1); /* fast strings */
	assert_int_equal(kvm_ioctl(g.vcpu.fd, KVM_GET_MP_STATE, &mp), 0);
	assert_int_equal(mp.mp_state, KVM_MP_STATE_RUNNABLE);
	kvm_guest_fini(&g);
}

static void test_apply_other_cpu(void **state)
{
	const struct cpu_config cfg = { .num_cpus = 4, .threads_per_core = 1 };
	struct cpuid_table t;
	struct kvm_guest g;
	struct kvm_mp_state mp = { .mp_state = ~0u };

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_KERNEL, 3);
	apply(&g, &cfg, true);
	t = read_back(&g.vcpu);
	assert_int_equal(bits(EBX(1, 0), 31, 24), 3);
	assert_int_equal(EDX(0xb, 0), 3);
	cpuid_table_fini(&t);
	assert_int_equal(lapic_reg(&g.vcpu, 0x20), 3u << 24);
	assert_int_equal(lapic_reg(&g.vcpu, 0x350), 0x10000);
	assert_int_equal(kvm_ioctl(g.vcpu.fd, KVM_GET_MP_STATE, &mp), 0);
	assert_int_equal(mp.mp_state, KVM_MP_STATE_UNINITIALIZED);
	kvm_guest_fini(&g);
}

/* Beyond what 8 bits of APIC id can say. */
static void test_apply_high_id(void **state)
{
	const struct cpu_config cfg = {
		.num_cpus = 300,
		.threads_per_core = 1,
		.msi_ext_dest_id = true,
	};
	struct cpuid_table t;
	struct kvm_guest g;
	int max;

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_KERNEL, 0);
	max = kvm_cap(g.vm.fd, KVM_CAP_MAX_VCPU_ID);
	kvm_guest_fini(&g);
	if (max < 300) {
		print_message("skipped: this KVM has %d vCPU ids\n", max);
		skip();
	}
	kvm_guest_init(&g, IRQCHIP_KERNEL, 299);
	apply(&g, &cfg, true);
	t = read_back(&g.vcpu);
	assert_int_equal(EDX(0xb, 0), 299);
	assert_int_equal(EDX(0xb, 1), 299);
	assert_int_equal(EBX(0xb, 1), 300);
	assert_true(EAX(0x40000001, 0) & 1u << KVM_FEATURE_MSI_EXT_DEST_ID);
	cpuid_table_fini(&t);
	kvm_guest_fini(&g);
}

static void test_apply_without_lapic(void **state)
{
	const struct cpu_config cfg = { .num_cpus = 1, .threads_per_core = 1 };
	struct cpuid_table t;
	struct kvm_guest g;

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_NONE, 0);
	apply(&g, &cfg, false);
	t = read_back(&g.vcpu);
	assert_false(ECX(1, 0) & CPUID_1_ECX_TSC_DEADLINE);
	cpuid_table_fini(&t);
	kvm_guest_fini(&g);
}

/* What a guest left behind is gone: clock page, x2APIC mode, timer, MTRR. */
static void test_reset_after_use(void **state)
{
	const struct cpu_config cfg = { .num_cpus = 2, .threads_per_core = 1 };
	struct kvm_msr_entry used[] = {
		{ .index = MSR_KVM_SYSTEM_TIME_NEW, .data = 0x5001 },
		{ .index = 0x2ff, .data = 0 },
		{ .index = 0xc0000082, .data = 0xffffffff81000000 },
	};
	struct err err = ERR_INIT;
	struct kvm_sregs sregs;
	struct kvm_guest g;

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_KERNEL, 1);
	apply(&g, &cfg, true);
	assert_int_equal(kvm_vcpu_set_msrs(&g.vcpu, used, ARRAY_SIZE(used)),
			 ARRAY_SIZE(used));
	assert_int_equal(kvm_vcpu_get_sregs(&g.vcpu, &sregs), 0);
	sregs.apic_base |= 1u << 10; /* x2APIC */
	assert_int_equal(kvm_vcpu_set_sregs(&g.vcpu, &sregs), 0);

	assert_int_equal(cpu_reset(&g.vcpu, true, &err), 0);
	assert_int_equal(get_msr(&g.vcpu, MSR_KVM_SYSTEM_TIME_NEW), 0);
	assert_int_equal(get_msr(&g.vcpu, 0x2ff), 0x806);
	assert_int_equal(get_msr(&g.vcpu, 0xc0000082), 0);
	assert_int_equal(kvm_vcpu_get_sregs(&g.vcpu, &sregs), 0);
	assert_int_equal(sregs.apic_base, 0xfee00800);
	assert_int_equal(lapic_reg(&g.vcpu, 0x20), 1u << 24);
	assert_int_equal(lapic_reg(&g.vcpu, 0x350), 0x10000);
	kvm_guest_fini(&g);
}

static void test_hints(void **state)
{
	const struct {
		bool overcommitted, dedicated, expect_realtime;
	} cases[] = {
		{ false, false, false },
		{ false, true, true },
		{ true, false, false },
		{ true, true, false },
	};
	uint32_t host = 0;
	struct kvm_guest g;

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_KERNEL, 0);
	assert_int_equal(cpu_pv_supported(&g.kvm, &host), 0);
	assert_true(host & 1u << KVM_FEATURE_CLOCKSOURCE2);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct cpu_config cfg = {
			.num_cpus = 1,
			.threads_per_core = 1,
			.overcommitted = cases[i].overcommitted,
			.dedicated = cases[i].dedicated,
		};
		struct cpuid_table t;
		uint32_t unhalt = 1u << KVM_FEATURE_PV_UNHALT;

		apply(&g, &cfg, true);
		t = read_back(&g.vcpu);
		assert_int_equal(EDX(0x40000001, 0),
				 cases[i].expect_realtime ? 1 : 0);
		assert_int_equal(EAX(0x40000001, 0) & unhalt,
				 cases[i].expect_realtime ? 0 : host & unhalt);
		assert_int_equal(EAX(0x40000001, 0) & ~host, 0);
		assert_true(EAX(0x40000001, 0) & 1u << 3);
		cpuid_table_fini(&t);
	}
	kvm_guest_fini(&g);
}

static void test_refused_configs(void **state)
{
	const struct {
		struct cpu_config cfg;
		const char *text;
	} cases[] = {
		{ { .num_cpus = 0, .threads_per_core = 1 }, "at least one" },
		{ { .num_cpus = 6, .threads_per_core = 3 }, "1 and 2" },
		{ { .num_cpus = 3, .threads_per_core = 2 }, "do not divide" },
		{ { .num_cpus = 1, .threads_per_core = 1, .phys_bits = 53 },
		  "phys_bits=53" },
		{ { .num_cpus = 1, .threads_per_core = 1, .phys_bits = 20 },
		  "phys_bits=20" },
	};
	struct kvm kvm = { 0 };

	kvm_guest_skip_without_kvm();
	assert_int_equal(kvm_open(&kvm, KVM_DEVICE_PATH, NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct cpu_model *model = NULL;
		struct err err = ERR_INIT;

		assert_int_equal(cpu_model_new(&model, &kvm, &cases[i].cfg,
					       &err),
				 -EINVAL);
		assert_null(model);
		assert_non_null(strstr(err.text, cases[i].text));
	}
	kvm_close(&kvm);
}

static void test_model_phys_bits(void **state)
{
	struct cpu_config cfg = { .num_cpus = 1, .threads_per_core = 1 };
	struct cpu_model *model;
	struct kvm kvm = { 0 };

	kvm_guest_skip_without_kvm();
	assert_int_equal(kvm_open(&kvm, KVM_DEVICE_PATH, NULL), 0);
	model = model_new(&kvm, &cfg);
	assert_in_range(cpu_model_phys_bits(model), 36, 48);
	cpu_model_free(model);
	cfg.phys_bits = 37;
	model = model_new(&kvm, &cfg);
	assert_int_equal(cpu_model_phys_bits(model), 37);
	cpu_model_free(model);
	kvm_close(&kvm);
}

/*
 * The CPUID instruction in the guest. At CPL0: a KVM without hardware help
 * cannot intercept it in user mode.
 */
KVM_GUEST_PAYLOAD(ask_cpuid, "mov $0x40000000, %eax\n"
			     "xor %ecx, %ecx\n"
			     "cpuid\n"
			     "mov %eax, (%rdi)\n"
			     "mov %ebx, 4(%rdi)\n"
			     "mov $0xb, %eax\n"
			     "mov $1, %ecx\n"
			     "cpuid\n"
			     "mov %ebx, 8(%rdi)\n"
			     "mov %edx, 12(%rdi)\n"
			     "mov $0x1, %eax\n"
			     "cpuid\n"
			     "mov %ebx, 16(%rdi)\n"
			     "mov %ecx, 20(%rdi)\n"
			     "mov $0x77, %al\n"
			     "out %al, $0xf4\n"
			     "ud2\n");

static void test_guest_sees_cpuid(void **state)
{
	const struct cpu_config cfg = { .num_cpus = 8, .threads_per_core = 2 };
	const struct start_flat64 start = {
		.pml4 = 0x20000,
		.rip = 0x100000,
		.rsp = 0x300000,
		.rdi = 0x200000,
		.cpl = 0,
	};
	struct kvm_guest g;
	uint64_t v;

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_NONE, 5);
	apply(&g, &cfg, false);
	kvm_guest_map_user(&g, start.pml4);
	kvm_guest_load(&g, start.rip, ask_cpuid);
	assert_int_equal(
		start_load_flat64(&g.vcpu, &g.ram, GPA(0x30000), &start), 0);
	assert_int_equal(kvm_guest_run(&g), 0x77);
	assert_int_equal(kvm_guest_u64(&g, 0x200000), 0x4b4d564b40000001);
	v = kvm_guest_u64(&g, 0x200008);
	assert_int_equal(v, 5ull << 32 | 8);
	v = kvm_guest_u64(&g, 0x200010);
	assert_int_equal(bits((uint32_t)v, 31, 16), 5u << 8 | 8);
	assert_true(v >> 32 & CPUID_1_ECX_HYPERVISOR);
	kvm_guest_fini(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_intel_topology),
		cmocka_unit_test(test_amd_topology),
		cmocka_unit_test(test_amd_without_topoext),
		cmocka_unit_test(test_one_cpu),
		cmocka_unit_test(test_many_cpus),
		cmocka_unit_test(test_missing_leaves),
		cmocka_unit_test(test_dropped),
		cmocka_unit_test(test_phys_bits),
		cmocka_unit_test(test_kvm_leaves),
		cmocka_unit_test(test_apply_boot_cpu),
		cmocka_unit_test(test_apply_other_cpu),
		cmocka_unit_test(test_apply_high_id),
		cmocka_unit_test(test_apply_without_lapic),
		cmocka_unit_test(test_reset_after_use),
		cmocka_unit_test(test_hints),
		cmocka_unit_test(test_refused_configs),
		cmocka_unit_test(test_model_phys_bits),
		cmocka_unit_test(test_guest_sees_cpuid),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
