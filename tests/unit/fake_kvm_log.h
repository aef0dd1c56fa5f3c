/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model of what KVM does to log writes: pages are armed or not, stores to an
 * armed page are logged and disarm it. One lock makes each step atomic, as the
 * flush of all TLBs does for the real one. Pages are one word each, in the RAM
 * that the tracker under test is given.
 */
#ifndef QUIRE_TESTS_FAKE_KVM_LOG_H
#define QUIRE_TESTS_FAKE_KVM_LOG_H

#include "cmocka_all.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/bitmap.h"
#include "mem/dirty_priv.h"

#define FAKE_RINGS 2

struct fake_slot {
	bool logging;
	uint64_t *armed, *logged;
};

struct fake_kvm {
	struct ram ram;
	struct dirty_tracker *tracker;
	pthread_mutex_t lock;
	struct fake_slot slots[RAM_MAX_REGIONS];
	uint32_t ring_entries; /* 0: the bitmap */
	struct kvm_dirty_gfn *rings[FAKE_RINGS];
	uint32_t tail[FAKE_RINGS], head[FAKE_RINGS]; /* KVM's indices */

	/* What a test may ask for. */
	int fail_logging_at; /* slot + 1 */
	int fail_get, fail_clear, fail_reset;
	int reset_max; /* entries in one call, 0: all; <0: none, so often */
	/* Called, without the lock, before the call does its work. */
	void (*before_clear)(struct fake_kvm *f, uint64_t first, uint32_t num,
			     const uint64_t *bits);
	void (*before_reset)(struct fake_kvm *f);
	/* A KVM in the wrong order: arming is done by the next call. */
	bool late;
	uint32_t late_resets;
	unsigned int late_slot;
	uint64_t late_first, late_num;
	uint64_t *late_bits;

	unsigned int gets, clears, resets;
};

static inline uint64_t fake_pages(const struct fake_kvm *f, unsigned int slot)
{
	return ram_region_pages(&f->ram.regions[slot]);
}

static inline _Atomic uint64_t *fake_word(const struct fake_kvm *f,
					  unsigned int slot, uint64_t page)
{
	return (void *)(f->ram.base + f->ram.regions[slot].base.v +
			page * PAGE_4K);
}

static inline int fake_set_logging(void *ctx, const struct ram *ram,
				   const struct ram_region *region, bool on)
{
	struct fake_kvm *f = ctx;
	struct fake_slot *s = &f->slots[region->slot];
	uint64_t words = ram_region_words(region);

	if (on && f->fail_logging_at == (int)region->slot + 1)
		return -ENOMEM;
	pthread_mutex_lock(&f->lock);
	s->logging = on;
	for (uint64_t i = 0; on && i < words; i++) {
		/* INITIALLY_SET, or everything armed */
		s->armed[i] = f->ring_entries ? UINT64_MAX : 0;
		s->logged[i] = f->ring_entries ? 0 : UINT64_MAX;
	}
	pthread_mutex_unlock(&f->lock);
	return 0;
}

static inline int fake_get_log(void *ctx, unsigned int slot, uint64_t *bitmap)
{
	struct fake_kvm *f = ctx;
	uint64_t pages = fake_pages(f, slot);

	f->gets++;
	if (f->fail_get)
		return f->fail_get;
	pthread_mutex_lock(&f->lock);
	memcpy(bitmap, f->slots[slot].logged, BITMAP_WORDS(pages) * 8);
	pthread_mutex_unlock(&f->lock);
	if (pages % 64)
		bitmap[pages / 64] &= (1ull << (pages % 64)) - 1;
	return 0;
}

/* Lock held. */
static inline void fake_arm(struct fake_kvm *f, unsigned int slot,
			    uint64_t first, uint64_t num, const uint64_t *bits)
{
	struct fake_slot *s = &f->slots[slot];

	for (uint64_t i = 0; i < num; i++) {
		/* As KVM: only what is logged gets cleared and armed. */
		if (bitmap_test(bits, i) && bitmap_test(s->logged, first + i)) {
			bitmap_clear(s->logged, first + i);
			bitmap_set(s->armed, first + i);
		}
	}
}

