/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MSI-X: table, pending bits, and one eventfd + irqfd route for each vector.
 *
 * Raising an unmasked vector is one eventfd write from any thread, with no
 * lock: KVM injects it. A masked vector sets its pending bit and fires when it
 * is unmasked. Source: PCI Local Bus 3.0 section 6.8.2.
 */
#ifndef QUIRE_BUS_MSIX_H
#define QUIRE_BUS_MSIX_H

#include "base/err.h"
#include "bus/pci.h"
#include "kvm/irq.h"
#include "state/state.h"

struct msix;

/*
 * Make num_vectors vectors; table and PBA live in BAR `bar` at the given
 * offsets, whose accesses the device forwards to msix_table_* and
 * msix_pba_read. Adds the capability to dev. router may be NULL in tests (then
 * only state is kept).
 */
__must_check int msix_new(struct msix **ret, struct pci_dev *dev,
			  struct irq_router *router, unsigned int num_vectors,
			  unsigned int bar, uint32_t table_offset,
			  uint32_t pba_offset);
void msix_free(struct msix *msix);

/* Table and PBA window sizes for the BAR layout. */
uint32_t msix_table_bytes(unsigned int num_vectors);
uint32_t msix_pba_bytes(unsigned int num_vectors);

/* Offsets are relative to the table / the PBA. Out of range reads as zero. */
void msix_table_read(struct msix *msix, uint64_t offset, void *data,
		     uint32_t len);
void msix_table_write(struct msix *msix, uint64_t offset, const void *data,
		      uint32_t len);
void msix_pba_read(struct msix *msix, uint64_t offset, void *data,
		   uint32_t len);

/* To be called from the device's config_after_write hook. */
void msix_config_written(struct msix *msix, uint32_t offset, uint32_t len);

/* Did the guest switch MSI-X on? Any thread, no lock. */
bool msix_enabled(const struct msix *msix);

/*
 * Section "msix" of a saved state: the table and what is pending. Whether it is
 * switched on is in configuration space, which is to be loaded after it.
 */
__must_check int msix_save(struct msix *msix, const char *instance,
			   struct state_writer *w, struct err *err);
__must_check int msix_load(struct msix *msix, const char *instance,
			   struct state_reader *r, struct err *err);

/* Fire vector (any thread). Out of range vectors are ignored. */
void msix_notify(struct msix *msix, unsigned int vector);

/*
 * An eventfd that somebody else signals, such as a back end in another process.
 * While its vector is unmasked KVM itself listens to it, so that no thread of
 * ours is in the way. While it is masked nobody does: the eventfd's count is
 * the pending bit, and fires the vector when that is unmasked. Several sources
 * may share a vector, and msix_notify() works beside them.
 *
 * Zeroed: not attached. Attach and detach: one thread at a time.
 */
struct msix_source {
	struct msix_source *next; /* of all that are attached; msix's own */
	int fd;
	unsigned int vector;
	bool attached, bound;
};

/* fd stays the caller's, and open until detached. Bad vectors: no effect. */
void msix_source_attach(struct msix *msix, struct msix_source *src,
			unsigned int vector, int fd);
void msix_source_detach(struct msix *msix, struct msix_source *src);

#endif
