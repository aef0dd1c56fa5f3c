/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86/cpu_state.c, x86/msr_state.c and kvm/irq_state.c on the host's KVM: what
 * one VM saves another loads, and says the same of itself. And the check of
 * CPUs on made-up tables.
 *
 *	test_cpu_state --write FILE
 *
 * writes a vCPU's state for the next golden file (golden/vcpu-N.state), and
 * with --write-chips that of the interrupt controllers (chips-N.state). The
 * former is of the CPU of the machine that it was made on: elsewhere it may be
 * refused, but only for that.
 */
#include "kvm_guest.h"

#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "kvm/irq_state.h"
#include "x86/cpu.h"
#include "x86/cpu_state.h"
#include "x86/cpuid.h"
#include "x86/start.h"

#ifndef GOLDEN_DIR
#error "GOLDEN_DIR: where the golden files are"
#endif

#define HOST_TSC  1000000000000ull
#define MAX_FILE  (1 << 20)
#define MSR_LSTAR 0xc0000082u
#define MSR_TSC	  0x10u

/* ---- a vCPU that has been at work ---- */

static void make(struct kvm_guest *g, bool applied)
{
	const struct cpu_config cfg = { .num_cpus = 1, .threads_per_core = 1 };
	struct cpu_model *model;
	struct err err = ERR_INIT;

	kvm_guest_init(g, IRQCHIP_KERNEL, 0);
	if (!applied)
		return;
	if (cpu_model_new(&model, &g->kvm, &cfg, &err) ||
	    cpu_model_apply(model, &g->vcpu, true, &err))
		fail_msg("%s", err.text);
	cpu_model_free(model);
}

static void use_registers(struct kvm_guest *g)
{
	struct kvm_regs regs = {
		.rax = 1,
		.rbx = 2,
		.rcx = 3,
		.rdx = 4,
		.rsi = 5,
		.rdi = 6,
		.rsp = 7,
		.rbp = 8,
		.r8 = 9,
		.r9 = 10,
		.r10 = 11,
		.r11 = 12,
		.r12 = 13,
		.r13 = 14,
		.r14 = 15,
		.r15 = 16,
		.rip = 0x100000,
		.rflags = 0x202,
	};
	struct kvm_debugregs debug = {
		.db = { 1, 2, 3, 4 },
		.dr6 = 0xffff0ff1,
		.dr7 = 0x400,
	};
	struct kvm_xsave xsave;
	struct kvm_lapic_state lapic;

	/* The FXSAVE area, and in XSTATE_BV that x87 and SSE are in use. */
	assert_int_equal(kvm_ioctl(g->vcpu.fd, KVM_GET_XSAVE, &xsave), 0);
	xsave.region[6] = 0x1fa0; /* MXCSR */
	for (unsigned int i = 0; i < 16; i++)
		memset(&xsave.region[40 + 4 * i], (int)i + 1, 16);
	xsave.region[128] = 3;
	assert_int_equal(kvm_ioctl(g->vcpu.fd, KVM_SET_XSAVE, &xsave), 0);
	assert_int_equal(kvm_vcpu_set_regs(&g->vcpu, &regs), 0);
	assert_int_equal(kvm_ioctl(g->vcpu.fd, KVM_SET_DEBUGREGS, &debug), 0);
	assert_int_equal(kvm_vcpu_get_lapic(&g->vcpu, &lapic), 0);
	le32_store(lapic.regs + 0x80, 0x20);  /* TPR */
	le32_store(lapic.regs + 0x210, 0x10); /* IRR: vector 0x24 */
	assert_int_equal(kvm_vcpu_set_lapic(&g->vcpu, &lapic), 0);
}

