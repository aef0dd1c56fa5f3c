/* SPDX-License-Identifier: Apache-2.0 */
#include "ram_present.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "mem/keeper.h"
#include "mem/pagemap.h"

#define RAM_BYTES (32 * MIB)
#define NUM_UNITS (RAM_BYTES / PAGE_2M)
#define PATIENCE  (60 * NSEC_PER_SEC)

/* A second stage that counts the bytes filled in each 2 MiB. */
struct fake {
	_Atomic uint64_t filled[NUM_UNITS];
	_Atomic bool held; /* nothing is filled as long */
	_Atomic bool waits;
};

static int fake_fill(void *ctx, unsigned int port, struct gpa gpa, uint64_t len)
{
	struct fake *f = ctx;

	while (atomic_load(&f->held)) {
		atomic_store(&f->waits, true);
		usleep(1000);
	}
	for (uint64_t at = gpa.v; at < gpa.v + len; at += PAGE_4K)
		atomic_fetch_add(&f->filled[at / PAGE_2M], PAGE_4K);
	return 0;
}

struct fixture {
	_Atomic int idles;
	struct ram ram;
	struct fake fake;
	struct second_stage_filler filler;
	struct keeper *keeper;
};

static void count_idle(void *ctx)
{
	struct fixture *f = ctx;

	atomic_fetch_add(&f->idles, 1);
}

static void start_at_rate(struct fixture *f, enum ram_page page,
			  bool second_stage, uint64_t bytes_per_s)
{
	struct ram_config ram = { .size_bytes = RAM_BYTES,
				  .hole_start = 3 * GIB,
				  .hole_end = 4 * GIB,
				  .page = page };
	struct keeper_config cfg = {
		.ram = &f->ram,
		.vm_fd = -1,
		.rate_bytes_per_s = bytes_per_s,
		.idle = count_idle,
		.idle_ctx = f,
	};
	struct err err = ERR_INIT;

	memset(f, 0, sizeof(*f));
	f->filler = (struct second_stage_filler){ .name = "fake",
						  .num_ports = 2,
						  .fill = fake_fill,
						  .ctx = &f->fake };
	if (second_stage)
		cfg.second_stage = &f->filler;
	assert_int_equal(ram_init(&f->ram, &ram, &err), 0);
	assert_int_equal(keeper_new(&f->keeper, &cfg, &err), 0);
}

static void start(struct fixture *f, enum ram_page page, bool second_stage)
{
	start_at_rate(f, page, second_stage, 0);
}

static void end(struct fixture *f)
{
	keeper_free(f->keeper);
	ram_fini(&f->ram);
}

static void test_populate_widens_to_units(void **state)
{
	struct keeper_stats stats;
	struct fixture f;

	start(&f, RAM_PAGE_4K, true);
	keeper_request(f.keeper, KEEPER_POPULATE, GPA(5 * MIB), PAGE_4K);
	assert_int_equal(keeper_wait_idle(f.keeper, PATIENCE), 0);
	assert_int_equal(ram_present(&f.ram, 0, RAM_BYTES), PAGE_2M);
	assert_int_equal(ram_present(&f.ram, 4 * MIB, PAGE_2M), PAGE_2M);
	assert_int_equal(f.fake.filled[2], PAGE_2M);
	keeper_read_stats(f.keeper, &stats);
	assert_int_equal(stats.works[KEEPER_POPULATE].bytes, PAGE_2M);
	assert_int_equal(stats.works[KEEPER_REPAIR].bytes, 0);
	end(&f);
}

static void test_repair_leaves_holes(void **state)
{
	struct fixture f;

	start(&f, RAM_PAGE_4K, true);
	memset(f.ram.base + 8 * MIB, 1, 5 * PAGE_4K);
	keeper_request(f.keeper, KEEPER_REPAIR, GPA(0), RAM_BYTES);
	assert_int_equal(keeper_wait_idle(f.keeper, PATIENCE), 0);
	assert_int_equal(ram_present(&f.ram, 0, RAM_BYTES), 5 * PAGE_4K);
	for (size_t i = 0; i < NUM_UNITS; i++)
		assert_int_equal(f.fake.filled[i], i == 4 ? 5 * PAGE_4K : 0);
	end(&f);
}

