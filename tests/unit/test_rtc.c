/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device/rtc.c against the MC146818A data sheet: encodings, setting the clock,
 * update-in-progress, alarm and update-ended flags, CMOS RAM.
 */
#include "cmocka_all.h"

#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/clock.h"
#include "base/evloop.h"
#include "bus/iobus.h"
#include "device/rtc.h"
#include "x86/layout.h"

#define SECOND 1000000000ull
#define MSEC   1000000ull

/* 2024-02-29 23:59:58 UTC, a Thursday. */
#define LEAP_EVENING 1709251198ull

enum {
	SEC = 0,
	SEC_ALARM = 1,
	MIN_ = 2,
	MIN_ALARM = 3,
	HOUR = 4,
	HOUR_ALARM = 5,
	WDAY = 6,
	DAY = 7,
	MONTH = 8,
	YEAR = 9,
	A = 10,
	B = 11,
	C = 12,
	D = 13,
	CENTURY = 0x32,
};

struct fixture {
	struct iobus *pio;
	struct rtc *rtc;
	uint64_t now_ns;
	bool line;
	int edges;
	struct evloop *loop;
};

static uint64_t fake_now(void *ctx)
{
	return ((struct fixture *)ctx)->now_ns;
}

static void line_set(void *ctx, uint32_t gsi, bool level)
{
	struct fixture *f = ctx;

	assert_int_equal(gsi, IRQ_RTC);
	assert_true(level != f->line);
	f->line = level;
	f->edges += level;
	if (level && f->loop)
		evloop_stop(f->loop, 1);
}

static int setup(void **state)
{
	static struct fixture f;
	struct rtc_config cfg = {
		.irq = { .set = line_set, .ctx = &f, .gsi = IRQ_RTC },
		.clock = { .now_ns = fake_now, .ctx = &f },
	};

	memset(&f, 0, sizeof(f));
	f.now_ns = LEAP_EVENING * SECOND;
	assert_int_equal(iobus_new(&f.pio), 0);
	cfg.pio = f.pio;
	assert_int_equal(rtc_new(&f.rtc, &cfg), 0);
	*state = &f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	rtc_free(f->rtc);
	iobus_free(f->pio);
	return 0;
}

static uint8_t get(struct fixture *f, uint8_t reg)
{
	uint8_t v;

	assert_true(iobus_write(f->pio, PORT_RTC, &reg, 1));
	assert_true(iobus_read(f->pio, PORT_RTC + 1, &v, 1));
	return v;
}

static void put(struct fixture *f, uint8_t reg, uint8_t v)
{
	assert_true(iobus_write(f->pio, PORT_RTC, &reg, 1));
	assert_true(iobus_write(f->pio, PORT_RTC + 1, &v, 1));
}

static void check_time(struct fixture *f, const uint8_t *ymdhms)
{
	static const uint8_t regs[] = { CENTURY, YEAR, MONTH, DAY,
					HOUR,	 MIN_, SEC };

	for (size_t i = 0; i < ARRAY_SIZE(regs); i++)
		assert_int_equal(get(f, regs[i]), ymdhms[i]);
}

#define CHECK_TIME(f, ...) check_time(f, (const uint8_t[]){ __VA_ARGS__ })

static void test_time_in_bcd(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(get(f, B), 0x02);
	assert_int_equal(get(f, D), 0x80);
	CHECK_TIME(f, 0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58);
	assert_int_equal(get(f, WDAY), 5);
	f->now_ns += 2 * SECOND;
	CHECK_TIME(f, 0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00);
	assert_int_equal(get(f, WDAY), 6);
}

static void test_binary_and_12_hours(void **state)
{
	struct fixture *f = *state;

	put(f, B, 0x06);
	CHECK_TIME(f, 20, 24, 2, 29, 23, 59, 58);
	put(f, B, 0x04);
	assert_int_equal(get(f, HOUR), 0x80 | 11);
	put(f, B, 0x00);
	assert_int_equal(get(f, HOUR), 0x91); /* 11 pm, BCD */
	f->now_ns += 2 * SECOND;
	assert_int_equal(get(f, HOUR), 0x12); /* midnight is 12 am */
	f->now_ns += 12 * 3600 * SECOND;
	assert_int_equal(get(f, HOUR), 0x92); /* noon is 12 pm */
	f->now_ns += 3600 * SECOND;
	assert_int_equal(get(f, HOUR), 0x81);
	/* And set in it: 4 pm. */
	put(f, HOUR, 0x84);
	put(f, B, 0x02);
	assert_int_equal(get(f, HOUR), 0x16);
}

static void set_clock(struct fixture *f)
{
	put(f, CENTURY, 0x19);
	put(f, YEAR, 0x99);
	put(f, MONTH, 0x12);
	put(f, DAY, 0x31);
	put(f, HOUR, 0x23);
	put(f, MIN_, 0x59);
	put(f, SEC, 0x59);
}

