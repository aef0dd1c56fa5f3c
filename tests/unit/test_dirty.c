/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem/dirty*.c against a model of KVM's logs: that nothing is lost, in
 * particular the order of clearing, publishing and handing out; the failures of
 * each call; and that a KVM which arms pages too late is noticed, so that the
 * test with threads would notice it of the tracker as well.
 */
#include "fake_kvm_log.h"

#include <unistd.h>

#include "base/clock.h"
#include "base/thread.h"

#define PAGES 200 /* not a multiple of 64 */
#define SIZE  (PAGES * PAGE_4K)
#define WORDS BITMAP_WORDS(PAGES)

static void begin(struct fake_kvm *f)
{
	struct err err = ERR_INIT;

	assert_int_equal(dirty_start(f->tracker, &f->ram, &err), 0);
}

static uint64_t harvest(struct fake_kvm *f)
{
	struct dirty_round round;
	struct err err = ERR_INIT;

	assert_int_equal(dirty_harvest(f->tracker, &round, &err), 0);
	return round.pages;
}

/* Take everything of region 0 into bits[WORDS]; returns the number. */
static int64_t take_all(struct fake_kvm *f, uint64_t *bits)
{
	memset(bits, 0xff, WORDS * 8); /* must be written over */
	return dirty_take(f->tracker, 0, 0, PAGES, bits);
}

static void begin_and_take(struct fake_kvm *f)
{
	uint64_t bits[WORDS];

	begin(f);
	assert_int_equal(take_all(f, bits), PAGES);
	assert_int_equal(bits[WORDS - 1], (1ull << PAGES % 64) - 1);
	harvest(f);
	assert_int_equal(take_all(f, bits), 0);
}

static struct fake_kvm *new_method(bool ring)
{
	return fake_new(SIZE, ring ? 64 : 0);
}

static void one_round(bool ring)
{
	struct fake_kvm *f = new_method(ring);
	uint64_t bits[WORDS];

	begin_and_take(f);
	assert_true(fake_store(f, 0, 0, 5, 1));
	assert_true(fake_store(f, 1, 0, 64, 1));
	assert_true(fake_store(f, 1, 0, PAGES - 1, 1));
	assert_true(fake_store(f, 0, 0, 5, 2)); /* the same once more */
	fake_vmm_store(f, 0, 130, 1);
	fake_vmm_store(f, 0, 64, 1);		/* both wrote this one */
	assert_int_equal(take_all(f, bits), 2); /* KVM's not harvested yet */
	assert_int_equal(bits[1], 1);
	assert_int_equal(bits[2], 1ull << 2);
	/* The bitmap's CLEAR took page 64 along; the ring's entry remains. */
	assert_int_equal(harvest(f), ring ? 3 : 2);
	assert_int_equal(take_all(f, bits), ring ? 3 : 2);
	assert_int_equal(bits[0], 1ull << 5);
	assert_int_equal(bits[1], ring ? 1 : 0);
	assert_int_equal(bits[3], 1ull << (PAGES - 1) % 64);
	assert_int_equal(harvest(f), 0);
	fake_free(f);
}

static void test_policy(void **state)
{
	static const struct kvm_dirty_offer nothing,
		bitmap = { .bitmap = true }, ring = { .ring_cap = 1 },
		both = { .bitmap = true, .ring_cap = 1 };

	assert_int_equal(dirty_policy(&nothing, 64 * GIB, 1), DIRTY_BITMAP);
	assert_int_equal(dirty_policy(&bitmap, 64 * GIB, 1), DIRTY_BITMAP);
	assert_int_equal(dirty_policy(&ring, GIB, UINT64_MAX), DIRTY_RING);
	/* not known, little memory, many writes */
	assert_int_equal(dirty_policy(&both, 64 * GIB, 0), DIRTY_BITMAP);
	assert_int_equal(dirty_policy(&both, 15 * GIB, 1), DIRTY_BITMAP);
	assert_int_equal(dirty_policy(&both, 64 * GIB, 100000), DIRTY_BITMAP);
	assert_int_equal(dirty_policy(&both, 64 * GIB, UINT64_MAX),
			 DIRTY_BITMAP);
	/* some 90 pages per GiB and second */
	assert_int_equal(dirty_policy(&both, 64 * GIB, 64 * 80), DIRTY_RING);
	assert_int_equal(dirty_policy(&both, 64 * GIB, 64 * 100), DIRTY_BITMAP);
}

