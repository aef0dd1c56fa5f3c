/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything a guest can do to the platform devices by port and MMIO accesses:
 * serial, RTC, ACPI PM, PCI hot-plug, panic and reset ports, debug exit,
 * IOAPIC; with input, breaks, power button, EOIs, machine resets, devices that
 * come and are asked to go, and passing time in between.
 *
 * Input: steps of six bytes (struct step). Checked: a line follows its device's
 * registers and only ever changes, registers keep their fixed bits, the machine
 * is stopped only by what should stop it, no device goes that was not asked to,
 * and no IOAPIC pin that is due is left unsent or without its route.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "base/log.h"
#include "bus/iobus.h"
#include "bus/pci_host.h"
#include "device/chardev.h"
#include "device/debug_exit.h"
#include "device/ioapic.h"
#include "device/pci_hotplug.h"
#include "device/pm.h"
#include "device/pvpanic.h"
#include "device/reset.h"
#include "device/rtc.h"
#include "device/serial.h"
#include "device/watchdog.h"
#include "x86/layout.h"

#define MAX_STEPS 400

#define RTE_IRR	   (1u << 14)
#define RTE_LEVEL  (1u << 15)
#define RTE_MASKED (1u << 16)

enum step_kind {
	STEP_SERIAL,
	STEP_RTC,
	STEP_RTC_REG, /* index and data at once */
	STEP_PM,
	STEP_RESET,
	STEP_IOAPIC,
	STEP_IOAPIC_REG, /* select and window at once */
	STEP_LINE,
	STEP_EVENT,
	STEP_HOTPLUG,
	STEP_KINDS,
};

struct step {
	uint8_t kind; /* low nibble; bits 4-5: log2 of the length; 6: read */
	uint8_t where;
	uint32_t value;
} __packed_struct;

/* Stands in for kvm/irq.c. */
struct irq_router {
	bool refuse;	   /* no CPU takes messages */
	bool ever_refused; /* then a due pin may be left unsent */
	bool routed[IRQCHIP_NUM_PINS];
	uint32_t route_data[IRQCHIP_NUM_PINS];
};

/* A slot as its owner sees it. */
struct slot {
	struct pci_dev dev;
	bool plugged, asked;
};

struct platform {
	struct iobus *pio, *mmio;
	struct irq_router router;
	struct chardev chr;
	struct serial *serial;
	struct rtc *rtc;
	struct pm *pm;
	struct reset_ctl *reset;
	struct debug_exit *debug_exit;
	struct ioapic *ioapic;
	struct pci_host *pci;
	struct pci_hotplug *hotplug;
	struct pvpanic *pvpanic;
	struct watchdog *watchdog;
	struct slot slots[PCI_HOST_SLOTS];
	bool line[IRQCHIP_NUM_PINS];
	uint64_t now_ns;
	bool may_stop; /* the access of this step may stop the machine */
	uint64_t thr_writes, sent;
};

int irq_router_signal_msi(struct irq_router *router, uint64_t address,
			  uint32_t data)
{
	BUG_ON((address & ~0xfffe4ull) != 0xfee00000ull);
	BUG_ON(data & ~0xc7ffu);
	return router->refuse ? -1 : 0;
}

int irq_router_set_msi(struct irq_router *router, uint32_t gsi,
		       uint64_t address, uint32_t data)
{
	BUG_ON(gsi >= IRQCHIP_NUM_PINS);
	BUG_ON(!(data & RTE_LEVEL));
	router->routed[gsi] = true;
	router->route_data[gsi] = data;
	return 0;
}

int irq_router_clear_msi(struct irq_router *router, uint32_t gsi)
{
	BUG_ON(gsi >= IRQCHIP_NUM_PINS || !router->routed[gsi]);
	router->routed[gsi] = false;
	return 0;
}

static uint64_t fake_now(void *ctx)
{
	return ((struct platform *)ctx)->now_ns;
}

static void on_event(void *ctx, enum machine_event event, unsigned int code)
{
	struct platform *p = ctx;

	if (event == MACHINE_PANIC) {
		BUG_ON(!code || (code & ~PVPANIC_EVENTS));
		return;
	}
	BUG_ON(!p->may_stop);
	BUG_ON(event != MACHINE_DEBUG_EXIT && code);
}

