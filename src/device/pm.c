/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. The blocks are one small register file: an access of any
 * width takes a snapshot of all of it (so a 4-byte timer read is never torn) or
 * is split into the registers it covers, with a mask of the bytes written.
 *
 * The timer runs from the clock; nothing ticks. TMR_STS becomes set when the
 * timer's top bit has changed since it was last looked at, which happens on
 * each access and, if the guest enabled the interrupt, when the host timer says
 * so.
 *
 * SCI is a level: asserted while an enabled status bit is set, of PM1 or of the
 * general-purpose events.
 */
#include "device/pm.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/log.h"
#include "bus/iobus.h"
#include "x86/layout.h"

enum {
	PM1_STS = 0,
	PM1_EN = 2,
	PM1_CNT = 4,
	PM_TMR = 8,
	GPE_STS = 12,
	GPE_EN = 13,
};

/* PM1 status and enable, ACPI 6.5 tables 4.11 and 4.12. */
#define PM1_TMR	   0x0001
#define PM1_GBL	   0x0020
#define PM1_PWRBTN 0x0100
#define PM1_RTC	   0x0400
#define PM1_WAK	   0x8000 /* status only */

/*
 * Enable bits that can be set. The RTC's is only kept: its status bit never
 * rises (the FADT says the alarm is not wired here), but Linux sets the bit
 * all the same and complains if it does not stick.
 */
#define PM1_EN_MASK (PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_RTC)

/* PM1 control, table 4.13. */
#define PM1_CNT_SCI_EN	  0x0001
#define PM1_CNT_BM_RLD	  0x0002
#define PM1_CNT_TYP_SHIFT 10
#define PM1_CNT_TYP	  (7 << PM1_CNT_TYP_SHIFT)
#define PM1_CNT_SLP_EN	  0x2000 /* write only */
#define PM1_CNT_KEPT	  (PM1_CNT_BM_RLD | PM1_CNT_TYP)

#define PM_TIMER_HZ   3579545u
#define PM_TIMER_MASK ((1u << 24) - 1) /* the FADT sets no TMR_VAL_EXT */
#define PM_TIMER_TOP  (1ull << 23)     /* its change is the carry */

struct pm {
	struct iobus *pio;
	struct irq_line sci;
	struct machine_hooks hooks;
	struct dev_clock clock;
	struct dev_timer timer;
	pthread_mutex_t lock; /* everything below */
	uint64_t start_ns;
	uint64_t timer_ns;   /* only while saving and loading */
	uint64_t seen_ticks; /* timer when TMR_STS was last worked out */
	uint16_t sts, en, cnt;
	uint8_t gpe_sts, gpe_en;
	uint8_t gpe_asserted; /* level-triggered sources */
};

static uint64_t ticks_now(const struct pm *pm)
{
	uint64_t ns = dev_clock_now(&pm->clock, CLOCK_MONOTONIC) - pm->start_ns;
	uint64_t sec = ns / NSEC_PER_SEC, frac = ns % NSEC_PER_SEC;

	return sec * PM_TIMER_HZ + frac * PM_TIMER_HZ / NSEC_PER_SEC;
}

static void update_sci_locked(struct pm *pm)
{
	irq_line_set(&pm->sci, (pm->sts & pm->en & PM1_EN_MASK) ||
				       (pm->gpe_sts & pm->gpe_en));
}

/* Set TMR_STS if the top bit changed, and see to the next change. */
static void advance_locked(struct pm *pm)
{
	uint64_t now = ticks_now(pm);

	if (now / PM_TIMER_TOP != pm->seen_ticks / PM_TIMER_TOP)
		pm->sts |= PM1_TMR;
	pm->seen_ticks = now;
}

static void arm_locked(struct pm *pm)
{
	uint64_t next, sec, frac;

	if (!(pm->en & PM1_TMR)) {
		dev_timer_cancel(&pm->timer);
		return;
	}
	next = align_down(pm->seen_ticks, PM_TIMER_TOP) + PM_TIMER_TOP;
	sec = next / PM_TIMER_HZ;
	frac = div_round_up(next % PM_TIMER_HZ * NSEC_PER_SEC, PM_TIMER_HZ);
	dev_timer_arm(&pm->timer, pm->start_ns + sec * NSEC_PER_SEC + frac);
}

