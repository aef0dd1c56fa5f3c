/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/platform.h"

#include <errno.h>
#include <stdlib.h>

#include "bus/pci_host.h"
#include "device/debug_exit.h"
#include "device/ioapic.h"
#include "device/pm.h"
#include "device/reset.h"
#include "device/rtc.h"
#include "device/serial.h"
#include "x86/layout.h"

struct platform {
	struct irq_router *router;
	struct pci_host *pci;
	struct ioapic *ioapic;
	struct serial *serial;
	struct rtc *rtc;
	struct pm *pm;
	struct reset_ctl *reset;
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
		{ "IOAPIC", new_ioapic },     { "serial port", new_serial },
		{ "RTC", new_rtc },	      { "power management", new_pm },
		{ "reset ports", new_reset }, { "debug exit", new_debug_exit },
	};
	struct platform *p = calloc(1, sizeof(*p));

	if (!p)
		return err_set(err, ENOMEM, "out of memory");
	p->router = cfg->router;
	p->pci = cfg->pci;
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

void platform_power_button(struct platform *p)
{
	pm_power_button(p->pm);
}