/* By what is there, else this would take two hours. */
static void test_rate_of_holes(void **state)
{
	struct fixture f;

	start_at_rate(&f, RAM_PAGE_4K, true, PAGE_4K);
	f.ram.base[PAGE_2M] = 1;
	keeper_request(f.keeper, KEEPER_REPAIR, GPA(0), f.ram.span);
	assert_int_equal(keeper_wait_repaired(f.keeper, PATIENCE), 0);
	assert_int_equal(f.fake.filled[1], PAGE_4K);
	end(&f);
}

/* While it populates. */
static void test_repaired_is_not_idle(void **state)
{
	struct fixture f;

	start(&f, RAM_PAGE_4K, true);
	atomic_store(&f.fake.held, true);
	keeper_request(f.keeper, KEEPER_POPULATE, GPA(0), PAGE_2M);
	while (!atomic_load(&f.fake.waits))
		usleep(1000);
	assert_int_equal(keeper_wait_repaired(f.keeper, 0), 0);
	assert_int_equal(keeper_wait_idle(f.keeper, 0), -ETIMEDOUT);
	keeper_request(f.keeper, KEEPER_REPAIR, GPA(PAGE_2M), PAGE_2M);
	assert_int_equal(keeper_wait_repaired(f.keeper, 0), -ETIMEDOUT);
	atomic_store(&f.fake.held, false);
	assert_int_equal(keeper_wait_repaired(f.keeper, PATIENCE), 0);
	assert_int_equal(keeper_wait_idle(f.keeper, PATIENCE), 0);
	end(&f);
}

/* Full 4K units become one page and are mapped again; sparse ones stay. */
static void test_coalesce(void **state)
{
	struct keeper_stats stats;
	struct fixture f;

	start(&f, RAM_PAGE_4K, true);
	memset(f.ram.base, 1, PAGE_2M);
	memset(f.ram.base + PAGE_2M, 1, PAGE_4K);
	keeper_request(f.keeper, KEEPER_COALESCE, GPA(0), RAM_BYTES);
	assert_int_equal(keeper_wait_idle(f.keeper, PATIENCE), 0);
	keeper_read_stats(f.keeper, &stats);
	if (stats.refused_units == 1) {
		print_message("skip: this kernel collapses nothing\n");
		end(&f);
		skip();
	}
	assert_int_equal(stats.coalesced_units, 1);
	assert_int_equal(stats.sparse_units, NUM_UNITS - 1);
	assert_int_equal(ram_present(&f.ram, 0, RAM_BYTES), PAGE_2M + PAGE_4K);
	assert_int_equal(f.fake.filled[0], PAGE_2M);
	assert_int_equal(f.fake.filled[1], 0);
	assert_int_equal(f.ram.base[PAGE_2M - 1], 1);
	end(&f);
}

/* A second pass finds nothing to do, and does not map anything again. */
static void test_coalesce_once(void **state)
{
	struct keeper_stats stats;
	struct pagemap pm;
	struct fixture f;
	int huge;

	start(&f, RAM_PAGE_4K, true);
	memset(f.ram.base, 1, PAGE_2M);
	keeper_request(f.keeper, KEEPER_COALESCE, GPA(0), PAGE_2M);
	assert_int_equal(keeper_wait_idle(f.keeper, PATIENCE), 0);
	assert_int_equal(pagemap_open(&pm), 0);
	huge = pagemap_is_huge(&pm, &f.ram, GPA(0), PAGE_2M);
	assert_int_equal(pagemap_is_huge(&pm, &f.ram, GPA(PAGE_2M), PAGE_2M),
			 huge < 0 ? huge : 0);
	pagemap_close(&pm);
	if (huge != 1) {
		print_message("skip: no collapse, or no PAGEMAP_SCAN\n");
		end(&f);
		skip();
	}
	keeper_request(f.keeper, KEEPER_COALESCE, GPA(0), PAGE_2M);
	assert_int_equal(keeper_wait_idle(f.keeper, PATIENCE), 0);
	keeper_read_stats(f.keeper, &stats);
	assert_int_equal(stats.coalesced_units, 1);
	assert_int_equal(stats.large_units, 1);
	assert_int_equal(f.fake.filled[0], PAGE_2M);
	end(&f);
}

