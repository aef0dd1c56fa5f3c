/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM's dirty bitmap, cleared by hand. GET only copies KVM's bitmap, for all of
 * a slot at once; CLEAR removes bits from it and write-protects their pages
 * (or clears their D bits), in chunks, as consumers come to them.
 *
 * The bitmap starts with all ones where the kernel can do that: then nothing
 * is protected, and no large page split, when tracking begins. That is done
 * by the first CLEAR of each page, and its cost spread over the first round.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "mem/dirty_priv.h"

struct bitmap_state {
	uint64_t *copy; /* of a slot's bitmap, while harvesting */
};

static int bitmap_setup(struct dirty_tracker *t, const struct dirty_config *cfg,
			const struct kvm_dirty_offer *offer, struct err *err)
{
	uint64_t flags = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
	int r;

	if (!offer->bitmap)
		return err_set(err, ENOTSUP,
			       "dirty tracking: this KVM has no dirty bitmap "
			       "that is cleared by hand (Linux 5.2 has)");
	if (offer->initially_set)
		flags |= KVM_DIRTY_LOG_INITIALLY_SET;
	t->state = calloc(1, sizeof(struct bitmap_state));
	if (!t->state)
		return err_set(err, ENOMEM, "dirty tracking: out of memory");
	r = t->vm ? kvm_vm_enable_cap(t->vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
				      flags, 0)
		  : 0;
	return r < 0 ? err_errno(err, -r, "enabling KVM's dirty bitmap") : 0;
}

static void bitmap_free(struct dirty_tracker *t)
{
	struct bitmap_state *s = t->state;

	if (s)
		free(s->copy);
	free(s);
}

static int bitmap_prepare(struct dirty_tracker *t)
{
	struct bitmap_state *s = t->state;
	uint64_t words = 1;

	for (unsigned int i = 0; i < t->ram->num_regions; i++)
		words = MAX(words, ram_region_words(&t->ram->regions[i]));
	free(s->copy);
	/* Not zeroed: GET writes all of it, and touching it here is time. */
	s->copy = malloc(words * sizeof(uint64_t));
	return s->copy ? 0 : -ENOMEM;
}

static void bitmap_finish(struct dirty_tracker *t)
{
	struct bitmap_state *s = t->state;

	free(take_ptr(s->copy));
}

static uint64_t publish_copy(const struct ram_region *region,
			     const uint64_t *copy)
{
	uint64_t words = ram_region_words(region), new = 0;

	for (uint64_t i = 0; i < words; i++) {
		if (copy[i])
			new += dirty_publish(region, i, copy[i]);
	}
	return new;
}

static int bitmap_harvest(struct dirty_tracker *t)
{
	struct bitmap_state *s = t->state;

	for (unsigned int i = 0; i < t->ram->num_regions; i++) {
		const struct ram_region *region = &t->ram->regions[i];
		uint64_t began = clock_now_ns();
		int r = t->kernel->get_log(t->kernel_ctx, region->slot,
					   s->copy);

		dirty_count(&t->log_calls, 1);
		dirty_count(&t->log_ns, clock_now_ns() - began);
		if (r < 0)
			return r;
		dirty_count(&t->pages_kvm, publish_copy(region, s->copy));
	}
	return 0;
}

static int bitmap_protect(struct dirty_tracker *t,
			  const struct ram_region *region, uint64_t first,
			  uint32_t num, const uint64_t *bits)
{
	uint64_t began = clock_now_ns();
	int r = t->kernel->clear_log(t->kernel_ctx, region->slot, first, num,
				     bits);

	dirty_count(&t->clear_calls, 1);
	dirty_count(&t->clear_ns, clock_now_ns() - began);
	return r;
}

const struct dirty_ops dirty_bitmap_ops = {
	.method = DIRTY_BITMAP,
	.setup = bitmap_setup,
	.free = bitmap_free,
	.prepare = bitmap_prepare,
	.finish = bitmap_finish,
	.harvest = bitmap_harvest,
	.protect = bitmap_protect,
};
