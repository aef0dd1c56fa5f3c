/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The modern virtio PCI transport (virtio 1.2 section 4.1): one 64-bit BAR with
 * common configuration, ISR, device configuration, notifications, MSI-X table
 * and PBA, plus VIRTIO_PCI_CAP_PCI_CFG. No legacy interface.
 *
 * Threads: registers are under the transport's lock; notifications go through
 * an ioeventfd for each queue and never take it.
 */
#ifndef QUIRE_VIRTIO_PCI_H
#define QUIRE_VIRTIO_PCI_H

#include "bus/pci_host.h"
#include "kvm/irq.h"
#include "state/state.h"
#include "virtio/virtio.h"

struct virtio_pci;

/*
 * Wrap dev (ownership moves here, on failure as well) and plug it into host.
 * vm and router may be NULL in tests: then there are no ioeventfds and no
 * interrupts, and notifications arrive as BAR writes.
 */
__must_check int virtio_pci_new(struct virtio_pci **ret, struct virtio_dev *dev,
				struct pci_host *host, struct kvm_vm *vm,
				struct irq_router *router, struct err *err);
/* Unplugs, deactivates and destroys the device. vCPUs may run. */
void virtio_pci_free(struct virtio_pci *vpci);

struct virtio_dev *virtio_pci_dev(struct virtio_pci *vpci);
/*
 * Append its sections to a saved state, by dev->config_id; held and drained.
 * -ENOTSUP: devices of this class are not saved.
 */
__must_check int virtio_pci_save(struct virtio_pci *vpci,
				 struct state_writer *w, struct err *err);
/*
 * Load them into a device as it was plugged, and activate it where the driver
 * had it so; it should be held. -EINVAL: the device is not like the saved one.
 */
__must_check int virtio_pci_load(struct virtio_pci *vpci,
				 struct state_reader *r, struct err *err);
/* When all is loaded: those that were on their way when it was saved. */
void virtio_pci_interrupt_all(struct virtio_pci *vpci);

/* Before the guest runs: out of its slot, and into that one. */
void virtio_pci_unplug(struct virtio_pci *vpci);
__must_check int virtio_pci_plug(struct virtio_pci *vpci, unsigned int slot);

/* Device and function on bus 0. */
uint8_t virtio_pci_devfn(const struct virtio_pci *vpci);

#endif
