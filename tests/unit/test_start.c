/* SPDX-License-Identifier: Apache-2.0 */
/*
 * x86/start.c: the tables in memory, and what a guest really finds in its
 * registers in each start state, asked by a few instructions run under KVM.
 */
#include "kvm_guest.h"

#include <errno.h>

#include "x86/start.h"

#define CODE	0x100000ull
#define RESULTS 0x200000ull
#define STACK	0x300000ull
#define PML4	0x20000ull
#define GDT	0x30000ull
#define ARG	0x123450ull

/* rdi = RESULTS; fs:8 and rsi hold what the test put there. */
#define FLAT64_INTEGER         \
	"mov %cs, %eax\n"      \
	"mov %rax, (%rdi)\n"   \
	"mov %ss, %eax\n"      \
	"mov %rax, 8(%rdi)\n"  \
	"mov %fs:8, %rcx\n"    \
	"mov %rcx, 16(%rdi)\n" \
	"push %rsi\n"          \
	"popq 24(%rdi)\n"
#define FLAT64_FLOAT             \
	"movq %rcx, %xmm7\n"     \
	"paddq %xmm7, %xmm7\n"   \
	"movq %xmm7, 32(%rdi)\n" \
	"fld1\n"                 \
	"fistpll 40(%rdi)\n"     \
	"fnstcw 48(%rdi)\n"      \
	"stmxcsr 56(%rdi)\n"
#define FLAT64_DONE           \
	"mov $0x5a, %al\n"    \
	"out %al, $0xf4\n"    \
	"mov $0xffff, %edx\n" \
	"out %al, %dx\n"      \
	"ud2\n"

KVM_GUEST_PAYLOAD(flat64_user, FLAT64_INTEGER FLAT64_FLOAT FLAT64_DONE);
/* Where KVM emulates kernel mode it knows no x87 and SSE arithmetic. */
KVM_GUEST_PAYLOAD(flat64_kernel, FLAT64_INTEGER FLAT64_DONE);

#define MAGIC 0x1122334455667788ull

static void flat64_start(struct kvm_guest *g, unsigned int cpl)
{
	const uint64_t fs_base = RESULTS + 0x1000, magic = MAGIC;
	const struct start_flat64 start = {
		.pml4 = PML4,
		.rip = CODE,
		.rsp = STACK,
		.rdi = RESULTS,
		.rsi = ARG,
		.cpl = cpl,
		.fs_base = fs_base,
	};

	kvm_guest_map_user(g, PML4);
	assert_int_equal(mem_write(&g->ram, GPA(fs_base + 8), &magic, 8), 0);
	assert_int_equal(start_load_flat64(&g->vcpu, &g->ram, GPA(GDT), &start),
			 0);
}

static void flat64_check(struct kvm_guest *g, unsigned int cpl)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	assert_int_equal(kvm_vcpu_get_sregs(&g->vcpu, &sregs), 0);
	assert_int_equal(kvm_vcpu_get_regs(&g->vcpu, &regs), 0);
	assert_int_equal(sregs.efer & 0x501, 0x500); /* LMA, LME; no SCE */
	assert_int_equal(sregs.cs.dpl, cpl);
	assert_int_equal(regs.rflags & 0x3200, cpl == 3 ? 0x3000 : 0);

	assert_int_equal(kvm_guest_run(g), 0x5a);
	assert_int_equal(kvm_guest_u64(g, RESULTS) & 3, cpl);
	assert_int_equal(kvm_guest_u64(g, RESULTS + 8) & 3, cpl);
	assert_int_equal(kvm_guest_u64(g, RESULTS + 16), MAGIC);
	assert_int_equal(kvm_guest_u64(g, RESULTS + 24), ARG);
}

static void test_flat64_user(void **state)
{
	struct kvm_guest g;

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_NONE, 0);
	kvm_guest_load(&g, CODE, flat64_user);
	flat64_start(&g, 3);
	flat64_check(&g, 3);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 32), MAGIC * 2);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 40), 1);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 48) & 0xffff, 0x37f);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 56) & 0xffff, 0x1f80);
	/* The last port, whose bit is read with the byte after the bitmap. */
	assert_int_equal(kvm_vcpu_run(&g.vcpu), 0);
	assert_int_equal(g.vcpu.run->exit_reason, KVM_EXIT_IO);
	assert_int_equal(g.vcpu.run->io.port, 0xffff);
	kvm_guest_fini(&g);
}

