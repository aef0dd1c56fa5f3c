/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. A slot keeps where its BARs were put when it was plugged
 * ("home"), so that no other device is given the same place, wherever the guest
 * has moved them meanwhile.
 *
 * After each write to a BAR or to the command register the bridge compares
 * where each BAR should decode with where it is mapped. It unmaps what moved
 * away first, then tries all BARs that decode and are not mapped, of all slots:
 * one that was shadowed by the range just freed comes up then.
 */
#include "bus/pci_host_priv.h"

#include <errno.h>
#include <linux/pci_regs.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/log.h"

#define PCI_PORT_BASE	 0xcf8
#define PCI_PORT_BYTES	 8
#define PCI_PORT_ADDRESS 0 /* 0xcf8, 4 bytes */
#define PCI_PORT_RESET	 1 /* 0xcf9, 1 byte */
#define PCI_PORT_DATA	 4 /* 0xcfc..0xcff */

#define CF8_ENABLE 0x80000000u

#define ECAM_BYTES	    MIB /* bus 0 */
#define ECAM_FUNCTION_BYTES 4096u

/* ---- where BARs are ---- */

static uint64_t bar_config_addr(const struct pci_dev *dev, unsigned int bar)
{
	const uint8_t *reg = dev->config + PCI_BASE_ADDRESS_0 + 4ul * bar;
	uint64_t addr = le32_load(reg) & ~0xfu;

	if (dev->bars[bar].is_64bit)
		addr |= (uint64_t)le32_load(reg + 4) << 32;
	return addr;
}

static void bar_config_set(struct pci_dev *dev, unsigned int bar, uint64_t addr)
{
	uint8_t *reg = dev->config + PCI_BASE_ADDRESS_0 + 4ul * bar;

	le32_store(reg, (le32_load(reg) & 0xf) | (uint32_t)addr);
	if (dev->bars[bar].is_64bit)
		le32_store(reg + 4, (uint32_t)(addr >> 32));
}

static bool bar_decodes(const struct pci_dev *dev, unsigned int bar)
{
	return dev->bars[bar].size &&
	       (le16_load(dev->config + PCI_COMMAND) & PCI_COMMAND_MEMORY);
}

static bool in_window(uint64_t addr, uint64_t size, uint64_t base,
		      uint64_t window_size)
{
	return addr >= base && range_ok(addr - base, size, window_size);
}

bool pci_host_in_windows(const struct pci_host *host, uint64_t addr,
			 uint64_t size)
{
	const struct pci_host_config *cfg = &host->cfg;

	return in_window(addr, size, cfg->window32_base, cfg->window32_size) ||
	       in_window(addr, size, cfg->window64_base, cfg->window64_size);
}

/* Returns whether a BAR went away. */
static bool unmap_moved_locked(struct pci_host *host, struct pci_dev *dev)
{
	bool changed = false;

	for (unsigned int i = 0; i < PCI_NUM_BARS; i++) {
		struct pci_bar *bar = &dev->bars[i];

		if (!bar->mapped || (bar_decodes(dev, i) &&
				     bar_config_addr(dev, i) == bar->addr))
			continue;
		iobus_remove(host->cfg.mmio, bar->addr, bar->dev);
		bar->mapped = false;
		changed = true;
	}
	return changed;
}

/* Returns whether a BAR appeared. */
static bool map_decoding_locked(struct pci_host *host, struct pci_dev *dev)
{
	bool changed = false;

	for (unsigned int i = 0; i < PCI_NUM_BARS; i++) {
		struct pci_bar *bar = &dev->bars[i];
		uint64_t addr = bar_config_addr(dev, i);

		if (bar->mapped || !bar_decodes(dev, i) ||
		    !pci_host_in_windows(host, addr, bar->size) ||
		    iobus_add(host->cfg.mmio, addr, bar->size, bar->ops,
			      bar->dev))
			continue;
		bar->addr = addr;
		bar->mapped = true;
		changed = true;
	}
	return changed;
}

void pci_host_sync_bars_locked(struct pci_host *host, struct pci_dev *written)
{
	bool left = unmap_moved_locked(host, written);

	for (unsigned int i = 0; i < PCI_HOST_SLOTS; i++) {
		struct pci_dev *dev = host->slots[i].dev;
		bool came;

		if (!dev || host->slots[i].withdrawn)
			continue;
		came = map_decoding_locked(host, dev);
		if ((came || (left && dev == written)) && dev->bars_moved)
			dev->bars_moved(dev);
	}
}

/* ---- configuration space ---- */

static struct pci_dev *find_dev_locked(struct pci_host *host, uint8_t devfn)
{
	const struct pci_slot *slot = &host->slots[devfn >> 3];

	/* Only function 0 of each slot exists. */
	return devfn & 7 || slot->withdrawn ? NULL : slot->dev;
}

