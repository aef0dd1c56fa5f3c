/* SPDX-License-Identifier: Apache-2.0 */
/* When a disk's queue polls, by a clock of the test's own. */
#include "cmocka_all.h"

#include "base/compiler.h"
#include "virtio/blk/blk_poll.h"

#define US 1000ull

struct disk {
	struct blk_poll poll;
	uint64_t now, requests;
};

/* One request, then nothing to do for idle_ns. Returns how long it polls. */
static uint64_t step(struct disk *d, uint64_t busy_ns, uint64_t idle_ns)
{
	uint64_t poll_ns;

	d->requests++;
	d->now += busy_ns;
	poll_ns = blk_poll_idle(&d->poll, d->now, d->requests);
	d->now += idle_ns;
	blk_poll_work(&d->poll, idle_ns);
	return poll_ns;
}

/*
 * Some epochs in which requests take that much with and without polling.
 * Returns in how many of the pauses it polled.
 */
static unsigned int work(struct disk *d, unsigned int epochs,
			 uint64_t without_ns, uint64_t with_ns)
{
	unsigned int polls = 0;

	for (unsigned int i = 0; i < epochs * BLK_POLL_EPOCH; i++) {
		uint64_t ns = d->poll.on ? with_ns : without_ns;

		polls += step(d, ns / 2, ns / 2) != 0;
	}
	return polls;
}

static void trial(struct disk *d, uint64_t without_ns, uint64_t with_ns)
{
	unsigned int polls;

	*d = (struct disk){ .now = 1 };
	blk_poll_init(&d->poll, true);
	assert_int_equal(step(d, US, US), 0); /* the first epoch starts here */
	polls = work(d, BLK_POLL_TRIAL, without_ns, with_ns);
	/* Half of the trial, up to the pause in which an epoch ends. */
	assert_in_range(polls, BLK_POLL_TRIAL * BLK_POLL_EPOCH / 2 - 1,
			BLK_POLL_TRIAL * BLK_POLL_EPOCH / 2 + 1);
}

static void test_stays_on_where_it_pays(void **state)
{
	struct disk d;

	trial(&d, 100 * US, 50 * US);
	assert_int_equal(work(&d, BLK_POLL_HOLD_EPOCHS - 1, 100 * US, 50 * US),
			 (BLK_POLL_HOLD_EPOCHS - 1) * BLK_POLL_EPOCH);
}

static void test_stays_off_where_it_does_not(void **state)
{
	struct disk d;

	/* Slower, the same, and not worth a CPU. */
	static const uint64_t with_us[] = { 200, 100, 90 };

	for (unsigned int i = 0; i < ARRAY_SIZE(with_us); i++) {
		trial(&d, 100 * US, with_us[i] * US);
		assert_int_equal(work(&d, BLK_POLL_HOLD_EPOCHS - 1, 100 * US,
				      with_us[i] * US),
				 0);
	}
}

/* The decision follows the work, with the next trial. */
static void test_tries_again(void **state)
{
	const unsigned int all = BLK_POLL_TRIAL + BLK_POLL_HOLD_EPOCHS;
	struct disk d;

	trial(&d, 100 * US, 100 * US);
	work(&d, all, 100 * US, 50 * US);
	assert_int_equal(work(&d, 1, 100 * US, 50 * US), BLK_POLL_EPOCH);
	work(&d, all, 100 * US, 100 * US);
	assert_int_equal(work(&d, 1, 100 * US, 100 * US), 0);
}

/* Work that gets faster or slower by itself says nothing about polling. */
static void test_trends(void **state)
{
	for (int faster = 0; faster < 2; faster++) {
		struct disk d = { .now = 1 };
		uint64_t ns = faster ? 500 * US : 100 * US;

		blk_poll_init(&d.poll, true);
		step(&d, US, US);
		for (unsigned int i = 0; i < BLK_POLL_TRIAL * BLK_POLL_EPOCH;
		     i++) {
			step(&d, ns, US);
			ns += faster ? -400 : 400;
		}
		assert_false(d.poll.on);
	}
}

/* Other work comes, for which polling is of no use: that is noticed at once. */
static void test_ends_early(void **state)
{
	struct disk d;

	trial(&d, 100 * US, 50 * US);
	assert_int_equal(work(&d, 1, 100 * US, 50 * US), BLK_POLL_EPOCH);
	work(&d, 1 + BLK_POLL_TRIAL, 150 * US, 150 * US);
	assert_int_equal(work(&d, 3, 150 * US, 150 * US), 0);
	/* Or faster work than before: the next trial tells. */
	trial(&d, 100 * US, 50 * US);
	work(&d, BLK_POLL_HOLD_EPOCHS + BLK_POLL_TRIAL, 10 * US, 20 * US);
	assert_int_equal(work(&d, 3, 10 * US, 20 * US), 0);
}

/* A driver that does nothing for long is not polled for, again and again. */
static void test_long_pauses(void **state)
{
	struct disk d;

	trial(&d, 100 * US, 50 * US);
	assert_int_equal(step(&d, US, 1000000 * US), BLK_POLL_NS);
	for (unsigned int i = 0; i < 10; i++)
		assert_int_equal(step(&d, US, 1000000 * US), 0);
	assert_int_equal(step(&d, US, US), 0);
	assert_int_equal(step(&d, US, US), BLK_POLL_NS);
}

/* Nor do such pauses speak against polling in a trial, or for it. */
static void test_pauses_in_a_trial(void **state)
{
	struct disk d = { .now = 1 };

	blk_poll_init(&d.poll, true);
	step(&d, US, US);
	for (unsigned int i = 0; i < BLK_POLL_TRIAL * BLK_POLL_EPOCH; i++)
		step(&d, d.poll.on ? 50 * US : 100 * US,
		     d.poll.on && i % 8 == 0 ? 10000 * US : US);
	assert_true(d.poll.on);
}

static void test_not_allowed(void **state)
{
	struct disk d = { .now = 1 };

	blk_poll_init(&d.poll, false);
	assert_int_equal(work(&d, 2 * (BLK_POLL_TRIAL + BLK_POLL_HOLD_EPOCHS),
			      100 * US, 10 * US),
			 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stays_on_where_it_pays),
		cmocka_unit_test(test_stays_off_where_it_does_not),
		cmocka_unit_test(test_tries_again),
		cmocka_unit_test(test_trends),
		cmocka_unit_test(test_ends_early),
		cmocka_unit_test(test_long_pauses),
		cmocka_unit_test(test_pauses_in_a_trial),
		cmocka_unit_test(test_not_allowed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
