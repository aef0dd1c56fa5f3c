/* SPDX-License-Identifier: Apache-2.0 */
#include "base/histogram.h"

#include <stdatomic.h>

#include "base/arith.h"

/*
 * All accesses are relaxed: each word is a count or an extreme of its own, and
 * nothing else is published through them.
 */

static void raise_to(_Atomic uint64_t *word, uint64_t value)
{
	uint64_t seen = atomic_load_explicit(word, memory_order_relaxed);

	while (seen < value && !atomic_compare_exchange_weak_explicit(
				       word, &seen, value, memory_order_relaxed,
				       memory_order_relaxed))
		;
}

void histogram_record(struct histogram *h, uint64_t ns)
{
	atomic_fetch_add_explicit(&h->buckets[histogram_bucket(ns)], 1,
				  memory_order_relaxed);
	atomic_fetch_add_explicit(&h->sum, ns, memory_order_relaxed);
	raise_to(&h->max, ns);
	raise_to(&h->max_complement, ~ns);
}

void histogram_read(const struct histogram *h, struct histogram_snapshot *ret)
{
	uint64_t complement;

	ret->count = 0;
	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++) {
		ret->buckets[i] = atomic_load_explicit(&h->buckets[i],
						       memory_order_relaxed);
		ret->count += ret->buckets[i];
	}
	ret->sum = atomic_load_explicit(&h->sum, memory_order_relaxed);
	ret->max = atomic_load_explicit(&h->max, memory_order_relaxed);
	complement = atomic_load_explicit(&h->max_complement,
					  memory_order_relaxed);
	ret->min = ret->count ? ~complement : 0;
}

void histogram_merge(struct histogram_snapshot *into,
		     const struct histogram_snapshot *from)
{
	if (!from->count)
		return;
	into->min = into->count ? MIN(into->min, from->min) : from->min;
	into->max = MAX(into->max, from->max);
	into->count += from->count;
	into->sum += from->sum;
	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++)
		into->buckets[i] += from->buckets[i];
}

/* The rank, from 1, of the percentile among count sorted values. */
static uint64_t rank_of(uint64_t count, double percent)
{
	double exact = (double)count * percent / 100;
	uint64_t rank;

	if (!(exact > 1))
		return 1;
	if (exact >= (double)count)
		return count;
	rank = (uint64_t)exact;
	return (double)rank < exact ? rank + 1 : rank;
}

uint64_t histogram_percentile(const struct histogram_snapshot *snapshot,
			      double percent)
{
	uint64_t rank = rank_of(snapshot->count, percent), seen = 0;

	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++) {
		seen += snapshot->buckets[i];
		if (seen >= rank)
			return MIN(histogram_bucket_max(i), snapshot->max);
	}
	return snapshot->max;
}
