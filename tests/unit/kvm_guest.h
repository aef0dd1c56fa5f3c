/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM with one vCPU and a few MiB of RAM, for tests of what the kernel makes
 * of our register and CPUID state. Tests skip where /dev/kvm cannot be used.
 */
#ifndef QUIRE_TESTS_KVM_GUEST_H
#define QUIRE_TESTS_KVM_GUEST_H

#include "cmocka_all.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "kvm/irq.h"
#include "kvm/kvm.h"
#include "kvm/vcpu.h"
#include "mem/ram.h"
#include "x86/layout.h"

struct kvm_guest {
	struct kvm kvm;
	struct kvm_vm vm;
	struct kvm_vcpu vcpu;
	struct ram ram;
	struct irq_router *router;
};

#define KVM_GUEST_RAM	    (64 * MIB)
#define KVM_GUEST_DONE_PORT 0xf4 /* a payload writes here when it is done */

static inline void kvm_guest_skip_without_kvm(void)
{
	if (access(KVM_DEVICE_PATH, R_OK | W_OK) < 0) {
		print_message("skipped: no usable " KVM_DEVICE_PATH "\n");
		skip();
	}
}

static inline void kvm_guest_init(struct kvm_guest *g,
				  enum irqchip_kind irqchip,
				  unsigned int vcpu_id)
{
	struct ram_config cfg = {
		.size_bytes = KVM_GUEST_RAM,
		.hole_start = LAYOUT_HOLE_START,
		.hole_end = LAYOUT_HOLE_END,
		.page = RAM_PAGE_4K,
	};
	struct err err = ERR_INIT;

	memset(g, 0, sizeof(*g));
	assert_int_equal(kvm_open(&g->kvm, KVM_DEVICE_PATH, &err), 0);
	assert_int_equal(kvm_vm_create(&g->vm, &g->kvm, &err), 0);
	assert_int_equal(irq_router_new(&g->router, &g->vm, irqchip, &err), 0);
	assert_int_equal(ram_init(&g->ram, &cfg, &err), 0);
	assert_int_equal(kvm_vm_set_slot(&g->vm, 0, 0, KVM_GUEST_RAM,
					 g->ram.base, 0),
			 0);
	assert_int_equal(kvm_vcpu_create(&g->vcpu, &g->vm, vcpu_id, &err), 0);
}

static inline void kvm_guest_fini(struct kvm_guest *g)
{
	kvm_vcpu_close(&g->vcpu);
	irq_router_free(g->router);
	kvm_vm_close(&g->vm);
	ram_fini(&g->ram);
	kvm_close(&g->kvm);
}

/* Run until the payload writes a byte to the done port; returns the byte. */
static inline uint8_t kvm_guest_run(struct kvm_guest *g)
{
	const struct kvm_run *run = g->vcpu.run;

	assert_int_equal(kvm_vcpu_run(&g->vcpu), 0);
	if (run->exit_reason != KVM_EXIT_IO) {
		struct kvm_regs regs = { 0 };
		int r = kvm_vcpu_get_regs(&g->vcpu, &regs);

		fail_msg("exit %u at RIP %#llx (%d)", run->exit_reason,
			 regs.rip, r);
	}
	assert_int_equal(run->io.direction, KVM_EXIT_IO_OUT);
	assert_int_equal(run->io.port, KVM_GUEST_DONE_PORT);
	assert_int_equal(run->io.size, 1);
	return *((const uint8_t *)run + run->io.data_offset);
}

static inline uint64_t kvm_guest_u64(const struct kvm_guest *g, uint64_t gpa)
{
	uint64_t v = 0;

	assert_int_equal(mem_read(&g->ram, GPA(gpa), &v, sizeof(v)), 0);
	return v;
}

/* Identity map of the first GiB with 2M pages that CPL3 may use. */
static inline void kvm_guest_map_user(const struct kvm_guest *g, uint64_t pml4)
{
	const uint64_t bits = 0x67; /* present, writable, user, A, D */
	uint64_t entries[512] = { (pml4 + 0x1000) | bits };

	assert_int_equal(mem_write(&g->ram, GPA(pml4), entries, 4096), 0);
	entries[0] = (pml4 + 0x2000) | bits;
	assert_int_equal(mem_write(&g->ram, GPA(pml4 + 0x1000), entries, 4096),
			 0);
	for (uint64_t i = 0; i < 512; i++)
		entries[i] = i * PAGE_2M | bits | 0x80;
	assert_int_equal(mem_write(&g->ram, GPA(pml4 + 0x2000), entries, 4096),
			 0);
}

/* A payload is position-independent code between two labels of the test. */
#define KVM_GUEST_PAYLOAD(name, text)                                      \
	extern const char name##_begin[], name##_end[];                    \
	__asm__(".pushsection .rodata\n" #name "_begin:\n" text "\n" #name \
		"_end:\n.code64\n.popsection\n")

#define kvm_guest_load(g, gpa, name)                                       \
	assert_int_equal(mem_write(&(g)->ram, GPA(gpa), name##_begin,      \
				   (uint64_t)(name##_end - name##_begin)), \
			 0)

#endif
