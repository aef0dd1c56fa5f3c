/* SPDX-License-Identifier: Apache-2.0 */
/*
 * KVM's dirty rings: one for each vCPU, an entry for each page it made dirty.
 *
 * An entry is empty (flags 0), dirty (KVM wrote it), harvested (we did), and
 * after KVM_RESET_DIRTY_RINGS empty again, with its page protected once more.
 * KVM goes through a ring in order and stops at the first entry that is not
 * harvested, so ours is a plain index. The lock makes one thread at a time
 * collect, reset and publish: always in this order, see dirty.c.
 *
 * Entries are collected in batches of bounded size into memory of our own. They
 * stay there until they are reset, even if that fails, and only then reach the
 * regions' maps.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "mem/dirty_priv.h"

#define BATCH 16384u

/*
 * A reset that a signal cuts short makes no progress when the signal came
 * first. As the signal is handled each time the call returns, this many in a
 * row mean something else.
 */
#define RESET_TRIES 1000u

struct ring {
	struct kvm_dirty_gfn *gfns;
	uint32_t next;	  /* index of the next entry; runs freely */
	uint64_t entries; /* that were taken */
	bool mapped;
};

struct entry {
	uint32_t region, page;
};

struct ring_state {
	uint32_t size; /* entries of each ring, a power of two */
	struct ring *rings;
	unsigned int num_rings;
	struct entry *batch;
	uint32_t num_batch;
	uint32_t unreset; /* entries marked as harvested, not reset yet */
};

static int check_size(uint32_t size, const struct kvm_dirty_offer *offer,
		      struct err *err)
{
	if (!offer->ring_cap)
		return err_set(err, ENOTSUP,
			       "dirty tracking: this KVM has no dirty rings "
			       "(Linux 5.11 has)");
	if (!is_pow2(size))
		return err_set(err, EINVAL,
			       "dirty tracking: a ring of %u entries; it must "
			       "be a power of two",
			       size);
	if (size > offer->ring_max_entries)
		return err_set(err, ENOTSUP,
			       "dirty tracking: a ring of %u entries; this KVM "
			       "allows %u",
			       size, offer->ring_max_entries);
	return 0;
}

static int ring_setup(struct dirty_tracker *t, const struct dirty_config *cfg,
		      const struct kvm_dirty_offer *offer, struct err *err)
{
	uint32_t size = cfg->ring_entries
				?: MIN(DIRTY_RING_DEFAULT_ENTRIES,
				       offer->ring_max_entries);
	struct ring_state *s;
	int r = check_size(size, offer, err);

	if (r)
		return r;
	s = calloc(1, sizeof(*s));
	t->state = s;
	if (s)
		s->batch = calloc(BATCH, sizeof(*s->batch));
	if (!s || !s->batch)
		return err_set(err, ENOMEM, "dirty tracking: out of memory");
	s->size = t->ring_entries = size;
	r = t->vm ? kvm_vm_enable_cap(t->vm, offer->ring_cap,
				      size * sizeof(struct kvm_dirty_gfn), 0)
		  : 0;
	return r < 0 ? err_errno(err, -r,
				 "dirty tracking: a ring of %u entries for "
				 "each vCPU",
				 size)
		     : 0;
}

static void ring_free(struct dirty_tracker *t)
{
	struct ring_state *s = t->state;

	if (!s)
		return;
	for (unsigned int i = 0; i < s->num_rings; i++) {
		if (s->rings[i].mapped)
			kvm_dirty_unmap_ring(s->rings[i].gfns, s->size);
	}
	free(s->rings);
	free(s->batch);
	free(s);
}

int dirty_ring_add(struct dirty_tracker *t, struct kvm_dirty_gfn *ring)
{
	struct ring_state *s = t->state;
	struct ring *rings = reallocarray(s->rings, s->num_rings + 1,
					  sizeof(*rings));

	if (!rings)
		return -ENOMEM;
	s->rings = rings;
	rings[s->num_rings++] = (struct ring){ .gfns = ring };
	return 0;
}

static int ring_add_vcpu(struct dirty_tracker *t, const struct kvm_vcpu *vcpu,
			 struct err *err)
{
	struct ring_state *s = t->state;
	struct kvm_dirty_gfn *gfns;
	int r = kvm_dirty_map_ring(vcpu, s->size, &gfns, err);

	if (r)
		return r;
	if (dirty_ring_add(t, gfns)) {
		kvm_dirty_unmap_ring(gfns, s->size);
		return err_set(err, ENOMEM, "dirty tracking: out of memory");
	}
	s->rings[s->num_rings - 1].mapped = true;
	return 0;
}

/* The one check of what the kernel says: a page of a slot that we made. */
static int entry_check(const struct ram *ram, uint32_t slot, uint64_t page,
		       struct entry *ret)
{
	for (unsigned int i = 0; i < ram->num_regions; i++) {
		const struct ram_region *region = &ram->regions[i];

		if (region->slot == slot && page < ram_region_pages(region)) {
			*ret = (struct entry){ i, (uint32_t)page };
			return 0;
		}
	}
	return -EPROTO;
}

