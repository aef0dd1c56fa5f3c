/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio/pci.c, pci_common.c, device.c: a driver's life through the registers,
 * with a device class that records and a KVM that only counts.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/virtio_pci.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/io.h"
#include "base/log.h"
#include "bus/msix.h"
#include "virtio/pci_common.h"
#include "vring.h"

#define NUM_QUEUES 3
#define QUEUE_SIZE 64

/* BAR layout as this driver found it through the capabilities. */
enum { CAP_COMMON = 1, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI };

/* ---- KVM: ioeventfds in a list, routes not at all ---- */

struct ioeventfd {
	bool used;
	uint64_t addr;
	uint32_t len;
	int fd;
};

static struct ioeventfd ioeventfds[16];
static unsigned int any_length_unsupported, ioeventfd_broken;

int kvm_vm_ioeventfd(const struct kvm_vm *vm, uint64_t addr, uint32_t len,
		     bool pio, int fd, bool assign)
{
	assert_false(pio);
	if (assign && (ioeventfd_broken || (any_length_unsupported && !len)))
		return -EINVAL;
	for (size_t i = 0; i < ARRAY_SIZE(ioeventfds); i++) {
		struct ioeventfd *io = &ioeventfds[i];

		if (assign && io->used)
			assert_false(io->addr == addr);
		if (!assign && io->used && io->addr == addr && io->len == len &&
		    io->fd == fd) {
			io->used = false;
			return 0;
		}
	}
	assert_true(assign); /* nothing is detached twice */
	for (size_t i = 0; i < ARRAY_SIZE(ioeventfds); i++) {
		if (ioeventfds[i].used)
			continue;
		ioeventfds[i] = (struct ioeventfd){ true, addr, len, fd };
		return 0;
	}
	return -ENOSPC;
}

static unsigned int num_ioeventfds(void)
{
	unsigned int num = 0;

	for (size_t i = 0; i < ARRAY_SIZE(ioeventfds); i++)
		num += ioeventfds[i].used;
	return num;
}

static bool has_ioeventfd(uint64_t addr, int fd)
{
	for (size_t i = 0; i < ARRAY_SIZE(ioeventfds); i++)
		if (ioeventfds[i].used && ioeventfds[i].addr == addr &&
		    ioeventfds[i].fd == fd)
			return true;
	return false;
}

int irq_router_alloc_msi(struct irq_router *router, uint32_t *ret_gsi)
{
	return -ENOSPC;
}

void irq_router_release_msi(struct irq_router *router, uint32_t gsi)
{
}

int irq_router_set_msi(struct irq_router *router, uint32_t gsi,
		       uint64_t address, uint32_t data)
{
	return 0;
}

int irq_router_clear_msi(struct irq_router *router, uint32_t gsi)
{
	return 0;
}

int irq_router_bind_fd(struct irq_router *router, uint32_t gsi, int fd)
{
	return 0;
}

int irq_router_unbind_fd(struct irq_router *router, uint32_t gsi, int fd)
{
	return 0;
}

/* ---- the device ---- */

struct fake {
	struct virtio_dev vdev;
	unsigned int activations, deactivations;
	int fail_activate;
	uint8_t config[20];
	void (*on_deactivate)(struct fake *fake);
};

static unsigned int destroyed;

static void fake_destroy(struct virtio_dev *vdev)
{
	destroyed++;
	virtio_dev_fini(vdev);
	free(vdev);
}

static void fake_config_read(struct virtio_dev *vdev, uint32_t offset,
			     void *data, uint32_t len)
{
	memcpy(data, ((struct fake *)vdev)->config + offset, len);
}

static void fake_config_write(struct virtio_dev *vdev, uint32_t offset,
			      const void *data, uint32_t len)
{
	memcpy(((struct fake *)vdev)->config + offset, data, len);
}

static int fake_activate(struct virtio_dev *vdev)
{
	struct fake *fake = (struct fake *)vdev;

	if (fake->fail_activate)
		return fake->fail_activate;
	fake->activations++;
	return 0;
}

static void fake_deactivate(struct virtio_dev *vdev)
{
	struct fake *fake = (struct fake *)vdev;

	fake->deactivations++;
	if (fake->on_deactivate)
		fake->on_deactivate(fake);
}

static const struct virtio_class fake_class = {
	.name = "fake",
	.device_id = 42,
	.pci_class = 0x018000,
	.destroy = fake_destroy,
	.config_space_bytes = 20,
	.config_read = fake_config_read,
	.config_write = fake_config_write,
	.activate = fake_activate,
	.deactivate = fake_deactivate,
};

/* ---- the machine and its driver ---- */

struct region {
	uint32_t offset, length;
};

