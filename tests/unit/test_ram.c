/* SPDX-License-Identifier: Apache-2.0 */
/* mem/ram.c: layout around the hole, the accessors' one check, dirty marks. */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

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

/* ---- memory of another process ---- */

static int make_memfd(uint64_t size, unsigned int seals)
{
	int fd = memfd_create("theirs", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static void refuse(struct ram *ram, int fd, const char *words)
{
	struct err err = ERR_INIT;

	assert_true(ram_take_memfd(ram, fd, &err) < 0);
	assert_non_null(strstr(err.text, words));
	close(fd);
}

static void test_takes_memory_over(void **state)
{
	struct err err = ERR_INIT;
	struct ram ours, theirs, own;
	uint32_t word = 7;
	int fd;

	make(&ours, 5 * GIB, true);
	make(&theirs, 5 * GIB, true);
	make(&own, 5 * GIB, false);
	/* What it has is what they have, in both regions, whoever writes. */
	assert_int_equal(mem_write(&theirs, GPA(4096), &word, 4), 0);
	assert_int_equal(mem_write(&theirs, GPA(4 * GIB), &word, 4), 0);
	fd = dup(theirs.fd);
	assert_int_equal(ram_take_memfd(&ours, fd, &err), 0);
	assert_int_equal(ours.fd, fd);
	word = 0;
	assert_int_equal(mem_read(&ours, GPA(4096), &word, 4), 0);
	assert_int_equal(word, 7);
	word = 0;
	assert_int_equal(mem_read(&ours, GPA(4 * GIB), &word, 4), 0);
	assert_int_equal(word, 7);
	word = 8;
	assert_int_equal(mem_write(&ours, GPA(4 * GIB), &word, 4), 0);
	word = 0;
	assert_int_equal(mem_read(&theirs, GPA(4 * GIB), &word, 4), 0);
	assert_int_equal(word, 8);
	/* Memory that is nobody else's has no file to be replaced. */
	refuse(&own, dup(theirs.fd), "not shared");
	ram_fini(&own);
	ram_fini(&theirs);
	/* They are gone; it is not. */
	assert_int_equal(mem_read(&ours, GPA(4 * GIB), &word, 4), 0);
	assert_int_equal(word, 8);
	ram_fini(&ours);
}

/* Who gave it away sees that somebody ran on it, also when he is gone. */
static void test_claims(void **state)
{
	struct err err = ERR_INIT;
	struct ram ours, theirs, own;

	make(&ours, 64 * MIB, true);
	make(&theirs, 64 * MIB, true);
	make(&own, 64 * MIB, false);
	assert_int_equal(ram_take_memfd(&ours, dup(theirs.fd), &err), 0);
	/* It is its own: nothing to tell. */
	assert_int_equal(ram_claim(&theirs, &err), 0);
	assert_int_equal(ram_claim(&own, &err), 0);
	assert_int_equal(ram_claims(&theirs), 0);
	assert_int_equal(ram_claims(&own), 0);
	assert_int_equal(ram_claim(&ours, &err), 0);
	assert_int_equal(ram_claims(&theirs), 1);
	ram_unclaim(&ours);
	assert_int_equal(ram_claims(&theirs), 0);
	for (unsigned int i = 1; i <= 66; i++) {
		assert_int_equal(ram_claim(&ours, &err), 0);
		assert_int_equal(ram_claims(&theirs), i % 65);
	}
	ram_fini(&ours);
	assert_int_equal(ram_claims(&theirs), 1);
	ram_fini(&theirs);
	ram_fini(&own);
}

static void test_takes_nothing_else(void **state)
{
	struct ram ram;
	uint32_t word = 9;

	make(&ram, 64 * MIB, true);
	assert_int_equal(mem_write(&ram, GPA(0), &word, 4), 0);
	refuse(&ram, make_memfd(64 * MIB, F_SEAL_GROW), "not sealed");
	refuse(&ram, make_memfd(63 * MIB, F_SEAL_SHRINK), "not of the size");
	refuse(&ram, make_memfd(65 * MIB, F_SEAL_SHRINK), "not of the size");
	refuse(&ram, open("/dev/zero", O_RDWR), "no memory of a VM");
	refuse(&ram, open("/proc/self/exe", O_RDONLY), "no memory of a VM");
	/* It has its own still. */
	word = 0;
	assert_int_equal(mem_read(&ram, GPA(0), &word, 4), 0);
	assert_int_equal(word, 9);
	ram_fini(&ram);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_small_is_one_region),
		cmocka_unit_test(test_large_skips_the_hole),
		cmocka_unit_test(test_accessors_refuse_outside),
		cmocka_unit_test(test_writes_mark_dirty),
		cmocka_unit_test(test_bad_sizes),
		cmocka_unit_test(test_takes_memory_over),
		cmocka_unit_test(test_claims),
		cmocka_unit_test(test_takes_nothing_else),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