/*
 * Move up to max entries of one ring to the batch. Returns how many, or
 * -EPROTO; the bad entry is out of the way then.
 */
static int64_t collect(struct dirty_tracker *t, struct ring *ring, uint32_t max)
{
	struct ring_state *s = t->state;
	uint32_t n = 0;

	while (n < max && s->num_batch < BATCH) {
		struct kvm_dirty_gfn *gfn =
			&ring->gfns[ring->next & (s->size - 1)];
		uint32_t slot;
		uint64_t page;

		/* Acquire: slot and offset were there before the flag. */
		if ((__atomic_load_n(&gfn->flags, __ATOMIC_ACQUIRE) &
		     KVM_DIRTY_GFN_F_MASK) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		slot = gfn->slot;
		page = gfn->offset;
		/* Release: KVM may write the entry anew only after that. */
		__atomic_store_n(&gfn->flags, KVM_DIRTY_GFN_F_RESET,
				 __ATOMIC_RELEASE);
		ring->next++;
		ring->entries++;
		s->unreset++;
		n++;
		if (entry_check(t->ram, slot, page, &s->batch[s->num_batch]))
			return -EPROTO;
		s->num_batch++;
	}
	return n;
}

/* Returns when every harvested entry is reset. */
static int reset(struct dirty_tracker *t)
{
	struct ring_state *s = t->state;
	uint64_t began = clock_now_ns();
	unsigned int tries = 0;
	int r = 0;

	while (s->unreset && tries < RESET_TRIES) {
		r = t->kernel->reset_rings(t->kernel_ctx);
		dirty_count(&t->clear_calls, 1);
		if (r < 0)
			break;
		tries = r ? 0 : tries + 1;
		s->unreset -= MIN((uint32_t)r, s->unreset);
	}
	dirty_count(&t->clear_ns, clock_now_ns() - began);
	if (r < 0)
		return r;
	return s->unreset ? -EIO : 0;
}

static void publish(struct dirty_tracker *t)
{
	struct ring_state *s = t->state;
	uint64_t new = 0;

	for (uint32_t i = 0; i < s->num_batch; i++) {
		const struct entry *e = &s->batch[i];

		new += dirty_publish(&t->ram->regions[e->region], e->page / 64,
				     1ull << (e->page % 64));
	}
	s->num_batch = 0;
	dirty_count(&t->pages_kvm, new);
}

/*
 * Fill the batch from num rings, starting where *i says with *left entries to
 * go. 0, or -EPROTO if an entry was bad; the others are there all the same.
 */
static int fill_batch(struct dirty_tracker *t, struct ring *rings,
		      unsigned int num, unsigned int *i, uint32_t *left)
{
	struct ring_state *s = t->state;
	uint64_t began = clock_now_ns();
	int bad = 0;

	while (*i < num && s->num_batch < BATCH) {
		int64_t n = collect(t, &rings[*i], *left);

		if (n < 0) {
			bad = (int)n;
			continue;
		}
		*left -= (uint32_t)n;
		if (*left && s->num_batch == BATCH)
			break; /* this ring may have more */
		(*i)++;
		*left = s->size;
	}
	dirty_count(&t->log_calls, 1);
	dirty_count(&t->log_ns, clock_now_ns() - began);
	return bad;
}

/*
 * Empty num rings. What is added meanwhile is for the next time, so that fast
 * writers cannot keep us here: a ring's size is the most that is taken of each.
 */
static int empty(struct dirty_tracker *t, struct ring *rings, unsigned int num)
{
	struct ring_state *s = t->state;
	uint32_t left = s->size;
	unsigned int i = 0;
	int bad = 0, r;

	while (i < num || s->num_batch || s->unreset) {
		r = fill_batch(t, rings, num, &i, &left);
		if (r)
			bad = r;
		r = reset(t);
		if (r)
			return r;
		publish(t);
	}
	return bad;
}

static int ring_harvest(struct dirty_tracker *t)
{
	struct ring_state *s = t->state;

	return empty(t, s->rings, s->num_rings);
}

static int ring_make_room(struct dirty_tracker *t, unsigned int i)
{
	struct ring_state *s = t->state;

	BUG_ON(i >= s->num_rings);
	return empty(t, &s->rings[i], 1);
}

/*
 * What is still in the rings is of no interest, but a vCPU would find them full
 * when tracking begins again.
 */
static void ring_finish(struct dirty_tracker *t)
{
	int r = ring_harvest(t);

	(void)r; /* what a failure leaves is tried again by the next harvest */
}

static uint64_t ring_count_entries(const struct dirty_tracker *t,
				   unsigned int i)
{
	const struct ring_state *s = t->state;

	return i < s->num_rings ? s->rings[i].entries : 0;
}

const struct dirty_ops dirty_ring_ops = {
	.method = DIRTY_RING,
	.setup = ring_setup,
	.free = ring_free,
	.add_vcpu = ring_add_vcpu,
	.finish = ring_finish,
	.harvest = ring_harvest,
	.make_room = ring_make_room,
	.count_entries = ring_count_entries,
};