static void line_set(void *ctx, uint32_t gsi, bool level)
{
	struct platform *p = ctx;
	struct irq_line line = ioapic_line(p->ioapic, gsi);

	/* These two say only what changes. */
	BUG_ON(gsi != IRQ_SCI && p->line[gsi] == level);
	p->line[gsi] = level;
	irq_line_set(&line, level);
}

static void chr_write(struct chardev *chr, const uint8_t *data, size_t len)
{
	container_of(chr, struct platform, chr)->sent += len;
}

static const struct chardev_ops chr_ops = { .write = chr_write };

static struct irq_line line_to(struct platform *p, uint32_t gsi)
{
	return (struct irq_line){ .set = line_set, .ctx = p, .gsi = gsi };
}

static void on_hotplug_event(void *ctx, bool level)
{
	struct platform *p = ctx;

	pm_set_gpe(p->pm, GPE_HOTPLUG, level);
}

static void on_ejected(void *ctx, unsigned int n)
{
	struct slot *slot = &((struct platform *)ctx)->slots[n];

	BUG_ON(!slot->plugged || !slot->asked);
	pci_host_unplug(((struct platform *)ctx)->pci, &slot->dev);
	slot->plugged = slot->asked = false;
}

static void hotplug_make(struct platform *p)
{
	struct pci_host_config pci = {
		.pio = p->pio,
		.mmio = p->mmio,
		.ecam_base = LAYOUT_ECAM_START,
		.window32_base = LAYOUT_PCI32_START,
		.window32_size = LAYOUT_PCI32_SIZE,
	};
	struct pci_hotplug_config hotplug = {
		.pio = p->pio,
		.event = on_hotplug_event,
		.ejected = on_ejected,
		.ctx = p,
	};

	BUG_ON(pci_host_new(&p->pci, &pci));
	hotplug.pci = p->pci;
	BUG_ON(pci_hotplug_new(&p->hotplug, &hotplug));
}

static void platform_make(struct platform *p)
{
	struct machine_hooks hooks = { .event = on_event, .ctx = p };
	struct dev_clock clock = { .now_ns = fake_now, .ctx = p };
	struct ioapic_config ioapic = { .router = &p->router };
	struct serial_config serial = { .base = PORT_SERIAL0, .chr = &p->chr };
	struct rtc_config rtc = { .clock = clock };
	struct pm_config pm = { .clock = clock, .hooks = hooks };
	struct watchdog_config watchdog = { .clock = clock, .hooks = hooks };

	memset(p, 0, sizeof(*p));
	p->chr.ops = &chr_ops;
	p->now_ns = 1700000000ull * 1000000000ull;
	BUG_ON(iobus_new(&p->pio) || iobus_new(&p->mmio));
	ioapic.mmio = p->mmio;
	BUG_ON(ioapic_new(&p->ioapic, &ioapic));
	serial.pio = p->pio;
	serial.irq = line_to(p, IRQ_SERIAL0);
	rtc.pio = p->pio;
	rtc.irq = line_to(p, IRQ_RTC);
	pm.pio = p->pio;
	pm.sci = line_to(p, IRQ_SCI);
	BUG_ON(serial_new(&p->serial, &serial));
	BUG_ON(rtc_new(&p->rtc, &rtc));
	BUG_ON(pm_new(&p->pm, &pm));
	hotplug_make(p);
	watchdog.pio = p->pio;
	BUG_ON(watchdog_new(&p->watchdog, &watchdog));
	BUG_ON(pvpanic_new(&p->pvpanic, p->pio, &hooks));
	BUG_ON(reset_ctl_new(&p->reset, p->pio, &hooks));
	BUG_ON(debug_exit_new(&p->debug_exit, p->pio, &hooks));
}

static void platform_end(struct platform *p)
{
	debug_exit_free(p->debug_exit);
	reset_ctl_free(p->reset);
	watchdog_free(p->watchdog);
	pvpanic_free(p->pvpanic);
	pci_hotplug_free(p->hotplug);
	pci_host_free(p->pci);
	pm_free(p->pm);
	rtc_free(p->rtc);
	serial_free(p->serial);
	ioapic_free(p->ioapic);
	iobus_free(p->mmio);
	iobus_free(p->pio);
}

