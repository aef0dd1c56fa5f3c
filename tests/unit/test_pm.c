/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device/pm.c against ACPI 6.5 section 4.8, and the other ways to end or reset
 * the machine, or to say that it broke: reset.c, debug_exit.c, pvpanic.c.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/evloop.h"
#include "bus/iobus.h"
#include "device/debug_exit.h"
#include "device/pm.h"
#include "device/pvpanic.h"
#include "device/reset.h"
#include "x86/layout.h"

#define STS (PORT_PM_BASE + 0)
#define EN  (PORT_PM_BASE + 2)
#define CNT (PORT_PM_BASE + 4)
#define TMR (PORT_PM_BASE + 8)

#define GPE_STS (PORT_PM_BASE + 12)
#define GPE_EN	(PORT_PM_BASE + 13)

#define SECOND 1000000000ull
#define MSEC   1000000ull

struct fixture {
	struct iobus *pio;
	struct pm *pm;
	struct evloop *loop;
	uint64_t now_ns;
	bool sci;
	int events;
	enum machine_event event;
	unsigned int code;
};

static uint64_t fake_now(void *ctx)
{
	return ((struct fixture *)ctx)->now_ns;
}

static void sci_set(void *ctx, uint32_t gsi, bool level)
{
	struct fixture *f = ctx;

	assert_int_equal(gsi, IRQ_SCI);
	f->sci = level;
	if (level && f->loop)
		evloop_stop(f->loop, 1);
}

static void on_event(void *ctx, enum machine_event event, unsigned int code)
{
	struct fixture *f = ctx;

	f->events++;
	f->event = event;
	f->code = code;
}

static struct machine_hooks hooks_of(struct fixture *f)
{
	return (struct machine_hooks){ .event = on_event, .ctx = f };
}

static int setup(void **state)
{
	static struct fixture f;
	struct pm_config cfg = {
		.sci = { .set = sci_set, .ctx = &f, .gsi = IRQ_SCI },
		.clock = { .now_ns = fake_now, .ctx = &f },
	};

	memset(&f, 0, sizeof(f));
	f.now_ns = 77 * SECOND; /* the clock's start means nothing */
	assert_int_equal(iobus_new(&f.pio), 0);
	cfg.pio = f.pio;
	cfg.hooks = hooks_of(&f);
	assert_int_equal(pm_new(&f.pm, &cfg), 0);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	pm_free(f->pm);
	iobus_free(f->pio);
	return 0;
}

static uint32_t in(struct fixture *f, uint64_t port, uint32_t len)
{
	uint32_t v = 0;

	assert_true(iobus_read(f->pio, port, &v, len));
	return v;
}

static void out(struct fixture *f, uint64_t port, uint32_t v, uint32_t len)
{
	assert_true(iobus_write(f->pio, port, &v, len));
}

static void test_power_off(void **state)
{
	struct fixture *f = *state;

	out(f, CNT, 5 << 10, 2); /* type alone does nothing */
	assert_int_equal(f->events, 0);
	assert_int_equal(in(f, CNT, 2), (5 << 10) | 1);
	out(f, CNT, (5 << 10) | (1 << 13), 2);
	assert_int_equal(f->events, 1);
	assert_int_equal(f->event, MACHINE_POWEROFF);
	assert_int_equal(in(f, CNT, 2) & (1 << 13), 0); /* write only */
}

static void test_power_off_by_byte(void **state)
{
	struct fixture *f = *state;

	/* ACPICA may write the upper byte alone. */
	out(f, CNT + 1, (5 << 2) | (1 << 5), 1);
	assert_int_equal(f->events, 1);
	assert_int_equal(f->event, MACHINE_POWEROFF);
	/* The lower one must not repeat it. */
	out(f, CNT, 0xff, 1);
	assert_int_equal(f->events, 1);
}

static void test_other_sleep_types_wake(void **state)
{
	struct fixture *f = *state;

	for (uint32_t type = 0; type < 8; type++) {
		if (type == 5)
			continue;
		out(f, CNT, type << 10 | 1 << 13, 2);
		assert_int_equal(in(f, STS, 2), 0x8000);
		out(f, STS, 0x8000, 2);
	}
	assert_int_equal(f->events, 0);
}

static void test_sci_en_always_set(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(in(f, CNT, 2), 1);
	out(f, CNT, 0, 2);
	assert_int_equal(in(f, CNT, 2), 1);
	out(f, CNT, 0x0004, 2); /* GBL_RLS is write only */
	assert_int_equal(in(f, CNT, 2), 1);
}

static void test_power_button(void **state)
{
	struct fixture *f = *state;

	/* Not enabled: noted, no interrupt. */
	pm_power_button(f->pm);
	assert_int_equal(in(f, STS, 2), 0x0100);
	assert_false(f->sci);
	out(f, EN, 0x0100, 2);
	assert_true(f->sci);
	/* Write 1 to clear; zeros keep. */
	out(f, STS, 0x0000, 2);
	out(f, STS, 0xfeff, 2);
	assert_true(f->sci);
	out(f, STS, 0x0100, 2);
	assert_false(f->sci);
	assert_int_equal(in(f, STS, 2), 0);
	/* Enabled: at once, and a level until cleared. */
	pm_power_button(f->pm);
	assert_true(f->sci);
	out(f, EN, 0, 2);
	assert_false(f->sci);
}

