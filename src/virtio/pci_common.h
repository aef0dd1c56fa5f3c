/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to the PCI transport: its state, and the split between pci_common.c
 * (the common configuration registers and the driver's life cycle) and pci.c
 * (PCI function, BAR, notifications, interrupts).
 *
 * Threads: vpci_common_*() and vpci_reset_locked() run with lock held. Fields
 * that a device's threads reach, through virtio_transport_ops, are atomic: such
 * a thread must never wait for the lock, whose holder may be in deactivate()
 * waiting for that thread.
 */
#ifndef QUIRE_VIRTIO_PCI_COMMON_H
#define QUIRE_VIRTIO_PCI_COMMON_H

#include <pthread.h>
#include <stdatomic.h>

#include "bus/msix.h"
#include "virtio/pci.h"

/* struct virtio_pci_common_cfg of virtio 1.2, up to queue_reset. */
#define VPCI_COMMON_BYTES 60

#define VPCI_NO_VECTOR 0xffff /* VIRTIO_MSI_NO_VECTOR */

/* Device status bits, virtio 1.2 section 2.1. */
#define VPCI_STATUS_ACKNOWLEDGE 0x01
#define VPCI_STATUS_DRIVER	0x02
#define VPCI_STATUS_DRIVER_OK	0x04
#define VPCI_STATUS_FEATURES_OK 0x08
#define VPCI_STATUS_NEEDS_RESET 0x40
#define VPCI_STATUS_FAILED	0x80

/* One queue as the driver set it up; virtqueue proper starts at DRIVER_OK. */
struct vpci_queue {
	_Atomic uint16_t vector;
	bool enabled;
	uint16_t size;
	uint64_t desc, avail, used;
	struct msix_source call; /* the device's call_fd, if it has one */
	/* The ioeventfd in place: its address and length. */
	bool attached;
	uint64_t attached_addr;
	uint32_t attached_len;
};

struct virtio_pci {
	struct pci_dev pci;
	struct virtio_dev *dev;
	struct pci_host *host;
	struct kvm_vm *vm;
	struct msix *msix;
	uint8_t cfg_cap; /* offset of VIRTIO_PCI_CAP_PCI_CFG */

	_Atomic uint8_t status;
	_Atomic uint8_t isr;
	_Atomic uint8_t generation;
	_Atomic uint16_t config_vector;

	pthread_mutex_t
		lock; /* all below, and what vpci_queue has but vector */
	bool active;  /* between activate() and deactivate() */
	bool mapped;  /* the BAR is, at bar_addr */
	uint64_t bar_addr;
	uint32_t device_feature_select, driver_feature_select;
	uint64_t driver_features;
	uint16_t queue_select;
	struct vpci_queue queues[];
};

/* Accesses of any length; other than the field's own they have no effect. */
uint64_t vpci_common_read(struct virtio_pci *v, uint32_t offset, uint32_t len);
void vpci_common_write(struct virtio_pci *v, uint32_t offset, uint64_t value,
		       uint32_t len);

/* As the driver writing status 0; also the way to stop at the end. */
void vpci_reset_locked(struct virtio_pci *v);

/* DRIVER_OK once more, with queues that vq_restore() has set up. */
__must_check int vpci_activate_restored_locked(struct virtio_pci *v);

/* Implemented in pci.c: point enabled queues' notifications at kick_fd. */
void vpci_ioeventfds_attach_locked(struct virtio_pci *v);
void vpci_ioeventfds_detach_locked(struct virtio_pci *v);

/* Implemented in pci.c: have KVM listen to call_fd for the queue's vector. */
void vpci_call_route_locked(struct virtio_pci *v, unsigned int queue);

/* DEVICE_NEEDS_RESET and a configuration interrupt. Any thread. */
void vpci_needs_reset(struct virtio_pci *v);

#endif