static void test_round(void **state)
{
	one_round(false);
	one_round(true);
}

/* A store between GET and CLEAR leaves no log: the copy comes after both. */
static void test_bitmap_store_between_get_and_clear(void **state)
{
	struct fake_kvm *f = new_method(false);
	uint64_t bits[WORDS];

	begin_and_take(f);
	fake_store(f, 0, 0, 7, 1);
	assert_int_equal(harvest(f), 1);
	fake_store(f, 0, 0, 7, 2);
	assert_int_equal(take_all(f, bits), 1);
	/* Handed out armed: what is stored now is logged again. */
	assert_true(bitmap_test(f->slots[0].armed, 7));
	fake_store(f, 0, 0, 7, 3);
	assert_int_equal(harvest(f), 1);
	assert_int_equal(take_all(f, bits), 1);
	fake_free(f);
}

static void check_only_taken(struct fake_kvm *f, uint64_t first, uint32_t num,
			     const uint64_t *bits)
{
	/* Words without a taken bit at either end are left out. */
	assert_int_equal(first, 64);
	assert_int_equal(num, 64);
	assert_int_equal(bits[0], 1ull << 6);
	/* M is gone before CLEAR: a mark from now on is a new one. */
	assert_int_equal(atomic_load(&f->ram.regions[0].dirty_map[1]), 0);
	fake_vmm_store(f, 0, 70, 9);
}

static void test_bitmap_clears_what_it_takes(void **state)
{
	struct fake_kvm *f = new_method(false);
	uint64_t bits[2];

	begin_and_take(f);
	fake_store(f, 0, 0, 70, 1);
	fake_store(f, 0, 0, 150, 1);
	harvest(f);
	f->before_clear = check_only_taken;
	assert_int_equal(dirty_take(f->tracker, 0, 0, 128, bits), 1);
	f->before_clear = NULL;
	/* Page 150 was not taken: still logged, not armed, still marked. */
	assert_true(bitmap_test(f->slots[0].logged, 150));
	assert_int_equal(dirty_take(f->tracker, 0, 128, PAGES - 128, bits), 1);
	assert_int_equal(bits[0], 1ull << 22);
	/* and the VMM's write during CLEAR is there */
	assert_int_equal(dirty_take(f->tracker, 0, 64, 64, bits), 1);
	assert_int_equal(bits[0], 1ull << 6);
	fake_free(f);
}

static void test_bitmap_failed_clear(void **state)
{
	struct fake_kvm *f = new_method(false);
	uint64_t bits[WORDS];
	struct dirty_stats stats;

	begin_and_take(f);
	fake_store(f, 0, 0, 3, 1);
	fake_store(f, 0, 0, 199, 1);
	harvest(f);
	f->fail_clear = -ENOMEM;
	assert_int_equal(take_all(f, bits), -ENOMEM);
	dirty_stats_read(f->tracker, &stats);
	assert_int_equal(stats.pages_waiting, 2);
	f->fail_clear = 0;
	assert_int_equal(take_all(f, bits), 2);
	f->fail_get = -EFAULT;
	assert_int_equal(dirty_harvest(f->tracker, NULL, NULL), -EFAULT);
	fake_free(f);
}

