/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. While the clock runs, the time registers are not kept
 * anywhere: they are worked out from the host's clock when they are read. What
 * is kept is one correspondence, "at host time origin_ns it was exactly second
 * origin_s for the guest"; setting the clock moves it.
 *
 * The clock stops while the guest sets it (SET in register B, or the divider
 * held in reset by register A). The registers are then plain bytes in cmos[],
 * which become the new origin when it runs again. Whatever the guest wrote,
 * timegm() makes a time of it.
 *
 * Nothing ticks. The update and alarm flags of register C follow from the
 * seconds that have passed since they were last looked at; a host timer is
 * armed only while one of the two interrupts is enabled and none is pending.
 */
#include "device/rtc.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "bus/iobus.h"
#include "x86/layout.h"

#define RTC_PORTS     2
#define RTC_CMOS_SIZE 128

enum {
	RTC_SECONDS = 0x00,
	RTC_SECONDS_ALARM = 0x01,
	RTC_MINUTES = 0x02,
	RTC_MINUTES_ALARM = 0x03,
	RTC_HOURS = 0x04,
	RTC_HOURS_ALARM = 0x05,
	RTC_WEEKDAY = 0x06,
	RTC_DAY = 0x07,
	RTC_MONTH = 0x08,
	RTC_YEAR = 0x09,
	RTC_REG_A = 0x0a,
	RTC_REG_B = 0x0b,
	RTC_REG_C = 0x0c,
	RTC_REG_D = 0x0d,
};

#define RTC_A_UIP      0x80
#define RTC_A_DV_RESET 0x60 /* both bits: divider chain held in reset */
#define RTC_A_DEFAULT  0x26 /* 32.768 kHz, 1024 Hz periodic rate */
#define RTC_B_SET      0x80
#define RTC_B_AIE      0x20
#define RTC_B_UIE      0x10
#define RTC_B_BINARY   0x04
#define RTC_B_24H      0x02
#define RTC_B_IRQS     (RTC_B_AIE | RTC_B_UIE)
/* PIE and SQWE would claim what is not there; DSE is of no use with UTC. */
#define RTC_B_WRITABLE (RTC_B_SET | RTC_B_IRQS | RTC_B_BINARY | RTC_B_24H)
#define RTC_C_IRQF     0x80
#define RTC_C_AF       0x20 /* same places as their enable bits in B */
#define RTC_C_UF       0x10
#define RTC_D_VALID    0x80
#define RTC_HOUR_PM    0x80 /* 12-hour mode */
#define RTC_ALARM_ANY  0xc0 /* both bits: every value matches */

/* UIP goes up this long before the second changes: t_BUC + t_UC. */
#define RTC_UPDATE_NS (244000 + 1984000)
/* The first second after the divider chain starts is half as long. */
#define RTC_DIV_START_NS (NSEC_PER_SEC / 2)
#define SECONDS_PER_DAY	 86400

struct rtc {
	struct iobus *pio;
	struct irq_line irq;
	struct dev_clock clock;
	struct dev_timer timer;
	pthread_mutex_t lock; /* everything below */
	int64_t origin_ns, origin_s;
	int64_t seen_s; /* flags are right up to this second */
	uint8_t index;
	uint8_t reg_a, reg_b;
	uint8_t reg_c; /* flags; IRQF follows from them */
	bool line;
	bool divider_was_reset; /* since the clock was stopped */
	/* Alarm, RAM; the time only while the clock is stopped. */
	uint8_t cmos[RTC_CMOS_SIZE];
};

struct guest_now {
	int64_t host_ns;
	int64_t s;
	int64_t ns; /* into that second */
};

static bool is_time_reg(uint8_t reg)
{
	return (reg <= RTC_YEAR && reg != RTC_SECONDS_ALARM &&
		reg != RTC_MINUTES_ALARM && reg != RTC_HOURS_ALARM) ||
	       reg == RTC_CENTURY;
}

