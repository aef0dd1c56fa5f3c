/* SPDX-License-Identifier: Apache-2.0 */
/* bus/pci.c, bus/pci_host.c: headers, both mechanisms, BARs that move. */
#include "cmocka_all.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "bus/pci_host.h"

#define ECAM	  0xe0000000ull
#define WIN32	  0xc0000000ull
#define WIN32_LEN 0x20000000ull
#define WIN64	  0x1000000000ull
#define WIN64_LEN 0x1000000000ull

struct fake {
	struct pci_dev pci;
	uint8_t tag;
	unsigned int moved;
	uint32_t hook_offset, hook_len;
	unsigned int hooks;
};

static void fake_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	struct fake *fake = dev;

	memset(data, fake->tag, len);
}

static void fake_write(void *dev, uint64_t offset, const void *data,
		       uint32_t len)
{
}

static const struct iobus_ops fake_ops = {
	.name = "fake",
	.read = fake_read,
	.write = fake_write,
};

static void on_write(struct pci_dev *pci, uint32_t offset, uint32_t len)
{
	struct fake *fake = container_of(pci, struct fake, pci);

	fake->hooks++;
	fake->hook_offset = offset;
	fake->hook_len = len;
}

static void on_move(struct pci_dev *pci)
{
	container_of(pci, struct fake, pci)->moved++;
}

struct machine {
	struct iobus *pio, *mmio;
	struct pci_host *host;
};

static int setup(void **state)
{
	static struct machine m;
	struct pci_host_config cfg = {
		.ecam_base = ECAM,
		.window32_base = WIN32,
		.window32_size = WIN32_LEN,
		.window64_base = WIN64,
		.window64_size = WIN64_LEN,
	};

	if (iobus_new(&m.pio) || iobus_new(&m.mmio))
		return -1;
	cfg.pio = m.pio;
	cfg.mmio = m.mmio;
	*state = &m;
	return pci_host_new(&m.host, &cfg);
}

static int teardown(void **state)
{
	struct machine *m = *state;

	pci_host_free(m->host);
	iobus_free(m->pio);
	iobus_free(m->mmio);
	return 0;
}

static void fake_init(struct fake *fake, uint8_t tag)
{
	static const struct pci_id id = {
		.vendor = 0x1234,
		.device = 0x5678,
		.subsystem_vendor = 0x9abc,
		.subsystem = 0xdef0,
		.revision = 7,
		.class_code = 0x010203,
	};

	*fake = (struct fake){ .tag = tag };
	pci_dev_init(&fake->pci, "fake", &id);
	fake->pci.config_after_write = on_write;
	fake->pci.bars_moved = on_move;
}

static uint32_t cfg_read(struct machine *m, struct fake *fake, uint32_t offset,
			 uint32_t len)
{
	return pci_host_config_read(m->host, fake->pci.devfn, offset, len);
}

static void cfg_write(struct machine *m, struct fake *fake, uint32_t offset,
		      uint32_t value, uint32_t len)
{
	pci_host_config_write(m->host, fake->pci.devfn, offset, value, len);
}

/* The tag of the device that answers at addr, or 0xff. */
static uint8_t who(struct machine *m, uint64_t addr)
{
	uint8_t tag;

	iobus_read(m->mmio, addr, &tag, 1);
	return tag;
}

static uint32_t port_read(struct machine *m, uint32_t cf8, uint16_t port,
			  uint32_t len)
{
	uint32_t value = 0;

	assert_true(iobus_write(m->pio, 0xcf8, &cf8, 4));
	iobus_read(m->pio, port, &value, len);
	return value;
}

