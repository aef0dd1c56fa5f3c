/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. The driver's life cycle is the status register:
 *
 *	0 -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK -> 0
 *
 * Bits are only ever added; writing 0 is the reset. FEATURES_OK does not stick
 * when the driver asks for what was not offered, or is a legacy one without
 * VERSION_1. DRIVER_OK starts the enabled queues from what the driver wrote and
 * activates the device. When that fails, or when a device's thread reports
 * broken rings, NEEDS_RESET is added and only a reset goes on from there; the
 * device itself is taken down by that reset, not before.
 *
 * Registers answer to accesses of their own width, the 64-bit ones to halves
 * as well (virtio 1.2 section 4.1.3.1); others read as zero and do nothing.
 */
#include "virtio/pci_common.h"

#include <linux/virtio_pci.h>
#include <string.h>

#include "base/io.h"
#include "base/log.h"

static struct vpci_queue *selected_queue(struct virtio_pci *v)
{
	return v->queue_select < v->dev->num_queues
		       ? &v->queues[v->queue_select]
		       : NULL;
}

/* ---- life cycle ---- */

static int start_queues_locked(struct virtio_pci *v)
{
	struct virtio_dev *dev = v->dev;

	for (unsigned int i = 0; i < dev->num_queues; i++) {
		const struct vpci_queue *q = &v->queues[i];
		struct vq_config cfg = {
			.size = q->size,
			.desc = q->desc,
			.avail = q->avail,
			.used = q->used,
			.event_idx = dev->features & VIRTIO_F_EVENT_IDX,
			.indirect = dev->features & VIRTIO_F_INDIRECT_DESC,
		};
		int r = q->enabled ? vq_start(&dev->queues[i].vq, &cfg) : 0;

		if (r)
			return r;
	}
	return 0;
}

static void stop_queues_locked(struct virtio_pci *v)
{
	for (unsigned int i = 0; i < v->dev->num_queues; i++)
		vq_stop(&v->dev->queues[i].vq);
}

/* Its queues are started. */
static int activate_device_locked(struct virtio_pci *v)
{
	int r;

	v->active = true;
	vpci_ioeventfds_attach_locked(v);
	r = v->dev->cls->activate(v->dev);
	if (!r)
		return 0;
	vpci_ioeventfds_detach_locked(v);
	v->active = false;
	return r;
}

int vpci_activate_restored_locked(struct virtio_pci *v)
{
	int r = activate_device_locked(v);

	if (r)
		stop_queues_locked(v);
	return r;
}

static void activate_locked(struct virtio_pci *v)
{
	struct virtio_dev *dev = v->dev;
	int r = start_queues_locked(v);

	if (!r)
		r = activate_device_locked(v);
	if (!r)
		return;
	stop_queues_locked(v);
	atomic_fetch_add_explicit(&dev->errors, 1, memory_order_relaxed);
	log_ratelimited(LOG_LEVEL_WARN, "%s: cannot start: %s", dev->id,
			strerror(-r));
	vpci_needs_reset(v);
}

static void deactivate_locked(struct virtio_pci *v)
{
	vpci_ioeventfds_detach_locked(v);
	v->dev->cls->deactivate(v->dev);
	v->active = false;
	stop_queues_locked(v);
}

void vpci_reset_locked(struct virtio_pci *v)
{
	struct virtio_dev *dev = v->dev;

	if (v->active)
		deactivate_locked(v);
	for (unsigned int i = 0; i < dev->num_queues; i++) {
		struct vpci_queue *q = &v->queues[i];

		atomic_store(&q->vector, VPCI_NO_VECTOR);
		vpci_call_route_locked(v, i);
		q->enabled = false;
		q->size = dev->queues[i].vq.max_size;
		q->desc = q->avail = q->used = 0;
		io_eventfd_drain(dev->queues[i].kick_fd);
	}
	dev->features = 0;
	v->driver_features = 0;
	v->device_feature_select = 0;
	v->driver_feature_select = 0;
	v->queue_select = 0;
	atomic_store(&v->config_vector, VPCI_NO_VECTOR);
	atomic_store(&v->isr, 0);
	/* Last, so that a late NEEDS_RESET of a device thread goes too. */
	atomic_store(&v->status, 0);
}

static bool accept_features_locked(struct virtio_pci *v)
{
	if (!(v->driver_features & VIRTIO_F_VERSION_1) ||
	    (v->driver_features & ~v->dev->offered))
		return false;
	v->dev->features = v->driver_features;
	return true;
}