/* More than one CLEAR in a take, the second of which fails: all is back. */
static void test_bitmap_chunks(void **state)
{
	struct fake_kvm *f = fake_new(300 * MIB, 0);
	uint64_t pages = 300 * MIB / PAGE_4K;
	uint64_t *bits = calloc(BITMAP_WORDS(pages), 8);
	struct dirty_stats stats;

	begin(f);
	assert_int_equal(dirty_take(f->tracker, 0, 0, pages, bits), pages);
	assert_int_equal(f->clears, 3);
	dirty_stats_read(f->tracker, &stats);
	assert_int_equal(stats.pages_taken, pages);
	assert_int_equal(stats.clear_calls, 3);
	free(bits);
	fake_free(f);
}

static void check_unpublished(struct fake_kvm *f)
{
	for (unsigned int i = 0; i < WORDS; i++)
		assert_int_equal(atomic_load(&f->ram.regions[0].dirty_map[i]),
				 0);
	/* A store now goes unlogged, and must be in a copy made later. */
	assert_true(fake_store(f, 0, 0, 9, 77));
}

static void test_ring_resets_before_it_publishes(void **state)
{
	struct fake_kvm *f = new_method(true);
	uint64_t bits[WORDS];

	begin_and_take(f);
	fake_store(f, 0, 0, 9, 1);
	f->before_reset = check_unpublished;
	assert_int_equal(harvest(f), 1);
	f->before_reset = NULL;
	assert_int_equal(take_all(f, bits), 1);
	assert_int_equal(atomic_load(fake_word(f, 0, 9)), 77);
	assert_true(bitmap_test(f->slots[0].armed, 9));
	fake_free(f);
}

/* Signals cut resets short; a failure keeps the entries for the next time. */
static void test_ring_short_and_failed_resets(void **state)
{
	struct fake_kvm *f = new_method(true);
	uint64_t bits[WORDS];

	begin_and_take(f);
	f->resets = 0;
	for (uint64_t i = 0; i < 10; i++)
		fake_store(f, i % 2, 0, i, 1);
	f->reset_max = 3;
	assert_int_equal(harvest(f), 10);
	assert_int_equal(f->resets, 4);
	assert_int_equal(take_all(f, bits), 10);
	for (uint64_t i = 0; i < 10; i++)
		fake_store(f, i % 2, 0, i, 2);
	f->reset_max = -5; /* five calls without progress, then all */
	assert_int_equal(harvest(f), 10);
	assert_int_equal(take_all(f, bits), 10);
	fake_store(f, 0, 0, 50, 1);
	f->fail_reset = -EIO;
	assert_int_equal(dirty_harvest(f->tracker, NULL, NULL), -EIO);
	assert_int_equal(take_all(f, bits), 0);
	f->fail_reset = 0;
	fake_store(f, 1, 0, 51, 1);
	assert_int_equal(harvest(f), 2);
	assert_int_equal(take_all(f, bits), 2);
	f->reset_max = INT32_MIN; /* never again */
	fake_store(f, 0, 0, 52, 1);
	assert_int_equal(dirty_harvest(f->tracker, NULL, NULL), -EIO);
	assert_int_equal(take_all(f, bits), 0);
	fake_free(f);
}

static void test_ring_checks_entries(void **state)
{
	static const struct kvm_dirty_gfn bad[] = {
		{ .slot = 1, .offset = 0 },
		{ .slot = 1u << 16, .offset = 0 },
		{ .slot = 0, .offset = PAGES },
		{ .slot = 0, .offset = UINT64_MAX },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct fake_kvm *f = new_method(true);
		uint64_t bits[WORDS];

		begin_and_take(f);
		fake_store(f, 0, 0, 1, 1);
		f->rings[0][f->head[0]] = bad[i];
		f->rings[0][f->head[0]++].flags = KVM_DIRTY_GFN_F_DIRTY;
		fake_store(f, 0, 0, 2, 1);
		fake_store(f, 1, 0, 3, 1);
		assert_int_equal(dirty_harvest(f->tracker, NULL, NULL),
				 -EPROTO);
		/* Said, and the good ones are not lost by it. */
		assert_int_equal(take_all(f, bits), 3);
		assert_int_equal(bits[0], 0xe);
		fake_free(f);
	}
}