static bool is_running(const struct rtc *rtc)
{
	return !(rtc->reg_b & RTC_B_SET) &&
	       (rtc->reg_a & RTC_A_DV_RESET) != RTC_A_DV_RESET;
}

static struct guest_now guest_now(const struct rtc *rtc)
{
	const int64_t sec = (int64_t)NSEC_PER_SEC;
	struct guest_now now;
	int64_t diff;

	now.host_ns = (int64_t)dev_clock_now(&rtc->clock, CLOCK_REALTIME);
	diff = now.host_ns - rtc->origin_ns;
	now.s = diff / sec;
	now.ns = diff % sec;
	if (now.ns < 0) { /* the host's clock was set back */
		now.ns += sec;
		now.s--;
	}
	now.s += rtc->origin_s;
	return now;
}

/* -- register encoding -- */

static uint8_t encode(const struct rtc *rtc, int v)
{
	if (rtc->reg_b & RTC_B_BINARY)
		return (uint8_t)v;
	return (uint8_t)((v / 10 << 4) | v % 10);
}

static int decode(const struct rtc *rtc, uint8_t v)
{
	if (rtc->reg_b & RTC_B_BINARY)
		return v;
	return (v >> 4) * 10 + (v & 0x0f);
}

static uint8_t encode_hour(const struct rtc *rtc, int hour)
{
	if (rtc->reg_b & RTC_B_24H)
		return encode(rtc, hour);
	return encode(rtc, hour % 12 ? hour % 12 : 12) |
	       (hour >= 12 ? RTC_HOUR_PM : 0);
}

static int decode_hour(const struct rtc *rtc, uint8_t v)
{
	if (rtc->reg_b & RTC_B_24H)
		return decode(rtc, v);
	return decode(rtc, v & ~RTC_HOUR_PM) % 12 + (v & RTC_HOUR_PM ? 12 : 0);
}

/* Put second s into the time registers. */
static void store_time(struct rtc *rtc, int64_t s)
{
	time_t t = (time_t)s;
	struct tm tm;
	int year;

	gmtime_r(&t, &tm); /* years that the guest can reach cannot overflow */
	year = tm.tm_year + 1900;
	rtc->cmos[RTC_SECONDS] = encode(rtc, tm.tm_sec);
	rtc->cmos[RTC_MINUTES] = encode(rtc, tm.tm_min);
	rtc->cmos[RTC_HOURS] = encode_hour(rtc, tm.tm_hour);
	rtc->cmos[RTC_WEEKDAY] = encode(rtc, tm.tm_wday + 1);
	rtc->cmos[RTC_DAY] = encode(rtc, tm.tm_mday);
	rtc->cmos[RTC_MONTH] = encode(rtc, tm.tm_mon + 1);
	rtc->cmos[RTC_YEAR] = encode(rtc, (year % 100 + 100) % 100);
	rtc->cmos[RTC_CENTURY] = encode(rtc, (year / 100 % 100 + 100) % 100);
}

/* The second that the time registers mean. */
static int64_t load_time(const struct rtc *rtc)
{
	struct tm tm = {
		.tm_sec = decode(rtc, rtc->cmos[RTC_SECONDS]),
		.tm_min = decode(rtc, rtc->cmos[RTC_MINUTES]),
		.tm_hour = decode_hour(rtc, rtc->cmos[RTC_HOURS]),
		.tm_mday = decode(rtc, rtc->cmos[RTC_DAY]),
		.tm_mon = decode(rtc, rtc->cmos[RTC_MONTH]) - 1,
		.tm_year = decode(rtc, rtc->cmos[RTC_CENTURY]) * 100 +
			   decode(rtc, rtc->cmos[RTC_YEAR]) - 1900,
	};

	return timegm(&tm);
}

/* -- alarm -- */

static bool alarm_matches(int alarm, int v)
{
	return alarm < 0 || alarm == v;
}