static void test_flat64_kernel(void **state)
{
	struct kvm_guest g;

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_NONE, 0);
	kvm_guest_load(&g, CODE, flat64_kernel);
	flat64_start(&g, 0);
	flat64_check(&g, 0);
	kvm_guest_fini(&g);
}

KVM_GUEST_PAYLOAD(fault, "ud2\n");

static void test_flat64_fault_is_shutdown(void **state)
{
	struct start_flat64 start = {
		.pml4 = PML4,
		.rip = CODE,
		.rsp = STACK,
		.cpl = 3,
	};
	struct kvm_guest g;

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_NONE, 0);
	kvm_guest_map_user(&g, PML4);
	kvm_guest_load(&g, CODE, fault);
	assert_int_equal(start_load_flat64(&g.vcpu, &g.ram, GPA(GDT), &start),
			 0);
	assert_int_equal(kvm_vcpu_run(&g.vcpu), 0);
	assert_int_equal(g.vcpu.run->exit_reason, KVM_EXIT_SHUTDOWN);
	kvm_guest_fini(&g);
}

static void test_flat64_refuses(void **state)
{
	struct start_flat64 start = { .cpl = 1 };
	struct kvm_guest g;

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_NONE, 0);
	assert_int_equal(start_load_flat64(&g.vcpu, &g.ram, GPA(GDT), &start),
			 -EINVAL);
	start.cpl = 3;
	assert_int_equal(
		start_load_flat64(&g.vcpu, &g.ram,
				  GPA(KVM_GUEST_RAM - START_FLAT64_BYTES + 8),
				  &start),
		-EFAULT);
	kvm_guest_fini(&g);
}

/* The 64-bit protocol: RSI, selectors, and all 4 GiB mapped to themselves. */
KVM_GUEST_PAYLOAD(linux64,
		  "mov $0x200000, %edi\n"
		  "mov %rsi, (%rdi)\n"
		  "mov %cs, %eax\n"
		  "mov %rax, 8(%rdi)\n"
		  "mov %ds, %eax\n"
		  "mov %rax, 16(%rdi)\n"
		  "mov %es, %eax\n"
		  "mov %rax, 24(%rdi)\n"
		  "mov %ss, %eax\n"
		  "mov %rax, 32(%rdi)\n"
		  "mov %rsp, 40(%rdi)\n"
		  "pushfq\n"
		  "popq 48(%rdi)\n"
		  /* Reload from the GDT in memory: it must hold the same. */
		  "mov $0x18, %eax\n"
		  "mov %eax, %ds\n"
		  "mov %eax, %ss\n"
		  "pushq $0x10\n"
		  "lea 1f(%rip), %rax\n"
		  "push %rax\n"
		  "lretq\n"
		  "1: mov $0x64, %al\n"
		  "out %al, $0xf4\n"
		  "hlt\n");

static void test_linux64(void **state)
{
	const struct start_state start = {
		.mode = START_LINUX64,
		.entry = CODE,
		.arg = ARG,
		.stack = STACK,
	};
	struct kvm_guest g;

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_NONE, 0);
	kvm_guest_load(&g, CODE, linux64);
	assert_int_equal(start_write_tables(&g.ram, START_LINUX64), 0);
	assert_int_equal(start_load(&g.vcpu, &start), 0);
	assert_int_equal(kvm_guest_run(&g), 0x64);
	assert_int_equal(kvm_guest_u64(&g, RESULTS), ARG);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 8), 0x10);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 16), 0x18);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 24), 0x18);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 32), 0x18);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 40), STACK);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 48) & 0x200, 0);
	kvm_guest_fini(&g);
}