static uint32_t in(struct iobus *bus, uint64_t addr, uint32_t len)
{
	uint32_t v = 0;

	iobus_read(bus, addr, &v, len);
	return v;
}

static void out(struct iobus *bus, uint64_t addr, uint32_t v, uint32_t len)
{
	iobus_write(bus, addr, &v, len);
}

/* -- steps -- */

/* An access as the step says, at one of the num addresses from base. */
static void access_range(struct iobus *bus, uint64_t base, uint32_t num,
			 const struct step *step)
{
	uint64_t addr = base + step->where % num;
	uint32_t len = 1u << (step->kind >> 4 & 3);
	uint64_t wide = (uint64_t)step->value << 32 | step->value;

	if (step->kind & 0x40)
		iobus_read(bus, addr, &wide, len);
	else
		iobus_write(bus, addr, &wide, len);
}

static void serial_step(struct platform *p, const struct step *step)
{
	uint32_t len = 1u << (step->kind >> 4 & 3);

	if (!(step->kind & 0x40) && step->where % 8 == 0 && len <= 8)
		p->thr_writes++;
	access_range(p->pio, PORT_SERIAL0, 8, step);
}

/* What a driver that knows each chip would do in one go. */
static void rtc_reg_step(struct platform *p, const struct step *step)
{
	uint8_t reg = step->where & 0x7f;
	uint32_t v;

	out(p->pio, PORT_RTC, reg, 1);
	if (!(step->kind & 0x40)) {
		out(p->pio, PORT_RTC + 1, step->value, 1);
		return;
	}
	v = in(p->pio, PORT_RTC + 1, 1);
	BUG_ON(reg == 0x0b && (v & 0x49));
	BUG_ON(reg == 0x0c && (v & 0x4f));
	BUG_ON(reg == 0x0c && p->line[IRQ_RTC]);
	BUG_ON(reg == 0x0d && v != 0x80);
}

static void ioapic_reg_step(struct platform *p, const struct step *step)
{
	out(p->mmio, LAYOUT_IOAPIC, step->where & 0x3f, 4);
	if (step->kind & 0x40)
		in(p->mmio, LAYOUT_IOAPIC + 0x10, 4);
	else
		out(p->mmio, LAYOUT_IOAPIC + 0x10, step->value, 4);
}

static void line_step(struct platform *p, const struct step *step)
{
	uint32_t gsi = step->where % (IRQCHIP_NUM_PINS + 2);
	struct irq_line line = ioapic_line(p->ioapic, gsi);

	if (gsi == IRQ_SERIAL0 || gsi == IRQ_RTC || gsi == IRQ_SCI)
		return; /* those have a device */
	irq_line_set(&line, step->value & 1);
	if (gsi < IRQCHIP_NUM_PINS)
		p->line[gsi] = step->value & 1;
}

static void receive(struct platform *p, uint32_t value)
{
	const struct chardev_client *client = &p->chr.client;
	uint8_t data[SERIAL_FIFO_BYTES];
	size_t room = client->room(client->ctx);

	BUG_ON(room > SERIAL_FIFO_BYTES);
	memset(data, (int)value, sizeof(data));
	client->receive(client->ctx, data, MIN(room, (size_t)(value % 20)));
}

static void plug(struct platform *p, unsigned int n)
{
	static const struct pci_id id = { .vendor = 0x1234, .device = 1 };
	struct slot *slot = &p->slots[n];

	pci_dev_init(&slot->dev, "dev", &id);
	/* The bridge's slot, or one whose owner has not heard yet. */
	if (pci_host_plug(p->pci, &slot->dev, (int)n))
		return;
	slot->plugged = true;
	pci_hotplug_added(p->hotplug, n);
}

/* It bites when nothing is left, at once, and not otherwise. */
static void watchdog_step(struct platform *p)
{
	uint32_t running = in(p->pio, PORT_WATCHDOG, 4);
	uint32_t period = in(p->pio, PORT_WATCHDOG + 4, 4);
	uint32_t left = in(p->pio, PORT_WATCHDOG + 8, 4);

	BUG_ON(running > 1 || !period || period > WATCHDOG_MAX_UNITS);
	BUG_ON(!running && left);
	p->may_stop = running && !left;
	watchdog_poll(p->watchdog);
	BUG_ON(in(p->pio, PORT_WATCHDOG, 4) != (running && left));
	p->may_stop = false;
}

