/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registers behind ACPI hot-plug of PCI slots at PORT_HOTPLUG. The DSDT's
 * event method reads what happened, acknowledges it and notifies the slots'
 * device objects; their _EJ0 writes to the last register.
 *
 *	+0  UP     4 bytes  a device came into these slots; write 1 to clear
 *	+4  DOWN   4 bytes  the host asks for these; write 1 to clear
 *	+8  EJECT  4 bytes  write 1: the guest is done with the slot; reads as 0
 *
 * Bit n is slot n. Accesses other than four aligned bytes read slices and write
 * nothing. The event line stands while UP or DOWN has a bit: an event that came
 * before the guest listened is not lost.
 *
 * EJECT is honoured for slots that the host has asked for, once for each
 *request; all else is dropped and counted. So a guest cannot lose a device that
 *nobody wanted back. A device honoured is gone from configuration space and
 *MMIO when the write completes; the rest follows on the control thread.
 *
 * Threads: registers from vCPU threads, the functions below and the ejected
 *hook on the control thread; own mutex, of which no hook is called with but
 *event. Source: ACPI 6.5, sections 5.6.6 and 6.3; the register block is our
 *own.
 */
#ifndef QUIRE_DEVICE_PCI_HOTPLUG_H
#define QUIRE_DEVICE_PCI_HOTPLUG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "state/state.h"

struct evloop;
struct iobus;
struct pci_host;
struct pci_hotplug;

#define HOTPLUG_PORTS 12

struct pci_hotplug_config {
	struct iobus *pio;
	struct pci_host *pci;
	struct evloop *loop; /* NULL in tests: they poll */
	/* The event line, from any thread, with the mutex held. */
	void (*event)(void *ctx, bool level);
	/* A slot that was asked for was ejected; control thread. */
	void (*ejected)(void *ctx, unsigned int slot);
	void *ctx;
};

__must_check int pci_hotplug_new(struct pci_hotplug **ret,
				 const struct pci_hotplug_config *cfg);
/* vCPUs stopped. NULL is fine. */
void pci_hotplug_free(struct pci_hotplug *hp);

/* Tell the guest of a device in slot, which is plugged already. */
void pci_hotplug_added(struct pci_hotplug *hp, unsigned int slot);

/* Ask the guest for slot, for the first time or again. */
void pci_hotplug_request(struct pci_hotplug *hp, unsigned int slot);

/* Asked for, and still there (the ejected hook has not been called). */
bool pci_hotplug_requested(struct pci_hotplug *hp, unsigned int slot);

/*
 * Section "pci-hotplug" of a saved state. -EBUSY: the guest has let a device go
 * that is still being taken apart. Loading drives the event line.
 */
__must_check int pci_hotplug_save(struct pci_hotplug *hp,
				  struct state_writer *w, struct err *err);
__must_check int pci_hotplug_load(struct pci_hotplug *hp,
				  struct state_reader *r, struct err *err);

/* Ejects that were dropped. */
uint64_t pci_hotplug_refused(struct pci_hotplug *hp);

/* Call ejected for what waits. The event loop does it; tests do too. */
void pci_hotplug_poll(struct pci_hotplug *hp);

#endif
