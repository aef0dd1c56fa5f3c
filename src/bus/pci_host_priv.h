/* SPDX-License-Identifier: Apache-2.0 */
/* The host bridge, for pci_host.c and pci_state.c. */
#ifndef QUIRE_BUS_PCI_HOST_PRIV_H
#define QUIRE_BUS_PCI_HOST_PRIV_H

#include <pthread.h>

#include "bus/pci_host.h"

struct pci_slot {
	struct pci_dev *dev; /* NULL: free */
	bool withdrawn;	     /* taken, but the guest does not see it any more */
	uint64_t home[PCI_NUM_BARS];
};

struct pci_host {
	struct pci_host_config cfg;
	pthread_mutex_t lock; /* everything below but the hook */
	struct pci_slot slots[PCI_HOST_SLOTS];
	struct pci_dev bridge;
	uint32_t cf8;
	bool live; /* the guest runs */
	void (*reset_hook)(void *ctx, uint8_t value);
	void *reset_ctx;
};

/* Map and unmap what its configuration space says, as after a write. */
void pci_host_sync_bars_locked(struct pci_host *host, struct pci_dev *written);

/* Is [addr, addr + size) in one of the windows for BARs? */
bool pci_host_in_windows(const struct pci_host *host, uint64_t addr,
			 uint64_t size);

#endif
