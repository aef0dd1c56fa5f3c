/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. One 64-bit BAR holds everything, a page for each kind so
 * that a guest may map them apart:
 *
 *	0x0000  common configuration	(pci_common.c, under the lock)
 *	0x1000  ISR status		(an atomic; reading clears)
 *	0x2000  device configuration	(the class, under the lock)
 *	0x3000  MSI-X table, 0x3800 PBA	(bus/msix.c)
 *	0x4000  notifications, 4 bytes for each queue
 *
 * Notifications: while the device is active, each enabled queue has an
 * ioeventfd on its notification address and KVM signals kick_fd with no exit to
 * us. Where that is not to be had the write arrives here and signals the same
 * kick_fd. When the BAR moves, the ioeventfds follow.
 *
 * Lock order: the host bridge's lock (configuration space, bars_moved), then
 * ours, then msix's. Device threads take none of them: they come in through
 * the transport ops below, which use atomics only.
 */
#include "virtio/pci_common.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/virtio_pci.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/io.h"
#include "base/log.h"

#define VPCI_VENDOR	 0x1af4
#define VPCI_DEVICE_BASE 0x1040
#define VPCI_SUBSYSTEM	 0x1100
#define VPCI_REVISION	 1

#define VPCI_BAR	  0
#define VPCI_REGION_BYTES 0x1000u
#define VPCI_COMMON	  0x0000u
#define VPCI_ISR	  0x1000u
#define VPCI_CONFIG	  0x2000u
#define VPCI_MSIX	  0x3000u
#define VPCI_PBA	  0x3800u
#define VPCI_NOTIFY	  0x4000u
#define VPCI_BAR_BYTES	  0x8000u

#define VPCI_NOTIFY_MULT 4u

#define VPCI_ISR_QUEUE	1
#define VPCI_ISR_CONFIG 2

/* ---- what a device's threads call ---- */

static void fire(struct virtio_pci *v, _Atomic uint16_t *vector, uint8_t isr)
{
	uint16_t n = atomic_load_explicit(vector, memory_order_relaxed);

	/* Without MSI-X there is no interrupt pin, but a driver can poll. */
	if (!msix_enabled(v->msix))
		atomic_fetch_or(&v->isr, isr);
	else if (n != VPCI_NO_VECTOR)
		msix_notify(v->msix, n);
}

static void notify_queue(void *transport, unsigned int queue)
{
	struct virtio_pci *v = transport;

	fire(v, &v->queues[queue].vector, VPCI_ISR_QUEUE);
}

static void notify_config(void *transport)
{
	struct virtio_pci *v = transport;

	atomic_fetch_add(&v->generation, 1);
	fire(v, &v->config_vector, VPCI_ISR_CONFIG);
}

void vpci_needs_reset(struct virtio_pci *v)
{
	uint8_t old = atomic_fetch_or(&v->status, VPCI_STATUS_NEEDS_RESET);

	if ((old & VPCI_STATUS_DRIVER_OK) && !(old & VPCI_STATUS_NEEDS_RESET))
		notify_config(v);
}

static void needs_reset(void *transport)
{
	vpci_needs_reset(transport);
}

static const struct virtio_transport_ops transport_ops = {
	.notify_queue = notify_queue,
	.notify_config = notify_config,
	.needs_reset = needs_reset,
};

/* ---- interrupts by others ---- */

void vpci_call_route_locked(struct virtio_pci *v, unsigned int queue)
{
	struct vpci_queue *q = &v->queues[queue];
	uint16_t vector = atomic_load(&q->vector);

	msix_source_detach(v->msix, &q->call);
	if (v->dev->queues[queue].call_fd >= 0 && vector != VPCI_NO_VECTOR)
		msix_source_attach(v->msix, &q->call, vector,
				   v->dev->queues[queue].call_fd);
}

/*
 * The ISR status of a driver that polls it, having no MSI-X. What a back end
 * has signalled waits in its eventfds.
 */
static uint8_t take_isr(struct virtio_pci *v)
{
	for (unsigned int i = 0; i < v->dev->num_queues; i++) {
		int fd = v->dev->queues[i].call_fd;

		if (fd >= 0 && !msix_enabled(v->msix) && io_eventfd_drain(fd))
			atomic_fetch_or(&v->isr, VPCI_ISR_QUEUE);
	}
	return atomic_exchange(&v->isr, 0);
}

/* ---- notifications ---- */

