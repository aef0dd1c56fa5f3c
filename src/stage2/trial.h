/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tiny machine to try on it what KVM's capability bits only promise: 4 MiB of
 * RAM, an irqchip, one vCPU with the CPU model of a real guest, and a few bytes
 * of code started directly in 64-bit mode.
 *
 *	0x000000  zeros: an interrupt table without a single gate
 *	0x001000  PML4, PDPT, PD: the first 2 MiB mapped for user mode
 *	0x004000  GDT and task state
 *	0x007000  the payloads, a stack
 *	0x200000  not mapped by the guest; what the pre-fault try populates
 *	0x400000  mapped, but no memory: a store there is the way out
 *
 * Every run of the guest has a time limit. Calls come from one thread, whose
 * SIGALRM is taken over while a guest runs.
 */
#ifndef QUIRE_STAGE2_TRIAL_H
#define QUIRE_STAGE2_TRIAL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "kvm/irq.h"
#include "kvm/vcpu.h"
#include "mem/ram.h"

struct cpu_model;

struct trial {
	struct ram ram;
	struct kvm_vm vm;
	struct irq_router *router;
	struct kvm_vcpu vcpu;
	struct cpu_model *model;
	/* Results that more than one caller needs, filled by the first. */
	bool prefault_tried;
	int prefault_result; /* pages populated, or -errno */
	uint64_t prefault_ns;
};

/* Set everything up. On failure err names the step, and nothing is left. */
__must_check int trial_start(struct trial *m, const struct kvm *kvm,
			     struct err *err);
/* Fine on a zeroed struct. */
void trial_stop(struct trial *m);

/*
 * Instructions per second of a two-instruction loop at privilege level cpl (0
 * or 3). Takes about 10 ms, 0.1 s at most. -EIO: the guest ended otherwise.
 */
__must_check int trial_rate(struct trial *m, unsigned int cpl,
			    double *ret_per_s);

/* Try KVM_PRE_FAULT_MEMORY on host-populated memory; fills prefault_*. */
void trial_prefault(struct trial *m);

/*
 * Let the guest touch a page its own tables do not map and count the faults
 * that KVM saw and handed back. With shadow paging KVM sees them all, with TDP
 * none. The vCPU is in shutdown state afterwards. -ENOENT, -ENOTTY: not
 * countable.
 */
__must_check int trial_guest_faults(struct trial *m, uint64_t *ret_count);

#endif