/* The first second after s at which the alarm goes off; false: never. */
static bool next_alarm(const struct rtc *rtc, int64_t s, int64_t *ret_s)
{
	const uint8_t *c = rtc->cmos;
	bool any_s = c[RTC_SECONDS_ALARM] >= RTC_ALARM_ANY;
	bool any_m = c[RTC_MINUTES_ALARM] >= RTC_ALARM_ANY;
	bool any_h = c[RTC_HOURS_ALARM] >= RTC_ALARM_ANY;
	int as = any_s ? -1 : decode(rtc, c[RTC_SECONDS_ALARM]);
	int am = any_m ? -1 : decode(rtc, c[RTC_MINUTES_ALARM]);
	int ah = any_h ? -1 : decode_hour(rtc, c[RTC_HOURS_ALARM]);
	int64_t day = (s + 1) / SECONDS_PER_DAY, start;

	if (as > 59 || am > 59 || ah > 23)
		return false;
	if ((s + 1) % SECONDS_PER_DAY < 0)
		day--;
	start = day * SECONDS_PER_DAY;
	/* Today from s on, or tomorrow. Inner loops run only on a match. */
	for (int h = 0; h < 48; h++) {
		if (!alarm_matches(ah, h % 24))
			continue;
		for (int m = 0; m < 60; m++) {
			int64_t minute = start + (h * 60LL + m) * 60;

			if (!alarm_matches(am, m) || minute + 59 <= s)
				continue;
			for (int sec = 0; sec < 60; sec++) {
				if (!alarm_matches(as, sec) ||
				    minute + sec <= s)
					continue;
				*ret_s = minute + sec;
				return true;
			}
		}
	}
	return false;
}

/* -- flags and interrupt -- */

static bool is_irq_pending(const struct rtc *rtc)
{
	return (rtc->reg_c & rtc->reg_b & RTC_B_IRQS) != 0;
}

static void update_irq_locked(struct rtc *rtc)
{
	bool level = is_irq_pending(rtc);

	if (level != rtc->line)
		irq_line_set(&rtc->irq, level);
	rtc->line = level;
}

/* Bring the flags up to now. */
static void advance_locked(struct rtc *rtc, const struct guest_now *now)
{
	int64_t alarm;

	if (!is_running(rtc) || now->s == rtc->seen_s)
		return;
	if (now->s > rtc->seen_s) {
		rtc->reg_c |= RTC_C_UF;
		if (next_alarm(rtc, rtc->seen_s, &alarm) && alarm <= now->s)
			rtc->reg_c |= RTC_C_AF;
	}
	rtc->seen_s = now->s;
}

static void arm_locked(struct rtc *rtc, const struct guest_now *now)
{
	int64_t next = now->s + 1;

	if (!is_running(rtc) || !(rtc->reg_b & RTC_B_IRQS) ||
	    is_irq_pending(rtc) ||
	    (!(rtc->reg_b & RTC_B_UIE) && !next_alarm(rtc, now->s, &next))) {
		dev_timer_cancel(&rtc->timer);
		return;
	}
	dev_timer_arm(&rtc->timer,
		      (uint64_t)(now->host_ns - now->ns +
				 (next - now->s) * (int64_t)NSEC_PER_SEC));
}

/* -- register access -- */

/* The clock starts (again), or jumps, to what the time registers say. */
static void set_origin_locked(struct rtc *rtc, const struct guest_now *now)
{
	int64_t phase = now->ns;

	if (rtc->divider_was_reset)
		phase = (int64_t)(NSEC_PER_SEC - RTC_DIV_START_NS);
	rtc->divider_was_reset = false;
	rtc->origin_s = load_time(rtc);
	rtc->origin_ns = now->host_ns - phase;
	rtc->seen_s = rtc->origin_s;
}