/* While memory is logged work waits, and is done afterwards. */
static void test_waits_for_logging(void **state)
{
	static _Atomic uint64_t map[RAM_BYTES / PAGE_4K / 64];
	struct fixture f;

	start(&f, RAM_PAGE_4K, true);
	atomic_store(&f.ram.regions[0].dirty, map);
	memset(f.ram.base, 1, PAGE_4K);
	keeper_request(f.keeper, KEEPER_REPAIR, GPA(0), PAGE_2M);
	assert_int_equal(keeper_wait_idle(f.keeper, NSEC_PER_SEC / 10),
			 -ETIMEDOUT);
	assert_int_equal(f.fake.filled[0], 0);
	atomic_store(&f.ram.regions[0].dirty, NULL);
	assert_int_equal(keeper_wait_idle(f.keeper, PATIENCE), 0);
	assert_int_equal(f.fake.filled[0], PAGE_4K);
	end(&f);
}

static void test_without_second_stage(void **state)
{
	struct fixture f;

	start(&f, RAM_PAGE_4K, false);
	keeper_request(f.keeper, KEEPER_POPULATE, GPA(0), RAM_BYTES);
	keeper_request(f.keeper, KEEPER_REPAIR, GPA(0), RAM_BYTES);
	assert_int_equal(keeper_wait_idle(f.keeper, PATIENCE), 0);
	assert_int_equal(ram_present(&f.ram, 0, RAM_BYTES), RAM_BYTES);
	end(&f);
}

/* Once for each time that there was something to do, and after all of it. */
static void test_idle_hook(void **state)
{
	struct keeper_stats stats;
	struct fixture f;

	start(&f, RAM_PAGE_4K, false);
	assert_int_equal(keeper_wait_idle(f.keeper, PATIENCE), 0);
	assert_int_equal(f.idles, 0);
	for (int i = 1; i <= 3; i++) {
		keeper_request(f.keeper, KEEPER_POPULATE, GPA(0), RAM_BYTES);
		while (f.idles < i)
			usleep(1000);
		keeper_read_stats(f.keeper, &stats);
		assert_int_equal(stats.works[KEEPER_POPULATE].bytes,
				 i * RAM_BYTES);
	}
	end(&f);
	assert_int_equal(f.idles, 3);
}

static void test_outside_is_ignored(void **state)
{
	struct fixture f;

	start(&f, RAM_PAGE_4K, true);
	keeper_request(f.keeper, KEEPER_POPULATE, GPA(UINT64_MAX), 1);
	keeper_request(f.keeper, KEEPER_POPULATE, GPA(RAM_BYTES), RAM_BYTES);
	keeper_request(f.keeper, KEEPER_POPULATE, GPA(0), 0);
	keeper_request(f.keeper, KEEPER_POPULATE, GPA(RAM_BYTES - PAGE_2M),
		       UINT64_MAX);
	assert_int_equal(keeper_wait_idle(f.keeper, PATIENCE), 0);
	assert_int_equal(ram_present(&f.ram, 0, RAM_BYTES), PAGE_2M);
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_populate_widens_to_units),
		cmocka_unit_test(test_repair_leaves_holes),
		cmocka_unit_test(test_rate_of_holes),
		cmocka_unit_test(test_repaired_is_not_idle),
		cmocka_unit_test(test_coalesce),
		cmocka_unit_test(test_coalesce_once),
		cmocka_unit_test(test_waits_for_logging),
		cmocka_unit_test(test_without_second_stage),
		cmocka_unit_test(test_idle_hook),
		cmocka_unit_test(test_outside_is_ignored),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