static void use_msrs(struct kvm_guest *g)
{
	static const struct kvm_msr_entry msrs[] = {
		{ .index = MSR_LSTAR, .data = 0xffffffff81000000 },
		{ .index = 0xc0000102 /* KERNEL_GS_BASE */, .data = 0x1234000 },
		{ .index = 0x277 /* PAT */, .data = 0x0407010600070106 },
		{ .index = 0x200 /* MTRR_PHYSBASE0 */, .data = 0xc0000000 },
		{ .index = 0x201 /* MTRR_PHYSMASK0 */, .data = 0xfc0000800 },
		{ .index = MSR_KVM_SYSTEM_TIME_NEW, .data = 0x2001 },
		{ .index = MSR_KVM_WALL_CLOCK_NEW, .data = 0x3000 },
		{ .index = MSR_KVM_POLL_CONTROL, .data = 0 },
	};

	assert_int_equal(kvm_vcpu_set_msrs(&g->vcpu, msrs, ARRAY_SIZE(msrs)),
			 ARRAY_SIZE(msrs));
}

static void use_segments(struct kvm_guest *g)
{
	const struct start_flat64 flat = {
		.pml4 = 0x10000,
		.rip = 0x100000,
		.rsp = 0x8000,
		.fs_base = 0xabc000,
	};

	assert_int_equal(start_load_flat64_registers(&g->vcpu, &flat), 0);
}

static void use_all(struct kvm_guest *g)
{
	use_segments(g);
	use_registers(g);
	use_msrs(g);
}

static void save_vcpu(const struct kvm_guest *g, uint64_t host_tsc,
		      struct state_writer *w)
{
	struct err err = ERR_INIT;

	state_writer_init(w);
	if (cpu_state_save(&g->vcpu, host_tsc, w, &err))
		fail_msg("%s", err.text);
	assert_int_equal(state_writer_finish(w), 0);
}

static int load_vcpu(const struct kvm_guest *g, uint64_t host_tsc,
		     const void *data, size_t bytes, struct err *err)
{
	struct state_reader r;
	int ret = state_reader_init(&r, data, bytes, err);

	if (ret)
		return ret;
	ret = cpu_state_load(&g->vcpu, host_tsc, &r, err);
	if (!ret)
		ret = state_reader_finish(&r, err);
	state_reader_fini(&r);
	return ret;
}

/* ---- vCPUs ---- */

static void test_round_trip(void **state)
{
	struct kvm_guest a, b;
	struct state_writer wa, wb;
	struct kvm_regs regs = { 0 };
	struct kvm_fpu fpu;
	struct err err = ERR_INIT;

	kvm_guest_skip_without_kvm();
	make(&a, true);
	use_all(&a);
	save_vcpu(&a, HOST_TSC, &wa);
	make(&b, true);
	if (load_vcpu(&b, HOST_TSC, wa.data, wa.bytes, &err))
		fail_msg("%s", err.text);
	save_vcpu(&b, HOST_TSC, &wb);
	assert_int_equal(wa.bytes, wb.bytes);
	assert_memory_equal(wa.data, wb.data, wa.bytes);
	assert_int_equal(kvm_vcpu_get_regs(&b.vcpu, &regs), 0);
	assert_int_equal(regs.r15, 16);
	assert_int_equal(regs.rip, 0x100000);
	assert_int_equal(kvm_ioctl(b.vcpu.fd, KVM_GET_FPU, &fpu), 0);
	assert_int_equal(fpu.xmm[15][3], 16);
	state_writer_fini(&wa);
	state_writer_fini(&wb);
	kvm_guest_fini(&a);
	kvm_guest_fini(&b);
}