/* [offset, offset + len) lies in one aligned dword. */
static uint32_t dev_read_locked(struct pci_dev *dev, uint32_t offset,
				uint32_t len)
{
	uint32_t value = 0;

	if (offset >= PCI_CONFIG_BYTES)
		return 0;
	if (dev->config_before_read)
		dev->config_before_read(dev, offset, len);
	for (uint32_t i = 0; i < len; i++)
		value |= (uint32_t)dev->config[offset + i] << (8 * i);
	return value;
}

static bool overlaps(uint32_t offset, uint32_t len, uint32_t reg,
		     uint32_t reg_len)
{
	return offset < reg + reg_len && reg < offset + len;
}

static void dev_write_locked(struct pci_host *host, struct pci_dev *dev,
			     uint32_t offset, uint32_t value, uint32_t len)
{
	if (offset >= PCI_CONFIG_BYTES)
		return;
	for (uint32_t i = 0; i < len; i++) {
		uint8_t byte = (uint8_t)(value >> (8 * i));
		uint8_t mask = dev->wmask[offset + i];
		uint8_t *c = &dev->config[offset + i];

		*c = (uint8_t)((*c & ~mask) | (byte & mask));
		*c = (uint8_t)(*c & ~(byte & dev->w1cmask[offset + i]));
	}
	if (overlaps(offset, len, PCI_COMMAND, 2) ||
	    overlaps(offset, len, PCI_BASE_ADDRESS_0, 4 * PCI_NUM_BARS))
		pci_host_sync_bars_locked(host, dev);
	if (dev->config_after_write)
		dev->config_after_write(dev, offset, len);
}

/* Bytes of an access at offset that stay within the aligned dword there. */
static uint32_t dword_part(uint32_t offset, uint32_t len)
{
	return MIN(len, 4 - (offset & 3));
}

uint32_t pci_host_config_read(struct pci_host *host, uint8_t devfn,
			      uint32_t offset, uint32_t len)
{
	struct pci_dev *dev;
	uint32_t value = 0;

	if (len > 4 || !range_ok(offset, len, ECAM_FUNCTION_BYTES))
		return UINT32_MAX;
	pthread_mutex_lock(&host->lock);
	dev = find_dev_locked(host, devfn);
	for (uint32_t done = 0, n; dev && done < len; done += n) {
		n = dword_part(offset + done, len - done);
		value |= dev_read_locked(dev, offset + done, n) << (8 * done);
	}
	pthread_mutex_unlock(&host->lock);
	return dev ? value : UINT32_MAX;
}

void pci_host_config_write(struct pci_host *host, uint8_t devfn,
			   uint32_t offset, uint32_t value, uint32_t len)
{
	struct pci_dev *dev;

	if (len > 4 || !range_ok(offset, len, ECAM_FUNCTION_BYTES))
		return;
	pthread_mutex_lock(&host->lock);
	dev = find_dev_locked(host, devfn);
	for (uint32_t done = 0, n; dev && done < len; done += n) {
		n = dword_part(offset + done, len - done);
		dev_write_locked(host, dev, offset + done, value >> (8 * done),
				 n);
	}
	pthread_mutex_unlock(&host->lock);
}

/* ---- mechanism #1: ports 0xcf8..0xcff ---- */

static uint32_t cf8_get(struct pci_host *host)
{
	uint32_t value;

	pthread_mutex_lock(&host->lock);
	value = host->cf8;
	pthread_mutex_unlock(&host->lock);
	return value;
}

/* Does the address register name something on bus 0? */
static bool cf8_target(uint32_t cf8, uint8_t *ret_devfn, uint32_t *ret_offset)
{
	if (!(cf8 & CF8_ENABLE) || (cf8 >> 16 & 0xff))
		return false;
	*ret_devfn = (uint8_t)(cf8 >> 8);
	*ret_offset = cf8 & 0xfc;
	return true;
}

static void port_read(void *opaque, uint64_t port, void *data, uint32_t len)
{
	struct pci_host *host = opaque;
	uint32_t value = UINT32_MAX, offset;
	uint8_t devfn;

	if (port == PCI_PORT_ADDRESS && len == 4)
		value = cf8_get(host);
	else if (port == PCI_PORT_RESET && len == 1)
		value = 0;
	else if (port >= PCI_PORT_DATA && len <= 4 &&
		 cf8_target(cf8_get(host), &devfn, &offset))
		value = pci_host_config_read(
			host, devfn, offset + (uint32_t)port - PCI_PORT_DATA,
			len);
	memset(data, 0xff, len);
	value = htole32(value);
	memcpy(data, &value, MIN(len, 4u));
}