static void test_header(void **state)
{
	struct machine *m = *state;
	struct fake fake;

	fake_init(&fake, 1);
	assert_int_equal(pci_host_plug(m->host, &fake.pci, -1), 0);
	assert_int_equal(fake.pci.devfn, 1 << 3); /* 0 is the bridge */
	assert_int_equal(cfg_read(m, &fake, 0, 4), 0x56781234);
	assert_int_equal(cfg_read(m, &fake, 8, 4), 0x01020307);
	assert_int_equal(cfg_read(m, &fake, 0x2c, 4), 0xdef09abc);
	assert_int_equal(cfg_read(m, &fake, PCI_HEADER_TYPE, 1), 0);
	assert_int_equal(cfg_read(m, &fake, PCI_CAPABILITY_LIST, 1), 0);
	assert_int_equal(cfg_read(m, &fake, PCI_STATUS, 2), 0);
	/* read-only bytes stay, scratch bytes change */
	cfg_write(m, &fake, 0, 0, 4);
	cfg_write(m, &fake, 8, 0, 4);
	assert_int_equal(cfg_read(m, &fake, 0, 4), 0x56781234);
	cfg_write(m, &fake, PCI_INTERRUPT_LINE, 0x0b, 1);
	assert_int_equal(cfg_read(m, &fake, PCI_INTERRUPT_LINE, 1), 0x0b);
	/* I/O decoding does not exist */
	cfg_write(m, &fake, PCI_COMMAND, 0xffff, 2);
	assert_int_equal(cfg_read(m, &fake, PCI_COMMAND, 2),
			 PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
				 PCI_COMMAND_PARITY | PCI_COMMAND_SERR |
				 PCI_COMMAND_INTX_DISABLE);
	pci_host_unplug(m->host, &fake.pci);
	assert_int_equal(cfg_read(m, &fake, 0, 4), 0xffffffff);
}

static void test_bridge_and_absent(void **state)
{
	struct machine *m = *state;

	assert_int_equal(pci_host_config_read(m->host, 0, PCI_CLASS_DEVICE, 2),
			 0x0600);
	for (unsigned int devfn = 1; devfn < 256; devfn++)
		assert_int_equal(pci_host_config_read(m->host, (uint8_t)devfn,
						      0, 4),
				 0xffffffff);
}

static void test_capabilities(void **state)
{
	struct machine *m = *state;
	struct fake fake;
	uint8_t one, two;

	fake_init(&fake, 1);
	one = pci_dev_add_cap(&fake.pci, 0x09, "\x01\x02\x03", 5);
	two = pci_dev_add_cap(&fake.pci, 0x11, "\x04\x05", 4);
	assert_int_equal(pci_host_plug(m->host, &fake.pci, 5), 0);
	assert_int_equal(fake.pci.devfn, 5 << 3);
	assert_true(cfg_read(m, &fake, PCI_STATUS, 2) & PCI_STATUS_CAP_LIST);
	assert_int_equal(cfg_read(m, &fake, PCI_CAPABILITY_LIST, 1), one);
	assert_int_equal(one, 0x40);
	assert_int_equal(two, 0x48);
	assert_int_equal(cfg_read(m, &fake, one, 4), 0x02014809);
	assert_int_equal(cfg_read(m, &fake, two, 4), 0x05040011);
	pci_host_unplug(m->host, &fake.pci);
}

static void test_write_masks_and_w1c(void **state)
{
	struct machine *m = *state;
	struct fake fake;

	fake_init(&fake, 1);
	fake.pci.config[0x50] = 0xf0;
	fake.pci.wmask[0x50] = 0x3c;
	le16_store(fake.pci.config + PCI_STATUS, PCI_STATUS_DETECTED_PARITY);
	assert_int_equal(pci_host_plug(m->host, &fake.pci, -1), 0);
	cfg_write(m, &fake, 0x50, 0x0f, 1);
	assert_int_equal(cfg_read(m, &fake, 0x50, 1), 0xcc);
	assert_int_equal(fake.hook_offset, 0x50);
	cfg_write(m, &fake, PCI_STATUS, 0, 2);
	assert_int_equal(cfg_read(m, &fake, PCI_STATUS, 2),
			 PCI_STATUS_DETECTED_PARITY);
	cfg_write(m, &fake, PCI_STATUS, 0xffff, 2);
	assert_int_equal(cfg_read(m, &fake, PCI_STATUS, 2), 0);
	pci_host_unplug(m->host, &fake.pci);
}

static void test_split_accesses(void **state)
{
	struct machine *m = *state;
	struct fake fake;

	fake_init(&fake, 1);
	memset(fake.pci.wmask + 0x50, 0xff, 16);
	assert_int_equal(pci_host_plug(m->host, &fake.pci, -1), 0);
	/* over the border of a dword: two hooks, each within its own */
	cfg_write(m, &fake, 0x53, 0x44332211, 4);
	assert_int_equal(fake.hooks, 2);
	assert_int_equal(fake.hook_offset, 0x54);
	assert_int_equal(fake.hook_len, 3);
	assert_int_equal(cfg_read(m, &fake, 0x53, 4), 0x44332211);
	assert_int_equal(cfg_read(m, &fake, 0x54, 2), 0x3322);
	assert_int_equal(cfg_read(m, &fake, 0x56, 1), 0x44);
	/* extended space is empty, its end is the end */
	assert_int_equal(cfg_read(m, &fake, 0x100, 4), 0);
	assert_int_equal(cfg_read(m, &fake, 0xfff, 1), 0);
	assert_int_equal(cfg_read(m, &fake, 0xffd, 4), 0xffffffff);
	cfg_write(m, &fake, 0xffffffff, 0, 4);
	cfg_write(m, &fake, 0xfe, 0xffffffff, 4);
	pci_host_unplug(m->host, &fake.pci);
}