/* Its TSC goes on from where it was, whenever that is. */
static void test_tsc(void **state)
{
	struct kvm_guest a, b;
	struct state_writer w;
	struct err err = ERR_INIT;
	uint64_t offset_a = 0, offset_b = 0;

	kvm_guest_skip_without_kvm();
	make(&a, true);
	make(&b, true);
	if (kvm_vcpu_set_tsc_offset(&a.vcpu, 1000000) < 0 ||
	    kvm_vcpu_get_tsc_offset(&a.vcpu, &offset_a) < 0 ||
	    offset_a != 1000000) {
		print_message("skip: this KVM has no TSC offset\n");
		kvm_guest_fini(&a);
		kvm_guest_fini(&b);
		skip();
	}
	save_vcpu(&a, HOST_TSC, &w);
	if (load_vcpu(&b, HOST_TSC + 777777, w.data, w.bytes, &err))
		fail_msg("%s", err.text);
	assert_int_equal(kvm_vcpu_get_tsc_offset(&b.vcpu, &offset_b), 0);
	assert_true(offset_b == offset_a - 777777);
	state_writer_fini(&w);
	kvm_guest_fini(&a);
	kvm_guest_fini(&b);
}

/* An interrupted instruction, an interrupt in service, an application CPU. */
static void test_events(void **state)
{
	struct kvm_vcpu_events ev = {
		.interrupt = { .shadow = KVM_X86_SHADOW_INT_STI },
		.nmi = { .pending = 1, .masked = 1 },
		.flags = KVM_VCPUEVENT_VALID_NMI_PENDING |
			 KVM_VCPUEVENT_VALID_SHADOW,
	};
	struct kvm_guest a, b;
	struct state_writer w;
	struct err err = ERR_INIT;
	uint32_t mp = 0;

	kvm_guest_skip_without_kvm();
	make(&a, true);
	make(&b, true);
	assert_int_equal(kvm_ioctl(a.vcpu.fd, KVM_SET_VCPU_EVENTS, &ev), 0);
	assert_int_equal(kvm_vcpu_set_mp_state(&a.vcpu, KVM_MP_STATE_HALTED),
			 0);
	save_vcpu(&a, HOST_TSC, &w);
	if (load_vcpu(&b, HOST_TSC, w.data, w.bytes, &err))
		fail_msg("%s", err.text);
	memset(&ev, 0, sizeof(ev));
	assert_int_equal(kvm_ioctl(b.vcpu.fd, KVM_GET_VCPU_EVENTS, &ev), 0);
	assert_int_equal(ev.nmi.pending, 1);
	assert_int_equal(ev.nmi.masked, 1);
	assert_int_equal(ev.interrupt.shadow, KVM_X86_SHADOW_INT_STI);
	assert_int_equal(kvm_vcpu_get_mp_state(&b.vcpu, &mp), 0);
	assert_int_equal(mp, KVM_MP_STATE_HALTED);
	state_writer_fini(&w);
	kvm_guest_fini(&a);
	kvm_guest_fini(&b);
}

/* Put another MSR in place of the last that was saved, and load that. */
static int load_with_msr(const struct state_writer *w, uint32_t index,
			 uint64_t value, struct err *err)
{
	uint8_t *copy = malloc(w->bytes);
	struct kvm_guest g;
	int r;

	assert_non_null(copy);
	memcpy(copy, w->data, w->bytes);
	/* The MSRs are the last field; the checksum is behind them. */
	le32_store(copy + w->bytes - 8 - 12, index);
	le64_store(copy + w->bytes - 8 - 8, value);
	state_fix_checksum(copy, w->bytes);
	make(&g, true);
	r = load_vcpu(&g, HOST_TSC, copy, w->bytes, err);
	kvm_guest_fini(&g);
	free(copy);
	return r;
}

/*
 * Only MSRs that would be saved are set. KVM lets its user set others, which is
 * no business of whoever wrote the file.
 */
