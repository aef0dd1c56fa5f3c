/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The host side of the probe guest that needs no KVM: layout, page tables (read
 * back by a page-table walk of our own), pattern, what `quire bench` checks.
 */
#include "cmocka_all.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "cli/bench.h"
#include "probe/image.h"
#include "probe/layout.h"
#include "stage2/detect.h"
#include "x86/layout.h"
#include "x86/start.h"

#define BIT_P  1ull
#define BIT_W  2ull
#define BIT_U  4ull
#define BIT_AD 0x60ull
#define BIT_PS 0x80ull

struct walk {
	uint64_t gpa;
	uint64_t size; /* of the page; 0: not mapped */
	bool writable, user;
	bool ad; /* accessed on every level, dirty on the last */
};

static struct walk walk(const struct ram *ram, uint64_t root, uint64_t va)
{
	struct walk w = { .writable = true, .user = true, .ad = true };
	uint64_t table = root, entry;

	for (int shift = 39; shift >= 12; shift -= 9) {
		uint64_t index = va >> shift & 511;

		assert_int_equal(mem_read(ram, GPA(table + index * 8), &entry,
					  sizeof(entry)),
				 0);
		if (!(entry & BIT_P))
			return (struct walk){ .size = 0 };
		w.writable = w.writable && (entry & BIT_W);
		w.user = w.user && (entry & BIT_U);
		w.ad = w.ad && (entry & 0x20);
		table = entry & 0x000ffffffffff000ull;
		if (shift == 12 || (entry & BIT_PS)) {
			w.ad = w.ad && (entry & BIT_AD) == BIT_AD;
			w.size = 1ull << shift;
			w.gpa = table + (va & (w.size - 1));
			return w;
		}
	}
	return w;
}

struct fixture {
	struct probe_layout layout;
	struct ram ram;
};

static void make(struct fixture *f, unsigned int vcpus,
		 enum probe_guest_page page, uint64_t bytes)
{
	struct err err = ERR_INIT;
	struct ram_config rc = {
		.hole_start = LAYOUT_HOLE_START,
		.hole_end = LAYOUT_HOLE_END,
		.page = RAM_PAGE_4K,
	};

	assert_int_equal(
		probe_layout_compute(&f->layout, vcpus, page, bytes, &err), 0);
	rc.size_bytes = f->layout.ram_bytes;
	assert_int_equal(ram_init(&f->ram, &rc, &err), 0);
	assert_int_equal(probe_layout_write(&f->layout, &f->ram, probe_payload,
					    probe_payload_size),
			 0);
}

static void layout_of_one_vcpu(void **state)
{
	struct probe_layout l;

	assert_int_equal(
		probe_layout_compute(&l, 1, PROBE_GUEST_PAGE_2M, MIB, NULL), 0);
	assert_int_equal(l.test_bytes, 2 * MIB);
	assert_int_equal(l.test_base, 2 * MIB);
	assert_int_equal(l.ram_bytes, 4 * MIB);
	assert_int_equal(l.times, PROBE_VA_SLOTS + PAGE_4K);
	assert_int_equal(l.stacks, l.times + PAGE_4K);
	/* Root; PDPT, PD, PT of the control area; PDPT, PD of the test area. */
	assert_int_equal(l.tables_bytes, 6 * PAGE_4K);
	assert_true(l.tables + l.tables_bytes <= l.test_base);
}

static void layout_refuses(void **state)
{
	struct probe_layout l = { .num_vcpus = 77 };
	struct err err = ERR_INIT;

	assert_int_equal(probe_layout_compute(&l, 0, PROBE_GUEST_PAGE_2M, MIB,
					      &err),
			 -EINVAL);
	assert_int_equal(probe_layout_compute(&l, PROBE_MAX_VCPUS + 1,
					      PROBE_GUEST_PAGE_2M, MIB, &err),
			 -EINVAL);
	assert_int_equal(probe_layout_compute(&l, 1, PROBE_GUEST_PAGE_2M, 0,
					      &err),
			 -EINVAL);
	assert_int_equal(probe_layout_compute(&l, 1, PROBE_GUEST_PAGE_2M,
					      UINT64_MAX, &err),
			 -EINVAL);
	/* 2 TiB in 4K pages: 4 GiB of page tables. */
	assert_int_equal(probe_layout_compute(&l, 1, PROBE_GUEST_PAGE_4K,
					      2 * TIB, &err),
			 -EINVAL);
	assert_non_null(strstr(err.text, "4k pages do not fit"));
	assert_int_equal(l.num_vcpus, 77);
}