static void test_byte_access(void **state)
{
	struct fixture *f = *state;

	out(f, EN + 1, 0x01, 1);
	assert_int_equal(in(f, EN, 2), 0x0100);
	out(f, EN, 0x20, 1);
	assert_int_equal(in(f, EN, 2), 0x0120);
	pm_power_button(f->pm);
	out(f, STS, 0xff, 1); /* the other byte */
	assert_true(f->sci);
	out(f, STS + 1, 0x01, 1);
	assert_false(f->sci);
	/* Status and enable in one access: enable keeps its half. */
	pm_power_button(f->pm);
	assert_int_equal(in(f, STS, 4), 0x01200100);
	out(f, STS, 0x00200100, 4);
	assert_int_equal(in(f, STS, 4), 0x00200000);
}

static void test_unwired_events_cannot_be_enabled(void **state)
{
	struct fixture *f = *state;

	out(f, EN, 0xffff, 2);
	assert_int_equal(in(f, EN, 2), 0x0521);
}

static void test_timer_rate(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(in(f, TMR, 4), 0);
	f->now_ns += SECOND;
	assert_int_equal(in(f, TMR, 4), 3579545);
	out(f, TMR, 0, 4); /* read only */
	assert_int_equal(in(f, TMR, 4), 3579545);
	/* 2^24 ticks are 4.69 s: it wraps, and goes on. */
	f->now_ns += 4 * SECOND;
	assert_int_equal(in(f, TMR, 4), 5 * 3579545 - (1 << 24));
	/* A year on: nothing overflows on the way. */
	f->now_ns += 365ull * 86400 * SECOND;
	assert_int_equal(in(f, TMR, 4),
			 ((5ull + 365 * 86400) * 3579545) & 0xffffff);
}

/* A machine that was paused finds its timer where it was. */
static void test_timer_after_a_pause(void **state)
{
	struct fixture *f = *state;
	uint32_t before;

	f->now_ns += 3 * SECOND;
	before = in(f, TMR, 4);
	out(f, STS, 1, 2);
	f->now_ns += 100 * SECOND;
	pm_skip_time(f->pm, 100 * SECOND);
	assert_int_equal(in(f, TMR, 4), before);
	/* neither did its top bit change on the way */
	assert_int_equal(in(f, STS, 2) & 1, 0);
	f->now_ns += MSEC;
	assert_true(in(f, TMR, 4) > before);
}

static void test_timer_carry(void **state)
{
	struct fixture *f = *state;

	f->now_ns += 2343 * MSEC; /* bit 23 changes at 2343.5 ms */
	assert_int_equal(in(f, STS, 2), 0);
	f->now_ns += MSEC;
	assert_int_equal(in(f, STS, 2), 1);
	out(f, STS, 1, 2);
	assert_int_equal(in(f, STS, 2), 0);
	/* And back to 0 at 4687 ms, this time with the interrupt. */
	out(f, EN, 1, 2);
	assert_false(f->sci);
	f->now_ns += 2343 * MSEC;
	pm_poll(f->pm);
	assert_true(f->sci);
	assert_int_equal(in(f, STS, 2), 1);
}

/* With the real clock and a real loop: the interrupt comes by itself. */
static void test_timer_carry_from_the_loop(void **state)
{
	struct fixture f = { .events = 0 };
	struct pm_config cfg = {
		.sci = { .set = sci_set, .ctx = &f, .gsi = IRQ_SCI },
		.hooks = hooks_of(&f),
	};

	assert_int_equal(iobus_new(&f.pio), 0);
	assert_int_equal(evloop_new(&f.loop), 0);
	cfg.pio = f.pio;
	cfg.loop = f.loop;
	assert_int_equal(pm_new(&f.pm, &cfg), 0);
	out(&f, EN, 1, 2);
	assert_int_equal(evloop_run(f.loop), 1); /* after 2.3 s */
	assert_int_equal(in(&f, STS, 2), 1);
	assert_true(in(&f, TMR, 4) >= 1 << 23);
	pm_free(f.pm);
	evloop_free(f.loop);
	iobus_free(f.pio);
}

static void test_keyboard_controller_reset(void **state)
{
	struct fixture *f = *state;
	struct machine_hooks hooks = hooks_of(f);
	struct reset_ctl *ctl;

	assert_int_equal(reset_ctl_new(&ctl, f->pio, &hooks), 0);
	/* Nothing to read, ready for a command. */
	assert_int_equal(in(f, 0x64, 1), 0);
	assert_int_equal(in(f, 0x60, 1), 0);
	out(f, 0x60, 0xfe, 1);
	out(f, 0x64, 0xaa, 1);
	assert_int_equal(f->events, 0);
	out(f, 0x64, 0xfe, 1);
	assert_int_equal(f->events, 1);
	assert_int_equal(f->event, MACHINE_RESET);
	reset_ctl_free(ctl);
	assert_false(iobus_write(f->pio, 0x64, "\xfe", 1));
}

