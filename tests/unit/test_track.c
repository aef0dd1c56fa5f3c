/* SPDX-License-Identifier: Apache-2.0 */
/* vm/track.c over a model of KVM's logs: what counts for which point. */
#include "fake_kvm_log.h"

#include "vm/track.h"

#define PAGES 200 /* not a multiple of 64 */
#define SIZE  (PAGES * PAGE_4K)

struct tracked {
	struct fake_kvm *f;
	struct vm_track track;
};

static struct tracked start(uint32_t ring_entries)
{
	struct fake_kvm *f = fake_new(SIZE, ring_entries);

	return (struct tracked){
		.f = f,
		.track = { .ram = &f->ram, .dirty = f->tracker },
	};
}

static void end(struct tracked *t)
{
	vm_track_end(&t->track);
	fake_free(t->f);
}

static void add(struct tracked *t, const char *id)
{
	struct err err = ERR_INIT;

	assert_int_equal(vm_track_collect(&t->track, &err), 0);
	assert_int_equal(vm_track_add(&t->track, id, &err), 0);
	assert_true(vm_track_has(&t->track, id));
}

/* The pages written since id are exactly these, in order; ends with -1. */
static void check_since(struct tracked *t, const char *id, const int *pages)
{
	struct err err = ERR_INIT;
	uint64_t *bits = NULL;

	assert_int_equal(vm_track_collect(&t->track, &err), 0);
	assert_int_equal(vm_track_since(&t->track, id, &bits, &err), 0);
	for (int page = 0; page < PAGES; page++) {
		bool want = page == *pages;

		assert_int_equal(bitmap_test(bits, (uint64_t)page), want);
		pages += want;
	}
	assert_int_equal(*pages, -1);
	free(bits);
}

#define CHECK_SINCE(t, id, ...) check_since(t, id, (int[]){ __VA_ARGS__, -1 })
#define CHECK_NONE(t, id)	check_since(t, id, (int[]){ -1 })

static void points(uint32_t ring_entries)
{
	struct tracked t = start(ring_entries);
	struct err err = ERR_INIT;
	uint64_t *bits;

	fake_store(t.f, 0, 0, 1, 1); /* before there is a point: counts for none
				      */
	add(&t, "a");
	CHECK_NONE(&t, "a");
	fake_store(t.f, 0, 0, 5, 1);
	fake_vmm_store(t.f, 0, PAGES - 1, 1);
	CHECK_SINCE(&t, "a", 5, PAGES - 1);
	/* Asking does not forget. */
	CHECK_SINCE(&t, "a", 5, PAGES - 1);
	add(&t, "b");
	CHECK_NONE(&t, "b");
	fake_store(t.f, 1, 0, 64, 1);
	fake_store(t.f, 1, 0, 5, 2);
	CHECK_SINCE(&t, "b", 5, 64);
	CHECK_SINCE(&t, "a", 5, 64, PAGES - 1);
	/* The snapshot b failed: what came after it is a's. */
	vm_track_drop(&t.track, "b");
	assert_false(vm_track_has(&t.track, "b"));
	CHECK_SINCE(&t, "a", 5, 64, PAGES - 1);
	assert_int_equal(vm_track_since(&t.track, "b", &bits, &err), -ENOENT);
	/* The oldest goes; the others count on. */
	add(&t, "c");
	fake_store(t.f, 0, 0, 7, 1);
	add(&t, "d");
	add(&t, "e");
	fake_vmm_store(t.f, 0, 9, 1);
	add(&t, "f");
	assert_int_equal(t.track.num, VM_TRACK_POINTS);
	assert_false(vm_track_has(&t.track, "a"));
	CHECK_SINCE(&t, "c", 7, 9);
	CHECK_SINCE(&t, "d", 9);
	CHECK_NONE(&t, "f");
	/* One in the middle. */
	vm_track_drop(&t.track, "e");
	CHECK_SINCE(&t, "d", 9);
	vm_track_drop(&t.track, "unknown");
	assert_int_equal(t.track.num, 3);
	end(&t);
}

static void test_points(void **state)
{
	points(0);
	points(64);
}

/* The last point that goes ends it, and it can begin again. */
static void test_begins_and_ends(void **state)
{
	struct tracked t = start(0);
	struct dirty_stats stats;

	add(&t, "a");
	dirty_stats_read(t.f->tracker, &stats);
	assert_true(stats.tracking);
	vm_track_drop(&t.track, "a");
	dirty_stats_read(t.f->tracker, &stats);
	assert_false(stats.tracking);
	assert_false(t.f->slots[0].logging);
	fake_store(t.f, 0, 0, 3, 1);
	add(&t, "b");
	fake_store(t.f, 0, 0, 4, 1);
	CHECK_SINCE(&t, "b", 4);
	vm_track_end(&t.track);
	assert_int_equal(t.track.num, 0);
	assert_false(t.f->slots[0].logging);
	end(&t);
}

static void test_failures(void **state)
{
	struct tracked t = start(0);
	struct vm_track none = { .ram = &t.f->ram };
	struct err err = ERR_INIT;

	assert_int_equal(vm_track_collect(&none, &err), 0);
	assert_int_equal(vm_track_add(&none, "a", &err), -ENOTSUP);
	assert_int_equal(none.num, 0);
	/* The log cannot be read at the beginning: nothing has begun. */
	t.f->fail_get = -EIO;
	assert_true(vm_track_add(&t.track, "a", &err) < 0);
	assert_int_equal(t.track.num, 0);
	assert_false(t.f->slots[0].logging);
	t.f->fail_get = 0;
	/* Or later: what could not be taken is there the next time. */
	add(&t, "a");
	fake_store(t.f, 0, 0, 3, 1);
	fake_vmm_store(t.f, 0, 70, 1);
	t.f->fail_clear = -EIO;
	assert_true(vm_track_collect(&t.track, &err) < 0);
	t.f->fail_clear = 0;
	CHECK_SINCE(&t, "a", 3, 70);
	end(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_points),
		cmocka_unit_test(test_begins_and_ends),
		cmocka_unit_test(test_failures),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
