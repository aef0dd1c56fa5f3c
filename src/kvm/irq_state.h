/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The in-kernel interrupt controllers and timer as sections "pic" (instances
 * "0", the master, and "1"), "ioapic-kvm" and "pit" of a saved state. For
 * IRQCHIP_KERNEL only: with the split irqchip the IOAPIC is ours
 * (device/ioapic.h) and the others do not exist.
 *
 * What comes in over wired lines is not part of it: each device drives its line
 * again when it is loaded. Routes are made by those that have them.
 *
 * Threads: control thread, no vCPU runs. Source:
 * Documentation/virt/kvm/api.rst, KVM_GET_IRQCHIP and KVM_GET_PIT2.
 */
#ifndef QUIRE_KVM_IRQ_STATE_H
#define QUIRE_KVM_IRQ_STATE_H

#include "kvm/kvm.h"
#include "state/state.h"

__must_check int irq_state_save(const struct kvm_vm *vm, struct state_writer *w,
				struct err *err);
/* After the LAPICs of all vCPUs: pending interrupts go to them at once. */
__must_check int irq_state_load(const struct kvm_vm *vm, struct state_reader *r,
				struct err *err);

#endif