static void test_ring_full_and_around(void **state)
{
	struct fake_kvm *f = new_method(true);
	struct dirty_stats stats;
	uint64_t bits[WORDS], value = 0;
	unsigned int full = 0;

	begin_and_take(f);
	for (unsigned int lap = 0; lap < 5; lap++) {
		for (uint64_t page = 0; page < PAGES; page++) {
			while (!fake_store(f, 1, 0, page, ++value)) {
				assert_int_equal(dirty_ring_full(f->tracker, 1),
						 0);
				full++;
			}
		}
		harvest(f);
		assert_int_equal(take_all(f, bits), PAGES);
	}
	assert_true(full >= 5);
	dirty_stats_read(f->tracker, &stats);
	assert_int_equal(stats.ring_full, full);
	assert_int_equal(stats.pages_kvm, 5 * PAGES);
	fake_free(f);
}

/* More entries than are collected in one batch. */
static void test_ring_batches(void **state)
{
	struct fake_kvm *f = fake_new(160 * MIB, 65536);
	uint64_t pages = 160 * MIB / PAGE_4K;
	uint64_t *bits = calloc(BITMAP_WORDS(pages), 8);
	struct dirty_round round;

	begin(f);
	assert_int_equal(dirty_take(f->tracker, 0, 0, pages, bits), pages);
	for (uint64_t i = 0; i < pages; i++)
		assert_true(fake_store(f, i < 20000, 0, i, 1));
	assert_int_equal(dirty_final(f->tracker, &round, NULL), 0);
	assert_int_equal(round.pages, pages);
	assert_int_equal(dirty_take(f->tracker, 0, 0, pages, bits), pages);
	for (unsigned int i = 0; i < FAKE_RINGS; i++)
		assert_int_equal(f->tail[i], f->head[i]);
	free(bits);
	fake_free(f);
}

static void test_two_regions(void **state)
{
	for (int ring = 0; ring < 2; ring++) {
		struct fake_kvm *f = fake_new(GIB + SIZE, ring ? 64 : 0);
		uint64_t *bits = calloc(GIB / PAGE_4K / 64, 8);

		begin(f);
		assert_int_equal(f->ram.num_regions, 2);
		assert_int_equal(dirty_take(f->tracker, 0, 0, GIB / PAGE_4K,
					    bits),
				 GIB / PAGE_4K);
		assert_int_equal(dirty_take(f->tracker, 1, 0, PAGES, bits),
				 PAGES);
		fake_store(f, 0, 1, 77, 1);
		fake_vmm_store(f, 1, 78, 1);
		harvest(f);
		assert_int_equal(dirty_take(f->tracker, 1, 64, 64, bits), 2);
		assert_int_equal(bits[0], 3ull << 13);
		free(bits);
		fake_free(f);
	}
}

static void test_take_refuses(void **state)
{
	struct fake_kvm *f = new_method(false);
	uint64_t bits[WORDS];

	assert_int_equal(take_all(f, bits), -EINVAL); /* not started */
	assert_int_equal(dirty_harvest(f->tracker, NULL, NULL), -EINVAL);
	begin(f);
	assert_int_equal(dirty_take(f->tracker, 1, 0, 64, bits), -EINVAL);
	assert_int_equal(dirty_take(f->tracker, 0, 1, 64, bits), -EINVAL);
	assert_int_equal(dirty_take(f->tracker, 0, 0, 63, bits), -EINVAL);
	assert_int_equal(dirty_take(f->tracker, 0, 64, PAGES, bits), -EINVAL);
	assert_int_equal(dirty_take(f->tracker, 0, 128, UINT64_MAX - 63, bits),
			 -EINVAL);
	assert_int_equal(dirty_take(f->tracker, 0, 0, 0, bits), 0);
	assert_int_equal(dirty_take(f->tracker, 0, 192, PAGES - 192, bits),
			 PAGES - 192);
	fake_free(f);
}

