/* SPDX-License-Identifier: Apache-2.0 */
/* When vCPUs are held back, how much, and which. */
#include "cmocka_all.h"

#include "migrate/converge.h"
#include "migrate/hold_back.h"

#define MIB (1ull << 20)

static void test_parse(void **state)
{
	struct hold_back h;

	assert_true(hold_back_parse("off", &h));
	assert_int_equal(h.mode, HOLD_BACK_OFF);
	assert_true(hold_back_parse("auto", &h));
	assert_int_equal(h.mode, HOLD_BACK_AUTO);
	assert_int_equal(h.percent, 0);
	assert_true(hold_back_parse("99", &h));
	assert_int_equal(h.mode, HOLD_BACK_FIXED);
	assert_int_equal(h.percent, 99);
	assert_false(hold_back_parse("0", &h));
	assert_false(hold_back_parse("100", &h));
	assert_false(hold_back_parse("-5", &h));
	assert_false(hold_back_parse("", &h));
	assert_false(hold_back_parse("on", &h));
}

static unsigned int round_of(struct hold_back *h, double dirtying)
{
	const struct converge c = { .rate = 100.0 * MIB,
				    .dirtying = dirtying * MIB };

	return hold_back_round(h, &c);
}

static void test_auto(void **state)
{
	struct hold_back h = { .mode = HOLD_BACK_AUTO };
	unsigned int percent = 0;

	/* A guest whose rounds become shorter is left alone. */
	for (int i = 0; i < 10; i++)
		assert_int_equal(round_of(&h, 40), 0);
	/* One round says little. */
	assert_int_equal(round_of(&h, 90), 0);
	assert_int_equal(round_of(&h, 40), 0);
	assert_int_equal(round_of(&h, 90), 0);
	assert_int_equal(round_of(&h, 90), 20);
	assert_int_equal(round_of(&h, 90), 20);
	assert_int_equal(round_of(&h, 90), 35);
	/* What helped stays. */
	assert_int_equal(round_of(&h, 10), 35);
	for (int i = 0; i < 20; i++) {
		unsigned int now = round_of(&h, 200);

		assert_true(now >= percent);
		percent = now;
	}
	assert_int_equal(percent, 99);
}

static void test_off_and_fixed(void **state)
{
	struct hold_back off = { .mode = HOLD_BACK_OFF };
	struct hold_back fixed = { .mode = HOLD_BACK_FIXED, .percent = 42 };

	for (int i = 0; i < 5; i++) {
		assert_int_equal(round_of(&off, 500), 0);
		assert_int_equal(round_of(&fixed, 1), 42);
	}
}

static void test_who(void **state)
{
	/* An equal share of 4 is 25 of 100; a quarter of that is a little. */
	assert_true(hold_back_hits(97, 100, 4));
	assert_true(hold_back_hits(7, 100, 4));
	assert_false(hold_back_hits(6, 100, 4));
	assert_false(hold_back_hits(0, 100, 1));
	assert_true(hold_back_hits(100, 100, 1));
	/* Nobody is known to: all may. */
	assert_true(hold_back_hits(0, 0, 4));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse),
		cmocka_unit_test(test_auto),
		cmocka_unit_test(test_off_and_fixed),
		cmocka_unit_test(test_who),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
