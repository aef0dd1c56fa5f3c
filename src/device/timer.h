/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One-shot timers for devices: a timerfd on the control thread's event loop,
 * and the clock a device reads (which tests replace).
 *
 * Threads: arm and cancel from any; init and fini from the control thread. fn
 * runs on the control thread. It may come once more after a cancel that raced
 * with it, so a device checks under its lock what is really due.
 */
#ifndef QUIRE_DEVICE_TIMER_H
#define QUIRE_DEVICE_TIMER_H

#include <stdint.h>
#include <time.h>

#include "base/compiler.h"

struct evloop;

struct dev_clock {
	uint64_t (*now_ns)(void *ctx);
	void *ctx;
};

struct dev_timer {
	struct evloop *loop; /* NULL: the timer never fires */
	int fd;
	void (*fn)(void *ctx);
	void *ctx;
};

/* clock: CLOCK_MONOTONIC or CLOCK_REALTIME. A NULL loop is fine. */
__must_check int dev_timer_init(struct dev_timer *timer, struct evloop *loop,
				clockid_t clock, void (*fn)(void *ctx),
				void *ctx);
/* Harmless on a zeroed or already finished timer. */
void dev_timer_fini(struct dev_timer *timer);

/* Fire once when clock reaches at_ns (now, if that is past). */
void dev_timer_arm(struct dev_timer *timer, uint64_t at_ns);
void dev_timer_cancel(struct dev_timer *timer);

/* The config's clock if it has one, else the host's. */
uint64_t dev_clock_now(const struct dev_clock *clock, clockid_t fallback);

#endif
