/* SPDX-License-Identifier: Apache-2.0 */
/* PCI configuration space: finding the devices, then abusing it. */
#include "hostile.h"

#define PCI_COMMAND	   0x04
#define PCI_BAR0	   0x10
#define PCI_CAP_POINTER	   0x34
#define COMMAND_MEM_MASTER 6

#define CAP_MSIX   0x11
#define CAP_VENDOR 0x09

/* Types of struct virtio_pci_cap (virtio 1.2, 4.1.4). */
enum { CFG_COMMON = 1, CFG_NOTIFY, CFG_ISR, CFG_DEVICE, CFG_PCI };

static uint64_t ecam(uint8_t devfn, uint32_t offset)
{
	return LAYOUT_ECAM_START + ((uint64_t)devfn << 12) + offset;
}

uint32_t pci_read(uint8_t devfn, uint32_t offset, unsigned int len)
{
	return (uint32_t)io_read(ecam(devfn, offset), len);
}

void pci_write(uint8_t devfn, uint32_t offset, uint32_t value, unsigned int len)
{
	io_write(ecam(devfn, offset), value, len);
}

static void read_vendor_cap(struct device *d, uint32_t cap)
{
	uint32_t offset = pci_read(d->devfn, cap + 8, 4);

	switch (pci_read(d->devfn, cap + 3, 1)) {
	case CFG_COMMON:
		d->common = offset;
		break;
	case CFG_NOTIFY:
		d->notify = offset;
		d->notify_mult = pci_read(d->devfn, cap + 16, 4);
		break;
	case CFG_ISR:
		d->isr = offset;
		break;
	case CFG_DEVICE:
		d->config = offset;
		break;
	case CFG_PCI:
		d->pci_cfg_cap = (uint8_t)cap;
		break;
	default:
		break;
	}
}

/* All modern virtio devices of ours have one 64-bit BAR, number 0. */
static void add_device(uint8_t devfn, uint16_t id)
{
	struct device *d = &devices[num_devices++];
	uint32_t cap = pci_read(devfn, PCI_CAP_POINTER, 1), low;

	d->devfn = devfn;
	d->id = id;
	low = pci_read(devfn, PCI_BAR0, 4);
	d->bar = (uint64_t)pci_read(devfn, PCI_BAR0 + 4, 4) << 32 |
		 (low & ~15u);
	pci_write(devfn, PCI_BAR0, 0xffffffff, 4);
	d->bar_bytes = -(pci_read(devfn, PCI_BAR0, 4) & ~15u) & 0xffffffff;
	pci_write(devfn, PCI_BAR0, low, 4);
	for (int i = 0; i < 48 && cap >= 0x40; i++) {
		if (pci_read(devfn, cap, 1) == CAP_MSIX)
			d->msix_cap = (uint8_t)cap;
		if (pci_read(devfn, cap, 1) == CAP_VENDOR)
			read_vendor_cap(d, cap);
		cap = pci_read(devfn, cap + 1, 1);
	}
	if (!d->bar_bytes)
		d->bar_bytes = 0x1000;
	pci_repair(d);
	d->num_queues = (uint32_t)io_read(d->bar + d->common + 0x12, 2);
	if (!d->num_queues || d->num_queues > MAX_QUEUES)
		d->num_queues = MAX_QUEUES;
}

void pci_scan(void)
{
	uint32_t id;

	num_devices = 0;
	for (unsigned int slot = 0; slot < 32; slot++) {
		id = pci_read((uint8_t)(slot << 3), 0, 4);
		if ((id & 0xffff) == 0x1af4 && id >> 16 >= 0x1040)
			add_device((uint8_t)(slot << 3),
				   (uint16_t)((id >> 16) - 0x1040));
	}
}

void pci_repair(const struct device *d)
{
	pci_write(d->devfn, PCI_BAR0, (uint32_t)d->bar, 4);
	pci_write(d->devfn, PCI_BAR0 + 4, (uint32_t)(d->bar >> 32), 4);
	pci_write(d->devfn, PCI_COMMAND, COMMAND_MEM_MASTER, 2);
}

/* By CF8/CFC, where half-made accesses are part of the game. */
static void by_ports(struct cpu *c, uint32_t devfn, uint32_t offset)
{
	unsigned int len = 1u << rnd(c, 3);
	uint16_t port = (uint16_t)(PORT_PCI_CONFIG + 4 + rnd(c, 4));
	uint32_t value = (uint32_t)rnd_value(c);

	port_out32(PORT_PCI_CONFIG, 0x80000000 | devfn << 8 | (offset & 0xfc));
	if (rnd(c, 2))
		port_in(port, len);
	else if (len == 1)
		port_out8(port, (uint8_t)value);
	else if (len == 2)
		port_out16(port, (uint16_t)value);
	else
		port_out32(port, value);
}

/* A BAR to where another is, into RAM, half out of the window, or anywhere. */
static void move_bar(struct cpu *c, const struct device *d)
{
	uint64_t addr = rnd_address(c);

	if (rnd(c, 2))
		addr = devices[rnd(c, num_devices)].bar +
		       rnd(c, 4) * d->bar_bytes;
	pci_write(d->devfn, PCI_BAR0, (uint32_t)addr, 4);
	pci_write(d->devfn, PCI_BAR0 + 4, (uint32_t)(addr >> 32), 4);
	pci_write(d->devfn, PCI_COMMAND, (uint32_t)rnd(c, 8), 2);
	io_read(d->bar + rnd(c, d->bar_bytes) / 4 * 4, 4);
	pci_repair(d);
}

/* The window onto the BAR that needs no BAR (virtio 1.2, 4.1.4.9). */
static void through_pci_cfg(struct cpu *c, const struct device *d)
{
	uint32_t cap = d->pci_cfg_cap;
	uint32_t offset = (uint32_t)rnd(c, d->bar_bytes + 16);

	if (!cap)
		return;
	pci_write(d->devfn, cap + 4, rnd(c, 8) ? 0 : (uint32_t)rnd_value(c), 1);
	pci_write(d->devfn, cap + 8,
		  rnd(c, 8) ? offset : (uint32_t)rnd_value(c), 4);
	pci_write(d->devfn, cap + 12,
		  rnd(c, 8) ? 1u << rnd(c, 4) : (uint32_t)rnd_value(c), 4);
	if (rnd(c, 2))
		pci_read(d->devfn, cap + 16, 4);
	else
		pci_write(d->devfn, cap + 16, (uint32_t)rnd_value(c), 4);
}

static void change_msix(struct cpu *c, const struct device *d)
{
	if (d->msix_cap)
		pci_write(d->devfn, d->msix_cap + 2, (uint32_t)rnd(c, 4) << 14,
			  2);
}

void attack_pci(struct cpu *c)
{
	const struct device *d = &devices[rnd(c, num_devices)];
	uint32_t devfn = rnd(c, 4) && num_devices ? d->devfn
						  : (uint32_t)rnd(c, 256);
	uint32_t offset = (uint32_t)rnd(c, rnd(c, 8) ? 256 : 4096);
	unsigned int len = 1u << rnd(c, 4);

	switch (num_devices ? rnd(c, 6) : 0) {
	case 0:
		by_ports(c, devfn, offset);
		break;
	case 1:
		io_read(ecam((uint8_t)devfn, offset), len);
		break;
	case 2:
		io_write(ecam((uint8_t)devfn, offset), rnd_value(c), len);
		break;
	case 3:
		move_bar(c, d);
		break;
	case 4:
		through_pci_cfg(c, d);
		break;
	default:
		change_msix(c, d);
		break;
	}
}