static void attach_queue_locked(struct virtio_pci *v, unsigned int i)
{
	/*
	 * Any length first: KVM can then tell a kick from the address alone,
	 * without decoding the instruction. Two bytes is what drivers write.
	 */
	static const uint32_t lengths[] = { 0, 2 };
	struct vpci_queue *q = &v->queues[i];
	uint64_t addr = v->bar_addr + VPCI_NOTIFY +
			(uint64_t)i * VPCI_NOTIFY_MULT;
	int r = 0;

	for (unsigned int l = 0; l < ARRAY_SIZE(lengths); l++) {
		r = kvm_vm_ioeventfd(v->vm, addr, lengths[l], false,
				     v->dev->queues[i].kick_fd, true);
		if (r)
			continue;
		q->attached = true;
		q->attached_addr = addr;
		q->attached_len = lengths[l];
		return;
	}
	log_ratelimited(LOG_LEVEL_WARN,
			"%s: no ioeventfd for queue %u, kicks will be slow: %s",
			v->dev->id, i, strerror(-r));
}

void vpci_ioeventfds_attach_locked(struct virtio_pci *v)
{
	if (!v->vm || !v->mapped)
		return;
	for (unsigned int i = 0; i < v->dev->num_queues; i++)
		if (v->queues[i].enabled && !v->queues[i].attached)
			attach_queue_locked(v, i);
}

void vpci_ioeventfds_detach_locked(struct virtio_pci *v)
{
	for (unsigned int i = 0; i < v->dev->num_queues; i++) {
		struct vpci_queue *q = &v->queues[i];
		int r;

		if (!q->attached)
			continue;
		r = kvm_vm_ioeventfd(v->vm, q->attached_addr, q->attached_len,
				     false, v->dev->queues[i].kick_fd, false);
		if (r)
			log_ratelimited(LOG_LEVEL_WARN,
					"%s: detaching the ioeventfd of queue "
					"%u: %s",
					v->dev->id, i, strerror(-r));
		q->attached = false;
	}
}

static void bars_moved(struct pci_dev *pci)
{
	struct virtio_pci *v = container_of(pci, struct virtio_pci, pci);

	pthread_mutex_lock(&v->lock);
	vpci_ioeventfds_detach_locked(v);
	v->mapped = pci->bars[VPCI_BAR].mapped;
	v->bar_addr = pci->bars[VPCI_BAR].addr;
	if (v->active)
		vpci_ioeventfds_attach_locked(v);
	pthread_mutex_unlock(&v->lock);
}

static void kick_by_write(struct virtio_pci *v, uint32_t offset)
{
	uint32_t queue = offset / VPCI_NOTIFY_MULT;

	if (offset % VPCI_NOTIFY_MULT == 0 && queue < v->dev->num_queues)
		io_eventfd_signal(v->dev->queues[queue].kick_fd);
}

/* ---- the BAR ---- */

static void config_access(struct virtio_pci *v, uint32_t offset, void *out,
			  const void *in, uint32_t len)
{
	struct virtio_dev *dev = v->dev;

	if (!range_ok(offset, len, dev->cls->config_space_bytes))
		return;
	pthread_mutex_lock(&v->lock);
	if (out)
		dev->cls->config_read(dev, offset, out, len);
	else if (dev->cls->config_write)
		dev->cls->config_write(dev, offset, in, len);
	pthread_mutex_unlock(&v->lock);
}

static void common_read(struct virtio_pci *v, uint32_t offset, void *data,
			uint32_t len)
{
	uint64_t value;

	pthread_mutex_lock(&v->lock);
	value = htole64(vpci_common_read(v, offset, len));
	pthread_mutex_unlock(&v->lock);
	memcpy(data, &value, len);
}

static void common_write(struct virtio_pci *v, uint32_t offset,
			 const void *data, uint32_t len)
{
	uint64_t value = 0;

	memcpy(&value, data, len);
	pthread_mutex_lock(&v->lock);
	vpci_common_write(v, offset, le64toh(value), len);
	pthread_mutex_unlock(&v->lock);
}

static void bar_read(void *opaque, uint64_t addr, void *data, uint32_t len)
{
	struct virtio_pci *v = opaque;
	uint32_t region = (uint32_t)align_down(addr, VPCI_REGION_BYTES);
	uint32_t offset = (uint32_t)addr - region;

	memset(data, 0, len);
	switch (region) {
	case VPCI_COMMON:
		common_read(v, offset, data, len);
		break;
	case VPCI_ISR:
		if (offset == 0)
			*(uint8_t *)data = take_isr(v);
		break;
	case VPCI_CONFIG:
		config_access(v, offset, data, NULL, len);
		break;
	case VPCI_MSIX:
		if (offset < VPCI_PBA - VPCI_MSIX)
			msix_table_read(v->msix, offset, data, len);
		else
			msix_pba_read(v->msix, offset - (VPCI_PBA - VPCI_MSIX),
				      data, len);
		break;
	default:
		break; /* notifications read as zero */
	}
}