static inline int fake_clear_log(void *ctx, unsigned int slot, uint64_t first,
				 uint32_t num, const uint64_t *bits)
{
	struct fake_kvm *f = ctx;
	uint64_t pages = fake_pages(f, slot);

	/* api.rst 4.117 */
	if (first % 64 || (num % 64 && first + num != pages) ||
	    !range_ok(first, num, pages))
		return -EINVAL;
	if (f->before_clear)
		f->before_clear(f, first, num, bits);
	if (f->fail_clear)
		return f->fail_clear;
	pthread_mutex_lock(&f->lock);
	f->clears++;
	if (!f->late) {
		fake_arm(f, slot, first, num, bits);
	} else {
		if (f->late_num)
			fake_arm(f, f->late_slot, f->late_first, f->late_num,
				 f->late_bits);
		f->late_slot = slot;
		f->late_first = first;
		f->late_num = num;
		memcpy(f->late_bits, bits, div_round_up(num, 64) * 8);
	}
	pthread_mutex_unlock(&f->lock);
	return 0;
}

/* Lock held. Arm what is harvested, at most max entries. */
static inline int fake_reset_some(struct fake_kvm *f, uint32_t max)
{
	uint32_t n = 0;

	for (unsigned int r = 0; r < FAKE_RINGS; r++) {
		while (n < max && f->tail[r] != f->head[r]) {
			struct kvm_dirty_gfn *gfn =
				&f->rings[r]
					 [f->tail[r] & (f->ring_entries - 1)];

			if (!(__atomic_load_n(&gfn->flags, __ATOMIC_ACQUIRE) &
			      KVM_DIRTY_GFN_F_RESET))
				break;
			/* A test may have put a bad entry there. */
			if (gfn->slot < f->ram.num_regions &&
			    gfn->offset < fake_pages(f, gfn->slot))
				bitmap_set(f->slots[gfn->slot].armed,
					   gfn->offset);
			__atomic_store_n(&gfn->flags, 0, __ATOMIC_RELEASE);
			f->tail[r]++;
			n++;
		}
	}
	return (int)n;
}

static inline uint32_t fake_harvested(const struct fake_kvm *f)
{
	uint32_t n = 0;

	for (unsigned int r = 0; r < FAKE_RINGS; r++)
		for (uint32_t i = f->tail[r]; i != f->head[r]; i++)
			n += __atomic_load_n(
				     &f->rings[r][i & (f->ring_entries - 1)]
					      .flags,
				     __ATOMIC_ACQUIRE) == KVM_DIRTY_GFN_F_RESET;
	return n;
}

static inline int fake_reset_rings(void *ctx)
{
	struct fake_kvm *f = ctx;
	int r;

	if (f->before_reset)
		f->before_reset(f);
	if (f->fail_reset)
		return f->fail_reset;
	pthread_mutex_lock(&f->lock);
	f->resets++;
	if (f->reset_max < 0) {
		f->reset_max++;
		r = 0;
	} else if (f->late) {
		uint32_t now = fake_harvested(f);

		r = (int)(now - f->late_resets);
		f->late_resets = now -
				 (uint32_t)fake_reset_some(f, f->late_resets);
	} else {
		r = fake_reset_some(f, f->reset_max ? (uint32_t)f->reset_max
						    : UINT32_MAX);
	}
	pthread_mutex_unlock(&f->lock);
	return r;
}

static const struct dirty_kernel fake_kernel = {
	.set_logging = fake_set_logging,
	.get_log = fake_get_log,
	.clear_log = fake_clear_log,
	.reset_rings = fake_reset_rings,
};