struct machine {
	struct ram ram;
	struct iobus *pio, *mmio;
	struct pci_host *host;
	struct kvm_vm vm;
	struct fake *fake;
	struct virtio_pci *vpci;
	struct region regions[6];
	uint32_t notify_mult;
	uint8_t pci_cap; /* offset of CAP_PCI */
	uint8_t msix_cap;
	struct vring rings[NUM_QUEUES];
};

static struct machine m;

static uint8_t devfn(void)
{
	return m.vpci->pci.devfn;
}

static uint32_t cfg(uint32_t offset, uint32_t len)
{
	return pci_host_config_read(m.host, devfn(), offset, len);
}

static void cfg_set(uint32_t offset, uint32_t value, uint32_t len)
{
	pci_host_config_write(m.host, devfn(), offset, value, len);
}

static uint64_t bar(void)
{
	return (cfg(PCI_BASE_ADDRESS_0, 4) & ~0xfull) |
	       (uint64_t)cfg(PCI_BASE_ADDRESS_1, 4) << 32;
}

static uint64_t reg(int cap, uint32_t offset, uint32_t len)
{
	uint64_t value = 0;

	assert_true(iobus_read(m.mmio, bar() + m.regions[cap].offset + offset,
			       &value, len));
	return value;
}

static void reg_set(int cap, uint32_t offset, uint64_t value, uint32_t len)
{
	assert_true(iobus_write(m.mmio, bar() + m.regions[cap].offset + offset,
				&value, len));
}