static void bar_write(void *opaque, uint64_t addr, const void *data,
		      uint32_t len)
{
	struct virtio_pci *v = opaque;
	uint32_t region = (uint32_t)align_down(addr, VPCI_REGION_BYTES);
	uint32_t offset = (uint32_t)addr - region;

	switch (region) {
	case VPCI_NOTIFY:
		kick_by_write(v, offset);
		break;
	case VPCI_COMMON:
		common_write(v, offset, data, len);
		break;
	case VPCI_CONFIG:
		config_access(v, offset, NULL, data, len);
		break;
	case VPCI_MSIX:
		msix_table_write(v->msix, offset, data, len);
		break;
	default:
		break;
	}
}

static const struct iobus_ops bar_ops = {
	.name = "virtio-pci",
	.read = bar_read,
	.write = bar_write,
};

/* ---- configuration space ---- */

#define CFG_CAP_BYTES (sizeof(struct virtio_pci_cfg_cap))
#define CFG_CAP_DATA  (sizeof(struct virtio_pci_cap))

/*
 * VIRTIO_PCI_CAP_PCI_CFG is a window on the BAR for who cannot map it. Does the
 * access at offset start at its data, and where does it point?
 */
static bool cfg_window(const struct virtio_pci *v, uint32_t offset,
		       uint32_t *ret_addr, uint32_t *ret_len)
{
	const uint8_t *cap = v->pci.config + v->cfg_cap;
	uint32_t addr = le32_load(cap + VIRTIO_PCI_CAP_OFFSET);
	uint32_t len = le32_load(cap + VIRTIO_PCI_CAP_LENGTH);

	if (offset != v->cfg_cap + CFG_CAP_DATA ||
	    cap[VIRTIO_PCI_CAP_BAR] != VPCI_BAR || !is_pow2(len) || len > 4 ||
	    addr % len || !range_ok(addr, len, VPCI_BAR_BYTES))
		return false;
	*ret_addr = addr;
	*ret_len = len;
	return true;
}

static void config_before_read(struct pci_dev *pci, uint32_t offset,
			       uint32_t len)
{
	struct virtio_pci *v = container_of(pci, struct virtio_pci, pci);
	uint8_t data[4];

	if (cfg_window(v, offset, &offset, &len)) {
		bar_read(v, offset, data, len);
		memcpy(pci->config + v->cfg_cap + CFG_CAP_DATA, data, len);
	}
}

static void config_after_write(struct pci_dev *pci, uint32_t offset,
			       uint32_t len)
{
	struct virtio_pci *v = container_of(pci, struct virtio_pci, pci);
	uint8_t data[4];

	msix_config_written(v->msix, offset, len);
	if (cfg_window(v, offset, &offset, &len)) {
		memcpy(data, pci->config + v->cfg_cap + CFG_CAP_DATA, len);
		bar_write(v, offset, data, len);
	}
}

/* cap points to len bytes that begin with struct virtio_pci_cap. */
static uint8_t add_cap(struct virtio_pci *v, void *cap, uint8_t len,
		       uint8_t type, uint32_t offset, uint32_t bytes)
{
	struct virtio_pci_cap *c = cap;

	c->cap_len = len;
	c->cfg_type = type;
	c->bar = VPCI_BAR;
	c->offset = htole32(offset);
	c->length = htole32(bytes);
	return pci_dev_add_cap(&v->pci, PCI_CAP_ID_VNDR, (char *)cap + 2, len);
}

static void add_region_cap(struct virtio_pci *v, uint8_t type, uint32_t offset,
			   uint32_t bytes)
{
	struct virtio_pci_cap cap = { .id = 0 };

	add_cap(v, &cap, sizeof(cap), type, offset, bytes);
}

static void add_capabilities(struct virtio_pci *v)
{
	struct virtio_pci_notify_cap notify = {
		.notify_off_multiplier = htole32(VPCI_NOTIFY_MULT),
	};
	struct virtio_pci_cfg_cap cfg = { .cap.id = 0 };
	uint8_t *wmask;

	add_region_cap(v, VIRTIO_PCI_CAP_COMMON_CFG, VPCI_COMMON,
		       VPCI_COMMON_BYTES);
	add_region_cap(v, VIRTIO_PCI_CAP_ISR_CFG, VPCI_ISR, 1);
	if (v->dev->cls->config_space_bytes)
		add_region_cap(v, VIRTIO_PCI_CAP_DEVICE_CFG, VPCI_CONFIG,
			       v->dev->cls->config_space_bytes);
	add_cap(v, &notify, sizeof(notify), VIRTIO_PCI_CAP_NOTIFY_CFG,
		VPCI_NOTIFY, v->dev->num_queues * VPCI_NOTIFY_MULT);
	v->cfg_cap = add_cap(v, &cfg, CFG_CAP_BYTES, VIRTIO_PCI_CAP_PCI_CFG, 0,
			     0);
	wmask = v->pci.wmask + v->cfg_cap;
	wmask[VIRTIO_PCI_CAP_BAR] = 0xff;
	memset(wmask + VIRTIO_PCI_CAP_OFFSET, 0xff, 4);
	memset(wmask + VIRTIO_PCI_CAP_LENGTH, 0xff, 4);
	memset(wmask + CFG_CAP_DATA, 0xff, 4);
}