static void write_status_locked(struct virtio_pci *v, uint8_t value)
{
	uint8_t old = atomic_load(&v->status);
	uint8_t added = value & (uint8_t)~old &
			(uint8_t)~VPCI_STATUS_NEEDS_RESET;

	if (!value) {
		vpci_reset_locked(v);
		return;
	}
	if ((added & VPCI_STATUS_FEATURES_OK) && !accept_features_locked(v)) {
		log_ratelimited(LOG_LEVEL_WARN,
				"%s: the guest's driver wants features 0x%llx, "
				"of 0x%llx offered",
				v->dev->id,
				(unsigned long long)v->driver_features,
				(unsigned long long)v->dev->offered);
		added &= (uint8_t)~VPCI_STATUS_FEATURES_OK;
	}
	/* A driver may not run a device whose features it did not settle. */
	if (!((old | added) & VPCI_STATUS_FEATURES_OK) ||
	    (old & VPCI_STATUS_NEEDS_RESET))
		added &= (uint8_t)~VPCI_STATUS_DRIVER_OK;
	atomic_fetch_or(&v->status, added);
	if (added & VPCI_STATUS_DRIVER_OK)
		activate_locked(v);
}

/* ---- registers ---- */

/* The width of the register that starts at offset, or 0. */
static uint32_t register_width(uint32_t offset)
{
	switch (offset) {
	case VIRTIO_PCI_COMMON_STATUS:
	case VIRTIO_PCI_COMMON_CFGGENERATION:
		return 1;
	case VIRTIO_PCI_COMMON_MSIX:
	case VIRTIO_PCI_COMMON_NUMQ:
	case VIRTIO_PCI_COMMON_Q_SELECT:
	case VIRTIO_PCI_COMMON_Q_SIZE:
	case VIRTIO_PCI_COMMON_Q_MSIX:
	case VIRTIO_PCI_COMMON_Q_ENABLE:
	case VIRTIO_PCI_COMMON_Q_NOFF:
		return 2;
	case VIRTIO_PCI_COMMON_DFSELECT:
	case VIRTIO_PCI_COMMON_DF:
	case VIRTIO_PCI_COMMON_GFSELECT:
	case VIRTIO_PCI_COMMON_GF:
	case VIRTIO_PCI_COMMON_Q_DESCLO:
	case VIRTIO_PCI_COMMON_Q_DESCHI:
	case VIRTIO_PCI_COMMON_Q_AVAILLO:
	case VIRTIO_PCI_COMMON_Q_AVAILHI:
	case VIRTIO_PCI_COMMON_Q_USEDLO:
	case VIRTIO_PCI_COMMON_Q_USEDHI:
		return 4;
	default:
		/*
		 * queue_notify_data and queue_reset belong to features that
		 * are not offered: zero.
		 */
		return 0;
	}
}

/* A whole ring address, accessed as one? */
static bool is_ring_address(uint32_t offset, uint32_t len)
{
	return len == 8 && (offset == VIRTIO_PCI_COMMON_Q_DESCLO ||
			    offset == VIRTIO_PCI_COMMON_Q_AVAILLO ||
			    offset == VIRTIO_PCI_COMMON_Q_USEDLO);
}

static uint64_t *ring_address(struct vpci_queue *q, uint32_t offset)
{
	if (offset < VIRTIO_PCI_COMMON_Q_AVAILLO)
		return &q->desc;
	return offset < VIRTIO_PCI_COMMON_Q_USEDLO ? &q->avail : &q->used;
}

/* Which half of its ring address a register holds, as a shift. */
static unsigned int ring_shift(uint32_t offset)
{
	return (offset - VIRTIO_PCI_COMMON_Q_DESCLO) % 8 ? 32 : 0;
}

static uint32_t feature_word(uint64_t features, uint32_t select)
{
	return select < 2 ? (uint32_t)(features >> (32 * select)) : 0;
}

static uint32_t read_queue_locked(struct virtio_pci *v, uint32_t offset)
{
	struct vpci_queue *q = selected_queue(v);

	if (!q)
		return offset == VIRTIO_PCI_COMMON_Q_MSIX ? VPCI_NO_VECTOR : 0;
	switch (offset) {
	case VIRTIO_PCI_COMMON_Q_SIZE:
		return q->size;
	case VIRTIO_PCI_COMMON_Q_MSIX:
		return atomic_load(&q->vector);
	case VIRTIO_PCI_COMMON_Q_ENABLE:
		return q->enabled;
	case VIRTIO_PCI_COMMON_Q_NOFF:
		return v->queue_select;
	default:
		return (uint32_t)(*ring_address(q, offset) >>
				  ring_shift(offset));
	}
}