static void test_linux64_tables(void **state)
{
	const uint64_t gdt[] = { 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
	struct kvm_guest g = { 0 };
	struct ram_config cfg = {
		.size_bytes = KVM_GUEST_RAM,
		.hole_start = LAYOUT_HOLE_START,
		.hole_end = LAYOUT_HOLE_END,
		.page = RAM_PAGE_4K,
	};

	assert_int_equal(ram_init(&g.ram, &cfg, NULL), 0);
	assert_int_equal(start_write_tables(&g.ram, START_LINUX64), 0);
	for (size_t i = 0; i < ARRAY_SIZE(gdt); i++)
		assert_int_equal(kvm_guest_u64(&g, LAYOUT_GDT + i * 8), gdt[i]);
	/* Walk for an address in each 2M page of 4 GiB. */
	for (uint64_t va = 0; va < 4 * GIB; va += PAGE_2M) {
		uint64_t e = LAYOUT_BOOT_PML4;

		for (int shift = 39; shift >= 21; shift -= 9) {
			e = kvm_guest_u64(&g, (e & ~0xfffull) + ((va >> shift) &
								 511) * 8);
			assert_int_equal(e & 3, 3); /* present, writable */
			assert_int_equal(e & 0x80, shift == 21 ? 0x80 : 0);
		}
		assert_int_equal(e & ~0x1fffffull, va);
	}
	assert_int_equal(kvm_guest_u64(&g, LAYOUT_BOOT_PML4 + 8), 0);
	assert_int_equal(kvm_guest_u64(&g, LAYOUT_BOOT_PML4 + 0x1000 + 32), 0);
	/* Nothing beyond: the command line area is untouched. */
	assert_int_equal(kvm_guest_u64(&g, LAYOUT_BOOT_PML4 + 0x6000), 0);
	ram_fini(&g.ram);
}

/* The PVH protocol: EBX, CR0, CR4, flat 32-bit segments. */
KVM_GUEST_PAYLOAD(pvh32,
		  ".code32\n"
		  "mov $0x200000, %edi\n"
		  "mov %ebx, (%edi)\n"
		  "mov %cr0, %eax\n"
		  "mov %eax, 4(%edi)\n"
		  "mov %cr4, %eax\n"
		  "mov %eax, 8(%edi)\n"
		  "pushfl\n"
		  "popl 12(%edi)\n"
		  /* Reload from the GDT in memory: it must hold the same. */
		  "mov $0x18, %eax\n"
		  "mov %eax, %ds\n"
		  "mov %eax, %es\n"
		  "mov %eax, %ss\n"
		  "movl $0x2badcafe, %es:16(%edi)\n"
		  "ljmp $0x10, $0x100000 + 1f - pvh32_begin\n"
		  "1: mov $0x32, %al\n"
		  "out %al, $0xf4\n"
		  "hlt\n");

static void test_pvh32(void **state)
{
	const struct start_state start = {
		.mode = START_PVH32,
		.entry = CODE,
		.arg = ARG,
		.stack = STACK,
	};
	struct kvm_sregs sregs;
	struct kvm_guest g;

	kvm_guest_skip_without_kvm();
	kvm_guest_init(&g, IRQCHIP_NONE, 0);
	kvm_guest_load(&g, CODE, pvh32);
	assert_int_equal(start_write_tables(&g.ram, START_PVH32), 0);
	assert_int_equal(start_load(&g.vcpu, &start), 0);
	assert_int_equal(kvm_vcpu_get_sregs(&g.vcpu, &sregs), 0);
	assert_int_equal(sregs.tr.type, 0xb);
	assert_int_equal(sregs.tr.base, 0);
	assert_int_equal(sregs.tr.limit, 0x67);
	assert_int_equal(sregs.efer, 0);
	assert_int_equal(kvm_guest_run(&g), 0x32);
	assert_int_equal(kvm_guest_u64(&g, RESULTS) & 0xffffffff, ARG);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 4) & 0xffffffff, 0x11);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 8) & 0xffffffff, 0);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 12) & 0x20300, 0);
	assert_int_equal(kvm_guest_u64(&g, RESULTS + 16) & 0xffffffff,
			 0x2badcafe);
	kvm_guest_fini(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_linux64_tables),
		cmocka_unit_test(test_flat64_user),
		cmocka_unit_test(test_flat64_kernel),
		cmocka_unit_test(test_flat64_fault_is_shutdown),
		cmocka_unit_test(test_flat64_refuses),
		cmocka_unit_test(test_linux64),
		cmocka_unit_test(test_pvh32),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
