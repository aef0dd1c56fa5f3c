/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ACPI fixed hardware at PORT_PM_BASE: the PM1a event and control blocks, the
 * 24-bit PM timer and a block of general-purpose events. Gives the guest
 * power-off (S5), the power button, the SCI, and through its events (layout.h
 * has their numbers) PCI hot-plug and the VM generation id.
 *
 *	+0  PM1a_STS  2 bytes	+8   PM_TMR    4 bytes
 *	+2  PM1a_EN   2 bytes	+12  GPE0_STS  1 byte
 *	+4  PM1a_CNT  2 bytes	+13  GPE0_EN   1 byte
 *
 * There is no SMI command port: the machine is always in ACPI mode and SCI_EN
 * reads as one. Source: ACPI 6.5, sections 4.8 and 5.6.4.
 *
 * Threads: any; own mutex.
 */
#ifndef QUIRE_DEVICE_PM_H
#define QUIRE_DEVICE_PM_H

#include <stdbool.h>

#include "base/compiler.h"
#include "device/device.h"
#include "device/timer.h"
#include "kvm/irq.h"
#include "state/state.h"

struct iobus;
struct pm;

#define PM_PORTS      14
#define PM_GPES	      8
#define PM_SLP_TYP_S5 5 /* what \_S5 in the DSDT says */

struct pm_config {
	struct iobus *pio;
	struct irq_line sci;
	struct machine_hooks hooks;
	/* For the timer-carry interrupt; NULL: TMR_STS by polling only. */
	struct evloop *loop;
	/* Monotonic clock; .now_ns NULL: CLOCK_MONOTONIC. */
	struct dev_clock clock;
};

__must_check int pm_new(struct pm **ret, const struct pm_config *cfg);
void pm_free(struct pm *pm);

/* Press the power button: the guest's OS is asked to shut down. */
void pm_power_button(struct pm *pm);

/* The machine stood still for ns: the PM timer goes on from where it was. */
void pm_skip_time(struct pm *pm, uint64_t ns);

/*
 * Section "pm" of a saved state: registers, and the PM timer as it was at at_ns
 * (of its clock). Loading has it go on from there at at_ns, and drives the SCI.
 */
void pm_save(struct pm *pm, uint64_t at_ns, struct state_writer *w);
__must_check int pm_load(struct pm *pm, uint64_t at_ns, struct state_reader *r,
			 struct err *err);

/*
 * A general-purpose event. Edge: its status bit rises once. Level: the bit
 * stands for as long as the source is asserted, and cannot be cleared
 * meanwhile. The guest's method for it is _Exx or _Lxx accordingly.
 */
void pm_pulse_gpe(struct pm *pm, unsigned int gpe);
void pm_set_gpe(struct pm *pm, unsigned int gpe, bool level);

/* Raise what has become due. The timer calls it; tests with a clock do too. */
void pm_poll(struct pm *pm);

#endif