/* Stopped and begun again: everything is dirty, old log entries are gone. */
static void test_restart(void **state)
{
	for (int ring = 0; ring < 2; ring++) {
		struct fake_kvm *f = new_method(ring);
		struct dirty_stats stats;

		begin_and_take(f);
		for (uint64_t i = 0; i < 64; i++)
			fake_store(f, 0, 0, i, 1);
		fake_vmm_store(f, 0, 100, 1);
		dirty_stop(f->tracker);
		assert_null(atomic_load(&f->ram.regions[0].dirty));
		assert_false(f->slots[0].logging);
		fake_vmm_store(f, 0, 101, 1); /* nobody is told */
		assert_int_equal(f->head[0], f->tail[0]);
		begin_and_take(f);
		fake_store(f, 0, 0, 10, 2);
		assert_int_equal(harvest(f), 1);
		dirty_stats_read(f->tracker, &stats);
		assert_int_equal(stats.starts, 2);
		assert_int_equal(stats.pages_initial, 2 * PAGES);
		assert_int_equal(stats.pages_vmm, 1);
		assert_int_equal(stats.pages_waiting, 1);
		assert_int_equal(stats.round_pages, 1);
		fake_free(f);
	}
}

static void *map_ahead_for_a_while(void *arg)
{
	struct fake_kvm *f = arg;

	usleep(50000);
	assert_false(f->slots[0].logging);
	ram_map_ahead_end(&f->ram);
	return NULL;
}

/* Nothing is mapped ahead once KVM logs; who has begun is waited for. */
static void test_start_waits_for_mapping_ahead(void **state)
{
	struct fake_kvm *f = new_method(true);
	pthread_t thread;

	assert_true(ram_map_ahead_begin(&f->ram));
	assert_int_equal(thread_start(&thread, &thread_class_tool, "ahead",
				      map_ahead_for_a_while, f),
			 0);
	begin(f);
	pthread_join(thread, NULL);
	assert_false(ram_map_ahead_begin(&f->ram));
	dirty_stop(f->tracker);
	assert_true(ram_map_ahead_begin(&f->ram));
	ram_map_ahead_end(&f->ram);
	fake_free(f);
}

static void test_failed_start(void **state)
{
	struct fake_kvm *f = fake_new(GIB + SIZE, 0);
	struct err err = ERR_INIT;

	f->fail_logging_at = 2;
	assert_int_equal(dirty_start(f->tracker, &f->ram, &err), -ENOMEM);
	assert_true(strlen(err.text) > 0);
	assert_false(f->slots[0].logging);
	assert_null(atomic_load(&f->ram.regions[0].dirty));
	f->fail_logging_at = 0;
	begin(f);
	fake_free(f);
}

static void test_bad_ring_sizes(void **state)
{
	static const uint32_t bad[] = { 1000, 4097,
					2 * DIRTY_RING_MAX_ENTRIES };

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct dirty_config cfg = {
			.method = DIRTY_RING,
			.ring_entries = bad[i],
			.kernel = &fake_kernel,
		};
		struct dirty_tracker *t = NULL;
		struct err err = ERR_INIT;

		assert_true(dirty_setup_vm(&t, NULL, &cfg, &err) < 0);
		assert_non_null(strstr(err.text, "entries"));
	}
}

