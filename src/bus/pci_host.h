/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The PCI host bridge: bus 0, configuration mechanism #1 (CF8/CFC), ECAM, and
 * the placing of BARs in the two memory windows.
 *
 * Guests may move BARs and switch memory decoding; the bridge then re-maps the
 * range on the MMIO bus. A BAR pointed outside the windows, or onto another, is
 * left unmapped, as if nobody decoded it; it appears when the range becomes
 * free.
 *
 * Threads: one lock over all configuration space; BAR accesses do not take it.
 */
#ifndef QUIRE_BUS_PCI_HOST_H
#define QUIRE_BUS_PCI_HOST_H

#include "base/err.h"
#include "bus/pci.h"
#include "state/state.h"

#define PCI_HOST_SLOTS 32

struct pci_host;

struct pci_host_config {
	struct iobus *pio;
	struct iobus *mmio;
	uint64_t ecam_base; /* 1 MiB: bus 0 */
	uint64_t window32_base, window32_size;
	uint64_t window64_base, window64_size;
};

/* Creates the bridge function at 00:00.0 and claims its ports and ECAM. */
__must_check int pci_host_new(struct pci_host **ret,
			      const struct pci_host_config *cfg);
void pci_host_free(struct pci_host *host);

/*
 * Put dev (owned by the caller, must outlive its stay) into the first free
 * slot, or slot when slot >= 0, and assign its BARs. -ENOSPC when slots or
 * windows are full, -EEXIST when slot is taken, -EINVAL when there is no such.
 */
__must_check int pci_host_plug(struct pci_host *host, struct pci_dev *dev,
			       int slot);
/*
 * From now on a guest runs: devices plugged later decode nothing until it says
 * so, as a hot-plugged function does. Their BARs have places all the same.
 */
void pci_host_set_live(struct pci_host *host);

/*
 * The function in slot is gone for the guest when this returns: configuration
 * space reads as ones, its BARs are unmapped (bars_moved is called). The slot
 * stays taken until pci_host_unplug(). Any thread; what is under way in a BAR
 * goes on. Returns whether there was one.
 */
bool pci_host_withdraw(struct pci_host *host, unsigned int slot);

/*
 * Withdraw dev and give its slot back. When it returns no vCPU is in dev's code
 * or will be, running or not: it waits for accesses under way. So never from
 * inside an access; control thread.
 */
void pci_host_unplug(struct pci_host *host, struct pci_dev *dev);

/*
 * Port 0xcf9, the reset control register, lies within the bridge's ports but
 * belongs to the platform: one-byte writes go to fn (NULL: dropped), from a
 * vCPU thread and with no lock held. Set before the guest runs.
 */
void pci_host_set_reset_hook(struct pci_host *host,
			     void (*fn)(void *ctx, uint8_t value), void *ctx);

/*
 * Section "pci-host" of a saved state: the bridge, and the address port. Then,
 * for each function, section "pci-function": configuration space, and where its
 * BARs are at home. It is loaded into a function with the same identity and
 * capabilities; BARs are mapped, and config_after_write is called for all of
 * it. Slots are not moved. No vCPU runs.
 */
void pci_host_save(struct pci_host *host, struct state_writer *w);
__must_check int pci_host_load(struct pci_host *host, struct state_reader *r,
			       struct err *err);
void pci_host_save_function(struct pci_host *host, const struct pci_dev *dev,
			    const char *instance, struct state_writer *w);
__must_check int pci_host_load_function(struct pci_host *host,
					struct pci_dev *dev,
					const char *instance,
					struct state_reader *r,
					struct err *err);

/* Raw configuration access as the guest does it; for tests and fuzzing. */
uint32_t pci_host_config_read(struct pci_host *host, uint8_t devfn,
			      uint32_t offset, uint32_t len);
void pci_host_config_write(struct pci_host *host, uint8_t devfn,
			   uint32_t offset, uint32_t value, uint32_t len);

#endif
