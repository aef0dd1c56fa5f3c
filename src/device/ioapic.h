/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The 24-pin IOAPIC in user space, for IRQCHIP_SPLIT: it turns pin changes into
 * MSIs for the in-kernel LAPICs.
 *
 * Source: Intel 82093AA data sheet; version 0x20 adds the EOI register (ICH9
 * data sheet, section 13.5). KVM's part: api.rst, KVM_CAP_SPLIT_IRQCHIP and
 * KVM_EXIT_IOAPIC_EOI.
 *
 * Polarity is ignored: a line's level says "asserted", as with KVM's own.
 *
 * Threads: any; own mutex, taken with devices' mutexes held.
 */
#ifndef QUIRE_DEVICE_IOAPIC_H
#define QUIRE_DEVICE_IOAPIC_H

#include <stdint.h>

#include "base/compiler.h"
#include "kvm/irq.h"
#include "state/state.h"

struct evloop;
struct ioapic;
struct iobus;

#define IOAPIC_SIZE 0x1000

struct ioapic_config {
	struct iobus *mmio;
	struct irq_router *router;
	/* Holds back a line that storms; NULL: it is not held back. */
	struct evloop *loop;
};

__must_check int ioapic_new(struct ioapic **ret,
			    const struct ioapic_config *cfg);
void ioapic_free(struct ioapic *ioapic);

/* KVM_EXIT_IOAPIC_EOI: a level-triggered vector was acknowledged. */
void ioapic_eoi(struct ioapic *ioapic, uint8_t vector);

/*
 * Section "ioapic" of a saved state. Lines are not part of it: each device
 * drives its own again after this was loaded.
 */
void ioapic_save(struct ioapic *ioapic, struct state_writer *w);
__must_check int ioapic_load(struct ioapic *ioapic, struct state_reader *r,
			     struct err *err);

struct irq_line ioapic_line(struct ioapic *ioapic, uint32_t gsi);

#endif
