/* SPDX-License-Identifier: Apache-2.0 */
/* mem/ram.c: layout around the hole, the accessors' one check, dirty marks. */
#include "cmocka_all.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "mem/ram.h"

static void make(struct ram *ram, uint64_t size, bool shared)
{
	struct ram_config cfg = {
		.size_bytes = size,
		.hole_start = 3 * GIB,
		.hole_end = 4 * GIB,
		.page = RAM_PAGE_4K,
		.shared = shared,
	};
	struct err err = ERR_INIT;

	assert_int_equal(ram_init(ram, &cfg, &err), 0);
	assert_int_equal(ram_size(ram), size);
}

static void test_small_is_one_region(void **state)
{
	struct ram ram;

	make(&ram, 64 * MIB, false);
	assert_int_equal(ram.num_regions, 1);
	assert_int_equal((uintptr_t)ram.base % GIB, 0);
	ram_fini(&ram);
}

static void test_large_skips_the_hole(void **state)
{
	struct ram ram;
	char c = 'x';

	make(&ram, 5 * GIB, false);
	assert_int_equal(ram.num_regions, 2);
	assert_int_equal(ram.regions[0].size, 3 * GIB);
	assert_int_equal(ram.regions[1].base.v, 4 * GIB);
	assert_int_equal(ram.regions[1].size, 2 * GIB);
	assert_int_equal(mem_write(&ram, GPA(3 * GIB - 1), &c, 1), 0);
	assert_int_equal(mem_write(&ram, GPA(3 * GIB), &c, 1), -EFAULT);
	assert_int_equal(mem_write(&ram, GPA(4 * GIB - 1), &c, 1), -EFAULT);
	assert_int_equal(mem_write(&ram, GPA(4 * GIB), &c, 1), 0);
	assert_int_equal(mem_write(&ram, GPA(6 * GIB - 1), &c, 1), 0);
	assert_int_equal(mem_write(&ram, GPA(6 * GIB), &c, 1), -EFAULT);
	ram_fini(&ram);
}

static void test_accessors_refuse_outside(void **state)
{
	struct ram ram;
	char buf[16] = "0123456789abcde", got[16];

	make(&ram, 64 * MIB, true);
	assert_int_equal(mem_write(&ram, GPA(64 * MIB - 16), buf, 16), 0);
	assert_int_equal(mem_read(&ram, GPA(64 * MIB - 16), got, 16), 0);
	assert_memory_equal(buf, got, 16);
	assert_int_equal(mem_write(&ram, GPA(64 * MIB - 15), buf, 16), -EFAULT);
	assert_int_equal(mem_read(&ram, GPA(UINT64_MAX - 3), got, 16), -EFAULT);
	assert_int_equal(mem_read(&ram, GPA(0), got, UINT64_MAX), -EFAULT);
	assert_null(mem_map_range(&ram, GPA(0), 0, MEM_READ));
	assert_null(mem_map_range(&ram, GPA(PAGE_4K), 64 * MIB, MEM_READ));
	assert_non_null(mem_map_range(&ram, GPA(0), 64 * MIB, MEM_READ));
	ram_fini(&ram);
}

static void test_writes_mark_dirty(void **state)
{
	_Atomic uint64_t *map = calloc(16 * MIB / PAGE_4K / 64, 8);
	struct ram ram;
	char buf[PAGE_4K] = "";

	make(&ram, 16 * MIB, false);
	assert_int_equal(mem_write(&ram, GPA(0), buf, 1), 0); /* untracked */
	atomic_store(&ram.regions[0].dirty, map);
	assert_int_equal(mem_read(&ram, GPA(0), buf, 1), 0);
	assert_int_equal(map[0], 0);
	/* the last byte of page 1 to the first of page 2 */
	assert_int_equal(mem_write(&ram, GPA(2 * PAGE_4K - 1), buf, 2), 0);
	assert_int_equal(map[0], 0x6);
	mem_mark_dirty(&ram, GPA(64 * PAGE_4K), 1);
	assert_int_equal(map[1], 1);
	assert_non_null(mem_map_range(&ram, GPA(0), 1, MEM_WRITE));
	assert_int_equal(map[0], 0x7);
	mem_mark_dirty(&ram, GPA(16 * MIB), 1); /* outside: nothing */
	atomic_store(&ram.regions[0].dirty, NULL);
	ram_fini(&ram);
	free(map);
}

static void test_bad_sizes(void **state)
{
	static const uint64_t bad[] = {
		0, 1, MIB + 1, UINT64_MAX, UINT64_MAX - 4095, 1ull << 50
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct ram_config cfg = {
			.size_bytes = bad[i],
			.hole_start = 3 * GIB,
			.hole_end = 4 * GIB,
		};
		struct err err = ERR_INIT;
		struct ram ram;

		assert_true(ram_init(&ram, &cfg, &err) < 0);
		assert_true(strlen(err.text) > 0);
		ram_fini(&ram);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_small_is_one_region),
		cmocka_unit_test(test_large_skips_the_hole),
		cmocka_unit_test(test_accessors_refuse_outside),
		cmocka_unit_test(test_writes_mark_dirty),
		cmocka_unit_test(test_bad_sizes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