static void test_ports(void **state)
{
	struct machine *m = *state;
	struct fake fake;
	uint32_t addr, value;

	fake_init(&fake, 1);
	memset(fake.pci.wmask + 0x50, 0xff, 4);
	assert_int_equal(pci_host_plug(m->host, &fake.pci, 3), 0);
	addr = 0x80000000 | 3 << 11;
	assert_int_equal(port_read(m, addr, 0xcfc, 4), 0x56781234);
	assert_int_equal(port_read(m, addr, 0xcfc, 2), 0x1234);
	assert_int_equal(port_read(m, addr, 0xcfe, 2), 0x5678);
	assert_int_equal(port_read(m, addr, 0xcff, 1), 0x56);
	assert_int_equal(port_read(m, addr, 0xcf8, 4), addr);
	assert_int_equal(port_read(m, addr | 2, 0xcfc, 4), 0x56781234);
	/* not enabled, other bus, other function, empty slot */
	assert_int_equal(port_read(m, 3 << 11, 0xcfc, 4), 0xffffffff);
	assert_int_equal(port_read(m, addr | 1 << 16, 0xcfc, 4), 0xffffffff);
	assert_int_equal(port_read(m, addr | 1 << 8, 0xcfc, 4), 0xffffffff);
	assert_int_equal(port_read(m, 0x80000000 | 4 << 11, 0xcfc, 2), 0xffff);
	/* byte writes land in their lanes */
	value = 0xa5;
	assert_int_equal(port_read(m, addr | 0x50, 0xcfc, 4), 0);
	assert_true(iobus_write(m->pio, 0xcfe, &value, 1));
	assert_int_equal(port_read(m, addr | 0x50, 0xcfc, 4), 0xa50000);
	/* narrow accesses to the address register are not for us */
	value = 0x1234;
	assert_true(iobus_write(m->pio, 0xcf8, &value, 2));
	assert_int_equal(port_read(m, addr, 0xcf8, 4), addr);
	assert_int_equal(port_read(m, addr, 0xcf8, 1), 0xff);
	pci_host_unplug(m->host, &fake.pci);
}

static void note_reset(void *ctx, uint8_t value)
{
	*(unsigned int *)ctx = 0x100u | value;
}

static void test_reset_register(void **state)
{
	struct machine *m = *state;
	unsigned int got = 0;
	uint32_t value = 0x06060606;

	assert_true(iobus_write(m->pio, 0xcf9, &value, 1)); /* no hook: fine */
	pci_host_set_reset_hook(m->host, note_reset, &got);
	assert_true(iobus_write(m->pio, 0xcf9, &value, 2));
	assert_int_equal(got, 0);
	assert_true(iobus_write(m->pio, 0xcf9, &value, 1));
	assert_int_equal(got, 0x106);
	value = 0xff;
	assert_true(iobus_read(m->pio, 0xcf9, &value, 1));
	assert_int_equal(value, 0);
}

static void test_ecam(void **state)
{
	struct machine *m = *state;
	uint64_t base = ECAM + (6ull << 15), got = 0;
	struct fake fake;
	uint32_t value = 0x11223344;

	fake_init(&fake, 1);
	memset(fake.pci.wmask + 0x50, 0xff, 8);
	assert_int_equal(pci_host_plug(m->host, &fake.pci, 6), 0);
	assert_true(iobus_read(m->mmio, base, &got, 4));
	assert_int_equal(got, 0x56781234);
	assert_true(iobus_write(m->mmio, base + 0x52, &value, 4));
	assert_true(iobus_read(m->mmio, base + 0x50, &got, 8));
	assert_int_equal(got, 0x112233440000);
	got = 0;
	assert_true(iobus_read(m->mmio, base + 0x55, &got, 1));
	assert_int_equal(got, 0x11);
	/* there is no other bus, and the last byte is the end */
	assert_false(iobus_read(m->mmio, base + (1 << 20), &got, 8));
	assert_int_equal(got, UINT64_MAX);
	assert_true(iobus_read(m->mmio, ECAM + MIB - 1, &got, 1));
	assert_false(iobus_read(m->mmio, ECAM + MIB - 1, &got, 2));
	pci_host_unplug(m->host, &fake.pci);
}

