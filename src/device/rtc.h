/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An MC146818 real-time clock with its CMOS RAM at ports 0x70 and 0x71.
 *
 * The time is the host's in UTC plus an offset that the guest sets by setting
 * the clock. Offset and RAM last as long as the device: a machine that reboots
 * gets a new one, with the host's time and empty RAM. Alarm and update-ended
 * interrupts work. There is no periodic interrupt and no square wave: their
 * enable bits read as zero (Linux uses neither).
 *
 * Source: Motorola MC146818A data sheet; Intel ICH9 data sheet, section 13.6
 * (the century byte is at 0x32, as the FADT says).
 *
 * Threads: the ports from any vCPU, the timer on the control thread; own mutex.
 */
#ifndef QUIRE_DEVICE_RTC_H
#define QUIRE_DEVICE_RTC_H

#include "base/compiler.h"
#include "device/timer.h"
#include "kvm/irq.h"
#include "state/state.h"

struct iobus;
struct rtc;

struct rtc_config {
	struct iobus *pio;
	struct irq_line irq;
	/* For interrupts; NULL: flags are only seen by polling register C. */
	struct evloop *loop;
	/* Wall clock; .now_ns NULL: CLOCK_REALTIME. */
	struct dev_clock clock;
};

__must_check int rtc_new(struct rtc **ret, const struct rtc_config *cfg);
void rtc_free(struct rtc *rtc);

/*
 * Section "rtc" of a saved state: RAM, registers, and how far the guest's time
 * is from the host's, which goes on meanwhile. Loading drives the line.
 */
void rtc_save(struct rtc *rtc, struct state_writer *w);
__must_check int rtc_load(struct rtc *rtc, struct state_reader *r,
			  struct err *err);

/* Raise what has become due. The timer calls it; tests with a clock do too. */
void rtc_poll(struct rtc *rtc);

#endif