static void hotplug_step(struct platform *p, const struct step *step)
{
	unsigned int n = step->where / 8 % PCI_HOST_SLOTS;
	struct slot *slot = &p->slots[n];
	struct step at = *step;

	switch (step->where % 8) {
	case 0:
		if (!slot->plugged)
			plug(p, n);
		break;
	case 1:
		if (slot->plugged) {
			slot->asked = true;
			pci_hotplug_request(p->hotplug, n);
		}
		break;
	case 2:
		pci_hotplug_poll(p->hotplug);
		break;
	case 3: /* as the guest's _EJ0 does */
		out(p->pio, PORT_HOTPLUG + 8, 1u << n, 4);
		break;
	case 4:
		access_range(p->pio, PORT_PVPANIC, 1, step);
		at.where = (uint8_t)n;
		access_range(p->pio, PORT_WATCHDOG, WATCHDOG_PORTS, &at);
		watchdog_step(p);
		break;
	case 5: /* as its event method does */
		out(p->pio, PORT_HOTPLUG, in(p->pio, PORT_HOTPLUG, 4), 4);
		out(p->pio, PORT_HOTPLUG + 4, in(p->pio, PORT_HOTPLUG + 4, 4),
		    4);
		break;
	default:
		at.where = (uint8_t)n;
		access_range(p->pio, PORT_HOTPLUG, HOTPLUG_PORTS, &at);
		break;
	}
}

static void event_step(struct platform *p, const struct step *step)
{
	switch (step->where % 9) {
	case 0:
		receive(p, step->value);
		break;
	case 1:
		p->chr.client.receive_break(p->chr.client.ctx);
		break;
	case 2:
		pm_power_button(p->pm);
		break;
	case 3:
		ioapic_eoi(p->ioapic, (uint8_t)step->value);
		break;
	case 4: /* up to 4 s, or days */
		p->now_ns += step->value;
		break;
	case 5:
		p->now_ns += (uint64_t)step->value * 1000000;
		break;
	case 6:
		p->now_ns -= step->value; /* the host's clock is set back */
		break;
	case 7:
		p->router.refuse = step->value & 1;
		p->router.ever_refused |= p->router.refuse;
		break;
	case 8:
		rtc_poll(p->rtc);
		break;
	}
}

static enum step_kind step_kind(const struct step *step)
{
	return (enum step_kind)((step->kind & 0xf) % STEP_KINDS);
}

static void run_step(struct platform *p, const struct step *step)
{
	switch (step_kind(step)) {
	case STEP_SERIAL:
		serial_step(p, step);
		break;
	case STEP_RTC:
		access_range(p->pio, PORT_RTC, 2, step);
		break;
	case STEP_RTC_REG:
		rtc_reg_step(p, step);
		break;
	case STEP_PM:
		p->may_stop = true;
		access_range(p->pio, PORT_PM_BASE, PM_PORTS, step);
		break;
	case STEP_RESET:
		p->may_stop = true;
		access_range(p->pio, PORT_I8042, 5, step);
		access_range(p->pio, PORT_DEBUG_EXIT, 4, step);
		reset_control_write(p->reset, (uint8_t)step->value);
		break;
	case STEP_IOAPIC:
		access_range(p->mmio, LAYOUT_IOAPIC, 0x50, step);
		break;
	case STEP_IOAPIC_REG:
		ioapic_reg_step(p, step);
		break;
	case STEP_LINE:
		line_step(p, step);
		break;
	case STEP_EVENT:
		event_step(p, step);
		break;
	case STEP_HOTPLUG:
		hotplug_step(p, step);
		break;
	case STEP_KINDS: /* cannot be */
		abort();
	}
	p->may_stop = false;
}

/* -- what must hold after each -- */

