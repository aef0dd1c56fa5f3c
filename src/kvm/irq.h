/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Interrupts: the in-kernel irqchip, the GSI routing table, irqfd.
 *
 * IRQCHIP_KERNEL: PIC, IOAPIC and LAPIC in the kernel (and the PIT).
 * IRQCHIP_SPLIT: only the LAPIC; the IOAPIC is ours (device/ioapic.h). Kernels
 * built without KVM_IOAPIC have nothing else, and then it is chosen by itself.
 *
 * GSIs 0..23 belong to the IOAPIC pins. MSI routes are allocated above them.
 *
 * Threads: the router locks itself. An irq_line may be raised from any thread.
 */
#ifndef QUIRE_KVM_IRQ_H
#define QUIRE_KVM_IRQ_H

#include <stdbool.h>
#include <stdint.h>

#include "kvm/kvm.h"

enum irqchip_kind {
	IRQCHIP_NONE, /* the probe guest needs no interrupts */
	IRQCHIP_KERNEL,
	IRQCHIP_SPLIT,
};

#define IRQCHIP_NUM_PINS 24

struct irq_router;

/*
 * Create the irqchip (before any vCPU) and the router for it. With
 * IRQCHIP_KERNEL and a kernel that lacks it, SPLIT is taken;
 * irq_router_kind() says what it became.
 */
__must_check int irq_router_new(struct irq_router **ret, struct kvm_vm *vm,
				enum irqchip_kind kind, struct err *err);
void irq_router_free(struct irq_router *router);
enum irqchip_kind irq_router_kind(const struct irq_router *router);

/*
 * May an MSI address more than 255 CPUs? Then guests put bits 14:8 of the
 * destination into address bits 11:5 (KVM_FEATURE_MSI_EXT_DEST_ID), and the
 * router moves them to where KVM looks (api.rst, KVM_CAP_X2APIC_API).
 */
bool irq_router_has_ext_dest(const struct irq_router *router);

/* A new GSI for one MSI source, unrouted until set. -ENOSPC when all are used.
 */
__must_check int irq_router_alloc_msi(struct irq_router *, uint32_t *ret_gsi);
void irq_router_release_msi(struct irq_router *, uint32_t gsi);

/*
 * Route gsi to an MSI message. Takes effect before return. Also used by the
 * user-space IOAPIC for its pins (gsi < IRQCHIP_NUM_PINS).
 */
__must_check int irq_router_set_msi(struct irq_router *, uint32_t gsi,
				    uint64_t address, uint32_t data);
__must_check int irq_router_clear_msi(struct irq_router *, uint32_t gsi);

/* Bind or unbind an eventfd: a signal on it raises gsi (edge). */
__must_check int irq_router_bind_fd(struct irq_router *, uint32_t gsi, int fd);
__must_check int irq_router_unbind_fd(struct irq_router *, uint32_t gsi,
				      int fd);

/* Inject one MSI without a route (KVM_SIGNAL_MSI). */
__must_check int irq_router_signal_msi(struct irq_router *, uint64_t address,
				       uint32_t data);

/*
 * A wired interrupt line as devices see it. set() drives pin gsi of whichever
 * IOAPIC there is; level follows the line, the IOAPIC pin's trigger mode
 * decides what it means.
 */
struct irq_line {
	void (*set)(void *ctx, uint32_t gsi, bool level);
	void *ctx;
	uint32_t gsi;
};

static inline void irq_line_set(const struct irq_line *line, bool level)
{
	if (line->set)
		line->set(line->ctx, line->gsi, level);
}

/* The line for pin gsi of the in-kernel IOAPIC (IRQCHIP_KERNEL only). */
struct irq_line irq_router_line(struct irq_router *router, uint32_t gsi);

#endif