static void pm_read(void *dev, uint64_t offset, void *data, uint32_t len)
{
	struct pm *pm = dev;
	uint8_t regs[PM_PORTS] = { 0 };

	pthread_mutex_lock(&pm->lock);
	advance_locked(pm);
	le16_store(regs + PM1_STS, pm->sts);
	le16_store(regs + PM1_EN, pm->en);
	le16_store(regs + PM1_CNT, pm->cnt | PM1_CNT_SCI_EN);
	le32_store(regs + PM_TMR, (uint32_t)pm->seen_ticks & PM_TIMER_MASK);
	regs[GPE_STS] = pm->gpe_sts;
	regs[GPE_EN] = pm->gpe_en;
	pthread_mutex_unlock(&pm->lock);
	memcpy(data, regs + offset, len);
}

/* Returns whether the guest asked to power off. */
static bool write_cnt_locked(struct pm *pm, uint16_t value, uint16_t mask)
{
	unsigned int type;

	mask &= PM1_CNT_KEPT | PM1_CNT_SLP_EN;
	pm->cnt = (pm->cnt & ~mask) | (value & mask & PM1_CNT_KEPT);
	if (!(value & mask & PM1_CNT_SLP_EN))
		return false;
	type = (pm->cnt & PM1_CNT_TYP) >> PM1_CNT_TYP_SHIFT;
	if (type == PM_SLP_TYP_S5)
		return true;
	/*
	 * A state that the DSDT does not offer. Wake at once: the guest would
	 * otherwise wait for ever.
	 */
	pm->sts |= PM1_WAK;
	log_ratelimited(LOG_LEVEL_WARN,
			"pm: guest asked for sleep type %u, which does not "
			"exist",
			type);
	return false;
}

static void write_gpe_locked(struct pm *pm, const uint8_t *value,
			     const uint8_t *mask)
{
	pm->gpe_sts &= (uint8_t) ~(value[GPE_STS] & mask[GPE_STS]);
	pm->gpe_sts |= pm->gpe_asserted;
	if (mask[GPE_EN])
		pm->gpe_en = value[GPE_EN];
}

static void pm_write(void *dev, uint64_t offset, const void *data, uint32_t len)
{
	uint8_t value[PM_PORTS] = { 0 }, mask[PM_PORTS] = { 0 };
	struct pm *pm = dev;
	uint16_t clear, en_mask;
	bool off;

	memcpy(value + offset, data, len);
	memset(mask + offset, 0xff, len);

	pthread_mutex_lock(&pm->lock);
	advance_locked(pm);
	clear = le16_load(value + PM1_STS) & le16_load(mask + PM1_STS);
	pm->sts &= (uint16_t)~clear;
	en_mask = le16_load(mask + PM1_EN) & PM1_EN_MASK;
	pm->en = (pm->en & ~en_mask) | (le16_load(value + PM1_EN) & en_mask);
	off = write_cnt_locked(pm, le16_load(value + PM1_CNT),
			       le16_load(mask + PM1_CNT));
	write_gpe_locked(pm, value, mask);
	/* The timer itself cannot be written. */
	arm_locked(pm);
	update_sci_locked(pm);
	pthread_mutex_unlock(&pm->lock);

	if (off)
		pm->hooks.event(pm->hooks.ctx, MACHINE_POWEROFF, 0);
}

static const struct iobus_ops pm_ops = {
	.name = "acpi-pm",
	.read = pm_read,
	.write = pm_write,
};

static void pm_timer_fired(void *ctx)
{
	pm_poll(ctx);
}