static uint32_t read_register_locked(struct virtio_pci *v, uint32_t offset)
{
	switch (offset) {
	case VIRTIO_PCI_COMMON_DFSELECT:
		return v->device_feature_select;
	case VIRTIO_PCI_COMMON_DF:
		return feature_word(v->dev->offered, v->device_feature_select);
	case VIRTIO_PCI_COMMON_GFSELECT:
		return v->driver_feature_select;
	case VIRTIO_PCI_COMMON_GF:
		return feature_word(v->driver_features,
				    v->driver_feature_select);
	case VIRTIO_PCI_COMMON_MSIX:
		return atomic_load(&v->config_vector);
	case VIRTIO_PCI_COMMON_NUMQ:
		return v->dev->num_queues;
	case VIRTIO_PCI_COMMON_STATUS:
		return atomic_load(&v->status);
	case VIRTIO_PCI_COMMON_CFGGENERATION:
		return atomic_load(&v->generation);
	case VIRTIO_PCI_COMMON_Q_SELECT:
		return v->queue_select;
	default:
		return read_queue_locked(v, offset);
	}
}

uint64_t vpci_common_read(struct virtio_pci *v, uint32_t offset, uint32_t len)
{
	if (is_ring_address(offset, len))
		return read_register_locked(v, offset) |
		       (uint64_t)read_register_locked(v, offset + 4) << 32;
	return len && len == register_width(offset)
		       ? read_register_locked(v, offset)
		       : 0;
}

/* A vector that does not exist reads back as none: the driver checks that. */
static uint16_t checked_vector(const struct virtio_pci *v, uint32_t value)
{
	return (uint16_t)(value < v->dev->num_queues + 1 ? value
							 : VPCI_NO_VECTOR);
}

static void write_queue_locked(struct virtio_pci *v, uint32_t offset,
			       uint32_t value)
{
	struct vpci_queue *q = selected_queue(v);
	uint64_t *addr;

	if (!q || offset == VIRTIO_PCI_COMMON_Q_NOFF)
		return;
	if (offset == VIRTIO_PCI_COMMON_Q_MSIX) {
		atomic_store(&q->vector, checked_vector(v, value));
		vpci_call_route_locked(v, v->queue_select);
		return;
	}
	/* Rings are settled by enabling the queue, queues by DRIVER_OK. */
	if (q->enabled || (atomic_load(&v->status) & VPCI_STATUS_DRIVER_OK))
		return;
	switch (offset) {
	case VIRTIO_PCI_COMMON_Q_SIZE:
		q->size = (uint16_t)value; /* vq_start() checks */
		break;
	case VIRTIO_PCI_COMMON_Q_ENABLE:
		q->enabled = value == 1;
		break;
	default:
		addr = ring_address(q, offset);
		*addr &= ~((uint64_t)UINT32_MAX << ring_shift(offset));
		*addr |= (uint64_t)value << ring_shift(offset);
	}
}

static void write_driver_features_locked(struct virtio_pci *v, uint32_t value)
{
	unsigned int shift = 32 * v->driver_feature_select;

	if (v->driver_feature_select > 1 ||
	    (atomic_load(&v->status) & VPCI_STATUS_FEATURES_OK))
		return;
	v->driver_features &= ~((uint64_t)UINT32_MAX << shift);
	v->driver_features |= (uint64_t)value << shift;
}

static void write_register_locked(struct virtio_pci *v, uint32_t offset,
				  uint32_t value)
{
	switch (offset) {
	case VIRTIO_PCI_COMMON_DF:
	case VIRTIO_PCI_COMMON_NUMQ:
	case VIRTIO_PCI_COMMON_CFGGENERATION:
		return; /* read-only */
	case VIRTIO_PCI_COMMON_DFSELECT:
		v->device_feature_select = value;
		return;
	case VIRTIO_PCI_COMMON_GFSELECT:
		v->driver_feature_select = value;
		return;
	case VIRTIO_PCI_COMMON_GF:
		write_driver_features_locked(v, value);
		return;
	case VIRTIO_PCI_COMMON_MSIX:
		atomic_store(&v->config_vector, checked_vector(v, value));
		return;
	case VIRTIO_PCI_COMMON_STATUS:
		write_status_locked(v, (uint8_t)value);
		return;
	case VIRTIO_PCI_COMMON_Q_SELECT:
		v->queue_select = (uint16_t)value;
		return;
	default:
		write_queue_locked(v, offset, value);
	}
}

void vpci_common_write(struct virtio_pci *v, uint32_t offset, uint64_t value,
		       uint32_t len)
{
	if (is_ring_address(offset, len)) {
		write_register_locked(v, offset, (uint32_t)value);
		write_register_locked(v, offset + 4, (uint32_t)(value >> 32));
	} else if (len && len == register_width(offset)) {
		write_register_locked(v, offset, (uint32_t)value);
	}
}