static void test_set_clock(void **state)
{
	struct fixture *f = *state;

	f->now_ns += 300 * MSEC;
	put(f, B, 0x82);
	set_clock(f);
	f->now_ns += 10 * SECOND; /* stopped meanwhile */
	CHECK_TIME(f, 0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59);
	put(f, B, 0x02);
	/* SET leaves the divider alone: the second ends in 700 ms. */
	f->now_ns += 699 * MSEC;
	assert_int_equal(get(f, SEC), 0x59);
	f->now_ns += 2 * MSEC;
	CHECK_TIME(f, 0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00);
	f->now_ns += 86400 * SECOND;
	assert_int_equal(get(f, DAY), 0x02);
}

static void test_divider_reset_starts_with_half_a_second(void **state)
{
	struct fixture *f = *state;

	/* In the order that Linux does it. */
	put(f, B, 0x82);
	put(f, A, 0x76);
	set_clock(f);
	f->now_ns += 123 * MSEC;
	put(f, B, 0x02);
	f->now_ns += 5 * SECOND;
	assert_int_equal(get(f, SEC), 0x59); /* still held by A */
	put(f, A, 0x26);
	f->now_ns += 499 * MSEC;
	assert_int_equal(get(f, SEC), 0x59);
	f->now_ns += 2 * MSEC;
	CHECK_TIME(f, 0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00);
	f->now_ns += SECOND;
	assert_int_equal(get(f, SEC), 0x01);
}

static void test_set_one_register_while_running(void **state)
{
	struct fixture *f = *state;

	put(f, MIN_, 0x10);
	CHECK_TIME(f, 0x20, 0x24, 0x02, 0x29, 0x23, 0x10, 0x58);
	f->now_ns += 3 * SECOND;
	CHECK_TIME(f, 0x20, 0x24, 0x02, 0x29, 0x23, 0x11, 0x01);
}

static void test_nonsense_is_some_time(void **state)
{
	struct fixture *f = *state;

	for (int reg = 0; reg < 256; reg++) {
		for (int v = 0; v < 256; v += 5) {
			if ((reg & 0x7f) != B && (reg & 0x7f) != A)
				put(f, (uint8_t)reg, (uint8_t)v);
		}
	}
	for (int b = 0; b < 8; b++) {
		put(f, B, (uint8_t)(b << 1));
		put(f, YEAR, 0xff);
		put(f, CENTURY, 0xff);
		put(f, MONTH, 0xff);
		put(f, DAY, 0xff);
		put(f, HOUR, 0xff);
		put(f, B, 0x02);
		/* Whatever it is, its fields are in range. */
		assert_true(get(f, MONTH) >= 0x01 && get(f, MONTH) <= 0x12);
		assert_true(get(f, DAY) >= 0x01 && get(f, DAY) <= 0x31);
		assert_true(get(f, HOUR) <= 0x23);
		assert_true(get(f, YEAR) <= 0x99);
		assert_true(get(f, CENTURY) <= 0x99);
	}
}

static void test_update_in_progress(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(get(f, A), 0x26);
	f->now_ns += 997 * MSEC;
	assert_int_equal(get(f, A), 0x26);
	f->now_ns += MSEC; /* within t_BUC + t_UC = 2.228 ms of the second */
	assert_int_equal(get(f, A), 0xa6);
	assert_int_equal(get(f, SEC), 0x58);
	put(f, B, 0x82); /* SET ends it */
	assert_int_equal(get(f, A), 0x26);
	put(f, B, 0x02);
	f->now_ns += 2 * MSEC;
	assert_int_equal(get(f, A), 0x26);
}

static void test_update_flag(void **state)
{
	struct fixture *f = *state;

	put(f, HOUR_ALARM, 0x12); /* not now */
	assert_int_equal(get(f, C), 0x00);
	f->now_ns += SECOND;
	assert_int_equal(get(f, C), 0x10); /* flag without enable: no IRQF */
	assert_int_equal(get(f, C), 0x00); /* reading clears */
	put(f, B, 0x12);
	assert_false(f->line);
	f->now_ns += SECOND;
	rtc_poll(f->rtc);
	assert_true(f->line);
	rtc_poll(f->rtc);
	assert_int_equal(f->edges, 1);
	assert_int_equal(get(f, C), 0x90);
	assert_false(f->line);
	/* SET clears UIE. */
	put(f, B, 0x92);
	assert_int_equal(get(f, B), 0x82);
}

static void test_enabling_a_set_flag_interrupts(void **state)
{
	struct fixture *f = *state;

	f->now_ns += SECOND;
	rtc_poll(f->rtc);
	assert_false(f->line);
	put(f, B, 0x12);
	assert_true(f->line);
	put(f, B, 0x02);
	assert_false(f->line);
	put(f, B, 0x12);
	assert_true(f->line);
}

static void alarm_at(struct fixture *f, uint8_t h, uint8_t m, uint8_t s)
{
	put(f, HOUR_ALARM, h);
	put(f, MIN_ALARM, m);
	put(f, SEC_ALARM, s);
	get(f, C);
}