static void test_next_run(void **state)
{
	uint64_t bits[3] = { 0xf000000000000006, 0x1, 1ull << 2 };
	static const uint64_t want[][2] = { { 1, 2 }, { 60, 5 }, { 130, 1 } };
	uint64_t at = 0, len;

	for (size_t i = 0; i < ARRAY_SIZE(want); i++, at += len) {
		assert_true(dirty_next_run(bits, 131, &at, &len));
		assert_int_equal(at, want[i][0]);
		assert_int_equal(len, want[i][1]);
	}
	assert_false(dirty_next_run(bits, 131, &at, &len));
	at = 65;
	assert_false(dirty_next_run(bits, 130, &at, &len));
	memset(bits, 0xff, sizeof(bits));
	at = 0;
	assert_true(dirty_next_run(bits, 130, &at, &len));
	assert_int_equal(len, 130); /* not beyond the end */
}

/* ---- all at once ---- */

struct storm {
	struct fake_kvm *f;
	_Atomic bool stop_writers, stop_takers;
	_Atomic uint64_t value; /* every store has one of its own */
	uint64_t copy[PAGES];	/* each half is one taker's */
	_Atomic bool failed;
};

struct storm_thread {
	struct storm *storm;
	unsigned int id;
	pthread_t thread;
};

