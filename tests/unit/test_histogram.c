/* SPDX-License-Identifier: Apache-2.0 */
/* base/histogram: bucket bounds, figures of known sets, many threads. */
#include "cmocka_all.h"

#include <pthread.h>
#include <string.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "base/histogram.h"

static struct histogram_snapshot read_out(const struct histogram *h)
{
	struct histogram_snapshot s;

	histogram_read(h, &s);
	return s;
}

static void buckets_cover_all_values_in_order(void **state)
{
	uint64_t next = 0;

	for (unsigned int i = 0; i < HISTOGRAM_BUCKETS; i++) {
		uint64_t max = histogram_bucket_max(i);

		assert_int_equal(histogram_bucket(next), i);
		assert_int_equal(histogram_bucket(max), i);
		/* The bound is within 25 % of the least value. */
		assert_true((max - next) / 4 * 16 <= next);
		next = max + 1;
	}
	assert_int_equal(next, 0); /* the last one ends at UINT64_MAX */
}

static void bounds_are_as_documented(void **state)
{
	assert_int_equal(histogram_bucket_max(0), 0);
	assert_int_equal(histogram_bucket_max(4), 4);
	assert_int_equal(histogram_bucket_max(histogram_bucket(8)), 9);
	assert_int_equal(histogram_bucket_max(histogram_bucket(1024)), 1279);
	assert_int_equal(histogram_bucket_max(histogram_bucket(1280)), 1535);
}

static void empty_has_no_figures(void **state)
{
	struct histogram h = { 0 };
	struct histogram_snapshot s = read_out(&h);

	assert_int_equal(s.count, 0);
	assert_int_equal(s.min, 0);
	assert_int_equal(s.max, 0);
	assert_int_equal(histogram_percentile(&s, 50), 0);
	assert_int_equal(histogram_percentile(&s, 100), 0);
}

static void extremes_and_sum_are_exact(void **state)
{
	struct histogram h = { 0 };
	struct histogram_snapshot s;

	histogram_record(&h, 1000);
	s = read_out(&h);
	assert_int_equal(s.min, 1000);
	assert_int_equal(s.max, 1000);
	histogram_record(&h, 0);
	histogram_record(&h, 123456789);
	s = read_out(&h);
	assert_int_equal(s.count, 3);
	assert_int_equal(s.sum, 123457789);
	assert_int_equal(s.min, 0);
	assert_int_equal(s.max, 123456789);
	histogram_record(&h, UINT64_MAX);
	s = read_out(&h);
	assert_true(s.max == UINT64_MAX);
	assert_int_equal(s.buckets[HISTOGRAM_BUCKETS - 1], 1);
}

/* 1 to 1000 once each: the true percentile is known. */
static void percentiles_are_upper_bounds(void **state)
{
	struct histogram h = { 0 };
	struct histogram_snapshot s;

	for (uint64_t ns = 1; ns <= 1000; ns++)
		histogram_record(&h, ns);
	s = read_out(&h);
	for (uint64_t percent = 1; percent <= 100; percent++) {
		uint64_t exact = percent * 10;
		uint64_t told = histogram_percentile(&s, (double)percent);

		assert_true(told >= exact);
		assert_true(told < exact + exact / 4 + 1);
	}
	assert_int_equal(histogram_percentile(&s, 0), 1);
	assert_int_equal(histogram_percentile(&s, 100), 1000);
	/* Nonsense asks for an end, and gets it. */
	assert_int_equal(histogram_percentile(&s, -5), 1);
	assert_int_equal(histogram_percentile(&s, 1e9), 1000);
}

static void a_rare_slow_one_is_found(void **state)
{
	struct histogram h = { 0 };
	struct histogram_snapshot s;

	for (unsigned int i = 0; i < 999; i++)
		histogram_record(&h, 2);
	histogram_record(&h, 5000000);
	s = read_out(&h);
	assert_int_equal(histogram_percentile(&s, 99), 2);
	assert_int_equal(histogram_percentile(&s, 99.9), 2);
	assert_int_equal(histogram_percentile(&s, 99.95), 5000000);
}

static void merge_is_as_if_recorded_in_one(void **state)
{
	struct histogram parts[3] = { 0 }, whole = { 0 };
	struct histogram_snapshot merged = { 0 }, part, want;
	uint64_t ns = 1;

	/* The third stays empty: its zero minimum is none. */
	for (unsigned int i = 0; i < 2000; i++) {
		ns = ns * 6364136223846793005ull + 1442695040888963407ull;
		histogram_record(&parts[i & 1], ns >> 40);
		histogram_record(&whole, ns >> 40);
	}
	for (unsigned int i = ARRAY_SIZE(parts); i-- > 0;) {
		part = read_out(&parts[i]);
		histogram_merge(&merged, &part);
	}
	want = read_out(&whole);
	assert_memory_equal(&merged, &want, sizeof(want));
}

#define THREADS 4u
#define RECORDS 20000u

struct recorder {
	pthread_t thread;
	struct histogram *h;
	uint64_t base;
};

static void *record(void *arg)
{
	const struct recorder *r = arg;

	for (uint64_t i = 0; i < RECORDS; i++)
		histogram_record(r->h, r->base + i);
	return NULL;
}

static void nothing_recorded_in_threads_is_lost(void **state)
{
	struct histogram h = { 0 };
	struct recorder r[THREADS];
	struct histogram_snapshot s;
	uint64_t n = THREADS * RECORDS;

	for (unsigned int i = 0; i < THREADS; i++) {
		r[i].h = &h;
		r[i].base = 10 + i * RECORDS;
		assert_int_equal(
			pthread_create(&r[i].thread, NULL, record, &r[i]), 0);
	}
	do { /* a reader in between may miss some but invents none */
		s = read_out(&h);
		assert_true(s.count <= n);
	} while (s.count < n / 2);
	for (unsigned int i = 0; i < THREADS; i++)
		pthread_join(r[i].thread, NULL);
	s = read_out(&h);
	assert_int_equal(s.count, n);
	assert_int_equal(s.min, 10);
	assert_int_equal(s.max, 10 + n - 1);
	assert_int_equal(s.sum, n * 10 + n * (n - 1) / 2);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(buckets_cover_all_values_in_order),
		cmocka_unit_test(bounds_are_as_documented),
		cmocka_unit_test(empty_has_no_figures),
		cmocka_unit_test(extremes_and_sum_are_exact),
		cmocka_unit_test(percentiles_are_upper_bounds),
		cmocka_unit_test(a_rare_slow_one_is_found),
		cmocka_unit_test(merge_is_as_if_recorded_in_one),
		cmocka_unit_test(nothing_recorded_in_threads_is_lost),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
