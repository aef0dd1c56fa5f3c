/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a histogram numbers its buckets (base/histogram.h). Apart, because the
 * probe guest's payload, which has no library, counts in the same buckets.
 *
 * Values 0 to 3 have a bucket each. From there on each octave [2^n, 2^(n+1)) is
 * cut into four buckets of equal width, so a bucket's upper bound is less than
 * 25 % above any value in it. The last bucket ends at UINT64_MAX.
 */
#ifndef QUIRE_BASE_HISTOGRAM_BUCKET_H
#define QUIRE_BASE_HISTOGRAM_BUCKET_H

#include <stdint.h>

#define HISTOGRAM_BUCKETS 252u

/* The bucket of a value, below HISTOGRAM_BUCKETS. */
static inline unsigned int histogram_bucket(uint64_t value)
{
	unsigned int octave;

	if (value < 4)
		return (unsigned int)value;
	octave = 63u - (unsigned int)__builtin_clzll(value);
	return (octave - 1) * 4 + (unsigned int)(value >> (octave - 2) & 3);
}

/* The largest value that belongs to a bucket. */
static inline uint64_t histogram_bucket_max(unsigned int bucket)
{
	unsigned int shift = bucket < 4 ? 0 : bucket / 4 - 1;
	uint64_t first = bucket < 4 ? bucket : bucket % 4 + 4;

	return (first << shift) + ((1ull << shift) - 1);
}

#endif
