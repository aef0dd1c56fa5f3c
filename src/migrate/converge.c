/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/converge.h"

#include "base/clock.h"

/*
 * Pausing, saving a small machine and loading it took 2 to 6 ms with the
 * walking guest, on a busy machine. Devices that have requests under way take
 * longer, and are not known beforehand.
 */
#define FIXED_NS (6 * NSEC_PER_MSEC)

/*
 * The newest round weighs as much as all before it: networks and guests
 * change. Rounds of next to nothing say little about a rate.
 */
#define MIN_RATE_BYTES (1ull << 20)

void converge_init(struct converge *c, uint64_t downtime_ns)
{
	*c = (struct converge){
		.downtime_ns = downtime_ns,
		.fixed_ns = FIXED_NS,
	};
}

static double mix(double before, double now)
{
	return before > 0 ? (before + now) / 2 : now;
}

void converge_round(struct converge *c, uint64_t sent_bytes, uint64_t ns,
		    uint64_t left_bytes)
{
	double seconds = clock_ns_to_s(ns ? ns : 1);

	c->rounds++;
	c->left = left_bytes;
	if (sent_bytes >= MIN_RATE_BYTES || c->rate <= 0)
		c->rate = mix(c->rate, (double)sent_bytes / seconds);
	/* The first one's dirty pages are as good as any. */
	c->dirtying = mix(c->dirtying, (double)left_bytes / seconds);
}

uint64_t converge_downtime_ns(const struct converge *c)
{
	double s;

	if (!c->left)
		return c->fixed_ns;
	if (c->rate <= 0)
		return UINT64_MAX;
	s = (double)c->left / c->rate;
	return s > 1e9 ? UINT64_MAX : c->fixed_ns + (uint64_t)(s * 1e9);
}

bool converge_is_near(const struct converge *c)
{
	/* With nothing left it will never be shorter. */
	return c->rounds &&
	       (!c->left || converge_downtime_ns(c) <= c->downtime_ns);
}

uint64_t converge_eta_ns(const struct converge *c)
{
	double may_stay, s, gain = c->rate - c->dirtying;

	if (converge_is_near(c))
		return 0;
	if (!c->rounds || gain <= 0 || c->downtime_ns <= c->fixed_ns)
		return UINT64_MAX;
	may_stay = c->rate * clock_ns_to_s(c->downtime_ns - c->fixed_ns);
	s = ((double)c->left - may_stay) / gain;
	return s > 1e9 ? UINT64_MAX : (uint64_t)(s * 1e9);
}