#define GET(name, len) reg(CAP_COMMON, VIRTIO_PCI_COMMON_##name, len)
#define SET(name, value, len) \
	reg_set(CAP_COMMON, VIRTIO_PCI_COMMON_##name, value, len)

static void find_capabilities(void)
{
	uint8_t at = (uint8_t)cfg(PCI_CAPABILITY_LIST, 1);

	for (int guard = 0; at && guard < 48; guard++) {
		uint8_t type = (uint8_t)cfg(at + 3u, 1);

		if (cfg(at, 1) == PCI_CAP_ID_MSIX) {
			m.msix_cap = at;
		} else if (cfg(at, 1) == PCI_CAP_ID_VNDR) {
			assert_in_range(type, CAP_COMMON, CAP_PCI);
			m.regions[type].offset = cfg(at + 8u, 4);
			m.regions[type].length = cfg(at + 12u, 4);
			if (type == CAP_NOTIFY)
				m.notify_mult = cfg(at + 16u, 4);
			if (type == CAP_PCI)
				m.pci_cap = at;
		}
		at = (uint8_t)cfg(at + 1u, 1);
	}
}

static int setup(void **state)
{
	struct ram_config ram_cfg = {
		.size_bytes = 16 * MIB,
		.hole_start = 3 * GIB,
		.hole_end = 4 * GIB,
	};
	struct pci_host_config host_cfg = {
		.ecam_base = 0xe0000000,
		.window32_base = 0xc0000000,
		.window32_size = 0x20000000,
		.window64_base = 64 * GIB,
		.window64_size = 64 * GIB,
	};
	struct err err = ERR_INIT;

	memset(&m, 0, sizeof(m));
	memset(ioeventfds, 0, sizeof(ioeventfds));
	any_length_unsupported = 0;
	ioeventfd_broken = 0;
	assert_int_equal(ram_init(&m.ram, &ram_cfg, NULL), 0);
	assert_int_equal(iobus_new(&m.pio), 0);
	assert_int_equal(iobus_new(&m.mmio), 0);
	host_cfg.pio = m.pio;
	host_cfg.mmio = m.mmio;
	assert_int_equal(pci_host_new(&m.host, &host_cfg), 0);
	m.fake = calloc(1, sizeof(*m.fake));
	m.fake->vdev.offered = 1ull << 3 | 1ull << 35;
	assert_int_equal(virtio_dev_init(&m.fake->vdev, &fake_class, &m.ram,
					 NUM_QUEUES, QUEUE_SIZE),
			 0);
	strcpy(m.fake->vdev.id, "fake0");
	assert_int_equal(virtio_pci_new(&m.vpci, &m.fake->vdev, m.host, &m.vm,
					NULL, &err),
			 0);
	find_capabilities();
	return 0;
}

static int teardown(void **state)
{
	destroyed = 0;
	virtio_pci_free(m.vpci);
	assert_int_equal(destroyed, 1);
	assert_int_equal(num_ioeventfds(), 0);
	pci_host_free(m.host);
	iobus_free(m.pio);
	iobus_free(m.mmio);
	ram_fini(&m.ram);
	return 0;
}

static void set_features(uint64_t features)
{
	SET(GFSELECT, 0, 4);
	SET(GF, (uint32_t)features, 4);
	SET(GFSELECT, 1, 4);
	SET(GF, features >> 32, 4);
}

static void add_status(uint8_t bits)
{
	SET(STATUS, GET(STATUS, 1) | bits, 1);
}

static void set_ring(unsigned int q)
{
	struct vring *ring = &m.rings[q];

	vring_init(ring, &m.ram, QUEUE_SIZE, 0x100000 + q * 0x10000ull);
	SET(Q_SELECT, q, 2);
	SET(Q_SIZE, QUEUE_SIZE, 2);
	SET(Q_DESCLO, ring->desc, 4);
	SET(Q_DESCHI, ring->desc >> 32, 4);
	SET(Q_AVAILLO, ring->avail, 8); /* as one, for a change */
	SET(Q_USEDLO, ring->used, 4);
	SET(Q_USEDHI, 0, 4);
	SET(Q_ENABLE, 1, 2);
}

/* Up to FEATURES_OK with queues 0 and 1 enabled. */
static void prepare(void)
{
	SET(STATUS, 0, 1);
	add_status(1);
	add_status(2);
	set_features(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
	add_status(8);
	assert_int_equal(GET(STATUS, 1), 0xb);
	set_ring(0);
	set_ring(1);
}

static void start(void)
{
	prepare();
	add_status(4);
	assert_int_equal(GET(STATUS, 1), 0xf);
	assert_int_equal(m.fake->activations, 1);
}

/* Switch MSI-X on with all vectors unmasked. */
static void enable_msix(void)
{
	uint64_t table = bar() + (cfg(m.msix_cap + 4u, 4) & ~7u);
	uint32_t zero = 0;

	for (unsigned int v = 0; v < NUM_QUEUES + 1; v++)
		assert_true(iobus_write(m.mmio, table + 16 * v + 12, &zero, 4));
	cfg_set(m.msix_cap + 2u, PCI_MSIX_FLAGS_ENABLE, 2);
}

/* Whether vector is pending: with the function masked, that is "was raised". */
static uint64_t raised(void)
{
	uint64_t bits = 0, pba = bar() + (cfg(m.msix_cap + 8u, 4) & ~7u);

	assert_true(iobus_read(m.mmio, pba, &bits, 8));
	return bits;
}

static void mask_msix(void)
{
	cfg_set(m.msix_cap + 2u, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL,
		2);
}

static void test_identity(void **state)
{
	assert_int_equal(cfg(0, 4), 0x106a1af4); /* 0x1040 + 42 */
	assert_int_equal(cfg(PCI_REVISION_ID, 1), 1);
	assert_int_equal(cfg(PCI_CLASS_REVISION, 4) >> 8, 0x018000);
	assert_int_equal(cfg(PCI_INTERRUPT_PIN, 1), 0);
	for (int cap = CAP_COMMON; cap <= CAP_DEVICE; cap++)
		assert_true(m.regions[cap].length > 0);
	assert_int_equal(m.regions[CAP_DEVICE].length, 20);
	assert_int_equal(m.notify_mult, 4);
	assert_int_equal(m.regions[CAP_NOTIFY].length, 4 * NUM_QUEUES);
	assert_int_equal(cfg(m.msix_cap + 2u, 2), NUM_QUEUES);
	assert_int_equal(GET(NUMQ, 2), NUM_QUEUES);
	assert_int_equal(GET(STATUS, 1), 0);
	/* regions do not overlap */
	for (int a = CAP_COMMON; a <= CAP_DEVICE; a++)
		for (int b = CAP_COMMON; b <= CAP_DEVICE; b++)
			assert_true(a == b ||
				    m.regions[a].offset >=
					    m.regions[b].offset +
						    m.regions[b].length ||
				    m.regions[b].offset >=
					    m.regions[a].offset +
						    m.regions[a].length);
}

static void test_register_widths(void **state)
{
	SET(DFSELECT, 1, 4);
	assert_int_equal(GET(DF, 4), 1 | 1 << 3);
	SET(DFSELECT, 0, 4);
	assert_int_equal(GET(DF, 4), 1 << 28 | 1 << 29 | 1 << 3);
	SET(DFSELECT, 2, 4);
	assert_int_equal(GET(DF, 4), 0);
	/* other widths have no effect */
	assert_int_equal(GET(NUMQ, 1), 0);
	assert_int_equal(GET(NUMQ, 4), 0);
	assert_int_equal(GET(NUMQ, 8), 0);
	SET(Q_SELECT, 2, 1);
	assert_int_equal(GET(Q_SELECT, 2), 0);
	SET(STATUS, 1, 4);
	assert_int_equal(GET(STATUS, 1), 0);
	/* 64-bit registers: whole and in halves */
	SET(Q_DESCLO, 0x1122334455667780, 8);
	assert_int_equal(GET(Q_DESCLO, 4), 0x55667780);
	assert_int_equal(GET(Q_DESCHI, 4), 0x11223344);
	SET(Q_DESCHI, 0xabcd, 4);
	assert_int_equal(GET(Q_DESCLO, 8), 0xabcd55667780);
	SET(Q_USEDHI, 7, 4);
	assert_int_equal(GET(Q_USEDLO, 8), 7ull << 32);
	assert_int_equal(GET(Q_AVAILLO, 8), 0);
	/* past the registers, and what belongs to features not offered */
	SET(Q_RESET, 1, 2);
	assert_int_equal(GET(Q_RESET, 2), 0);
	reg_set(CAP_COMMON, 0x100, UINT64_MAX, 8);
	assert_int_equal(reg(CAP_COMMON, 0x100, 8), 0);
}

static void test_queue_registers(void **state)
{
	assert_int_equal(GET(Q_SIZE, 2), QUEUE_SIZE);
	for (unsigned int q = 0; q < NUM_QUEUES; q++) {
		SET(Q_SELECT, q, 2);
		assert_int_equal(GET(Q_NOFF, 2), q);
		assert_int_equal(GET(Q_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
		SET(Q_SIZE, 1 << q, 2);
	}
	SET(Q_SELECT, 1, 2);
	assert_int_equal(GET(Q_SIZE, 2), 2);
	/* vectors: one more than queues; others read back as none */
	SET(Q_MSIX, NUM_QUEUES, 2);
	assert_int_equal(GET(Q_MSIX, 2), NUM_QUEUES);
	SET(Q_MSIX, NUM_QUEUES + 1, 2);
	assert_int_equal(GET(Q_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
	SET(MSIX, 0, 2);
	assert_int_equal(GET(MSIX, 2), 0);
	SET(MSIX, 0x4000, 2);
	assert_int_equal(GET(MSIX, 2), VIRTIO_MSI_NO_VECTOR);
	/* an enabled queue is settled; its vector is not */
	SET(Q_ENABLE, 0, 2);
	SET(Q_ENABLE, 2, 2);
	assert_int_equal(GET(Q_ENABLE, 2), 0);
	SET(Q_ENABLE, 1, 2);
	assert_int_equal(GET(Q_ENABLE, 2), 1);
	SET(Q_SIZE, 4, 2);
	SET(Q_DESCLO, 0x1000, 4);
	SET(Q_ENABLE, 0, 2);
	SET(Q_MSIX, 1, 2);
	assert_int_equal(GET(Q_SIZE, 2), 2);
	assert_int_equal(GET(Q_DESCLO, 4), 0);
	assert_int_equal(GET(Q_ENABLE, 2), 1);
	assert_int_equal(GET(Q_MSIX, 2), 1);
	/* no such queue */
	SET(Q_SELECT, NUM_QUEUES, 2);
	assert_int_equal(GET(Q_SIZE, 2), 0);
	assert_int_equal(GET(Q_ENABLE, 2), 0);
	assert_int_equal(GET(Q_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
	SET(Q_SIZE, 4, 2);
	SET(Q_ENABLE, 1, 2);
	SET(Q_DESCLO, 4, 8);
	assert_int_equal(GET(Q_ENABLE, 2), 0);
	/* reset brings it all back */
	SET(STATUS, 0, 1);
	assert_int_equal(GET(Q_SELECT, 2), 0);
	SET(Q_SELECT, 1, 2);
	assert_int_equal(GET(Q_SIZE, 2), QUEUE_SIZE);
	assert_int_equal(GET(Q_ENABLE, 2), 0);
	assert_int_equal(GET(Q_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
}

static void try_features(uint64_t features, bool accepted)
{
	SET(STATUS, 0, 1);
	add_status(3);
	set_features(features);
	add_status(8);
	assert_int_equal(GET(STATUS, 1), accepted ? 0xb : 0x3);
	assert_int_equal(m.fake->vdev.features, accepted ? features : 0);
}

static void test_feature_negotiation(void **state)
{
	try_features(VIRTIO_F_VERSION_1, true);
	try_features(0, false);
	try_features(1ull << 3, false); /* legacy */
	try_features(m.fake->vdev.offered, true);
	try_features(VIRTIO_F_VERSION_1 | 1, false); /* not offered */
	try_features(VIRTIO_F_VERSION_1 | 1ull << 33, false);
	/* settled: later writes are nothing */
	try_features(VIRTIO_F_VERSION_1, true);
	set_features(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
	assert_int_equal(m.fake->vdev.features, VIRTIO_F_VERSION_1);
	SET(GFSELECT, 0, 4);
	assert_int_equal(GET(GF, 4), 0);
	SET(GFSELECT, 77, 4);
	SET(GF, 0xffffffff, 4);
	assert_int_equal(GET(GF, 4), 0);
	/* not without FEATURES_OK */
	try_features(0, false);
	add_status(4);
	assert_int_equal(GET(STATUS, 1), 0x3);
	assert_int_equal(m.fake->activations, 0);
	/* bits are not taken back, NEEDS_RESET is not the driver's */
	SET(STATUS, 0x41, 1);
	assert_int_equal(GET(STATUS, 1), 0x3);
	add_status(0x80);
	assert_int_equal(GET(STATUS, 1), 0x83);
}

static void test_activate_and_reset(void **state)
{
	struct virtio_queue *queues = m.fake->vdev.queues;

	start();
	assert_true(queues[0].vq.started);
	assert_true(queues[0].vq.event_idx);
	assert_false(queues[0].vq.indirect);
	assert_int_equal(queues[0].vq.size, QUEUE_SIZE);
	assert_false(queues[2].vq.started);
	assert_int_equal(num_ioeventfds(), 2);
	for (unsigned int q = 0; q < 2; q++)
		assert_true(has_ioeventfd(bar() + m.regions[CAP_NOTIFY].offset +
						  q * 4,
					  queues[q].kick_fd));
	/* again DRIVER_OK is nothing new; enabling late is refused */
	add_status(4);
	set_ring(2);
	assert_int_equal(m.fake->activations, 1);
	assert_int_equal(GET(Q_ENABLE, 2), 0);
	io_eventfd_signal(queues[0].kick_fd);

	SET(STATUS, 0, 1);
	assert_int_equal(GET(STATUS, 1), 0);
	assert_int_equal(m.fake->deactivations, 1);
	assert_false(queues[0].vq.started);
	assert_int_equal(num_ioeventfds(), 0);
	assert_int_equal(io_eventfd_drain(queues[0].kick_fd), 0);
	assert_int_equal(m.fake->vdev.features, 0);
	/* and once more from the start; the end is the teardown's */
	prepare();
	add_status(4);
	assert_int_equal(m.fake->activations, 2);
	SET(STATUS, 0, 1);
	SET(STATUS, 0, 1);
	assert_int_equal(m.fake->deactivations, 2);
	prepare();
	add_status(4);
}

static void test_bad_rings_need_reset(void **state)
{
	prepare();
	SET(Q_SELECT, 2, 2);
	SET(Q_USEDLO, 3, 4); /* not aligned */
	SET(Q_ENABLE, 1, 2);
	add_status(4);
	assert_int_equal(GET(STATUS, 1), 0x4f);
	assert_int_equal(m.fake->activations, 0);
	assert_int_equal(num_ioeventfds(), 0);
	assert_false(m.fake->vdev.queues[0].vq.started);
	SET(STATUS, 0, 1);
	assert_int_equal(m.fake->deactivations, 0);

	m.fake->fail_activate = -ENOMEM;
	prepare();
	add_status(4);
	assert_int_equal(GET(STATUS, 1), 0x4f);
	assert_int_equal(num_ioeventfds(), 0);
	assert_false(m.fake->vdev.queues[0].vq.started);
	m.fake->fail_activate = 0;
	start();
}

static void test_notifications(void **state)
{
	struct virtio_queue *queues = m.fake->vdev.queues;

	/* arrives as a write: not active, or KVM has no ioeventfd for it */
	reg_set(CAP_NOTIFY, 4, 1, 2);
	assert_int_equal(io_eventfd_drain(queues[1].kick_fd), 1);
	assert_int_equal(io_eventfd_drain(queues[0].kick_fd), 0);
	reg_set(CAP_NOTIFY, 8, 1, 4);
	assert_int_equal(io_eventfd_drain(queues[2].kick_fd), 1);
	/* a queue that does not exist, and between two */
	reg_set(CAP_NOTIFY, 12, 3, 2);
	reg_set(CAP_NOTIFY, 0xffc, 3, 2);
	reg_set(CAP_NOTIFY, 2, 0, 2);
	for (int q = 0; q < NUM_QUEUES; q++)
		assert_int_equal(io_eventfd_drain(queues[q].kick_fd), 0);
	/* a kick before DRIVER_OK is still there after it */
	prepare();
	reg_set(CAP_NOTIFY, 0, 0, 2);
	add_status(4);
	assert_int_equal(io_eventfd_drain(queues[0].kick_fd), 1);
}

static void test_ioeventfd_fallbacks(void **state)
{
	any_length_unsupported = 1;
	start();
	assert_int_equal(num_ioeventfds(), 2);
	assert_int_equal(ioeventfds[0].len, 2);
	SET(STATUS, 0, 1);
	ioeventfd_broken = 1;
	prepare();
	add_status(4);
	assert_int_equal(GET(STATUS, 1), 0xf);
	assert_int_equal(num_ioeventfds(), 0);
	assert_int_equal(m.fake->activations, 2);
}

static void test_ioeventfds_follow_the_bar(void **state)
{
	uint64_t home = bar(), moved = home + 0x100000;
	uint32_t notify = m.regions[CAP_NOTIFY].offset;
	int fd = m.fake->vdev.queues[1].kick_fd;

	start();
	assert_true(has_ioeventfd(home + notify + 4, fd));
	cfg_set(PCI_BASE_ADDRESS_0, (uint32_t)moved, 4);
	assert_int_equal(bar(), moved);
	assert_int_equal(num_ioeventfds(), 2);
	assert_true(has_ioeventfd(moved + notify + 4, fd));
	/* memory decoding off: nobody is kicked by these addresses */
	cfg_set(PCI_COMMAND, 0, 2);
	assert_int_equal(num_ioeventfds(), 0);
	/* started while unmapped: attached when it comes up */
	cfg_set(PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	assert_int_equal(num_ioeventfds(), 2);
	/* status 0 takes them away, wherever the BAR is */
	SET(STATUS, 0, 1);
	assert_int_equal(num_ioeventfds(), 0);
	cfg_set(PCI_BASE_ADDRESS_0, (uint32_t)home, 4);
	assert_int_equal(num_ioeventfds(), 0);
	m.fake->activations = 0;
	start();
	assert_true(has_ioeventfd(home + notify + 4, fd));
}

static void test_interrupts(void **state)
{
	struct virtio_dev *vdev = &m.fake->vdev;
	struct virtqueue *vq = &vdev->queues[1].vq;
	struct vring_buf buf = { 0x800000, 16, true };
	struct vq_chain chain;

	start();
	SET(Q_SELECT, 1, 2);
	SET(Q_MSIX, 2, 2);
	SET(MSIX, 3, 2);
	enable_msix();
	mask_msix();
	/* nothing pushed, nothing raised */
	virtio_queue_interrupt(vdev, 1);
	assert_int_equal(raised(), 0);
	vring_add(&m.rings[1], &buf, 1);
	assert_int_equal(vq_pop(vq, &chain), 1);
	vq_push(vq, &chain, 16);
	virtio_queue_interrupt(vdev, 1);
	assert_int_equal(raised(), 1 << 2);
	assert_int_equal(atomic_load(&vdev->queues[1].interrupts), 1);
	assert_int_equal(reg(CAP_ISR, 0, 1), 0); /* not with MSI-X on */
	virtio_config_changed(vdev);
	assert_int_equal(raised(), 1 << 2 | 1 << 3);
	/* no vector: no interrupt */
	cfg_set(m.msix_cap + 2u, PCI_MSIX_FLAGS_ENABLE, 2);
	mask_msix();
	SET(MSIX, VIRTIO_MSI_NO_VECTOR, 2);
	virtio_config_changed(vdev);
	assert_int_equal(raised(), 0);
}

/* A back end's eventfd is pending where the queue's vector is masked. */
static void test_call_fd(void **state)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	assert_true(fd >= 0);
	m.fake->vdev.queues[1].call_fd = fd; /* the device's from now on */
	start();
	io_eventfd_signal(fd);
	assert_int_equal(reg(CAP_ISR, 0, 1), 1); /* for who polls */
	assert_int_equal(reg(CAP_ISR, 0, 1), 0);
	enable_msix();
	mask_msix();
	SET(Q_SELECT, 1, 2);
	SET(Q_MSIX, 2, 2);
	assert_int_equal(raised(), 0);
	io_eventfd_signal(fd);
	assert_int_equal(raised(), 1 << 2);
	assert_int_equal(reg(CAP_ISR, 0, 1), 0);
	/* it follows the queue to another vector, and none */
	SET(Q_MSIX, 1, 2);
	assert_int_equal(raised(), 1 << 1);
	SET(Q_MSIX, VIRTIO_MSI_NO_VECTOR, 2);
	assert_int_equal(raised(), 0);
	SET(Q_MSIX, 0, 2);
	assert_int_equal(raised(), 1 << 0);
	SET(STATUS, 0, 1);
	assert_int_equal(raised(), 0);
}

static void test_isr_without_msix(void **state)
{
	uint8_t generation = (uint8_t)GET(CFGGENERATION, 1);

	start();
	m.fake->vdev.transport->notify_queue(m.fake->vdev.transport_ctx, 0);
	assert_int_equal(reg(CAP_ISR, 0, 1), 1);
	assert_int_equal(reg(CAP_ISR, 0, 1), 0); /* reading clears */
	virtio_config_changed(&m.fake->vdev);
	m.fake->vdev.transport->notify_queue(m.fake->vdev.transport_ctx, 0);
	assert_int_equal(reg(CAP_ISR, 0, 1), 3);
	assert_int_equal(GET(CFGGENERATION, 1), (uint8_t)(generation + 1));
	m.fake->vdev.transport->notify_queue(m.fake->vdev.transport_ctx, 0);
	SET(STATUS, 0, 1);
	assert_int_equal(reg(CAP_ISR, 0, 1), 0);
}

static void test_broken_device(void **state)
{
	start();
	SET(MSIX, 3, 2);
	enable_msix();
	mask_msix();
	virtio_dev_broken(&m.fake->vdev, "test");
	assert_int_equal(GET(STATUS, 1), 0x4f);
	assert_int_equal(raised(), 1 << 3);
	assert_int_equal(atomic_load(&m.fake->vdev.errors), 1);
	/* only a reset helps */
	add_status(4);
	assert_int_equal(m.fake->activations, 1);
	assert_int_equal(m.fake->deactivations, 0);
	SET(STATUS, 0, 1);
	assert_int_equal(GET(STATUS, 1), 0);
	assert_int_equal(m.fake->deactivations, 1);
}

/*
 * deactivate() runs under the transport's lock and waits for the device's
 * thread, which may be in any of the calls a device makes: none may wait for
 * that lock.
 */
static void *device_thread(void *arg)
{
	struct virtio_dev *vdev = arg;

	vdev->transport->notify_queue(vdev->transport_ctx, 0);
	virtio_config_changed(vdev);
	virtio_dev_broken(vdev, "test, while resetting");
	return NULL;
}

static void join_device_thread(struct fake *fake)
{
	struct timespec until;
	pthread_t thread;
	int r;

	assert_int_equal(
		pthread_create(&thread, NULL, device_thread, &fake->vdev), 0);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 60; /* a hang, not a slow machine */
	r = pthread_timedjoin_np(thread, NULL, &until);
	if (r) {
		print_error("a device thread waits for the transport\n");
		_exit(1);
	}
}

static void test_deactivate_joins_threads(void **state)
{
	start();
	enable_msix();
	m.fake->on_deactivate = join_device_thread;
	SET(STATUS, 0, 1);
	/* its late NEEDS_RESET is gone with the reset */
	assert_int_equal(GET(STATUS, 1), 0);
	m.fake->on_deactivate = NULL;
}

static void test_device_config(void **state)
{
	for (unsigned int i = 0; i < 20; i++)
		m.fake->config[i] = (uint8_t)(i + 1);
	assert_int_equal(reg(CAP_DEVICE, 0, 8), 0x0807060504030201);
	assert_int_equal(reg(CAP_DEVICE, 19, 1), 20);
	/* over the end: zero, and nothing written */
	assert_int_equal(reg(CAP_DEVICE, 16, 8), 0);
	assert_int_equal(reg(CAP_DEVICE, 20, 1), 0);
	reg_set(CAP_DEVICE, 16, 0, 8);
	assert_int_equal(m.fake->config[16], 17);
	reg_set(CAP_DEVICE, 16, 0xaabbccdd, 4);
	assert_int_equal(reg(CAP_DEVICE, 16, 4), 0xaabbccdd);
}

static uint32_t window_read(uint32_t offset, uint32_t len)
{
	cfg_set(m.pci_cap + 8u, offset, 4);
	cfg_set(m.pci_cap + 12u, len, 4);
	return cfg(m.pci_cap + 16u, len > 4 ? 4 : len);
}

static void window_write(uint32_t offset, uint32_t value, uint32_t len)
{
	cfg_set(m.pci_cap + 8u, offset, 4);
	cfg_set(m.pci_cap + 12u, len, 4);
	cfg_set(m.pci_cap + 16u, value, len);
}

static void test_pci_cfg_window(void **state)
{
	uint32_t status = m.regions[CAP_COMMON].offset +
			  VIRTIO_PCI_COMMON_STATUS;
	uint32_t numq = m.regions[CAP_COMMON].offset + VIRTIO_PCI_COMMON_NUMQ;

	assert_int_equal(window_read(numq, 2), NUM_QUEUES);
	window_write(status, 1, 1);
	assert_int_equal(window_read(status, 1), 1);
	assert_int_equal(GET(STATUS, 1), 1);
	window_write(m.regions[CAP_NOTIFY].offset + 8, 2, 2);
	assert_int_equal(io_eventfd_drain(m.fake->vdev.queues[2].kick_fd), 1);
	/* it works with memory decoding off: that is its purpose */
	cfg_set(PCI_COMMAND, 0, 2);
	assert_int_equal(window_read(status, 1), 1);
	window_write(status, 0, 1);
	cfg_set(PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	assert_int_equal(GET(STATUS, 1), 0);
	/* nonsense goes nowhere: width, alignment, end, another BAR */
	window_write(status, 1, 3);
	window_write(status, 1, 0);
	window_write(numq + 1, 1, 2);
	window_write(m.regions[CAP_DEVICE].offset + 1, 0xffff, 2);
	assert_int_equal(m.fake->config[1], 0);
	window_write(m.regions[CAP_DEVICE].offset + 2, 0xffff, 2);
	assert_int_equal(m.fake->config[2], 0xff);
	window_write(0xfffffffc, 1, 4);
	window_write(0x8000, 1, 4);
	cfg_set(m.pci_cap + 4u, 1, 1);
	window_write(status, 1, 1);
	cfg_set(m.pci_cap + 4u, 0, 1);
	assert_int_equal(GET(STATUS, 1), 0);
}

/* A status write through the window activates under the bridge's lock. */
static void test_activate_through_window(void **state)
{
	uint32_t status = m.regions[CAP_COMMON].offset +
			  VIRTIO_PCI_COMMON_STATUS;

	prepare();
	window_write(status, 0xf, 1);
	assert_int_equal(m.fake->activations, 1);
	assert_int_equal(num_ioeventfds(), 2);
	m.fake->on_deactivate = join_device_thread;
	window_write(status, 0, 1);
	assert_int_equal(m.fake->deactivations, 1);
	m.fake->on_deactivate = NULL;
}

/* When there is no room for it the device is destroyed all the same. */
static void test_creation_failures(void **state)
{
	static struct pci_dev filler[PCI_HOST_SLOTS];
	static const struct pci_id id = { .vendor = 1, .device = 1 };
	struct fake *fake = calloc(1, sizeof(*fake));
	struct virtio_pci *vpci = NULL;
	struct err err = ERR_INIT;
	unsigned int num = 0;

	for (; num < PCI_HOST_SLOTS; num++) {
		pci_dev_init(&filler[num], "filler", &id);
		if (pci_host_plug(m.host, &filler[num], -1))
			break;
	}
	assert_int_equal(num, PCI_HOST_SLOTS - 2);
	assert_int_equal(
		virtio_dev_init(&fake->vdev, &fake_class, &m.ram, 1, 16), 0);
	strcpy(fake->vdev.id, "fake1");
	destroyed = 0;
	assert_int_equal(virtio_pci_new(&vpci, &fake->vdev, m.host, NULL, NULL,
					&err),
			 -ENOSPC);
	assert_int_equal(destroyed, 1);
	assert_null(vpci);
	assert_non_null(strstr(err.text, "fake1"));
	while (num)
		pci_host_unplug(m.host, &filler[--num]);

	/* device sizes that make no sense */
	fake = calloc(1, sizeof(*fake));
	assert_int_equal(virtio_dev_init(&fake->vdev, &fake_class, &m.ram, 0,
					 16),
			 -EINVAL);
	assert_int_equal(virtio_dev_init(&fake->vdev, &fake_class, &m.ram, 65,
					 16),
			 -EINVAL);
	assert_int_equal(virtio_dev_init(&fake->vdev, &fake_class, &m.ram, 1,
					 17),
			 -EINVAL);
	assert_int_equal(virtio_dev_init(&fake->vdev, &fake_class, &m.ram, 1,
					 2 * VQ_MAX_SIZE),
			 -EINVAL);
	virtio_dev_fini(&fake->vdev); /* fine on zeroed */
	free(fake);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_identity),
		TEST(test_register_widths),
		TEST(test_queue_registers),
		TEST(test_feature_negotiation),
		TEST(test_activate_and_reset),
		TEST(test_bad_rings_need_reset),
		TEST(test_notifications),
		TEST(test_ioeventfd_fallbacks),
		TEST(test_ioeventfds_follow_the_bar),
		TEST(test_interrupts),
		TEST(test_call_fd),
		TEST(test_isr_without_msix),
		TEST(test_broken_device),
		TEST(test_deactivate_joins_threads),
		TEST(test_device_config),
		TEST(test_pci_cfg_window),
		TEST(test_activate_through_window),
		TEST(test_creation_failures),
	};

	/* Half of these provoke warnings. */
	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
