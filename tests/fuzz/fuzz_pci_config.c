/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything a guest can do to the host bridge and to two virtio-pci devices:
 * configuration space by port, by ECAM and directly, BAR accesses wherever the
 * BARs are just then, guest memory below the rings, and the device's own
 * calls in between.
 *
 * Input: steps of seven bytes (struct step). Checked after each: identities
 * stay, BARs are mapped inside the windows only and apart from each other, and
 * a device is activated and deactivated in turns.
 */
#include <linux/pci_regs.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "base/io.h"
#include "base/log.h"
#include "virtio/pci_common.h"

#define NUM_DEVICES 2
#define NUM_QUEUES  2
#define MAX_STEPS   300
#define RAM_BYTES   (256 * KIB)
#define ECAM	    0xe0000000ull
#define WINDOW32    0xc0000000ull
#define WINDOW64    (64 * GIB)
#define WINDOW_SIZE (512 * MIB)

enum step_kind {
	STEP_CFG_READ,
	STEP_CFG_WRITE,
	STEP_PORT_READ,
	STEP_PORT_WRITE,
	STEP_ECAM_READ,
	STEP_ECAM_WRITE,
	STEP_BAR_READ,
	STEP_BAR_WRITE,
	STEP_EVENT,
	STEP_RAM_WRITE,
	STEP_KINDS,
};

struct step {
	uint8_t kind; /* low nibble; bits 4-5: log2 of the length */
	uint16_t where;
	uint32_t value;
} __packed_struct;

struct fake {
	struct virtio_dev vdev;
	uint8_t config[24];
	bool active;
};

struct machine {
	struct iobus *pio, *mmio;
	struct pci_host *host;
	struct virtio_pci *vpci[NUM_DEVICES];
	struct fake *fake[NUM_DEVICES];
	unsigned int resets;
};

static struct ram ram;

/* ---- the device ---- */

static void fake_destroy(struct virtio_dev *vdev)
{
	BUG_ON(((struct fake *)vdev)->active);
	virtio_dev_fini(vdev);
	free(vdev);
}

static void fake_config_read(struct virtio_dev *vdev, uint32_t offset,
			     void *data, uint32_t len)
{
	BUG_ON(!range_ok(offset, len, sizeof(((struct fake *)vdev)->config)));
	memcpy(data, ((struct fake *)vdev)->config + offset, len);
}

static void fake_config_write(struct virtio_dev *vdev, uint32_t offset,
			      const void *data, uint32_t len)
{
	BUG_ON(!range_ok(offset, len, sizeof(((struct fake *)vdev)->config)));
	memcpy(((struct fake *)vdev)->config + offset, data, len);
}

static int fake_activate(struct virtio_dev *vdev)
{
	struct fake *fake = (struct fake *)vdev;

	BUG_ON(fake->active);
	BUG_ON(!(vdev->features & VIRTIO_F_VERSION_1));
	BUG_ON(vdev->features & ~vdev->offered);
	fake->active = true;
	return 0;
}

static void fake_deactivate(struct virtio_dev *vdev)
{
	struct fake *fake = (struct fake *)vdev;

	BUG_ON(!fake->active);
	fake->active = false;
}

static const struct virtio_class fake_class = {
	.name = "fake",
	.device_id = 42,
	.pci_class = 0x018000,
	.destroy = fake_destroy,
	.config_space_bytes = sizeof(((struct fake *)0)->config),
	.config_read = fake_config_read,
	.config_write = fake_config_write,
	.activate = fake_activate,
	.deactivate = fake_deactivate,
};

/* What a device's thread does after a kick. */
static void serve(struct fake *fake)
{
	static struct vq_chain chain;

	for (unsigned int q = 0; fake->active && q < NUM_QUEUES; q++) {
		struct virtqueue *vq = &fake->vdev.queues[q].vq;
		int r = 0;

		for (int i = 0; i < 64; i++) {
			r = vq_pop(vq, &chain);
			if (r != 1)
				break;
			vq_push(vq, &chain, 0);
		}
		virtio_queue_interrupt(&fake->vdev, q);
		if (r < 0)
			virtio_dev_broken(&fake->vdev, "fuzz");
	}
}

/* ---- the machine ---- */

static void count_reset(void *ctx, uint8_t value)
{
	((struct machine *)ctx)->resets++;
}

static struct fake *fake_new(void)
{
	struct fake *fake = calloc(1, sizeof(*fake));

	BUG_ON(!fake);
	BUG_ON(virtio_dev_init(&fake->vdev, &fake_class, &ram, NUM_QUEUES, 64));
	strcpy(fake->vdev.id, "fake");
	return fake;
}

static void machine_init(struct machine *m)
{
	struct pci_host_config cfg = {
		.ecam_base = ECAM,
		.window32_base = WINDOW32,
		.window32_size = WINDOW_SIZE,
		.window64_base = WINDOW64,
		.window64_size = WINDOW_SIZE,
	};

	memset(m, 0, sizeof(*m));
	BUG_ON(iobus_new(&m->pio) || iobus_new(&m->mmio));
	cfg.pio = m->pio;
	cfg.mmio = m->mmio;
	BUG_ON(pci_host_new(&m->host, &cfg));
	pci_host_set_reset_hook(m->host, count_reset, m);
	for (int i = 0; i < NUM_DEVICES; i++) {
		m->fake[i] = fake_new();
		BUG_ON(virtio_pci_new(&m->vpci[i], &m->fake[i]->vdev, m->host,
				      NULL, NULL, NULL));
	}
}

