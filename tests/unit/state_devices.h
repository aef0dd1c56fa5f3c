/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One of each device that has a saved state and needs no KVM, with clocks that
 * stand still, for test_state_devices.c and fuzz_state.c: what one set saves
 * another loads. Includers define nothing; kvm/irq.c is stood in for here.
 */
#ifndef QUIRE_TESTS_STATE_DEVICES_H
#define QUIRE_TESTS_STATE_DEVICES_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "bus/iobus.h"
#include "bus/pci_host.h"
#include "device/chardev.h"
#include "device/ioapic.h"
#include "device/pci_hotplug.h"
#include "device/pm.h"
#include "device/rtc.h"
#include "device/serial.h"
#include "device/watchdog.h"
#include "mem/ram.h"
#include "state/state.h"
#include "virtio/pci.h"
#include "virtio/rng/rng.h"
#include "x86/layout.h"

#define SD_NOW (1700000000ull * 1000000000ull)
#define SD_RAM (4 * MIB)

/* ---- kvm/irq.c, and what virtio/pci.c has of kvm.c ---- */

struct irq_router {
	unsigned int messages;
	bool routed[IRQCHIP_NUM_PINS];
};

int irq_router_signal_msi(struct irq_router *router, uint64_t address,
			  uint32_t data)
{
	BUG_ON((address & ~0xfffe4ull) != 0xfee00000ull);
	BUG_ON(data & ~0xc7ffu);
	router->messages++;
	return 0;
}

int irq_router_set_msi(struct irq_router *router, uint32_t gsi,
		       uint64_t address, uint32_t data)
{
	BUG_ON(gsi >= IRQCHIP_NUM_PINS);
	BUG_ON((address & ~0xfffe4ull) != 0xfee00000ull);
	router->routed[gsi] = true;
	return 0;
}

int irq_router_clear_msi(struct irq_router *router, uint32_t gsi)
{
	BUG_ON(gsi >= IRQCHIP_NUM_PINS || !router->routed[gsi]);
	router->routed[gsi] = false;
	return 0;
}

/* Never called: the virtio device has no router and no VM. */
int irq_router_alloc_msi(struct irq_router *router, uint32_t *ret_gsi)
{
	return -ENOSPC;
}

void irq_router_release_msi(struct irq_router *router, uint32_t gsi)
{
}

int irq_router_bind_fd(struct irq_router *router, uint32_t gsi, int fd)
{
	return 0;
}

int irq_router_unbind_fd(struct irq_router *router, uint32_t gsi, int fd)
{
	return 0;
}

int kvm_vm_ioeventfd(const struct kvm_vm *vm, uint64_t addr, uint32_t len,
		     bool pio, int fd, bool assign)
{
	return -EINVAL;
}

/* ---- the set ---- */

struct sd {
	struct ram ram;
	struct iobus *pio, *mmio;
	struct irq_router router;
	struct chardev chr;
	bool line[IRQCHIP_NUM_PINS];
	uint64_t now_ns;
	struct ioapic *ioapic;
	struct serial *serial;
	struct rtc *rtc;
	struct pm *pm;
	struct watchdog *watchdog;
	struct pci_host *pci;
	struct pci_hotplug *hotplug;
	struct virtio_dev *dev;
	struct virtio_pci *rng;
};

static inline uint64_t sd_now(void *ctx)
{
	return ((struct sd *)ctx)->now_ns;
}

static inline void sd_event(void *ctx, enum machine_event event,
			    unsigned int code)
{
}

static inline void sd_line_set(void *ctx, uint32_t gsi, bool level)
{
	struct sd *sd = ctx;
	struct irq_line line = ioapic_line(sd->ioapic, gsi);

	sd->line[gsi] = level;
	irq_line_set(&line, level);
}

static inline struct irq_line sd_line(struct sd *sd, uint32_t gsi)
{
	return (struct irq_line){ .set = sd_line_set, .ctx = sd, .gsi = gsi };
}

static inline void sd_hotplug_event(void *ctx, bool level)
{
	pm_set_gpe(((struct sd *)ctx)->pm, GPE_HOTPLUG, level);
}

static inline void sd_ejected(void *ctx, unsigned int slot)
{
}

static inline void sd_chr_write(struct chardev *chr, const uint8_t *data,
				size_t len)
{
}

static inline void sd_chr_resume(struct chardev *chr)
{
}

static inline void sd_make_timers(struct sd *sd)
{
	const struct machine_hooks hooks = { .event = sd_event, .ctx = sd };
	const struct dev_clock clock = { .now_ns = sd_now, .ctx = sd };
	const struct rtc_config rtc = {
		.pio = sd->pio,
		.irq = sd_line(sd, IRQ_RTC),
		.clock = clock,
	};
	const struct pm_config pm = {
		.pio = sd->pio,
		.sci = sd_line(sd, IRQ_SCI),
		.hooks = hooks,
		.clock = clock,
	};
	const struct watchdog_config watchdog = {
		.pio = sd->pio,
		.hooks = hooks,
		.clock = clock,
	};

	BUG_ON(rtc_new(&sd->rtc, &rtc));
	BUG_ON(pm_new(&sd->pm, &pm));
	BUG_ON(watchdog_new(&sd->watchdog, &watchdog));
}

