/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/hold_back.h"

#include <string.h>

#include "base/arith.h"
#include "base/size.h"
#include "migrate/converge.h"
#include "vm/throttle.h"

/*
 * Each round leaves what was dirtied while it was sent. At half the rate of
 * sending rounds halve, and a few of them are enough; the first ones may be
 * of a guest that has just become busy.
 */
#define MAX_RATIO  0.5
#define LOST_LIMIT 2u
#define FIRST_STEP 20u
#define STEP	   15u

bool hold_back_parse(const char *text, struct hold_back *ret)
{
	uint64_t n;

	*ret = (struct hold_back){ .mode = HOLD_BACK_OFF };
	if (!strcmp(text, "off"))
		return true;
	ret->mode = HOLD_BACK_AUTO;
	if (!strcmp(text, "auto"))
		return true;
	if (size_parse_u64(text, &n) || !n || n > THROTTLE_MAX_PERCENT)
		return false;
	ret->mode = HOLD_BACK_FIXED;
	ret->percent = (unsigned int)n;
	return true;
}

static void step_up(struct hold_back *h)
{
	h->percent = h->percent ? MIN(h->percent + STEP, THROTTLE_MAX_PERCENT)
				: FIRST_STEP;
	h->lost = 0;
}

unsigned int hold_back_round(struct hold_back *h, const struct converge *c)
{
	switch (h->mode) {
	case HOLD_BACK_OFF:
		return 0;
	case HOLD_BACK_FIXED:
		return h->percent;
	case HOLD_BACK_AUTO:
		break;
	}
	if (c->dirtying > MAX_RATIO * c->rate)
		h->lost++;
	else
		h->lost = 0;
	if (h->lost >= LOST_LIMIT)
		step_up(h);
	return h->percent;
}

bool hold_back_hits(uint64_t its, uint64_t all, unsigned int num_vcpus)
{
	/* A quarter of an equal share. */
	return !all || (double)its * 4 * num_vcpus >= (double)all;
}
