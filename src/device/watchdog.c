/* SPDX-License-Identifier: Apache-2.0 */
#include "device/watchdog.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "bus/iobus.h"
#include "x86/layout.h"

enum {
	WD_RUN = 0,
	WD_PERIOD = 4,
	WD_COUNT = 8,
};

#define UNIT_NS (WATCHDOG_UNIT_MS * NSEC_PER_MSEC)

struct watchdog {
	struct watchdog_config cfg;
	struct dev_timer timer;
	pthread_mutex_t lock; /* everything below */
	bool running;
	uint32_t period; /* units */
	uint64_t end_ns; /* of the period, while it runs */
	bool paused;
	uint64_t left_ns; /* of the period, while paused */
};

static uint64_t now(const struct watchdog *w)
{
	return dev_clock_now(&w->cfg.clock, CLOCK_MONOTONIC);
}

static void begin_locked(struct watchdog *w)
{
	if (!w->running)
		return;
	w->end_ns = now(w) + w->period * UNIT_NS;
	dev_timer_arm(&w->timer, w->end_ns);
}

static void run_locked(struct watchdog *w, bool run)
{
	w->running = run;
	if (run)
		begin_locked(w);
	else
		dev_timer_cancel(&w->timer);
}

static uint32_t left_locked(const struct watchdog *w)
{
	uint64_t at = now(w);

	if (!w->running || at >= w->end_ns)
		return 0;
	return (uint32_t)div_round_up(w->end_ns - at, UNIT_NS);
}

static void watchdog_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	struct watchdog *w = dev;
	uint32_t value = 0;

	memset(data, 0, len);
	if (len != 4)
		return;
	pthread_mutex_lock(&w->lock);
	if (offset == WD_RUN)
		value = w->running;
	else if (offset == WD_PERIOD)
		value = w->period;
	else if (offset == WD_COUNT)
		value = left_locked(w);
	pthread_mutex_unlock(&w->lock);
	le32_store(data, value);
}

static void watchdog_write(void *dev, uint64_t offset, const void *data,
			   uint32_t len)
{
	struct watchdog *w = dev;
	uint32_t value;

	if (len != 4)
		return;
	value = le32_load(data);
	pthread_mutex_lock(&w->lock);
	switch (offset) {
	case WD_RUN:
		run_locked(w, value & 1);
		break;
	case WD_PERIOD:
		/* For the next period, as the table's SET_COUNTDOWN is. */
		w->period = MIN(MAX(value, 1u), WATCHDOG_MAX_UNITS);
		break;
	case WD_COUNT:
		begin_locked(w);
		break;
	default:
		break; /* not aligned */
	}
	pthread_mutex_unlock(&w->lock);
}

static const struct iobus_ops watchdog_ops = {
	.name = "watchdog",
	.read = watchdog_read,
	.write = watchdog_write,
};

static void timer_fired(void *ctx)
{
	watchdog_poll(ctx);
}

int watchdog_new(struct watchdog **ret, const struct watchdog_config *cfg)
{
	struct watchdog *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return -ENOMEM;
	pthread_mutex_init(&w->lock, NULL);
	w->cfg = *cfg;
	w->period = WATCHDOG_START;
	r = dev_timer_init(&w->timer, cfg->loop, CLOCK_MONOTONIC, timer_fired,
			   w);
	if (!r)
		r = iobus_add(cfg->pio, PORT_WATCHDOG, WATCHDOG_PORTS,
			      &watchdog_ops, w);
	if (r) {
		watchdog_free(w);
		return r;
	}
	*ret = w;
	return 0;
}

void watchdog_free(struct watchdog *w)
{
	if (!w)
		return;
	iobus_remove(w->cfg.pio, PORT_WATCHDOG, w);
	dev_timer_fini(&w->timer);
	pthread_mutex_destroy(&w->lock);
	free(w);
}

void watchdog_pause(struct watchdog *w)
{
	uint64_t at;

	pthread_mutex_lock(&w->lock);
	at = now(w);
	/* Twice is once: what is left then counts. */
	if (!w->paused)
		w->left_ns = w->end_ns > at ? w->end_ns - at : 0;
	w->paused = true;
	dev_timer_cancel(&w->timer);
	pthread_mutex_unlock(&w->lock);
}

void watchdog_resume(struct watchdog *w)
{
	pthread_mutex_lock(&w->lock);
	w->paused = false;
	w->end_ns = now(w) + w->left_ns;
	if (w->running)
		dev_timer_arm(&w->timer, w->end_ns);
	pthread_mutex_unlock(&w->lock);
}

#define F(kind, member, ...) \
	STATE_FIELD_##kind(struct watchdog, member, __VA_ARGS__)

static const struct state_field state_fields[] = {
	F(BOOL, running, 1),
	F(UINT, period, 2, .max = WATCHDOG_MAX_UNITS),
	F(UINT, left_ns, 3, .max = WATCHDOG_MAX_UNITS * UNIT_NS),
};

static int state_check(const struct state_check *c, const void *loaded,
		       const void *live)
{
	const struct watchdog *w = loaded;

	return w->period ? 0 : state_refuse(c, "period", "0, at least 1");
}

static const struct state_table state_table = {
	.section = "watchdog",
	.version = 1,
	.object_bytes = sizeof(struct watchdog),
	.fields = state_fields,
	.num_fields = ARRAY_SIZE(state_fields),
	.check = state_check,
};

void watchdog_save(struct watchdog *w, struct state_writer *writer)
{
	pthread_mutex_lock(&w->lock);
	state_save(writer, &state_table, NULL, w);
	pthread_mutex_unlock(&w->lock);
}

int watchdog_load(struct watchdog *w, struct state_reader *r, struct err *err)
{
	int ret;

	pthread_mutex_lock(&w->lock);
	ret = state_load(r, &state_table, NULL, w, err);
	if (!ret) {
		w->paused = true;
		dev_timer_cancel(&w->timer);
	}
	pthread_mutex_unlock(&w->lock);
	return ret;
}

/* A new period may have begun since the timer fired. */
void watchdog_poll(struct watchdog *w)
{
	bool bites;

	pthread_mutex_lock(&w->lock);
	bites = w->running && !w->paused && now(w) >= w->end_ns;
	if (bites)
		w->running = false;
	pthread_mutex_unlock(&w->lock);
	if (bites)
		w->cfg.hooks.event(w->cfg.hooks.ctx, MACHINE_WATCHDOG, 0);
}
