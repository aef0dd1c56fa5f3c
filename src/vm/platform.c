/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/platform.h"

#include <errno.h>
#include <stdlib.h>

#include "bus/pci_host.h"
#include "device/debug_exit.h"
#include "device/ioapic.h"
#include "device/pci_hotplug.h"
#include "device/pm.h"
#include "device/pvpanic.h"
#include "device/reset.h"
#include "device/rtc.h"
#include "device/serial.h"
#include "device/vmgenid.h"
#include "device/watchdog.h"
#include "x86/layout.h"

struct platform {
	struct irq_router *router;
	struct pci_host *pci;
	void (*ejected)(void *ctx, unsigned int slot);
	void *hooks_ctx;
	struct ioapic *ioapic;
	struct serial *serial;
	struct rtc *rtc;
	struct pm *pm;
	struct reset_ctl *reset;
	struct pci_hotplug *hotplug;
	struct vmgenid *vmgenid;
	struct pvpanic *pvpanic;
	struct watchdog *watchdog; /* NULL: not asked for */
	struct debug_exit *debug_exit;
};

static struct irq_line line(struct platform *p, uint32_t gsi)
{
	return p->ioapic ? ioapic_line(p->ioapic, gsi)
			 : irq_router_line(p->router, gsi);
}

static void reset_port(void *ctx, uint8_t value)
{
	struct platform *p = ctx;

	reset_control_write(p->reset, value);
}

static int new_ioapic(struct platform *p, const struct platform_config *cfg)
{
	struct ioapic_config ioapic = {
		.mmio = cfg->mmio,
		.router = cfg->router,
		.loop = cfg->loop,
	};

	if (irq_router_kind(cfg->router) != IRQCHIP_SPLIT)
		return 0;
	return ioapic_new(&p->ioapic, &ioapic);
}

static int new_serial(struct platform *p, const struct platform_config *cfg)
{
	struct serial_config serial = {
		.pio = cfg->pio,
		.base = PORT_SERIAL0,
		.irq = line(p, IRQ_SERIAL0),
		.chr = cfg->chardev,
	};

	return serial_new(&p->serial, &serial);
}

static int new_rtc(struct platform *p, const struct platform_config *cfg)
{
	struct rtc_config rtc = {
		.pio = cfg->pio,
		.irq = line(p, IRQ_RTC),
		.loop = cfg->loop,
	};

	return rtc_new(&p->rtc, &rtc);
}

static int new_pm(struct platform *p, const struct platform_config *cfg)
{
	struct pm_config pm = {
		.pio = cfg->pio,
		.sci = line(p, IRQ_SCI),
		.hooks = cfg->hooks,
		.loop = cfg->loop,
	};

	return pm_new(&p->pm, &pm);
}

static void hotplug_event(void *ctx, bool level)
{
	struct platform *p = ctx;

	pm_set_gpe(p->pm, GPE_HOTPLUG, level);
}

static void hotplug_ejected(void *ctx, unsigned int slot)
{
	struct platform *p = ctx;

	p->ejected(p->hooks_ctx, slot);
}

static int new_hotplug(struct platform *p, const struct platform_config *cfg)
{
	struct pci_hotplug_config hotplug = {
		.pio = cfg->pio,
		.pci = cfg->pci,
		.loop = cfg->loop,
		.event = hotplug_event,
		.ejected = hotplug_ejected,
		.ctx = p,
	};

	return pci_hotplug_new(&p->hotplug, &hotplug);
}

static void vmgenid_event(void *ctx)
{
	struct platform *p = ctx;

	pm_pulse_gpe(p->pm, GPE_VMGENID);
}

static int new_vmgenid(struct platform *p, const struct platform_config *cfg)
{
	struct vmgenid_config vmgenid = {
		.ram = cfg->ram,
		.keep = cfg->restore,
		.event = vmgenid_event,
		.ctx = p,
	};

	return vmgenid_new(&p->vmgenid, &vmgenid, NULL);
}

static int new_pvpanic(struct platform *p, const struct platform_config *cfg)
{
	return pvpanic_new(&p->pvpanic, cfg->pio, &cfg->hooks);
}

static int new_watchdog(struct platform *p, const struct platform_config *cfg)
{
	struct watchdog_config watchdog = {
		.pio = cfg->pio,
		.hooks = cfg->hooks,
		.loop = cfg->loop,
	};

	return cfg->watchdog ? watchdog_new(&p->watchdog, &watchdog) : 0;
}