static void port_write(void *opaque, uint64_t port, const void *data,
		       uint32_t len)
{
	struct pci_host *host = opaque;
	uint32_t value = 0, offset;
	uint8_t devfn;

	if (len > 4)
		return;
	memcpy(&value, data, len);
	value = le32toh(value);
	if (port == PCI_PORT_ADDRESS && len == 4) {
		pthread_mutex_lock(&host->lock);
		host->cf8 = value;
		pthread_mutex_unlock(&host->lock);
	} else if (port == PCI_PORT_RESET && len == 1) {
		if (host->reset_hook)
			host->reset_hook(host->reset_ctx, (uint8_t)value);
	} else if (port >= PCI_PORT_DATA &&
		   cf8_target(cf8_get(host), &devfn, &offset)) {
		pci_host_config_write(host, devfn,
				      offset + (uint32_t)port - PCI_PORT_DATA,
				      value, len);
	}
}

static const struct iobus_ops port_ops = {
	.name = "pci-ports",
	.read = port_read,
	.write = port_write,
};

/* ---- ECAM ---- */

static void ecam_read(void *opaque, uint64_t addr, void *data, uint32_t len)
{
	struct pci_host *host = opaque;

	memset(data, 0xff, len);
	for (uint32_t done = 0, n; done < len; done += n) {
		uint32_t offset = (uint32_t)addr % ECAM_FUNCTION_BYTES + done;
		uint32_t value;

		n = MIN(len - done, 4u);
		value = htole32(pci_host_config_read(
			host, (uint8_t)(addr >> 12), offset, n));
		memcpy((char *)data + done, &value, n);
	}
}

static void ecam_write(void *opaque, uint64_t addr, const void *data,
		       uint32_t len)
{
	struct pci_host *host = opaque;

	for (uint32_t done = 0, n; done < len; done += n) {
		uint32_t offset = (uint32_t)addr % ECAM_FUNCTION_BYTES + done;
		uint32_t value = 0;

		n = MIN(len - done, 4u);
		memcpy(&value, (const char *)data + done, n);
		pci_host_config_write(host, (uint8_t)(addr >> 12), offset,
				      le32toh(value), n);
	}
}

static const struct iobus_ops ecam_ops = {
	.name = "pci-ecam",
	.read = ecam_read,
	.write = ecam_write,
};

/* ---- plugging ---- */

/* The end of a home that [addr, addr + size) would overlap, or 0. */
static uint64_t home_conflict_locked(const struct pci_host *host,
				     const struct pci_slot *self,
				     const struct pci_dev *self_dev,
				     uint64_t addr, uint64_t size)
{
	for (unsigned int i = 0; i < PCI_HOST_SLOTS; i++) {
		const struct pci_slot *slot = &host->slots[i];
		const struct pci_dev *dev = slot == self ? self_dev : slot->dev;

		for (unsigned int b = 0; dev && b < PCI_NUM_BARS; b++) {
			uint64_t home = slot->home[b];
			uint64_t home_size = dev->bars[b].size;

			/* home 0: absent, or not placed yet */
			if (home && addr < home + home_size &&
			    home < addr + size)
				return home + home_size;
		}
	}
	return 0;
}

/* First fit, naturally aligned. */
static bool place_bar_locked(struct pci_host *host, struct pci_slot *slot,
			     const struct pci_dev *dev, unsigned int bar,
			     uint64_t base, uint64_t window_size)
{
	uint64_t size = dev->bars[bar].size;
	uint64_t addr = align_up(base, size), next;

	while (in_window(addr, size, base, window_size)) {
		next = home_conflict_locked(host, slot, dev, addr, size);
		if (!next) {
			slot->home[bar] = addr;
			return true;
		}
		addr = align_up(next, size);
	}
	return false;
}

static int place_bars_locked(struct pci_host *host, struct pci_slot *slot,
			     struct pci_dev *dev)
{
	const struct pci_host_config *cfg = &host->cfg;

	memset(slot->home, 0, sizeof(slot->home));
	for (unsigned int b = 0; b < PCI_NUM_BARS; b++) {
		if (!dev->bars[b].size)
			continue;
		if (dev->bars[b].is_64bit &&
		    place_bar_locked(host, slot, dev, b, cfg->window64_base,
				     cfg->window64_size))
			continue;
		if (!place_bar_locked(host, slot, dev, b, cfg->window32_base,
				      cfg->window32_size))
			return -ENOSPC;
	}
	return 0;
}

static int pick_slot_locked(const struct pci_host *host, int slot)
{
	if (slot >= PCI_HOST_SLOTS)
		return -EINVAL;
	if (slot >= 0)
		return host->slots[slot].dev ? -EEXIST : slot;
	for (slot = 0; slot < PCI_HOST_SLOTS; slot++)
		if (!host->slots[slot].dev)
			return slot;
	return -ENOSPC;
}

