/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Histograms of durations in nanoseconds: how often, and how long.
 *
 * Recording takes no lock and never fails. A histogram filled with zeroes is
 * empty and ready; it owns nothing and needs no end. It takes 2 KiB, so one per
 * kind of event, or one per thread and kind where recording is so frequent
 * that threads would fight for the cache lines; histogram_merge() adds them up.
 *
 * Threads: histogram_record() and histogram_read() from any, at any time. What
 * is recorded while somebody reads may be in one figure and not yet in another
 * (in the sum, say, but in no bucket); once the recording threads are joined or
 * otherwise ordered before the reader, all is exact. A snapshot is plain data.
 */
#ifndef QUIRE_BASE_HISTOGRAM_H
#define QUIRE_BASE_HISTOGRAM_H

#include <stdint.h>

#include "base/histogram_bucket.h"

struct histogram {
	_Atomic uint64_t buckets[HISTOGRAM_BUCKETS];
	_Atomic uint64_t sum;
	_Atomic uint64_t max;
	_Atomic uint64_t max_complement; /* largest ~value: 0 while empty */
};

struct histogram_snapshot {
	uint64_t count; /* of all buckets */
	uint64_t sum;	/* ns; modulo 2^64 */
	uint64_t min;	/* ns; both 0 when count is */
	uint64_t max;
	uint64_t buckets[HISTOGRAM_BUCKETS];
};

void histogram_record(struct histogram *h, uint64_t ns);

void histogram_read(const struct histogram *h, struct histogram_snapshot *ret);

/* Add what `from` holds to `into`, as if all had been recorded in one. */
void histogram_merge(struct histogram_snapshot *into,
		     const struct histogram_snapshot *from);

/*
 * A time that at least percent (0 to 100) of all recorded ones do not exceed:
 * the upper bound of the bucket that the percentile falls into, or the maximum
 * where that is less. So never below the true percentile, and less than 25 %
 * above it. 0 for an empty snapshot.
 */
uint64_t histogram_percentile(const struct histogram_snapshot *snapshot,
			      double percent);

#endif