static int new_reset(struct platform *p, const struct platform_config *cfg)
{
	int r = reset_ctl_new(&p->reset, cfg->pio, &cfg->hooks);

	if (!r)
		pci_host_set_reset_hook(cfg->pci, reset_port, p);
	return r;
}

static int new_debug_exit(struct platform *p, const struct platform_config *cfg)
{
	if (!cfg->debug_exit)
		return 0;
	return debug_exit_new(&p->debug_exit, cfg->pio, &cfg->hooks);
}

int platform_new(struct platform **ret, const struct platform_config *cfg,
		 struct err *err)
{
	static const struct {
		const char *name;
		int (*make)(struct platform *p,
			    const struct platform_config *cfg);
	} parts[] = {
		/* The IOAPIC first: the others' lines lead to it. */
		{ "IOAPIC", new_ioapic },
		{ "serial port", new_serial },
		{ "RTC", new_rtc },
		{ "power management", new_pm },
		{ "hot-plug", new_hotplug },
		{ "VM generation id", new_vmgenid },
		{ "panic port", new_pvpanic },
		{ "watchdog", new_watchdog },
		{ "reset ports", new_reset },
		{ "debug exit", new_debug_exit },
	};
	struct platform *p = calloc(1, sizeof(*p));

	if (!p)
		return err_set(err, ENOMEM, "out of memory");
	p->router = cfg->router;
	p->pci = cfg->pci;
	p->ejected = cfg->ejected;
	p->hooks_ctx = cfg->hooks.ctx;
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		int r = parts[i].make(p, cfg);

		if (r) {
			platform_free(p);
			return err_errno(err, -r, "creating the %s",
					 parts[i].name);
		}
	}
	*ret = p;
	return 0;
}

void platform_free(struct platform *p)
{
	if (!p)
		return;
	if (p->reset)
		pci_host_set_reset_hook(p->pci, NULL, NULL);
	debug_exit_free(p->debug_exit);
	reset_ctl_free(p->reset);
	watchdog_free(p->watchdog);
	pvpanic_free(p->pvpanic);
	vmgenid_free(p->vmgenid);
	pci_hotplug_free(p->hotplug);
	pm_free(p->pm);
	rtc_free(p->rtc);
	serial_free(p->serial);
	ioapic_free(p->ioapic);
	free(p);
}

struct ioapic *platform_ioapic(struct platform *p)
{
	return p->ioapic;
}

void platform_skip_time(struct platform *p, uint64_t ns)
{
	pm_skip_time(p->pm, ns);
}

struct pci_hotplug *platform_hotplug(struct platform *p)
{
	return p->hotplug;
}

struct vmgenid *platform_vmgenid(struct platform *p)
{
	return p->vmgenid;
}

void platform_pause(struct platform *p)
{
	if (p->watchdog)
		watchdog_pause(p->watchdog);
}

void platform_resume(struct platform *p)
{
	if (p->watchdog)
		watchdog_resume(p->watchdog);
}

int platform_save(struct platform *p, uint64_t at_ns, struct state_writer *w,
		  struct err *err)
{
	if (p->ioapic)
		ioapic_save(p->ioapic, w);
	serial_save(p->serial, w);
	rtc_save(p->rtc, w);
	pm_save(p->pm, at_ns, w);
	if (p->watchdog)
		watchdog_save(p->watchdog, w);
	return pci_hotplug_save(p->hotplug, w, err);
}

/* The IOAPIC first, then those whose lines lead to it. */
int platform_load(struct platform *p, uint64_t at_ns, struct state_reader *r,
		  struct err *err)
{
	int ret = p->ioapic ? ioapic_load(p->ioapic, r, err) : 0;

	if (!ret)
		ret = serial_load(p->serial, r, err);
	if (!ret)
		ret = rtc_load(p->rtc, r, err);
	if (!ret)
		ret = pm_load(p->pm, at_ns, r, err);
	if (!ret && p->watchdog)
		ret = watchdog_load(p->watchdog, r, err);
	return ret ? ret : pci_hotplug_load(p->hotplug, r, err);
}

void platform_power_button(struct platform *p)
{
	pm_power_button(p->pm);
}
