/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fixed devices every machine has: serial port, RTC, ACPI power management
 * with PCI hot-plug and the VM generation id, panic and reset ports, and with
 * the split irqchip the IOAPIC; on request the watchdog and the debug-exit
 * port. Control thread only.
 */
#ifndef QUIRE_VM_PLATFORM_H
#define QUIRE_VM_PLATFORM_H

#include <stdbool.h>

#include "base/err.h"
#include "device/device.h"
#include "kvm/irq.h"
#include "state/state.h"

struct chardev;
struct evloop;
struct ioapic;
struct iobus;
struct pci_host;
struct pci_hotplug;
struct platform;
struct ram;
struct vmgenid;

struct platform_config {
	struct iobus *pio, *mmio;
	struct pci_host *pci;
	struct irq_router *router;
	const struct ram *ram;
	struct evloop *loop;
	struct chardev *chardev; /* of the serial port */
	bool debug_exit, watchdog;
	bool restore; /* guest memory is somebody else's to fill */
	struct machine_hooks hooks;
	/* The guest let a PCI slot go that it was asked for; with hooks.ctx. */
	void (*ejected)(void *ctx, unsigned int slot);
};

__must_check int platform_new(struct platform **ret,
			      const struct platform_config *cfg,
			      struct err *err);
/* vCPUs stopped. NULL and half built are fine. */
void platform_free(struct platform *p);

/* The user-space IOAPIC, or NULL with the in-kernel one. */
struct ioapic *platform_ioapic(struct platform *p);

/* The machine was paused for ns: its timers go on from where they were. */
void platform_skip_time(struct platform *p, uint64_t ns);

struct pci_hotplug *platform_hotplug(struct platform *p);
struct vmgenid *platform_vmgenid(struct platform *p);

/* What counts host time stands still while no vCPU runs. */
void platform_pause(struct platform *p);
void platform_resume(struct platform *p);

/*
 * Their sections of a saved state, while paused. at_ns: the instant (of
 * clock_now_ns()) at which time stood still, or from which it goes on.
 */
__must_check int platform_save(struct platform *p, uint64_t at_ns,
			       struct state_writer *w, struct err *err);
__must_check int platform_load(struct platform *p, uint64_t at_ns,
			       struct state_reader *r, struct err *err);

/* Ask the guest's operating system to shut down. */
void platform_power_button(struct platform *p);

#endif