static inline void sd_make_pci(struct sd *sd)
{
	static const char kernel[] = "src=kernel";
	const struct pci_host_config pci = {
		.pio = sd->pio,
		.mmio = sd->mmio,
		.ecam_base = LAYOUT_ECAM_START,
		.window32_base = LAYOUT_PCI32_START,
		.window32_size = LAYOUT_PCI32_SIZE,
	};
	struct pci_hotplug_config hotplug = {
		.pio = sd->pio,
		.event = sd_hotplug_event,
		.ejected = sd_ejected,
		.ctx = sd,
	};
	const struct virtio_class *cls = &virtio_rng_class;
	void *config = calloc(1, cls->config_bytes);

	BUG_ON(!config);
	BUG_ON(pci_host_new(&sd->pci, &pci));
	hotplug.pci = sd->pci;
	BUG_ON(pci_hotplug_new(&sd->hotplug, &hotplug));
	BUG_ON(kvlist_parse(cls->option, kernel, cls->first_key, cls->keys,
			    cls->num_keys, config, NULL));
	BUG_ON(cls->create(&sd->dev, config, &sd->ram, 1, 0, NULL));
	cls->config_fini(config);
	free(config);
	strcpy(sd->dev->config_id, "_rng0");
	BUG_ON(virtio_pci_new(&sd->rng, sd->dev, sd->pci, NULL, NULL, NULL));
}

static inline void sd_make(struct sd *sd)
{
	static const struct chardev_ops chr_ops = {
		.write = sd_chr_write,
		.resume_input = sd_chr_resume,
	};
	const struct ram_config ram = {
		.size_bytes = SD_RAM,
		.hole_start = 3 * GIB,
		.hole_end = 4 * GIB,
		.page = RAM_PAGE_4K,
	};
	struct ioapic_config ioapic = { .router = &sd->router };
	struct serial_config serial = { .base = PORT_SERIAL0, .chr = &sd->chr };

	memset(sd, 0, sizeof(*sd));
	sd->chr.ops = &chr_ops;
	sd->now_ns = SD_NOW;
	BUG_ON(ram_init(&sd->ram, &ram, NULL));
	BUG_ON(iobus_new(&sd->pio) || iobus_new(&sd->mmio));
	ioapic.mmio = sd->mmio;
	BUG_ON(ioapic_new(&sd->ioapic, &ioapic));
	serial.pio = sd->pio;
	serial.irq = sd_line(sd, IRQ_SERIAL0);
	BUG_ON(serial_new(&sd->serial, &serial));
	sd_make_timers(sd);
	sd_make_pci(sd);
}

static inline void sd_free(struct sd *sd)
{
	virtio_pci_free(sd->rng);
	pci_hotplug_free(sd->hotplug);
	pci_host_free(sd->pci);
	watchdog_free(sd->watchdog);
	pm_free(sd->pm);
	rtc_free(sd->rtc);
	serial_free(sd->serial);
	ioapic_free(sd->ioapic);
	iobus_free(sd->mmio);
	iobus_free(sd->pio);
	ram_fini(&sd->ram);
}

/* ---- all of them ---- */

/* Pauses the timers first, as a machine does. */
static inline int sd_save(struct sd *sd, struct state_writer *w,
			  struct err *err)
{
	int r;

	watchdog_pause(sd->watchdog);
	ioapic_save(sd->ioapic, w);
	serial_save(sd->serial, w);
	rtc_save(sd->rtc, w);
	pm_save(sd->pm, sd->now_ns, w);
	watchdog_save(sd->watchdog, w);
	r = pci_hotplug_save(sd->hotplug, w, err);
	pci_host_save(sd->pci, w);
	return r ? r : virtio_pci_save(sd->rng, w, err);
}

static inline int sd_load_one(struct sd *sd, unsigned int part,
			      struct state_reader *r, struct err *err)
{
	switch (part) {
	case 0:
		return ioapic_load(sd->ioapic, r, err);
	case 1:
		return serial_load(sd->serial, r, err);
	case 2:
		return rtc_load(sd->rtc, r, err);
	case 3:
		return pm_load(sd->pm, sd->now_ns, r, err);
	case 4:
		return watchdog_load(sd->watchdog, r, err);
	case 5:
		return pci_hotplug_load(sd->hotplug, r, err);
	case 6:
		return pci_host_load(sd->pci, r, err);
	default:
		return virtio_pci_load(sd->rng, r, err);
	}
}

#define SD_PARTS 8

static inline int sd_load(struct sd *sd, struct state_reader *r,
			  struct err *err)
{
	for (unsigned int part = 0; part < SD_PARTS; part++) {
		int ret = sd_load_one(sd, part, r, err);

		if (ret)
			return ret;
	}
	return state_reader_finish(r, err);
}

#endif