static void test_bar_sizing(void **state)
{
	struct machine *m = *state;
	struct fake fake;
	uint32_t bar0, lo, hi;

	fake_init(&fake, 0x42);
	pci_dev_add_bar(&fake.pci, 0, 0x1000, false, false, &fake_ops, &fake);
	pci_dev_add_bar(&fake.pci, 2, 8 * GIB, true, true, &fake_ops, &fake);
	assert_int_equal(pci_host_plug(m->host, &fake.pci, -1), 0);
	assert_int_equal(fake.moved, 1);

	bar0 = cfg_read(m, &fake, PCI_BASE_ADDRESS_0, 4);
	lo = cfg_read(m, &fake, PCI_BASE_ADDRESS_2, 4);
	hi = cfg_read(m, &fake, PCI_BASE_ADDRESS_3, 4);
	assert_int_equal(bar0, WIN32);
	assert_int_equal(lo & 0xf, PCI_BASE_ADDRESS_MEM_TYPE_64 |
					   PCI_BASE_ADDRESS_MEM_PREFETCH);
	assert_int_equal((uint64_t)hi << 32 | (lo & ~0xfu), WIN64);
	assert_int_equal(who(m, WIN32), 0x42);
	assert_int_equal(who(m, WIN64 + 8 * GIB - 1), 0x42);

	cfg_write(m, &fake, PCI_BASE_ADDRESS_0, 0xffffffff, 4);
	assert_int_equal(cfg_read(m, &fake, PCI_BASE_ADDRESS_0, 4), 0xfffff000);
	assert_int_equal(who(m, WIN32), 0xff);
	cfg_write(m, &fake, PCI_BASE_ADDRESS_0, bar0, 4);
	assert_int_equal(who(m, WIN32), 0x42);

	cfg_write(m, &fake, PCI_BASE_ADDRESS_2, 0xffffffff, 4);
	cfg_write(m, &fake, PCI_BASE_ADDRESS_3, 0xffffffff, 4);
	assert_int_equal(cfg_read(m, &fake, PCI_BASE_ADDRESS_2, 4), 0xc);
	assert_int_equal(cfg_read(m, &fake, PCI_BASE_ADDRESS_3, 4), 0xfffffffe);
	/* bars that are not there */
	cfg_write(m, &fake, PCI_BASE_ADDRESS_1, 0xffffffff, 4);
	assert_int_equal(cfg_read(m, &fake, PCI_BASE_ADDRESS_1, 4), 0);
	assert_true(fake.pci.bars[0].mapped);
	assert_false(fake.pci.bars[2].mapped); /* outside the windows */
	pci_host_unplug(m->host, &fake.pci);
	assert_false(fake.pci.bars[0].mapped);
	assert_int_equal(who(m, WIN32), 0xff);
}