static void test_reset_control_register(void **state)
{
	struct fixture *f = *state;
	struct machine_hooks hooks = hooks_of(f);
	struct reset_ctl *ctl;

	assert_int_equal(reset_ctl_new(&ctl, f->pio, &hooks), 0);
	reset_control_write(ctl, 0x02); /* selects a hard reset, only */
	assert_int_equal(f->events, 0);
	reset_control_write(ctl, 0x06);
	assert_int_equal(f->events, 1);
	assert_int_equal(f->event, MACHINE_RESET);
	reset_ctl_free(ctl);
}

static void test_debug_exit(void **state)
{
	struct fixture *f = *state;
	struct machine_hooks hooks = hooks_of(f);
	struct debug_exit *dev;

	assert_int_equal(debug_exit_new(&dev, f->pio, &hooks), 0);
	assert_int_equal(in(f, PORT_DEBUG_EXIT, 4), 0);
	out(f, PORT_DEBUG_EXIT, 0x2a, 1);
	assert_int_equal(f->event, MACHINE_DEBUG_EXIT);
	assert_int_equal(f->code, 0x2a);
	out(f, PORT_DEBUG_EXIT, 0x12345678, 4);
	assert_int_equal(f->code, 0x12345678);
	assert_int_equal(f->events, 2);
	out(f, PORT_DEBUG_EXIT + 1, 1, 1);
	assert_int_equal(f->events, 2);
	debug_exit_free(dev);
}

static void test_pvpanic(void **state)
{
	struct fixture *f = *state;
	struct machine_hooks hooks = hooks_of(f);
	struct pvpanic *dev;

	assert_int_equal(pvpanic_new(&dev, f->pio, &hooks), 0);
	assert_int_equal(in(f, PORT_PVPANIC, 1), 3); /* what it takes */
	out(f, PORT_PVPANIC, 0, 1);
	out(f, PORT_PVPANIC, 0xfc, 1); /* events of the future */
	assert_int_equal(f->events, 0);
	out(f, PORT_PVPANIC, 0xff, 1);
	assert_int_equal(f->event, MACHINE_PANIC);
	assert_int_equal(f->code, PVPANIC_PANICKED | PVPANIC_CRASH_LOADED);
	out(f, PORT_PVPANIC, 2, 1);
	assert_int_equal(f->code, PVPANIC_CRASH_LOADED);
	assert_int_equal(f->events, 2);
	/* one port */
	assert_false(iobus_write(f->pio, PORT_PVPANIC, "\1\0", 2));
	pvpanic_free(dev);
	assert_false(iobus_write(f->pio, PORT_PVPANIC, "\1", 1));
}

static void test_gpe_edge(void **state)
{
	struct fixture *f = *state;

	pm_pulse_gpe(f->pm, 2);
	assert_int_equal(in(f, GPE_STS, 1), 4);
	assert_false(f->sci); /* not enabled */
	out(f, GPE_EN, 4, 1);
	assert_true(f->sci);
	out(f, GPE_STS, 0xfb, 1); /* the others */
	assert_true(f->sci);
	out(f, GPE_STS, 4, 1);
	assert_false(f->sci);
	assert_int_equal(in(f, GPE_STS, 2), 0x0400);
	/* both blocks share the line */
	out(f, EN, 0x100, 2);
	pm_power_button(f->pm);
	pm_pulse_gpe(f->pm, 2);
	out(f, STS, 0x100, 2);
	assert_true(f->sci);
	out(f, GPE_STS, 4, 1);
	assert_false(f->sci);
}

static void test_gpe_level(void **state)
{
	struct fixture *f = *state;

	out(f, GPE_EN, 0xff, 1);
	assert_int_equal(in(f, GPE_EN, 1), 0xff);
	pm_set_gpe(f->pm, 1, true);
	assert_true(f->sci);
	out(f, GPE_STS, 0xff, 1); /* its source still wants something */
	assert_true(f->sci);
	assert_int_equal(in(f, GPE_STS, 1), 2);
	pm_set_gpe(f->pm, 1, false);
	assert_true(f->sci); /* the status bit is the guest's to clear */
	out(f, GPE_STS, 2, 1);
	assert_false(f->sci);
	assert_int_equal(in(f, GPE_STS, 1), 0);
	/* off and on again before the guest looked */
	pm_set_gpe(f->pm, 1, true);
	pm_set_gpe(f->pm, 1, false);
	assert_true(f->sci);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_power_off),
		T(test_power_off_by_byte),
		T(test_other_sleep_types_wake),
		T(test_sci_en_always_set),
		T(test_power_button),
		T(test_byte_access),
		T(test_unwired_events_cannot_be_enabled),
		T(test_timer_rate),
		T(test_timer_after_a_pause),
		T(test_timer_carry),
		cmocka_unit_test(test_timer_carry_from_the_loop),
		T(test_keyboard_controller_reset),
		T(test_reset_control_register),
		T(test_debug_exit),
		T(test_gpe_edge),
		T(test_gpe_level),
		T(test_pvpanic),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
