/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A watchdog timer, described to the guest by ACPI's WDAT table (x86/acpi.c):
 * Linux drives it with wdat_wdt, Windows with its own.
 *
 *	+0  RUN     4 bytes  1: counts; 0: stopped. Writing 1 begins a period
 *	+4  PERIOD  4 bytes  in WATCHDOG_UNIT_MS; clamped
 *to 1..WATCHDOG_MAX_UNITS +8  COUNT   4 bytes  reads what is left, in units
 *rounded up; any write begins a new period
 *
 * Accesses other than four aligned bytes read zero and write nothing. When a
 * period ends while it runs, it stops and MACHINE_WATCHDOG is the event.
 *
 * Threads: registers from vCPU threads, the timer on the control thread; own
 * mutex. Source: Microsoft, "Hardware Watchdog Timers Design
 *Specification" 1.01 (the table); the register block is our own.
 */
#ifndef QUIRE_DEVICE_WATCHDOG_H
#define QUIRE_DEVICE_WATCHDOG_H

#include "base/compiler.h"
#include "device/device.h"
#include "device/timer.h"
#include "state/state.h"

struct iobus;
struct watchdog;

#define WATCHDOG_PORTS	   12
#define WATCHDOG_UNIT_MS   100u
#define WATCHDOG_MAX_UNITS 36000u /* an hour */
#define WATCHDOG_START	   600u	  /* PERIOD at first: a minute */

struct watchdog_config {
	struct iobus *pio;
	struct machine_hooks hooks;
	struct evloop *loop; /* NULL in tests: they poll */
	/* Monotonic clock; .now_ns NULL: CLOCK_MONOTONIC. */
	struct dev_clock clock;
};

__must_check int watchdog_new(struct watchdog **ret,
			      const struct watchdog_config *cfg);
void watchdog_free(struct watchdog *w);

/* vCPUs are out of the guest: a period does not go on until resume. */
void watchdog_pause(struct watchdog *w);
void watchdog_resume(struct watchdog *w);

/* Section "watchdog" of a saved state; paused, and so it is after loading. */
void watchdog_save(struct watchdog *w, struct state_writer *writer);
__must_check int watchdog_load(struct watchdog *w, struct state_reader *r,
			       struct err *err);

/* Bite if it is time. The timer calls it; tests with a clock do too. */
void watchdog_poll(struct watchdog *w);

#endif