/* Every stack is its own, with an unmapped page below. */
static void control_area_is_mapped(void **state)
{
	struct fixture f;
	struct walk w;

	make(&f, 33, PROBE_GUEST_PAGE_2M, 4 * MIB);
	assert_int_equal(walk(&f.ram, f.layout.tables, 0).size, 0);
	w = walk(&f.ram, f.layout.tables, PROBE_VA_CODE);
	assert_true(w.size == PAGE_4K && w.user && !w.writable && w.ad);
	w = walk(&f.ram, f.layout.tables,
		 PROBE_VA_GDT + START_FLAT64_BYTES - 1);
	assert_true(w.size == PAGE_4K && !w.user && !w.writable);
	w = walk(&f.ram, f.layout.tables,
		 PROBE_VA_SLOTS + 32 * PROBE_SLOT_BYTES);
	assert_true(w.size == PAGE_4K && w.user && w.writable && w.ad);
	for (unsigned int i = 0; i < 33; i++) {
		uint64_t top = probe_layout_stack_top(&f.layout, i);

		w = walk(&f.ram, f.layout.tables, top - 8);
		assert_true(w.gpa == top - 8 && w.writable && w.user && w.ad);
		w = walk(&f.ram, f.layout.tables, top - PROBE_STACK_BYTES);
		assert_true(w.size == PAGE_4K && w.writable);
		w = walk(&f.ram, f.layout.tables, top - PROBE_STACK_BYTES - 8);
		assert_int_equal(w.size, 0);
	}
	w = walk(&f.ram, f.layout.tables,
		 f.layout.tables + f.layout.tables_bytes - 8);
	assert_true(w.size == PAGE_4K && w.user && !w.writable);
	ram_fini(&f.ram);
}

static void check_test_area(unsigned int vcpus, enum probe_guest_page page,
			    uint64_t bytes)
{
	uint64_t size = page == PROBE_GUEST_PAGE_2M ? PAGE_2M : PAGE_4K;
	struct fixture f;
	struct walk w;

	make(&f, vcpus, page, bytes);
	for (uint64_t off = 0; off < bytes; off += 511 * PAGE_4K) {
		w = walk(&f.ram, f.layout.tables, PROBE_VA_TEST + off);
		assert_int_equal(w.size, size);
		assert_true(w.writable && w.user && w.ad);
		assert_int_equal(w.gpa,
				 probe_layout_test_gpa(&f.layout, off).v);
		assert_non_null(mem_map_range(&f.ram, GPA(w.gpa), 8, MEM_READ));
		assert_true(w.gpa >= f.layout.test_base);
	}
	w = walk(&f.ram, f.layout.tables, PROBE_VA_TEST + bytes - 8);
	assert_int_equal(w.gpa, probe_layout_test_gpa(&f.layout, bytes - 8).v);
	w = walk(&f.ram, f.layout.tables, PROBE_VA_TEST + bytes);
	assert_int_equal(w.size, 0);
	ram_fini(&f.ram);
}

static void test_area_is_mapped(void **state)
{
	check_test_area(1, PROBE_GUEST_PAGE_2M, 6 * MIB);
	check_test_area(2, PROBE_GUEST_PAGE_4K, 6 * MIB);
	check_test_area(1024, PROBE_GUEST_PAGE_2M, GIB + 2 * MIB);
	check_test_area(3, PROBE_GUEST_PAGE_4K, 600 * MIB);
}

/* The hole below 4 GiB is in the physical addresses only. */
static void test_area_spans_the_hole(void **state)
{
	struct probe_layout l;

	check_test_area(1, PROBE_GUEST_PAGE_2M, 5 * GIB);
	assert_int_equal(probe_layout_compute(&l, 1, PROBE_GUEST_PAGE_2M,
					      5 * GIB, NULL),
			 0);
	assert_int_equal(
		probe_layout_test_gpa(&l, LAYOUT_HOLE_START - l.test_base - 8)
			.v,
		LAYOUT_HOLE_START - 8);
	assert_int_equal(
		probe_layout_test_gpa(&l, LAYOUT_HOLE_START - l.test_base).v,
		LAYOUT_HOLE_END);
}

static void image_size_is_checked(void **state)
{
	struct fixture f;

	make(&f, 1, PROBE_GUEST_PAGE_2M, 2 * MIB);
	assert_int_equal(probe_layout_write(&f.layout, &f.ram, probe_payload,
					    0),
			 -E2BIG);
	assert_int_equal(probe_layout_write(&f.layout, &f.ram, probe_payload,
					    PROBE_CODE_MAX + 1),
			 -E2BIG);
	f.layout.ram_bytes += PAGE_4K;
	assert_int_equal(probe_layout_write(&f.layout, &f.ram, probe_payload,
					    probe_payload_size),
			 -EINVAL);
	ram_fini(&f.ram);
}

static void image_is_small(void **state)
{
	assert_in_range(probe_payload_size, 256, 16 * KIB);
}