/* ---- life ---- */

static void init_function(struct virtio_pci *v)
{
	const struct virtio_class *cls = v->dev->cls;
	const struct pci_id id = {
		.vendor = VPCI_VENDOR,
		.device = (uint16_t)(VPCI_DEVICE_BASE + cls->device_id),
		.subsystem_vendor = VPCI_VENDOR,
		.subsystem = VPCI_SUBSYSTEM,
		.revision = VPCI_REVISION,
		.class_code = cls->pci_class,
	};

	pci_dev_init(&v->pci, v->dev->id, &id);
	pci_dev_add_bar(&v->pci, VPCI_BAR, VPCI_BAR_BYTES, true, false,
			&bar_ops, v);
	v->pci.config_before_read = config_before_read;
	v->pci.config_after_write = config_after_write;
	v->pci.bars_moved = bars_moved;
}

static struct virtio_pci *alloc_transport(struct virtio_dev *dev,
					  struct pci_host *host,
					  struct kvm_vm *vm)
{
	struct virtio_pci *v = calloc(
		1, sizeof(*v) + dev->num_queues * sizeof(*v->queues));

	if (!v)
		return NULL;
	v->dev = dev;
	v->host = host;
	v->vm = vm;
	pthread_mutex_init(&v->lock, NULL);
	return v;
}

/* Not plugged, or no more. */
static void free_transport(struct virtio_pci *v)
{
	msix_free(v->msix);
	pthread_mutex_destroy(&v->lock);
	free(v);
}

int virtio_pci_new(struct virtio_pci **ret, struct virtio_dev *dev,
		   struct pci_host *host, struct kvm_vm *vm,
		   struct irq_router *router, struct err *err)
{
	const struct virtio_class *cls = dev->cls;
	struct virtio_pci *v = alloc_transport(dev, host, vm);
	int r;

	if (!v) {
		r = err_set(err, ENOMEM, "%s: out of memory", dev->id);
		goto fail;
	}
	init_function(v);
	/* One vector for each queue and one for configuration changes. */
	r = msix_new(&v->msix, &v->pci, router, dev->num_queues + 1, VPCI_BAR,
		     VPCI_MSIX, VPCI_PBA);
	if (r) {
		err_errno(err, -r, "%s: %u MSI-X vectors", dev->id,
			  dev->num_queues + 1);
		goto fail;
	}
	add_capabilities(v);
	vpci_reset_locked(v); /* nobody else sees it yet */
	dev->transport_ctx = v;
	dev->transport = &transport_ops;
	r = pci_host_plug(host, &v->pci, -1);
	if (r) {
		err_set(err, -r,
			"%s: no free PCI slot or address space; the machine "
			"has %d slots, one of them the bridge's",
			dev->id, PCI_HOST_SLOTS);
		goto fail;
	}
	*ret = v;
	return 0;

fail:
	if (v)
		free_transport(v);
	dev->transport = NULL;
	cls->destroy(dev);
	return r;
}

void virtio_pci_free(struct virtio_pci *vpci)
{
	struct virtio_dev *dev;

	if (!vpci)
		return;
	dev = vpci->dev;
	/* First: no vCPU comes in any more, and then nothing can activate it.
	 */
	pci_host_unplug(vpci->host, &vpci->pci);
	pthread_mutex_lock(&vpci->lock);
	vpci_reset_locked(vpci);
	pthread_mutex_unlock(&vpci->lock);
	free_transport(vpci);
	dev->transport = NULL;
	dev->cls->destroy(dev);
}

void virtio_pci_unplug(struct virtio_pci *vpci)
{
	pci_host_unplug(vpci->host, &vpci->pci);
}

int virtio_pci_plug(struct virtio_pci *vpci, unsigned int slot)
{
	return pci_host_plug(vpci->host, &vpci->pci, (int)slot);
}

struct virtio_dev *virtio_pci_dev(struct virtio_pci *vpci)
{
	return vpci->dev;
}

uint8_t virtio_pci_devfn(const struct virtio_pci *vpci)
{
	return vpci->pci.devfn;
}