int pm_new(struct pm **ret, const struct pm_config *cfg)
{
	struct pm *pm = calloc(1, sizeof(*pm));
	int r;

	if (!pm)
		return -ENOMEM;
	pthread_mutex_init(&pm->lock, NULL);
	pm->pio = cfg->pio;
	pm->sci = cfg->sci;
	pm->hooks = cfg->hooks;
	pm->clock = cfg->clock;
	pm->start_ns = dev_clock_now(&pm->clock, CLOCK_MONOTONIC);
	r = dev_timer_init(&pm->timer, cfg->loop, CLOCK_MONOTONIC,
			   pm_timer_fired, pm);
	if (!r)
		r = iobus_add(pm->pio, PORT_PM_BASE, PM_PORTS, &pm_ops, pm);
	if (r) {
		pm_free(pm);
		return r;
	}
	*ret = pm;
	return 0;
}

void pm_free(struct pm *pm)
{
	if (!pm)
		return;
	iobus_remove(pm->pio, PORT_PM_BASE, pm);
	dev_timer_fini(&pm->timer);
	pthread_mutex_destroy(&pm->lock);
	free(pm);
}

void pm_power_button(struct pm *pm)
{
	pthread_mutex_lock(&pm->lock);
	pm->sts |= PM1_PWRBTN;
	update_sci_locked(pm);
	pthread_mutex_unlock(&pm->lock);
}

void pm_skip_time(struct pm *pm, uint64_t ns)
{
	pthread_mutex_lock(&pm->lock);
	pm->start_ns += ns;
	arm_locked(pm);
	pthread_mutex_unlock(&pm->lock);
}

#define F(member, ...) STATE_FIELD_UINT(struct pm, member, __VA_ARGS__)

static const struct state_field state_fields[] = {
	F(sts, 1),
	F(en, 2, .max = PM1_EN_MASK),
	F(cnt, 3, .max = PM1_CNT_KEPT),
	F(gpe_sts, 4),
	F(gpe_en, 5),
	F(gpe_asserted, 6),
	F(timer_ns, 7),
	F(seen_ticks, 8),
};

static const struct state_table state_table = {
	.section = "pm",
	.version = 1,
	.object_bytes = sizeof(struct pm),
	.fields = state_fields,
	.num_fields = ARRAY_SIZE(state_fields),
};

void pm_save(struct pm *pm, uint64_t at_ns, struct state_writer *w)
{
	pthread_mutex_lock(&pm->lock);
	pm->timer_ns = at_ns - pm->start_ns;
	state_save(w, &state_table, NULL, pm);
	pthread_mutex_unlock(&pm->lock);
}

int pm_load(struct pm *pm, uint64_t at_ns, struct state_reader *r,
	    struct err *err)
{
	int ret;

	pthread_mutex_lock(&pm->lock);
	ret = state_load(r, &state_table, NULL, pm, err);
	if (!ret) {
		/* What a guest could not have set does nothing. */
		pm->en &= PM1_EN_MASK;
		pm->cnt &= PM1_CNT_KEPT;
		pm->start_ns = at_ns - pm->timer_ns;
		arm_locked(pm);
		update_sci_locked(pm);
	}
	pthread_mutex_unlock(&pm->lock);
	return ret;
}

void pm_pulse_gpe(struct pm *pm, unsigned int gpe)
{
	BUG_ON(gpe >= PM_GPES);
	pthread_mutex_lock(&pm->lock);
	pm->gpe_sts |= (uint8_t)(1u << gpe);
	update_sci_locked(pm);
	pthread_mutex_unlock(&pm->lock);
}

void pm_set_gpe(struct pm *pm, unsigned int gpe, bool level)
{
	uint8_t bit = (uint8_t)(1u << gpe);

	BUG_ON(gpe >= PM_GPES);
	pthread_mutex_lock(&pm->lock);
	if (level)
		pm->gpe_asserted |= bit;
	else
		pm->gpe_asserted &= (uint8_t)~bit;
	pm->gpe_sts |= pm->gpe_asserted;
	update_sci_locked(pm);
	pthread_mutex_unlock(&pm->lock);
}

void pm_poll(struct pm *pm)
{
	pthread_mutex_lock(&pm->lock);
	advance_locked(pm);
	arm_locked(pm);
	update_sci_locked(pm);
	pthread_mutex_unlock(&pm->lock);
}