static void test_msrs(void **state)
{
	static const uint32_t never[] = {
		0x10 /* TSC */,
		0x6e0 /* TSC_DEADLINE */,
		0x11 /* KVM_WALL_CLOCK */,
		0x12 /* KVM_SYSTEM_TIME */,
		0x480 /* VMX_BASIC */,
		0x40000000 /* Hyper-V's */,
		0xc0010117 /* VM_HSAVE_PA */,
	};
	/* Of no CPU, of no KVM, and the LAPIC's, which is saved elsewhere. */
	static const uint32_t not_ours[] = { 0x12345678, 0x4b564dff, 0x1b };
	struct kvm_guest a;
	struct state_writer w;
	struct err err = ERR_INIT;

	kvm_guest_skip_without_kvm();
	make(&a, true);
	use_all(&a);
	save_vcpu(&a, HOST_TSC, &w);
	for (size_t i = 0; i < ARRAY_SIZE(never); i++) {
		assert_int_equal(load_with_msr(&w, never[i], 0, &err), -EINVAL);
		assert_non_null(strstr(err.text, "not one that is saved"));
	}
	for (size_t i = 0; i < ARRAY_SIZE(not_ours); i++) {
		assert_int_equal(load_with_msr(&w, not_ours[i], 1, &err),
				 -EINVAL);
		assert_non_null(strstr(err.text, "does not take"));
		/* Another host had it, its guest did not use it. */
		assert_int_equal(load_with_msr(&w, not_ours[i], 0, &err), 0);
	}
	/* STAR, which is among the others. */
	assert_int_equal(load_with_msr(&w, 0xc0000081, 0, &err), -EINVAL);
	assert_non_null(strstr(err.text, "there twice"));
	state_writer_fini(&w);
	kvm_guest_fini(&a);
}