static void machine_fini(struct machine *m)
{
	for (int i = 0; i < NUM_DEVICES; i++)
		virtio_pci_free(m->vpci[i]);
	pci_host_free(m->host);
	iobus_free(m->pio);
	iobus_free(m->mmio);
}

static void event(struct machine *m, const struct step *step)
{
	struct fake *fake = m->fake[step->value % NUM_DEVICES];

	switch (step->where % 4) {
	case 0:
		serve(fake);
		break;
	case 1:
		virtio_config_changed(&fake->vdev);
		break;
	case 2:
		virtio_dev_broken(&fake->vdev, "fuzz");
		break;
	case 3:
		fake->vdev.transport->notify_queue(
			fake->vdev.transport_ctx, step->value / 2 % NUM_QUEUES);
		break;
	}
}

static void bus_access(struct iobus *bus, uint64_t addr, uint32_t len,
		       uint32_t value, bool write)
{
	uint64_t data = (uint64_t)value << 32 | value;

	if (write)
		iobus_write(bus, addr, &data, len);
	else
		iobus_read(bus, addr, &data, len);
}

static uint64_t bar_addr(struct machine *m, unsigned int device)
{
	return m->vpci[device]->pci.bars[0].addr;
}

static void run_step(struct machine *m, const struct step *step)
{
	uint32_t len = 1u << (step->kind >> 4 & 3);
	uint8_t kind = (step->kind & 15) % STEP_KINDS;
	uint8_t devfn = (uint8_t)(step->where >> 8);
	bool write = kind & 1;

	switch ((enum step_kind)kind) {
	case STEP_CFG_READ:
		pci_host_config_read(m->host, devfn, step->where & 0xff, len);
		break;
	case STEP_CFG_WRITE:
		pci_host_config_write(m->host, devfn, step->where & 0xff,
				      step->value, len);
		break;
	case STEP_PORT_READ:
	case STEP_PORT_WRITE:
		bus_access(m->pio, 0xcf8ull + (step->where & 7), len,
			   step->value, write);
		break;
	case STEP_ECAM_READ:
	case STEP_ECAM_WRITE:
		bus_access(m->mmio, ECAM + step->where, len, step->value,
			   write);
		break;
	case STEP_BAR_READ:
	case STEP_BAR_WRITE:
		bus_access(m->mmio,
			   bar_addr(m, step->where >> 15) +
				   (step->where & 0x7fff),
			   len, step->value, write);
		break;
	case STEP_EVENT:
		event(m, step);
		break;
	case STEP_RAM_WRITE:
		memcpy(ram.base + step->where * 4ull % RAM_BYTES, &step->value,
		       4);
		break;
	case STEP_KINDS:
		break;
	}
}

static bool in_window(const struct pci_bar *bar, uint64_t window)
{
	return bar->addr >= window &&
	       range_ok(bar->addr - window, bar->size, WINDOW_SIZE);
}

static void check(struct machine *m)
{
	const struct pci_bar *bars[NUM_DEVICES];

	for (int i = 0; i < NUM_DEVICES; i++) {
		const struct pci_dev *pci = &m->vpci[i]->pci;

		bars[i] = &pci->bars[0];
		BUG_ON(le32_load(pci->config) != 0x106a1af4);
		BUG_ON(pci->config[PCI_HEADER_TYPE] ||
		       pci->config[PCI_INTERRUPT_PIN]);
		BUG_ON(bars[i]->mapped && !in_window(bars[i], WINDOW32) &&
		       !in_window(bars[i], WINDOW64));
		for (int q = 0; q < NUM_QUEUES; q++)
			BUG_ON(m->fake[i]->vdev.queues[q].vq.started &&
			       !m->fake[i]->active);
	}
	BUG_ON(bars[0]->mapped && bars[1]->mapped &&
	       bars[0]->addr < bars[1]->addr + bars[1]->size &&
	       bars[1]->addr < bars[0]->addr + bars[0]->size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct ram_config ram_cfg = {
		.size_bytes = RAM_BYTES,
		.hole_start = 3 * GIB,
		.hole_end = 4 * GIB,
	};
	struct machine m;
	struct step step;

	if (!ram.base) {
		log_set_level(LOG_LEVEL_ERROR);
		BUG_ON(ram_init(&ram, &ram_cfg, NULL));
	}
	memset(ram.base, 0, RAM_BYTES);
	machine_init(&m);
	for (int i = 0; i < MAX_STEPS && size >= sizeof(step); i++) {
		memcpy(&step, data, sizeof(step));
		data += sizeof(step);
		size -= sizeof(step);
		run_step(&m, &step);
		check(&m);
	}
	machine_fini(&m);
	return 0;
}