/* A store by the guest on vCPU `vcpu`. False: its ring is full, not done. */
static inline bool fake_store(struct fake_kvm *f, unsigned int vcpu,
			      unsigned int slot, uint64_t page, uint64_t value)
{
	struct fake_slot *s = &f->slots[slot];
	bool done = true;

	pthread_mutex_lock(&f->lock);
	if (s->logging && bitmap_test(s->armed, page)) {
		if (!f->ring_entries) {
			bitmap_set(s->logged, page);
		} else if (f->head[vcpu] - f->tail[vcpu] == f->ring_entries) {
			done = false;
			/* Late, but not never: the guest would hang. */
			f->late_resets -= (uint32_t)fake_reset_some(
				f, f->late_resets);
		} else {
			struct kvm_dirty_gfn *gfn =
				&f->rings[vcpu][f->head[vcpu]++ &
						(f->ring_entries - 1)];

			gfn->slot = slot;
			gfn->offset = page;
			__atomic_store_n(&gfn->flags, KVM_DIRTY_GFN_F_DIRTY,
					 __ATOMIC_RELEASE);
		}
		if (done)
			bitmap_clear(s->armed, page);
	}
	if (done)
		atomic_store_explicit(fake_word(f, slot, page), value,
				      memory_order_relaxed);
	pthread_mutex_unlock(&f->lock);
	return done;
}

/* A write by the VMM: through a pointer, marked afterwards. */
static inline void fake_vmm_store(struct fake_kvm *f, unsigned int slot,
				  uint64_t page, uint64_t value)
{
	uint64_t gpa = f->ram.regions[slot].base.v + page * PAGE_4K;

	atomic_store_explicit(fake_word(f, slot, page), value,
			      memory_order_relaxed);
	mem_mark_dirty(&f->ram, GPA(gpa), sizeof(value));
}

/* size bytes of RAM, of which 1 GiB below the hole. ring_entries 0: bitmap. */
static inline struct fake_kvm *fake_new(uint64_t size, uint32_t ring_entries)
{
	struct fake_kvm *f = calloc(1, sizeof(*f));
	struct ram_config rc = {
		.size_bytes = size,
		.hole_start = GIB,
		.hole_end = 4 * GIB,
		.page = RAM_PAGE_4K,
	};
	struct dirty_config cfg = {
		.method = ring_entries ? DIRTY_RING : DIRTY_BITMAP,
		.ring_entries = ring_entries,
		.kernel = &fake_kernel,
		.kernel_ctx = f,
	};
	struct err err = ERR_INIT;

	assert_int_equal(ram_init(&f->ram, &rc, &err), 0);
	pthread_mutex_init(&f->lock, NULL);
	f->ring_entries = ring_entries;
	assert_int_equal(dirty_setup_vm(&f->tracker, NULL, &cfg, &err), 0);
	for (unsigned int i = 0; i < f->ram.num_regions; i++) {
		uint64_t words = ram_region_words(&f->ram.regions[i]);

		f->slots[i].armed = calloc(words, 8);
		f->slots[i].logged = calloc(words, 8);
		f->late_bits = f->late_bits ?: calloc(words, 8);
	}
	for (unsigned int i = 0; ring_entries && i < FAKE_RINGS; i++) {
		f->rings[i] = calloc(ring_entries, sizeof(*f->rings[i]));
		assert_int_equal(dirty_ring_add(f->tracker, f->rings[i]), 0);
	}
	return f;
}

static inline void fake_free(struct fake_kvm *f)
{
	dirty_free(f->tracker);
	for (unsigned int i = 0; i < RAM_MAX_REGIONS; i++) {
		free(f->slots[i].armed);
		free(f->slots[i].logged);
	}
	for (unsigned int i = 0; i < FAKE_RINGS; i++)
		free(f->rings[i]);
	free(f->late_bits);
	pthread_mutex_destroy(&f->lock);
	ram_fini(&f->ram);
	free(f);
}

#endif
