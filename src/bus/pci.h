/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PCI functions on bus 0: configuration space, BARs, capabilities.
 *
 * A device embeds struct pci_dev, fills the identity, declares BARs and
 * capabilities, and plugs it into the host bridge (bus/pci_host.h), which
 * gives BARs their addresses and answers CF8/CFC and ECAM.
 *
 * Configuration space is hostile input's first stop: every byte has a write
 * mask, and only masked bits change. Devices see a write through the hook
 * after the masked bytes have been stored.
 *
 * Threads: configuration accesses are serialised by the host bridge's lock;
 * BAR accesses come straight from vCPU threads, in parallel.
 * Source: PCI Local Bus 3.0 chapter 6, PCI Express base 7.2.2 (ECAM).
 */
#ifndef QUIRE_BUS_PCI_H
#define QUIRE_BUS_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "bus/iobus.h"

#define PCI_CONFIG_BYTES 256 /* extended space reads as zero */
#define PCI_NUM_BARS	 6

struct pci_bar {
	uint64_t size; /* 0: absent; a power of two, >= 16 */
	bool is_64bit; /* uses this BAR and the next */
	bool prefetchable;
	const struct iobus_ops *ops;
	void *dev;     /* passed to ops */
	uint64_t addr; /* where it is mapped now, valid if mapped */
	bool mapped;
};

struct pci_dev {
	const char *name;
	uint8_t config[PCI_CONFIG_BYTES];
	uint8_t wmask[PCI_CONFIG_BYTES];   /* 1: guest may change the bit */
	uint8_t w1cmask[PCI_CONFIG_BYTES]; /* 1: writing 1 clears the bit */
	struct pci_bar bars[PCI_NUM_BARS];
	uint8_t next_cap; /* where the next capability goes */
	uint8_t last_cap; /* link to patch; 0: none yet */
	uint8_t devfn;	  /* set when plugged */

	/* Optional hooks, called with the host bridge's lock held. */
	/* Before bytes are read: refresh config[] for [offset, offset+len). */
	void (*config_before_read)(struct pci_dev *dev, uint32_t offset,
				   uint32_t len);
	/* After bytes were stored. */
	void (*config_after_write)(struct pci_dev *dev, uint32_t offset,
				   uint32_t len);
	/* After bars[].addr or .mapped changed, at plug and reset as well. */
	void (*bars_moved)(struct pci_dev *dev);
};

struct pci_id {
	uint16_t vendor, device;
	uint16_t subsystem_vendor, subsystem;
	uint8_t revision;
	uint32_t class_code; /* 24 bits: class, subclass, interface */
};

/* Zero dev and set up a type 0 header. */
void pci_dev_init(struct pci_dev *dev, const char *name,
		  const struct pci_id *id);

/* Declare a memory BAR. Programming errors (bad size, taken) are BUGs. */
void pci_dev_add_bar(struct pci_dev *dev, unsigned int bar, uint64_t size,
		     bool is_64bit, bool prefetchable,
		     const struct iobus_ops *ops, void *ops_dev);

/*
 * Append a capability of len bytes (id and next pointer included; body starts
 * at data[0] = byte 2). Returns its offset in configuration space.
 */
uint8_t pci_dev_add_cap(struct pci_dev *dev, uint8_t id, const void *data,
			uint8_t len);

#endif