static int plug_locked(struct pci_host *host, struct pci_dev *dev, int at)
{
	struct pci_slot *slot;
	uint8_t *command = dev->config + PCI_COMMAND;
	int r;

	at = pick_slot_locked(host, at);
	if (at < 0)
		return at;
	slot = &host->slots[at];
	r = place_bars_locked(host, slot, dev);
	if (r)
		return r;
	dev->devfn = (uint8_t)(at << 3);
	for (unsigned int b = 0; b < PCI_NUM_BARS; b++)
		if (dev->bars[b].size)
			bar_config_set(dev, b, slot->home[b]);
	if (!host->live)
		le16_store(command, le16_load(command) | PCI_COMMAND_MEMORY);
	slot->dev = dev;
	slot->withdrawn = false;
	pci_host_sync_bars_locked(host, dev);
	return 0;
}

int pci_host_plug(struct pci_host *host, struct pci_dev *dev, int slot)
{
	int r;

	pthread_mutex_lock(&host->lock);
	r = plug_locked(host, dev, slot);
	pthread_mutex_unlock(&host->lock);
	return r;
}

void pci_host_set_live(struct pci_host *host)
{
	pthread_mutex_lock(&host->lock);
	host->live = true;
	pthread_mutex_unlock(&host->lock);
}

/*
 * Others may now decode where it did. Its hook comes first: they could not have
 * its ioeventfds' addresses before.
 */
static void withdraw_locked(struct pci_host *host, struct pci_slot *slot)
{
	struct pci_dev *dev = slot->dev;
	bool left;

	le16_store(dev->config + PCI_COMMAND, 0);
	slot->withdrawn = true;
	left = unmap_moved_locked(host, dev);
	if (left && dev->bars_moved)
		dev->bars_moved(dev);
	pci_host_sync_bars_locked(host, dev);
}

bool pci_host_withdraw(struct pci_host *host, unsigned int slot)
{
	bool there;

	if (slot >= PCI_HOST_SLOTS)
		return false;
	pthread_mutex_lock(&host->lock);
	there = host->slots[slot].dev && !host->slots[slot].withdrawn;
	if (there)
		withdraw_locked(host, &host->slots[slot]);
	pthread_mutex_unlock(&host->lock);
	return there;
}

void pci_host_unplug(struct pci_host *host, struct pci_dev *dev)
{
	struct pci_slot *slot = &host->slots[dev->devfn >> 3];

	pthread_mutex_lock(&host->lock);
	if (slot->dev == dev && !slot->withdrawn)
		withdraw_locked(host, slot);
	pthread_mutex_unlock(&host->lock);
	/* Configuration accesses ended with the lock; these take none. */
	iobus_quiesce(host->cfg.mmio);
	pthread_mutex_lock(&host->lock);
	if (slot->dev == dev) {
		slot->dev = NULL;
		slot->withdrawn = false;
	}
	pthread_mutex_unlock(&host->lock);
}

void pci_host_set_reset_hook(struct pci_host *host,
			     void (*fn)(void *ctx, uint8_t value), void *ctx)
{
	host->reset_hook = fn;
	host->reset_ctx = ctx;
}

/* ---- life ---- */

static void init_bridge(struct pci_dev *bridge)
{
	/* Known to guests as the generic host bridge; they bind no driver. */
	static const struct pci_id id = {
		.vendor = 0x1b36,
		.device = 0x0008,
		.subsystem_vendor = 0x1af4,
		.subsystem = 0x1100,
		.class_code = 0x060000,
	};

	pci_dev_init(bridge, "host-bridge", &id);
}

int pci_host_new(struct pci_host **ret, const struct pci_host_config *cfg)
{
	struct pci_host *host = calloc(1, sizeof(*host));
	int r;

	if (!host)
		return -ENOMEM;
	host->cfg = *cfg;
	pthread_mutex_init(&host->lock, NULL);
	r = iobus_add(cfg->pio, PCI_PORT_BASE, PCI_PORT_BYTES, &port_ops, host);
	if (r)
		goto fail;
	r = iobus_add(cfg->mmio, cfg->ecam_base, ECAM_BYTES, &ecam_ops, host);
	if (r)
		goto fail_ports;
	init_bridge(&host->bridge);
	r = pci_host_plug(host, &host->bridge, 0);
	if (r)
		goto fail_ecam;
	*ret = host;
	return 0;

fail_ecam:
	iobus_remove(cfg->mmio, cfg->ecam_base, host);
fail_ports:
	iobus_remove(cfg->pio, PCI_PORT_BASE, host);
fail:
	pthread_mutex_destroy(&host->lock);
	free(host);
	return r;
}

void pci_host_free(struct pci_host *host)
{
	if (!host)
		return;
	iobus_remove(host->cfg.mmio, host->cfg.ecam_base, host);
	iobus_remove(host->cfg.pio, PCI_PORT_BASE, host);
	pthread_mutex_destroy(&host->lock);
	free(host);
}