static void test_bar_moves(void **state)
{
	struct machine *m = *state;
	struct fake a, b;

	fake_init(&a, 0xa);
	fake_init(&b, 0xb);
	pci_dev_add_bar(&a.pci, 0, 0x1000, false, false, &fake_ops, &a);
	pci_dev_add_bar(&b.pci, 0, 0x2000, false, false, &fake_ops, &b);
	assert_int_equal(pci_host_plug(m->host, &a.pci, -1), 0);
	assert_int_equal(pci_host_plug(m->host, &b.pci, -1), 0);
	assert_int_equal(who(m, WIN32), 0xa);
	assert_int_equal(who(m, WIN32 + 0x2000), 0xb);

	/* decode off and on again */
	cfg_write(m, &a, PCI_COMMAND, PCI_COMMAND_MASTER, 2);
	assert_int_equal(who(m, WIN32), 0xff);
	cfg_write(m, &a, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	assert_int_equal(who(m, WIN32), 0xa);
	assert_int_equal(a.moved, 3);

	/* a free place */
	cfg_write(m, &a, PCI_BASE_ADDRESS_0, (uint32_t)WIN32 + 0x100000, 4);
	assert_int_equal(who(m, WIN32), 0xff);
	assert_int_equal(who(m, WIN32 + 0x100000), 0xa);
	/* onto b: b keeps it, a is nowhere */
	cfg_write(m, &a, PCI_BASE_ADDRESS_0, (uint32_t)WIN32 + 0x3000, 4);
	assert_int_equal(who(m, WIN32 + 0x3000), 0xb);
	assert_int_equal(who(m, WIN32 + 0x100000), 0xff);
	assert_false(a.pci.bars[0].mapped);
	/* b leaves: a comes up where it was pointed */
	a.moved = 0;
	cfg_write(m, &b, PCI_BASE_ADDRESS_0, (uint32_t)WIN32 + 0x8000, 4);
	assert_int_equal(who(m, WIN32 + 0x3000), 0xa);
	assert_int_equal(who(m, WIN32 + 0x8000), 0xb);
	assert_int_equal(a.moved, 1);
	/* outside the windows: below, onto the ECAM, one page over the end */
	cfg_write(m, &a, PCI_BASE_ADDRESS_0, 0x1000, 4);
	assert_false(a.pci.bars[0].mapped);
	cfg_write(m, &a, PCI_BASE_ADDRESS_0, (uint32_t)ECAM, 4);
	assert_false(a.pci.bars[0].mapped);
	cfg_write(m, &b, PCI_BASE_ADDRESS_0, 0, 4);
	assert_false(b.pci.bars[0].mapped);

	/* and home again */
	cfg_write(m, &a, PCI_BASE_ADDRESS_0, (uint32_t)WIN32, 4);
	cfg_write(m, &b, PCI_BASE_ADDRESS_0, (uint32_t)WIN32 + 0x2000, 4);
	assert_int_equal(who(m, WIN32), 0xa);
	assert_int_equal(who(m, WIN32 + 0x2000), 0xb);
	pci_host_unplug(m->host, &a.pci);
	pci_host_unplug(m->host, &b.pci);
}

/* Each of two goes to the other's home; a third is given neither. */
static void test_bars_swap(void **state)
{
	struct machine *m = *state;
	struct fake a, b, c;
	uint32_t home_a, home_b;

	fake_init(&a, 0xa);
	fake_init(&b, 0xb);
	pci_dev_add_bar(&a.pci, 0, 0x1000, false, false, &fake_ops, &a);
	pci_dev_add_bar(&b.pci, 0, 0x1000, false, false, &fake_ops, &b);
	assert_int_equal(pci_host_plug(m->host, &a.pci, -1), 0);
	assert_int_equal(pci_host_plug(m->host, &b.pci, -1), 0);
	home_a = cfg_read(m, &a, PCI_BASE_ADDRESS_0, 4);
	home_b = cfg_read(m, &b, PCI_BASE_ADDRESS_0, 4);
	cfg_write(m, &a, PCI_COMMAND, 0, 2);
	cfg_write(m, &b, PCI_BASE_ADDRESS_0, home_a, 4);
	cfg_write(m, &a, PCI_BASE_ADDRESS_0, home_b, 4);
	cfg_write(m, &a, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	assert_int_equal(who(m, home_a), 0xb);
	assert_int_equal(who(m, home_b), 0xa);
	/* homes stay reserved when their owners are away */
	cfg_write(m, &b, PCI_BASE_ADDRESS_0, home_a + 0x100000, 4);
	fake_init(&c, 0xc);
	pci_dev_add_bar(&c.pci, 0, 0x1000, false, false, &fake_ops, &c);
	assert_int_equal(pci_host_plug(m->host, &c.pci, -1), 0);
	assert_int_equal(who(m, home_a), 0xff);
	assert_int_equal(who(m, home_b + 0x1000), 0xc);
	pci_host_unplug(m->host, &a.pci);
	pci_host_unplug(m->host, &b.pci);
	pci_host_unplug(m->host, &c.pci);
}

static void test_plug_limits(void **state)
{
	struct machine *m = *state;
	static struct fake fakes[PCI_HOST_SLOTS];
	struct fake big;

	for (unsigned int i = 0; i < PCI_HOST_SLOTS; i++)
		fake_init(&fakes[i], (uint8_t)i);
	assert_int_equal(pci_host_plug(m->host, &fakes[0].pci, 0), -EEXIST);
	assert_int_equal(pci_host_plug(m->host, &fakes[0].pci, 32), -EINVAL);
	for (unsigned int i = 1; i < PCI_HOST_SLOTS; i++)
		assert_int_equal(pci_host_plug(m->host, &fakes[i].pci, -1), 0);
	assert_int_equal(pci_host_plug(m->host, &fakes[0].pci, -1), -ENOSPC);
	for (unsigned int i = 1; i < PCI_HOST_SLOTS; i++)
		pci_host_unplug(m->host, &fakes[i].pci);

	/* 512 MiB of window: one of 512 MiB fits, a second does not */
	fake_init(&big, 1);
	pci_dev_add_bar(&big.pci, 0, 512 * MIB, false, false, &fake_ops, &big);
	assert_int_equal(pci_host_plug(m->host, &big.pci, -1), 0);
	fake_init(&fakes[1], 2);
	pci_dev_add_bar(&fakes[1].pci, 0, 0x1000, false, false, &fake_ops,
			&fakes[1]);
	assert_int_equal(pci_host_plug(m->host, &fakes[1].pci, -1), -ENOSPC);
	pci_host_unplug(m->host, &big.pci);
	/* its space is free again */
	assert_int_equal(pci_host_plug(m->host, &fakes[1].pci, -1), 0);
	assert_int_equal(who(m, WIN32), 2);
	pci_host_unplug(m->host, &fakes[1].pci);
}

/* A small BAR behind a big one: alignment leaves no overlap. */
static void test_natural_alignment(void **state)
{
	struct machine *m = *state;
	struct fake fake;

	fake_init(&fake, 1);
	pci_dev_add_bar(&fake.pci, 0, 0x1000, false, false, &fake_ops, &fake);
	pci_dev_add_bar(&fake.pci, 1, 0x10000, false, false, &fake_ops, &fake);
	pci_dev_add_bar(&fake.pci, 2, 0x1000, false, false, &fake_ops, &fake);
	assert_int_equal(pci_host_plug(m->host, &fake.pci, -1), 0);
	assert_int_equal(fake.pci.bars[0].addr, WIN32);
	assert_int_equal(fake.pci.bars[1].addr, WIN32 + 0x10000);
	assert_int_equal(fake.pci.bars[2].addr, WIN32 + 0x1000);
	for (int i = 0; i < 3; i++)
		assert_true(fake.pci.bars[i].mapped);
	pci_host_unplug(m->host, &fake.pci);
}

/* ---- functions that come and go while the guest runs ---- */

static void test_live_plug_decodes_nothing(void **state)
{
	struct machine *m = *state;
	struct fake a, b;

	fake_init(&a, 1);
	pci_dev_add_bar(&a.pci, 0, 0x4000, true, false, &fake_ops, &a);
	assert_int_equal(pci_host_plug(m->host, &a.pci, -1), 0);
	assert_int_equal(who(m, WIN64), 1);
	pci_host_set_live(m->host);
	fake_init(&b, 2);
	pci_dev_add_bar(&b.pci, 0, 0x4000, true, false, &fake_ops, &b);
	assert_int_equal(pci_host_plug(m->host, &b.pci, -1), 0);
	assert_int_equal(cfg_read(m, &b, PCI_COMMAND, 2), 0);
	assert_false(b.pci.bars[0].mapped);
	assert_int_equal(b.moved, 0);
	/* its place is its own all the same; the guest may take another */
	assert_int_equal(cfg_read(m, &b, PCI_BASE_ADDRESS_0, 4),
			 (uint32_t)(WIN64 + 0x4000) |
				 PCI_BASE_ADDRESS_MEM_TYPE_64);
	cfg_write(m, &b, PCI_BASE_ADDRESS_0, (uint32_t)WIN64 + 0x8000, 4);
	cfg_write(m, &b, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	assert_int_equal(who(m, WIN64 + 0x8000), 2);
	assert_int_equal(b.moved, 1);
	pci_host_unplug(m->host, &a.pci);
	pci_host_unplug(m->host, &b.pci);
}

static void test_withdraw(void **state)
{
	struct machine *m = *state;
	struct fake a, b, c;

	fake_init(&a, 1);
	fake_init(&b, 2);
	fake_init(&c, 3);
	pci_dev_add_bar(&a.pci, 0, 0x4000, true, false, &fake_ops, &a);
	pci_dev_add_bar(&b.pci, 0, 0x4000, true, false, &fake_ops, &b);
	assert_int_equal(pci_host_plug(m->host, &a.pci, 5), 0);
	assert_int_equal(pci_host_plug(m->host, &b.pci, 6), 0);
	/* b waits for the place that a has */
	cfg_write(m, &b, PCI_BASE_ADDRESS_0, (uint32_t)WIN64, 4);
	assert_false(b.pci.bars[0].mapped);

	assert_false(pci_host_withdraw(m->host, 7));
	assert_false(pci_host_withdraw(m->host, 32));
	a.moved = 0;
	assert_true(pci_host_withdraw(m->host, 5));
	assert_false(pci_host_withdraw(m->host, 5)); /* once */
	assert_int_equal(a.moved, 1);
	assert_false(a.pci.bars[0].mapped);
	assert_int_equal(cfg_read(m, &a, 0, 4), 0xffffffff);
	assert_int_equal(who(m, WIN64), 2);
	/* writes reach it no more */
	a.hooks = 0;
	cfg_write(m, &a, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
	cfg_write(m, &b, PCI_BASE_ADDRESS_0, (uint32_t)WIN64 + 0x4000, 4);
	assert_int_equal(a.hooks, 0);
	assert_int_equal(who(m, WIN64), 0xff);
	/* the slot is taken until it is unplugged */
	assert_int_equal(pci_host_plug(m->host, &c.pci, 5), -EEXIST);
	pci_host_unplug(m->host, &a.pci);
	assert_int_equal(pci_host_plug(m->host, &c.pci, 5), 0);
	assert_int_equal(cfg_read(m, &c, 0, 4), 0x56781234);
	/* one that is not plugged any more, its slot another's */
	pci_host_unplug(m->host, &a.pci);
	assert_int_equal(cfg_read(m, &c, 0, 4), 0x56781234);
	pci_host_unplug(m->host, &b.pci);
	pci_host_unplug(m->host, &c.pci);
}

struct crowd {
	struct machine *m;
	_Atomic bool stop;
	_Atomic uint64_t seen;
};

/* A vCPU that scans, moves and reads whatever is in slot 9. */
static void *crowd_vcpu(void *arg)
{
	struct crowd *crowd = arg;
	struct machine *m = crowd->m;

	while (!atomic_load(&crowd->stop)) {
		uint8_t tag = who(m, WIN64);

		if (pci_host_config_read(m->host, 9 << 3, 0, 4) != 0xffffffff)
			atomic_fetch_add(&crowd->seen, 1);
		pci_host_config_write(m->host, 9 << 3, PCI_BASE_ADDRESS_0,
				      (uint32_t)WIN64, 4);
		pci_host_config_write(m->host, 9 << 3, PCI_COMMAND,
				      PCI_COMMAND_MEMORY, 2);
		assert_true(tag == 0xff || tag == 9);
		pci_host_withdraw(m->host, tag == 9 ? 9 : 31);
	}
	return NULL;
}

/* Each is freed while vCPUs are all over it; TSan and ASan see the rest. */
static void test_unplug_under_vcpus(void **state)
{
	struct crowd crowd = { .m = *state };
	struct machine *m = *state;
	pthread_t threads[2];

	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, crowd_vcpu,
						&crowd),
				 0);
	for (int i = 0; i < 40 || atomic_load(&crowd.seen) < 40; i++) {
		struct fake *fake = malloc(sizeof(*fake));

		assert_non_null(fake);
		fake_init(fake, 9);
		pci_dev_add_bar(&fake->pci, 0, 0x4000, true, false, &fake_ops,
				fake);
		assert_int_equal(pci_host_plug(m->host, &fake->pci, 9), 0);
		sched_yield();
		pci_host_unplug(m->host, &fake->pci);
		memset(fake, 0xa5, sizeof(*fake));
		free(fake);
	}
	atomic_store(&crowd.stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
}

/* A machine for each: a failed one leaves its devices plugged. */
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_header),
		TEST(test_bridge_and_absent),
		TEST(test_capabilities),
		TEST(test_write_masks_and_w1c),
		TEST(test_split_accesses),
		TEST(test_ports),
		TEST(test_reset_register),
		TEST(test_ecam),
		TEST(test_bar_sizing),
		TEST(test_bar_moves),
		TEST(test_bars_swap),
		TEST(test_plug_limits),
		TEST(test_natural_alignment),
		TEST(test_live_plug_decodes_nothing),
		TEST(test_withdraw),
		TEST(test_unplug_under_vcpus),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