/* What each flipped bit does to KVM: it is refused or taken, nothing else. */
static void test_bit_flips(void **state)
{
	struct kvm_guest a, b;
	struct state_writer w;
	unsigned int refused = 0, taken = 0;

	kvm_guest_skip_without_kvm();
	make(&a, true);
	use_all(&a);
	save_vcpu(&a, HOST_TSC, &w);
	for (size_t bit = 24 * 8; bit < 8 * (w.bytes - 8); bit += 997) {
		struct err err = ERR_INIT;

		w.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		state_fix_checksum(w.data, w.bytes);
		make(&b, true);
		if (load_vcpu(&b, HOST_TSC, w.data, w.bytes, &err)) {
			assert_true(strlen(err.text) > 0);
			refused++;
		} else {
			taken++;
		}
		kvm_guest_fini(&b);
		w.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	assert_true(refused > 2 && taken > 10);
	state_writer_fini(&w);
	kvm_guest_fini(&a);
}

/* ---- interrupt controllers ---- */

static void save_chips(const struct kvm_guest *g, struct state_writer *w)
{
	struct err err = ERR_INIT;

	state_writer_init(w);
	if (irq_state_save(&g->vm, w, &err))
		fail_msg("%s", err.text);
	assert_int_equal(state_writer_finish(w), 0);
}

static void use_chips(struct kvm_guest *g)
{
	struct kvm_irqchip pic = { .chip_id = KVM_IRQCHIP_PIC_MASTER };
	struct kvm_irqchip ioapic = { .chip_id = KVM_IRQCHIP_IOAPIC };
	struct kvm_pit_state2 pit;

	assert_int_equal(kvm_ioctl(g->vm.fd, KVM_GET_IRQCHIP, &pic), 0);
	pic.chip.pic.imr = 0xfb;
	pic.chip.pic.irq_base = 0x20;
	pic.chip.pic.elcr = 0x00;
	assert_int_equal(kvm_ioctl(g->vm.fd, KVM_SET_IRQCHIP, &pic), 0);
	assert_int_equal(kvm_ioctl(g->vm.fd, KVM_GET_IRQCHIP, &ioapic), 0);
	ioapic.chip.ioapic.redirtbl[9].bits = 0x010000000000a031;
	ioapic.chip.ioapic.ioregsel = 0x22;
	assert_int_equal(kvm_ioctl(g->vm.fd, KVM_SET_IRQCHIP, &ioapic), 0);
	assert_int_equal(kvm_ioctl(g->vm.fd, KVM_GET_PIT2, &pit), 0);
	pit.channels[2].count = 0x1234;
	pit.channels[2].mode = 3;
	pit.channels[2].rw_mode = 3;
	pit.channels[2].gate = 1;
	assert_int_equal(kvm_ioctl(g->vm.fd, KVM_SET_PIT2, &pit), 0);
}

static void test_chips(void **state)
{
	struct kvm_guest a, b;
	struct state_writer wa, wb;
	struct state_reader r;
	struct err err = ERR_INIT;

	kvm_guest_skip_without_kvm();
	make(&a, true);
	if (irq_router_kind(a.router) != IRQCHIP_KERNEL) {
		print_message("skip: this KVM has no IOAPIC\n");
		kvm_guest_fini(&a);
		skip();
	}
	use_chips(&a);
	save_chips(&a, &wa);
	make(&b, true);
	assert_int_equal(state_reader_init(&r, wa.data, wa.bytes, &err), 0);
	if (irq_state_load(&b.vm, &r, &err))
		fail_msg("%s", err.text);
	assert_int_equal(state_reader_finish(&r, &err), 0);
	state_reader_fini(&r);
	save_chips(&b, &wb);
	assert_int_equal(wa.bytes, wb.bytes);
	assert_memory_equal(wa.data, wb.data, wa.bytes);
	state_writer_fini(&wa);
	state_writer_fini(&wb);
	kvm_guest_fini(&a);
	kvm_guest_fini(&b);
}

/* ---- is this CPU good enough? ---- */

#define NUM_LEAVES 4

static struct kvm_cpuid2 *cpu_of(const char *vendor, uint32_t features,
				 uint32_t ext, uint32_t bits)
{
	struct kvm_cpuid2 *c = calloc(
		1, sizeof(*c) + NUM_LEAVES * sizeof(c->entries[0]));

	assert_non_null(c);
	c->nent = NUM_LEAVES;
	c->entries[0] = (struct kvm_cpuid_entry2){
		.function = 0,
		.eax = 7,
		.ebx = le32_load(vendor),
		.edx = le32_load(vendor + 4),
		.ecx = le32_load(vendor + 8),
	};
	c->entries[1] = (struct kvm_cpuid_entry2){
		.function = 1,
		.ecx = features,
	};
	c->entries[2] = (struct kvm_cpuid_entry2){
		.function = 7,
		.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
		.ebx = ext,
	};
	c->entries[3] = (struct kvm_cpuid_entry2){
		.function = 0x80000008,
		.eax = bits,
	};
	return c;
}

static void assert_refused(struct kvm_cpuid2 *saved, struct kvm_cpuid2 *ours,
			   const char *why)
{
	struct err err = ERR_INIT;
	int r = cpu_state_check_cpuid(saved, ours, &err);

	if (why) {
		assert_int_equal(r, -EINVAL);
		if (!strstr(err.text, why))
			fail_msg("%s", err.text);
	} else {
		assert_int_equal(r, 0);
	}
	free(saved);
	free(ours);
}

static void test_cpus(void **state)
{
	const char *amd = "AuthenticAMD", *intel = "GenuineIntel";

	assert_refused(cpu_of(amd, 1, 2, 48), cpu_of(amd, 1, 2, 48), NULL);
	/* The host may have more. */
	assert_refused(cpu_of(amd, 1, 2, 40), cpu_of(amd, 3, 6, 48), NULL);
	assert_refused(cpu_of(amd, 3, 2, 48), cpu_of(amd, 1, 2, 48),
		       "CPUID leaf 0x1.0, ECX bit 1");
	assert_refused(
		cpu_of(amd, 1, 0x10002, 48), cpu_of(amd, 1, 2, 48),
		"CPUID leaf 0x7.0, EBX bit 16 (avx512f); the VM goes to");
	assert_refused(cpu_of(amd, 1, 1u << 31 | 2, 48), cpu_of(amd, 1, 2, 48),
		       "CPUID leaf 0x7.0, EBX bit 31; the VM goes to");
	assert_refused(cpu_of(amd, 1, 2, 48), cpu_of(amd, 1, 2, 46),
		       "48 physical address bits");
	assert_refused(cpu_of(amd, 1, 2, 48), cpu_of(intel, 1, 2, 48),
		       "AuthenticAMD, this host's of GenuineIntel");
	/* OSXSAVE follows the guest's CR4. */
	assert_refused(cpu_of(amd, 1 | 1u << 27, 2, 48), cpu_of(amd, 1, 2, 48),
		       NULL);
}

/* ---- golden file ---- */

static char *read_golden(const char *path, size_t *ret_bytes)
{
	FILE *f = fopen(path, "r");
	char *data = malloc(MAX_FILE);

	assert_non_null(f);
	assert_non_null(data);
	*ret_bytes = fread(data, 1, MAX_FILE, f);
	fclose(f);
	return data;
}

static void test_golden_chips(void **state)
{
	struct kvm_guest g;
	struct state_writer w;
	struct state_reader r;
	struct err err = ERR_INIT;
	size_t bytes;
	char *data;

	kvm_guest_skip_without_kvm();
	make(&g, true);
	if (irq_router_kind(g.router) != IRQCHIP_KERNEL) {
		print_message("skip: this KVM has no IOAPIC\n");
		kvm_guest_fini(&g);
		skip();
	}
	data = read_golden(GOLDEN_DIR "/chips-1.state", &bytes);
	assert_int_equal(state_reader_init(&r, data, bytes, &err), 0);
	if (irq_state_load(&g.vm, &r, &err))
		fail_msg("%s", err.text);
	state_reader_fini(&r);
	save_chips(&g, &w);
	/* Version 1 is the latest: it says the same. */
	assert_int_equal(w.bytes, bytes);
	assert_memory_equal(w.data, data, bytes);
	state_writer_fini(&w);
	kvm_guest_fini(&g);
	free(data);
}

static void test_golden(void **state)
{
	struct kvm_guest g;
	struct err err = ERR_INIT;
	size_t bytes;
	char *data;
	int r;

	kvm_guest_skip_without_kvm();
	data = read_golden(GOLDEN_DIR "/vcpu-1.state", &bytes);
	make(&g, true);
	r = load_vcpu(&g, HOST_TSC, data, bytes, &err);
	/* Another CPU, or its kernel, may lack something: never the format. */
	if (r && (strstr(err.text, "saved state") || r == -EBADMSG))
		fail_msg("%s", err.text);
	if (r)
		print_message("on this host: %s\n", err.text);
	kvm_guest_fini(&g);
	free(data);
}

static int write_golden(const char *path, bool chips)
{
	struct kvm_guest g;
	struct state_writer w;
	FILE *f = fopen(path, "w");

	make(&g, true);
	if (chips) {
		use_chips(&g);
		save_chips(&g, &w);
	} else {
		use_all(&g);
		save_vcpu(&g, HOST_TSC, &w);
	}
	if (!f || fwrite(w.data, 1, w.bytes, f) != w.bytes || fclose(f)) {
		perror(path);
		return 1;
	}
	state_writer_fini(&w);
	kvm_guest_fini(&g);
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_tsc),
		cmocka_unit_test(test_events),
		cmocka_unit_test(test_msrs),
		cmocka_unit_test(test_bit_flips),
		cmocka_unit_test(test_chips),
		cmocka_unit_test(test_cpus),
		cmocka_unit_test(test_golden),
		cmocka_unit_test(test_golden_chips),
	};

	if (argc == 3 && strcmp(argv[1], "--write") == 0)
		return write_golden(argv[2], false);
	if (argc == 3 && strcmp(argv[1], "--write-chips") == 0)
		return write_golden(argv[2], true);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