static void check_serial(struct platform *p)
{
	size_t room = p->chr.client.room(p->chr.client.ctx);
	uint32_t lcr = in(p->pio, PORT_SERIAL0 + 3, 1);
	uint32_t mcr = in(p->pio, PORT_SERIAL0 + 4, 1);

	BUG_ON(room > SERIAL_FIFO_BYTES);
	BUG_ON(mcr & ~0x1fu);
	BUG_ON((mcr & 0x10) && room);
	BUG_ON(p->sent > p->thr_writes);
	if (!(lcr & 0x80)) {
		uint32_t ier = in(p->pio, PORT_SERIAL0 + 1, 1);

		BUG_ON(ier & ~0x0fu);
		BUG_ON(!ier && p->line[IRQ_SERIAL0]);
	}
}

/* These two change what they read, so only at the end. */
static void check_serial_status(struct platform *p)
{
	bool line = p->line[IRQ_SERIAL0];
	uint32_t iir = in(p->pio, PORT_SERIAL0 + 2, 1);

	BUG_ON(line != !(iir & 1));
	BUG_ON((in(p->pio, PORT_SERIAL0 + 5, 1) & 0x60) != 0x60);
}

static void check_pm(struct platform *p)
{
	uint32_t events, cnt, gpe;

	pm_poll(p->pm);
	events = in(p->pio, PORT_PM_BASE, 4);
	gpe = in(p->pio, PORT_PM_BASE + 12, 2);
	cnt = in(p->pio, PORT_PM_BASE + 4, 2);
	BUG_ON(p->line[IRQ_SCI] !=
	       ((events & events >> 16 & 0x7fff) || (gpe & gpe >> 8 & 0xff)));
	BUG_ON((cnt & 0x2005) != 1); /* SCI_EN; SLP_EN, GBL_RLS read as 0 */
	BUG_ON(in(p->pio, PORT_PM_BASE + 8, 4) >> 24);
}

static void check_hotplug(struct platform *p)
{
	uint32_t pending = in(p->pio, PORT_HOTPLUG, 4) |
			   in(p->pio, PORT_HOTPLUG + 4, 4);
	uint32_t gpe = in(p->pio, PORT_PM_BASE + 12, 1);

	BUG_ON(pending && !(gpe & 1u << GPE_HOTPLUG));
	for (unsigned int n = 0; n < PCI_HOST_SLOTS; n++) {
		const struct slot *slot = &p->slots[n];

		BUG_ON(pci_hotplug_requested(p->hotplug, n) != slot->asked);
		BUG_ON(slot->plugged && !slot->asked &&
		       pci_host_config_read(p->pci, (uint8_t)(n << 3), 0, 2) !=
			       0x1234);
	}
}

static void check_pin(struct platform *p, uint32_t pin)
{
	uint32_t rte;

	out(p->mmio, LAYOUT_IOAPIC, 0x10 + 2 * pin, 4);
	rte = in(p->mmio, LAYOUT_IOAPIC + 0x10, 4);
	BUG_ON(rte & 0xfffe1000);
	BUG_ON((rte & RTE_IRR) && !(rte & RTE_LEVEL));
	if (!(rte & RTE_LEVEL) || (rte & RTE_MASKED) || (rte & 0x700) == 0x700)
		return;
	BUG_ON(!p->router.routed[pin]);
	BUG_ON((p->router.route_data[pin] & 0x7ff) != (rte & 0x7ff));
	BUG_ON(p->line[pin] && !(rte & RTE_IRR) && !p->router.ever_refused);
}

static void check_ioapic(struct platform *p)
{
	uint32_t select = in(p->mmio, LAYOUT_IOAPIC, 4);

	BUG_ON(select > 0xff);
	for (uint32_t pin = 0; pin < IRQCHIP_NUM_PINS; pin++)
		check_pin(p, pin);
	out(p->mmio, LAYOUT_IOAPIC, select, 4);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct platform p;
	struct step step;

	log_set_level(LOG_LEVEL_ERROR);
	platform_make(&p);
	for (int i = 0; i < MAX_STEPS && size >= sizeof(step); i++) {
		memcpy(&step, data, sizeof(step));
		data += sizeof(step);
		size -= sizeof(step);
		run_step(&p, &step);
		check_serial(&p);
		check_pm(&p);
		if (step_kind(&step) == STEP_HOTPLUG)
			check_hotplug(&p);
		if (step_kind(&step) >= STEP_PM)
			check_ioapic(&p); /* slow: 24 pins */
	}
	check_ioapic(&p);
	check_serial_status(&p);
	platform_end(&p);
	return 0;
}