static void test_alarm(void **state)
{
	struct fixture *f = *state;

	put(f, B, 0x22);
	alarm_at(f, 0x00, 0x00, 0x01); /* tomorrow, in 3 s */
	f->now_ns += 2 * SECOND;
	rtc_poll(f->rtc);
	assert_false(f->line);
	f->now_ns += SECOND;
	rtc_poll(f->rtc);
	assert_true(f->line);
	assert_int_equal(get(f, C), 0xb0);
	assert_false(f->line);
	/* Once a day, also if nobody looked in the very second. */
	f->now_ns += 86399 * SECOND;
	assert_int_equal(get(f, C) & 0x20, 0);
	f->now_ns += 5 * SECOND;
	assert_int_equal(get(f, C) & 0x20, 0x20);
}

static void test_alarm_wildcards(void **state)
{
	struct fixture *f = *state;

	/* "Don't care" from 0xc0 up: every hour at 15:30. */
	alarm_at(f, 0xff, 0x15, 0x30);
	f->now_ns += (15 * 60 + 31) * SECOND;
	assert_int_equal(get(f, C) & 0x20, 0);
	f->now_ns += SECOND;
	assert_int_equal(get(f, C) & 0x20, 0x20);
	f->now_ns += 3600 * SECOND;
	assert_int_equal(get(f, C) & 0x20, 0x20);
	/* Every second. */
	alarm_at(f, 0xc0, 0xc0, 0xc0);
	f->now_ns += SECOND;
	assert_int_equal(get(f, C) & 0x20, 0x20);
	/* Never. */
	alarm_at(f, 0x24, 0x00, 0x00);
	f->now_ns += 3 * 86400 * SECOND;
	assert_int_equal(get(f, C) & 0x20, 0);
	alarm_at(f, 0xff, 0xff, 0x60);
	f->now_ns += 3 * 86400 * SECOND;
	assert_int_equal(get(f, C) & 0x20, 0);
}

static void test_periodic_is_not_claimed(void **state)
{
	struct fixture *f = *state;

	put(f, B, 0x4b); /* PIE, SQWE, DSE */
	assert_int_equal(get(f, B), 0x02);
	put(f, C, 0xff);
	put(f, D, 0x00);
	assert_int_equal(get(f, C), 0);
	assert_int_equal(get(f, D), 0x80);
}

static void test_cmos_ram(void **state)
{
	struct fixture *f = *state;
	uint16_t both = 0x5a00 | 0x80 | 0x40; /* index with NMI mask, data */
	uint8_t v;

	for (int reg = 0x0e; reg < 0x80; reg++)
		if (reg != CENTURY)
			put(f, (uint8_t)reg, (uint8_t)(reg ^ 0xa5));
	for (int reg = 0x0e; reg < 0x80; reg++)
		if (reg != CENTURY)
			assert_int_equal(get(f, (uint8_t)reg), reg ^ 0xa5);
	assert_true(iobus_write(f->pio, PORT_RTC, &both, 2));
	assert_int_equal(get(f, 0x40), 0x5a);
	assert_true(iobus_read(f->pio, PORT_RTC, &v, 1));
	assert_int_equal(v, 0xff); /* the index is write only */
}

static void test_host_clock_set_back(void **state)
{
	struct fixture *f = *state;

	put(f, B, 0x12);
	f->now_ns -= 3600 * SECOND;
	CHECK_TIME(f, 0x20, 0x24, 0x02, 0x29, 0x22, 0x59, 0x58);
	rtc_poll(f->rtc);
	assert_false(f->line);
	f->now_ns += SECOND;
	rtc_poll(f->rtc);
	assert_true(f->line);
}

/* With the real clock and a real loop: the interrupt comes by itself. */
static void test_update_interrupt_from_the_loop(void **state)
{
	struct fixture f = { .now_ns = 0 };
	struct rtc_config cfg = {
		.irq = { .set = line_set, .ctx = &f, .gsi = IRQ_RTC },
	};
	uint64_t start;

	assert_int_equal(iobus_new(&f.pio), 0);
	assert_int_equal(evloop_new(&f.loop), 0);
	cfg.pio = f.pio;
	cfg.loop = f.loop;
	assert_int_equal(rtc_new(&f.rtc, &cfg), 0);
	start = clock_now_ns();
	put(&f, B, 0x12);
	assert_int_equal(evloop_run(f.loop), 1);
	assert_true(f.line);
	/* a lost interrupt, not a slow machine */
	assert_true(clock_now_ns() - start < 60 * SECOND);
	assert_int_equal(get(&f, C) & 0x90, 0x90);
	rtc_free(f.rtc);
	evloop_free(f.loop);
	iobus_free(f.pio);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_time_in_bcd),
		T(test_binary_and_12_hours),
		T(test_set_clock),
		T(test_divider_reset_starts_with_half_a_second),
		T(test_set_one_register_while_running),
		T(test_nonsense_is_some_time),
		T(test_update_in_progress),
		T(test_update_flag),
		T(test_enabling_a_set_flag_interrupts),
		T(test_alarm),
		T(test_alarm_wildcards),
		T(test_periodic_is_not_claimed),
		T(test_cmos_ram),
		T(test_host_clock_set_back),
		cmocka_unit_test(test_update_interrupt_from_the_loop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
