/* SPDX-License-Identifier: Apache-2.0 */
/* virtio/ratelimit.c on a clock that the test moves. */
#include "cmocka_all.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "virtio/ratelimit.h"

#define MS 1000000ull
#define T0 (5 * NSEC_PER_SEC)
/* One token of 1000 in 100 ms. */
#define TOKEN (100000ull)

static const struct ratelimit_config bytes_only = {
	.bw = { .size = 1000, .refill_ms = 100 },
};

static void test_off(void **state)
{
	const struct ratelimit_config none = { .bw.size = 0 };
	struct ratelimit r;

	ratelimit_init(&r, &none, T0);
	assert_false(r.on);
	for (unsigned int i = 0; i < 1000; i++) {
		assert_int_equal(ratelimit_wait(&r, T0), 0);
		ratelimit_take(&r, 1 << 30, T0);
	}
	ratelimit_fini(&r);
}

static void test_refill(void **state)
{
	struct ratelimit r;

	ratelimit_init(&r, &bytes_only, T0);
	assert_int_equal(ratelimit_wait(&r, T0), 0);
	ratelimit_take(&r, 999, T0);
	assert_int_equal(ratelimit_wait(&r, T0), 0);
	ratelimit_take(&r, 1, T0);
	/* Empty: until there is one token. */
	assert_int_equal(ratelimit_wait(&r, T0), TOKEN);
	assert_int_equal(ratelimit_wait(&r, T0 + TOKEN - 1), 1);
	assert_int_equal(ratelimit_wait(&r, T0 + TOKEN), 0);
	/* Half of it back after half the time, all after all, not more. */
	ratelimit_take(&r, 500, T0 + 50 * MS);
	assert_int_equal(ratelimit_wait(&r, T0 + 50 * MS), TOKEN);
	ratelimit_take(&r, 1000, T0 + NSEC_PER_SEC);
	assert_int_equal(ratelimit_wait(&r, T0 + NSEC_PER_SEC), TOKEN);
	ratelimit_fini(&r);
}

/* More than the bucket holds: let through, and paid back in time. */
static void test_debt(void **state)
{
	struct ratelimit r;

	ratelimit_init(&r, &bytes_only, T0);
	ratelimit_take(&r, 3000, T0);
	assert_int_equal(ratelimit_wait(&r, T0), 200 * MS + TOKEN);
	assert_int_equal(ratelimit_wait(&r, T0 + 150 * MS), 50 * MS + TOKEN);
	assert_int_equal(ratelimit_wait(&r, T0 + 200 * MS + TOKEN), 0);
	/* A debt has a bound. */
	ratelimit_take(&r, UINT64_MAX, T0 + 201 * MS);
	ratelimit_take(&r, UINT64_MAX, T0 + 201 * MS);
	assert_int_equal(ratelimit_wait(&r, T0 + 201 * MS),
			 RATELIMIT_MAX_REFILL_MS * MS + TOKEN);
	ratelimit_fini(&r);
}

/* Frames at every opportunity for ten seconds: the rate, to one frame. */
static void rate_is_exact(uint64_t size, uint64_t refill_ms, uint64_t frame)
{
	const struct ratelimit_config cfg = {
		.bw = { .size = size, .refill_ms = refill_ms },
	};
	uint64_t now = T0, end = T0 + 10 * NSEC_PER_SEC, sent = 0, due;
	struct ratelimit r;

	ratelimit_init(&r, &cfg, now);
	while (now < end) {
		uint64_t wait = ratelimit_wait(&r, now);

		if (wait) {
			now += wait;
			continue;
		}
		ratelimit_take(&r, frame, now);
		sent += frame;
	}
	due = size + size * (10000 / refill_ms);
	assert_true(sent <= due + frame);
	assert_true(sent + frame >= due);
	ratelimit_fini(&r);
}

static void test_rate(void **state)
{
	rate_is_exact(1000, 100, 1);
	rate_is_exact(1000, 100, 777);
	rate_is_exact(1000, 100, 5000);
	rate_is_exact(7, 1000, 1);
	rate_is_exact(12345678, 1000, 65549);
}

static void test_burst(void **state)
{
	const struct ratelimit_config cfg = {
		.bw = { .size = 1000, .refill_ms = 100, .one_time_burst = 500 },
	};
	struct ratelimit r;

	ratelimit_init(&r, &cfg, T0);
	ratelimit_take(&r, 400, T0);
	ratelimit_take(&r, 600, T0); /* 100 of the burst, 500 of the bucket */
	ratelimit_take(&r, 500, T0);
	assert_int_equal(ratelimit_wait(&r, T0), TOKEN);
	/* It does not come back. */
	ratelimit_take(&r, 1000, T0 + NSEC_PER_SEC);
	assert_int_equal(ratelimit_wait(&r, T0 + NSEC_PER_SEC), TOKEN);
	ratelimit_fini(&r);
}

/* Both limits hold; the longer wait counts. */
static void test_ops(void **state)
{
	const struct ratelimit_config cfg = {
		.bw = { .size = 1000, .refill_ms = 100 },
		.ops = { .size = 2, .refill_ms = 1000 },
	};
	struct ratelimit r;

	ratelimit_init(&r, &cfg, T0);
	ratelimit_take(&r, 1, T0);
	assert_int_equal(ratelimit_wait(&r, T0), 0);
	ratelimit_take(&r, 1, T0);
	assert_int_equal(ratelimit_wait(&r, T0), 500 * MS);
	ratelimit_take(&r, 10998, T0);
	assert_int_equal(ratelimit_wait(&r, T0), 1000 * MS + TOKEN);
	ratelimit_fini(&r);
}

/* Threads may bring times in another order than they took them. */
static void test_time_goes_back(void **state)
{
	struct ratelimit r;

	ratelimit_init(&r, &bytes_only, T0);
	ratelimit_take(&r, 1000, T0 + 10 * MS);
	assert_int_equal(ratelimit_wait(&r, T0), TOKEN);
	assert_int_equal(ratelimit_wait(&r, T0 + 10 * MS), TOKEN);
	ratelimit_fini(&r);
}

static void refuse(struct ratelimit_bucket_config cfg, const char *text)
{
	struct err err = ERR_INIT;

	assert_int_equal(ratelimit_check_bucket(&cfg, "bw", &err), -EINVAL);
	if (!strstr(err.text, text))
		fail_msg("'%s' is not in: %s", text, err.text);
}

static void test_check(void **state)
{
	struct ratelimit_bucket_config good = { .size = 1, .refill_ms = 1 };

	assert_int_equal(ratelimit_check_bucket(&good, "bw", NULL), 0);
	assert_int_equal(ratelimit_check_bucket(
				 &(struct ratelimit_bucket_config){ .size = 0 },
				 "bw", NULL),
			 0);
	refuse((struct ratelimit_bucket_config){ .size = 1 },
	       "bw_refill_time=");
	refuse((struct ratelimit_bucket_config){ .refill_ms = 1 }, "bw_size=");
	refuse((struct ratelimit_bucket_config){ .one_time_burst = 1 },
	       "bw_size=");
	refuse((struct ratelimit_bucket_config){ .size = 1,
						 .refill_ms = 86400001 },
	       "above a day");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_off),
		cmocka_unit_test(test_refill),
		cmocka_unit_test(test_debt),
		cmocka_unit_test(test_rate),
		cmocka_unit_test(test_burst),
		cmocka_unit_test(test_ops),
		cmocka_unit_test(test_time_goes_back),
		cmocka_unit_test(test_check),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