/* Write A or B: the clock may stop or start by it. */
static void write_control_locked(struct rtc *rtc, uint8_t *reg, uint8_t value,
				 const struct guest_now *now)
{
	bool was_running = is_running(rtc);

	/* In the encoding that is in force before B changes it. */
	if (was_running)
		store_time(rtc, now->s);
	*reg = value;
	if ((rtc->reg_a & RTC_A_DV_RESET) == RTC_A_DV_RESET)
		rtc->divider_was_reset = true;
	if (!was_running && is_running(rtc))
		set_origin_locked(rtc, now);
}

static void write_reg_locked(struct rtc *rtc, uint8_t value)
{
	struct guest_now now = guest_now(rtc);
	uint8_t reg = rtc->index;

	advance_locked(rtc, &now);
	if (reg == RTC_REG_A) {
		write_control_locked(rtc, &rtc->reg_a, value & ~RTC_A_UIP,
				     &now);
	} else if (reg == RTC_REG_B) {
		value &= RTC_B_WRITABLE;
		if (value & RTC_B_SET)
			value &= (uint8_t)~RTC_B_UIE;
		write_control_locked(rtc, &rtc->reg_b, value, &now);
	} else if (reg == RTC_REG_C || reg == RTC_REG_D) {
		return; /* read only */
	} else if (is_time_reg(reg) && is_running(rtc)) {
		store_time(rtc, now.s);
		rtc->cmos[reg] = value;
		set_origin_locked(rtc, &now);
	} else {
		rtc->cmos[reg] = value;
	}
	if (reg <= RTC_REG_B || reg == RTC_CENTURY) {
		now = guest_now(rtc);
		update_irq_locked(rtc);
		arm_locked(rtc, &now);
	}
}

static uint8_t read_reg_locked(struct rtc *rtc)
{
	struct guest_now now = guest_now(rtc);
	bool running = is_running(rtc);
	uint8_t value;

	advance_locked(rtc, &now);
	switch (rtc->index) {
	case RTC_REG_A:
		value = rtc->reg_a;
		if (running && now.ns >= (int64_t)NSEC_PER_SEC - RTC_UPDATE_NS)
			value |= RTC_A_UIP;
		return value;
	case RTC_REG_B:
		return rtc->reg_b;
	case RTC_REG_C:
		value = rtc->reg_c | (is_irq_pending(rtc) ? RTC_C_IRQF : 0);
		rtc->reg_c = 0;
		if (value & RTC_C_IRQF) {
			update_irq_locked(rtc);
			arm_locked(rtc, &now);
		}
		return value;
	case RTC_REG_D:
		return RTC_D_VALID;
	default:
		if (running && is_time_reg(rtc->index))
			store_time(rtc, now.s);
		return rtc->cmos[rtc->index];
	}
}

static void rtc_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	struct rtc *rtc = dev;
	uint8_t *bytes = data;

	pthread_mutex_lock(&rtc->lock);
	for (uint32_t i = 0; i < len; i++)
		/* The index port is write-only. */
		bytes[i] = offset + i == 0 ? 0xff : read_reg_locked(rtc);
	pthread_mutex_unlock(&rtc->lock);
}

static void rtc_write(void *dev, uint64_t offset, const void *data,
		      uint32_t len)
{
	struct rtc *rtc = dev;
	const uint8_t *bytes = data;

	pthread_mutex_lock(&rtc->lock);
	for (uint32_t i = 0; i < len; i++) {
		if (offset + i == 0) /* bit 7 is the NMI mask */
			rtc->index = bytes[i] & (RTC_CMOS_SIZE - 1);
		else
			write_reg_locked(rtc, bytes[i]);
	}
	pthread_mutex_unlock(&rtc->lock);
}

static const struct iobus_ops rtc_ops = {
	.name = "rtc",
	.read = rtc_read,
	.write = rtc_write,
};

static void rtc_timer_fired(void *ctx)
{
	rtc_poll(ctx);
}

