/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Register states a vCPU can start in.
 *
 * Used by the boot loaders (64-bit Linux entry, 32-bit PVH entry) and by
 * payloads the VMM starts itself in long mode (the probe guest, doctor's
 * loops, later the second-stage touch stub).
 */
#ifndef QUIRE_X86_START_H
#define QUIRE_X86_START_H

#include <stdint.h>

#include "kvm/vcpu.h"
#include "mem/ram.h"

/* Where the first vCPU starts, as a boot loader leaves it. */
enum start_mode {
	START_LINUX64, /* long mode, CPL0, identity page tables, RSI = arg */
	START_PVH32,   /* 32-bit protected mode, no paging, EBX = arg */
};

struct start_state {
	enum start_mode mode;
	uint64_t entry; /* RIP */
	uint64_t arg;	/* zero page / start info, guest-physical */
	uint64_t stack; /* RSP */
};

/*
 * Write the GDT (and for LINUX64 identity page tables of the first 4 GiB with
 * 2M pages, at LAYOUT_*) into guest memory.
 */
__must_check int start_write_tables(const struct ram *ram,
				    enum start_mode mode);
/* Load the registers of the boot vCPU. */
__must_check int start_load(struct kvm_vcpu *vcpu,
			    const struct start_state *state);

/*
 * A payload started directly in 64-bit mode. Paging structures are the
 * caller's: pml4 is their guest-physical root. cpl is 0 or 3; either may use
 * all ports (see start_load_flat64). fs_base carries a per-vCPU pointer,
 * rdi the first argument. Interrupts off; SSE usable. There is no IDT: any
 * exception ends in KVM_EXIT_SHUTDOWN. EFER.NXE is off, so no NX bits.
 */
struct start_flat64 {
	uint64_t pml4;
	uint64_t rip, rsp, rdi, rsi;
	unsigned int cpl;
	uint64_t fs_base;
};

/* Eight descriptors, the task state, its bit for each port and a last byte. */
#define START_FLAT64_BYTES (8 * 8 + 104 + 65536 / 8 + 1)

/*
 * Segments are loaded from their hidden parts; gdt is where this call also
 * writes a matching GDT and TSS, START_FLAT64_BYTES of them. vCPUs may share
 * them.
 *
 * Ports at CPL3: IOPL is 3, which is enough on hardware. A KVM that runs guest
 * user mode without hardware help may lose IOPL; its emulator then asks the
 * TSS's permission bitmap, which forbids none, and reads it through the
 * payload's page tables. These must map gdt to its own address then (for the
 * supervisor will do). Source: AMD64 APM volume 2, 12.2.5.
 */
__must_check int start_load_flat64(struct kvm_vcpu *vcpu, const struct ram *ram,
				   struct gpa gdt,
				   const struct start_flat64 *state);

/*
 * Only the registers, for code at CPL0 that never looks at GDT or TSS: nothing
 * is written to guest memory, and the FPU is left alone. state->cpl is 0.
 */
__must_check int start_load_flat64_registers(struct kvm_vcpu *vcpu,
					     const struct start_flat64 *state);

#endif