static uint64_t rng(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void *storm_guest(void *arg)
{
	struct storm_thread *me = arg;
	struct storm *s = me->storm;
	uint64_t state = 11 + me->id;

	while (!atomic_load(&s->stop_writers)) {
		uint64_t page = rng(&state) % PAGES;
		uint64_t value = atomic_fetch_add(&s->value, 1);

		while (!fake_store(s->f, me->id, 0, page, value)) {
			if (dirty_ring_full(s->f->tracker, me->id))
				atomic_store(&s->failed, true);
		}
	}
	return NULL;
}

static void *storm_vmm(void *arg)
{
	struct storm_thread *me = arg;
	struct storm *s = me->storm;
	uint64_t state = 99 + me->id;

	while (!atomic_load(&s->stop_writers)) {
		fake_vmm_store(s->f, 0, rng(&state) % PAGES,
			       atomic_fetch_add(&s->value, 1));
		usleep(50); /* or the guest's stores would hardly count */
	}
	return NULL;
}

#define HALF 128

static void storm_take(struct storm *s, unsigned int half)
{
	uint64_t first = half * HALF, num = half ? PAGES - HALF : HALF;
	uint64_t bits[2], at = 0, len;

	if (dirty_take(s->f->tracker, 0, first, num, bits) < 0)
		atomic_store(&s->failed, true);
	for (; dirty_next_run(bits, num, &at, &len); at += len) {
		for (uint64_t i = at; i < at + len; i++)
			s->copy[first + i] = atomic_load_explicit(
				fake_word(s->f, 0, first + i),
				memory_order_relaxed);
	}
}

static void *storm_taker(void *arg)
{
	struct storm_thread *me = arg;

	while (!atomic_load(&me->storm->stop_takers))
		storm_take(me->storm, me->id);
	return NULL;
}

/* Threads 0, 1: vCPUs; 2, 3: the VMM's; 4, 5: takers. */
#define STORM_THREADS 6

#define STORM_PAGES  100 /* of each kind make a storm */
#define STORM_MAX_NS (60 * NSEC_PER_SEC)

/* Until end, or on a machine that does little meanwhile for longer. */
static bool storm_goes_on(const struct storm *s, uint64_t end)
{
	uint64_t now = clock_now_ns();
	struct dirty_stats stats;

	dirty_stats_read(s->f->tracker, &stats);
	if (s->f->late ||
	    (stats.pages_kvm > STORM_PAGES && stats.pages_vmm > STORM_PAGES))
		return now < end;
	return now < end + STORM_MAX_NS;
}

static void storm_run(struct storm *s, uint64_t ns)
{
	static void *(*const mains[])(void *) = { storm_guest, storm_vmm,
						  storm_taker };
	struct storm_thread threads[STORM_THREADS];
	uint64_t end = clock_now_ns() + ns;

	for (unsigned int i = 0; i < STORM_THREADS; i++) {
		threads[i] = (struct storm_thread){ .storm = s, .id = i % 2 };
		assert_int_equal(thread_start(&threads[i].thread,
					      &thread_class_tool, "storm",
					      mains[i / 2], &threads[i]),
				 0);
	}
	while (storm_goes_on(s, end))
		harvest(s->f);
	atomic_store(&s->stop_writers, true);
	for (unsigned int i = 0; i < 4; i++)
		pthread_join(threads[i].thread, NULL);
	atomic_store(&s->stop_takers, true);
	for (unsigned int i = 4; i < STORM_THREADS; i++)
		pthread_join(threads[i].thread, NULL);
	assert_int_equal(dirty_final(s->f->tracker, NULL, NULL), 0);
	storm_take(s, 0);
	storm_take(s, 1);
	assert_false(atomic_load(&s->failed));
}

/* How many pages differ from their last copy, in the end? */
static unsigned int storm_losses(bool ring, bool late, uint64_t ns)
{
	struct fake_kvm *f = fake_new(SIZE, ring ? 32 : 0);
	struct storm *s = calloc(1, sizeof(*s));
	struct dirty_stats stats;
	unsigned int lost = 0;

	s->f = f;
	atomic_store(&s->value, 1);
	f->late = late;
	begin(f);
	storm_run(s, ns);
	for (uint64_t i = 0; i < PAGES; i++)
		lost += s->copy[i] != atomic_load(fake_word(f, 0, i));
	dirty_stats_read(f->tracker, &stats);
	print_message("%s%s: %llu stores, %llu rounds, %llu pages by KVM, %llu "
		      "by the VMM, %llu taken, %llu full rings, %u lost\n",
		      ring ? "ring" : "bitmap", late ? ", too late" : "",
		      (unsigned long long)atomic_load(&s->value),
		      (unsigned long long)stats.rounds,
		      (unsigned long long)stats.pages_kvm,
		      (unsigned long long)stats.pages_vmm,
		      (unsigned long long)stats.pages_taken,
		      (unsigned long long)stats.ring_full, lost);
	/* A late one may be over sooner than that. */
	assert_true(late || (stats.pages_kvm > STORM_PAGES &&
			     stats.pages_vmm > STORM_PAGES));
	assert_int_equal(stats.pages_waiting, 0);
	free(s);
	fake_free(f);
	return lost;
}

static void test_storm_loses_nothing(void **state)
{
	assert_int_equal(storm_losses(false, false, NSEC_PER_SEC), 0);
	assert_int_equal(storm_losses(true, false, NSEC_PER_SEC), 0);
}

/* The storm can tell: arming after handing out loses pages. */
static void test_storm_notices_late_arming(void **state)
{
	for (int ring = 0; ring < 2; ring++) {
		unsigned int lost = 0;

		for (int i = 0; i < 100 && !lost; i++)
			lost = storm_losses(ring, true, NSEC_PER_SEC / 10);
		assert_true(lost > 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_policy),
		cmocka_unit_test(test_round),
		cmocka_unit_test(test_bitmap_store_between_get_and_clear),
		cmocka_unit_test(test_bitmap_clears_what_it_takes),
		cmocka_unit_test(test_bitmap_failed_clear),
		cmocka_unit_test(test_bitmap_chunks),
		cmocka_unit_test(test_ring_resets_before_it_publishes),
		cmocka_unit_test(test_ring_short_and_failed_resets),
		cmocka_unit_test(test_ring_checks_entries),
		cmocka_unit_test(test_ring_full_and_around),
		cmocka_unit_test(test_ring_batches),
		cmocka_unit_test(test_two_regions),
		cmocka_unit_test(test_take_refuses),
		cmocka_unit_test(test_restart),
		cmocka_unit_test(test_start_waits_for_mapping_ahead),
		cmocka_unit_test(test_failed_start),
		cmocka_unit_test(test_bad_ring_sizes),
		cmocka_unit_test(test_next_run),
		cmocka_unit_test(test_storm_loses_nothing),
		cmocka_unit_test(test_storm_notices_late_arming),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