static void pattern_tells_places_apart(void **state)
{
	for (uint64_t i = 1; i < 2000; i++) {
		assert_int_not_equal(probe_pattern(1, 0),
				     probe_pattern(1, i * 8));
		assert_int_not_equal(probe_pattern(1, 64),
				     probe_pattern(1 + i, 64));
		assert_int_not_equal(probe_pattern(i, i * PAGE_4K), 0);
	}
}

/* What was tried outweighs what was configured; nothing known is "unknown". */
static void second_stage_verdicts(void **state)
{
	struct second_stage_evidence ev = { .module = SECOND_STAGE_UNKNOWN };

	assert_int_equal(second_stage_judge(&ev), SECOND_STAGE_UNKNOWN);
	ev.module = SECOND_STAGE_TDP;
	assert_int_equal(second_stage_judge(&ev), SECOND_STAGE_TDP);
	ev.faults = SECOND_STAGE_SHADOW;
	assert_int_equal(second_stage_judge(&ev), SECOND_STAGE_SHADOW);
	ev.prefault = SECOND_STAGE_TDP;
	assert_int_equal(second_stage_judge(&ev), SECOND_STAGE_TDP);
	/* a kernel with TDP but no pre-fault ioctl */
	ev = (struct second_stage_evidence){ .faults = SECOND_STAGE_TDP };
	assert_int_equal(second_stage_judge(&ev), SECOND_STAGE_TDP);
}

static const char *const names[] = { "none", "host", NULL, "full" };

static void choice_takes_lists(void **state)
{
	struct bench_choice c = { .num = 99 };
	struct err err = ERR_INIT;

	assert_int_equal(bench_parse_choice("--x", "host", names, 4, &c, &err),
			 0);
	assert_true(c.num == 1 && c.values[0] == 1);
	assert_int_equal(
		bench_parse_choice("--x", "full,none", names, 4, &c, &err), 0);
	assert_true(c.num == 2 && c.values[0] == 3 && c.values[1] == 0);
}

static void choice_refuses(void **state)
{
	static const char *const bad[] = {
		"", ",", "hos", "hostt", "host,", ",host", "host,host", "HOST",
	};
	struct bench_choice c = { .num = 99 };
	struct err err = ERR_INIT;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(bench_parse_choice("--x", bad[i], names, 4, &c,
						    &err),
				 -EINVAL);
		assert_memory_equal(err.text, "--x: ", 5);
	}
	assert_int_equal(c.num, 99);
	assert_int_equal(bench_parse_choice("--x", "other", names, 4, &c, &err),
			 -EINVAL);
	assert_string_equal(err.text, "--x: unknown value 'other'; known: "
				      "none, host, full");
}

static void one_choice_is_one(void **state)
{
	struct err err = ERR_INIT;
	int value = 99;

	assert_int_equal(bench_parse_one("--x", "full", names, 4, &value, &err),
			 0);
	assert_int_equal(value, 3);
	assert_int_equal(bench_parse_one("--x", "none,host", names, 4, &value,
					 &err),
			 -EINVAL);
	assert_string_equal(err.text, "--x: one value");
	assert_int_equal(value, 3);
}

static void numbers_take_lists(void **state)
{
	static const char *const bad[] = {
		"",
		",",
		"1,",
		",1",
		"0",
		"1,101",
		"-1",
		"1 ",
		"x",
		"1,2,3,4,5,6,7,8,9",
		/* cut short, this would be a number */
		"000000000000000000000000000000000000000000000000001x",
	};
	struct bench_numbers n = { .num = 99 };
	struct err err = ERR_INIT;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(bench_parse_numbers("--x", bad[i], 100, &n,
						     &err),
				 -EINVAL);
		assert_memory_equal(err.text, "--x", 3);
	}
	assert_int_equal(n.num, 99);
	assert_int_equal(bench_parse_numbers("--x", "100,1,7", 100, &n, &err),
			 0);
	assert_true(n.num == 3 && n.values[0] == 100 && n.values[1] == 1 &&
		    n.values[2] == 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(layout_of_one_vcpu),
		cmocka_unit_test(layout_refuses),
		cmocka_unit_test(control_area_is_mapped),
		cmocka_unit_test(test_area_is_mapped),
		cmocka_unit_test(test_area_spans_the_hole),
		cmocka_unit_test(image_size_is_checked),
		cmocka_unit_test(image_is_small),
		cmocka_unit_test(pattern_tells_places_apart),
		cmocka_unit_test(second_stage_verdicts),
		cmocka_unit_test(choice_takes_lists),
		cmocka_unit_test(choice_refuses),
		cmocka_unit_test(one_choice_is_one),
		cmocka_unit_test(numbers_take_lists),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
