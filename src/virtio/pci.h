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
/* Device and function on bus 0. */
uint8_t virtio_pci_devfn(const struct virtio_pci *vpci);

#endif