int rtc_new(struct rtc **ret, const struct rtc_config *cfg)
{
	struct rtc *rtc = calloc(1, sizeof(*rtc));
	int r;

	if (!rtc)
		return -ENOMEM;
	pthread_mutex_init(&rtc->lock, NULL);
	rtc->pio = cfg->pio;
	rtc->irq = cfg->irq;
	rtc->clock = cfg->clock;
	rtc->reg_a = RTC_A_DEFAULT;
	rtc->reg_b = RTC_B_24H;
	rtc->seen_s = guest_now(rtc).s;
	r = dev_timer_init(&rtc->timer, cfg->loop, CLOCK_REALTIME,
			   rtc_timer_fired, rtc);
	if (!r)
		r = iobus_add(rtc->pio, PORT_RTC, RTC_PORTS, &rtc_ops, rtc);
	if (r) {
		rtc_free(rtc);
		return r;
	}
	*ret = rtc;
	return 0;
}

void rtc_free(struct rtc *rtc)
{
	if (!rtc)
		return;
	iobus_remove(rtc->pio, PORT_RTC, rtc);
	dev_timer_fini(&rtc->timer);
	pthread_mutex_destroy(&rtc->lock);
	free(rtc);
}

void rtc_poll(struct rtc *rtc)
{
	struct guest_now now;

	pthread_mutex_lock(&rtc->lock);
	now = guest_now(rtc);
	advance_locked(rtc, &now);
	update_irq_locked(rtc);
	arm_locked(rtc, &now);
	pthread_mutex_unlock(&rtc->lock);
}

/* Far beyond what a guest can set, far below what could overflow. */
#define STATE_MAX_ORIGIN_NS (1LL << 62)
#define STATE_MAX_S	    (1LL << 40)

#define F(kind, member, ...) STATE_FIELD_##kind(struct rtc, member, __VA_ARGS__)

static const struct state_field state_fields[] = {
	F(UINT, origin_ns, 1, .max = STATE_MAX_ORIGIN_NS),
	F(UINT, origin_s, 2),
	F(UINT, seen_s, 3),
	F(UINT, index, 4, .max = RTC_CMOS_SIZE - 1),
	F(UINT, reg_a, 5, .max = 0x7f),
	F(UINT, reg_b, 6),
	F(UINT, reg_c, 7),
	F(BOOL, divider_was_reset, 8),
	F(BYTES, cmos, 9),
};

static bool is_time(int64_t s)
{
	return s >= -STATE_MAX_S && s <= STATE_MAX_S;
}

static int state_check(const struct state_check *c, const void *loaded,
		       const void *live)
{
	const struct rtc *rtc = loaded;

	if (!is_time(rtc->origin_s))
		return state_refuse(c, "origin_s", "not a time");
	if (!is_time(rtc->seen_s))
		return state_refuse(c, "seen_s", "not a time");
	if (rtc->reg_b & ~RTC_B_WRITABLE)
		return state_refuse(c, "reg_b", "%#x", rtc->reg_b);
	if (rtc->reg_c & ~RTC_B_IRQS)
		return state_refuse(c, "reg_c", "%#x", rtc->reg_c);
	return 0;
}

static const struct state_table state_table = {
	.section = "rtc",
	.version = 1,
	.object_bytes = sizeof(struct rtc),
	.fields = state_fields,
	.num_fields = ARRAY_SIZE(state_fields),
	.check = state_check,
};

void rtc_save(struct rtc *rtc, struct state_writer *w)
{
	pthread_mutex_lock(&rtc->lock);
	state_save(w, &state_table, NULL, rtc);
	pthread_mutex_unlock(&rtc->lock);
}

int rtc_load(struct rtc *rtc, struct state_reader *r, struct err *err)
{
	int ret;

	pthread_mutex_lock(&rtc->lock);
	ret = state_load(r, &state_table, NULL, rtc, err);
	rtc->line = false;
	pthread_mutex_unlock(&rtc->lock);
	if (!ret)
		rtc_poll(rtc);
	return ret;
}
