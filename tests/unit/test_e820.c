/* SPDX-License-Identifier: Apache-2.0 */
/* x86/e820.c: the map for RAM that ends below, at and above the hole. */
#include "cmocka_all.h"

#include <string.h>

#include "x86/e820.h"
#include "x86/layout.h"

static unsigned int build(uint64_t size, struct e820_entry *entries)
{
	struct ram_config cfg = {
		.size_bytes = size,
		.hole_start = LAYOUT_HOLE_START,
		.hole_end = LAYOUT_HOLE_END,
		.page = RAM_PAGE_4K,
	};
	struct ram ram;
	unsigned int num;

	assert_int_equal(ram_init(&ram, &cfg, NULL), 0);
	num = e820_build(&ram, entries);
	assert_true(num <= E820_MAX_ENTRIES);
	ram_fini(&ram);
	return num;
}

static void check_map(uint64_t size, uint64_t expect_low_end,
		      uint64_t expect_high_end)
{
	const struct e820_entry low[] = {
		{ 0, 0x9fc00, E820_RAM },
		{ 0x9fc00, 0x400, E820_RESERVED },
		{ 0xe0000, 0x20000, E820_RESERVED },
		{ 0x100000, expect_low_end - 0x100000, E820_RAM },
		{ 0xe0000000, MIB, E820_RESERVED },
		{ 0xfffbc000, 4 * PAGE_4K, E820_RESERVED },
	};
	struct e820_entry got[E820_MAX_ENTRIES];
	unsigned int num = build(size, got);

	assert_int_equal(num, ARRAY_SIZE(low) + (expect_high_end ? 1 : 0));
	for (size_t i = 0; i < ARRAY_SIZE(low); i++) {
		assert_int_equal(got[i].addr, low[i].addr);
		assert_int_equal(got[i].size, low[i].size);
		assert_int_equal(got[i].type, low[i].type);
	}
	if (expect_high_end) {
		assert_int_equal(got[num - 1].addr, 4 * GIB);
		assert_int_equal(got[num - 1].size, expect_high_end - 4 * GIB);
		assert_int_equal(got[num - 1].type, E820_RAM);
	}
}

static void test_sizes(void **state)
{
	check_map(64 * MIB, 64 * MIB, 0);
	check_map(3 * GIB - PAGE_4K, 3 * GIB - PAGE_4K, 0);
	check_map(3 * GIB, 3 * GIB, 0);
	check_map(3 * GIB + PAGE_4K, 3 * GIB, 4 * GIB + PAGE_4K);
	check_map(5 * GIB, 3 * GIB, 6 * GIB);
	check_map(40 * GIB, 3 * GIB, 41 * GIB);
}

/* All RAM but the hole of 640K to 1M and the last KiB below is handed out. */
static void test_nothing_is_lost_or_overlaps(void **state)
{
	static const uint64_t sizes[] = { 64 * MIB, 1000 * MIB, 3 * GIB,
					  5 * GIB + 12 * KIB };

	for (size_t s = 0; s < ARRAY_SIZE(sizes); s++) {
		struct e820_entry e[E820_MAX_ENTRIES];
		unsigned int num = build(sizes[s], e);
		uint64_t ram = 0;

		for (unsigned int i = 0; i < num; i++) {
			if (e[i].type == E820_RAM)
				ram += e[i].size;
			if (i > 0)
				assert_true(e[i].addr >=
					    e[i - 1].addr + e[i - 1].size);
		}
		assert_int_equal(ram, sizes[s] - (MIB - LAYOUT_EBDA));
	}
}

/* Fewer bytes than a PC has below 1 MiB: nothing that is not there is named. */
static void test_tiny_ram(void **state)
{
	struct e820_entry e[E820_MAX_ENTRIES];
	unsigned int num = build(64 * KIB, e);

	assert_true(num >= 1);
	assert_int_equal(e[0].addr, 0);
	assert_int_equal(e[0].size, 64 * KIB);
	for (unsigned int i = 1; i < num; i++)
		assert_int_equal(e[i].type, E820_RESERVED);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_nothing_is_lost_or_overlaps),
		cmocka_unit_test(test_tiny_ram),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
