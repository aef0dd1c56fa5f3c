/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation.
 *
 * Every page has a bit M in its region's map. KVM knows of each page whether
 * the next store of the guest is to be logged ("armed": the page is
 * write-protected or its D bit is clear) or was logged (K: its bit in KVM's
 * bitmap, or an entry in a ring) and is free to be written without notice.
 *
 * What has to hold: whenever a page is changed after its last copy was begun, M
 * is set, or K is and no copy begins before K reached M. Then the last copy,
 * made after the last round, has everything. Three rules suffice:
 *
 * (1) A page is armed before the copy that the arming is for. Arming ends with
 *     a flush of all TLBs, so stores that were not logged are in memory by
 *     then, and stores after it are logged.
 * (2) K is removed only by an arming whose page is then handed out.
 * (3) The VMM's own writers set M after the bytes (release), and consumers
 *     take M (acquire) before they read the page.
 *
 * The bitmap. harvest: M |= K, K stays. take: M is exchanged for 0, CLEAR of
 * exactly the taken bits (K = 0, armed), then the caller copies. (1) and (2)
 * hold: it is never cleared what is not taken. A store of the guest
 *
 * - between GET and CLEAR goes to a page that is not armed, without a new log;
 *   the copy that follows CLEAR has it. If CLEAR finds a page that GET did not
 *   report, because another writer's M was taken, likewise.
 * - between CLEAR and the copy, or during it, is logged: K, then M, and the
 *   page is taken again, whether or not this copy caught the store.
 *
 * A GET that runs beside take and CLEAR may see K just before CLEAR removes
 * it, and set M anew: the page is copied once more than needed. When CLEAR
 * fails, the bits are put back.
 *
 * Rings. harvest: collect entries, RESET (armed), M |= entries. take: M is
 * exchanged for 0. A store of the guest
 *
 * - between collecting and RESET is not logged; the copy follows RESET, since
 *   M is set after it, and has it. Were M set before, a consumer could take it
 *   and copy the page, then comes the store, then RESET: lost.
 * - between RESET and the copy is a new entry.
 *
 * If M was set by another writer, the page may be copied while its entry is
 * still in the ring: the entry is not gone, M is set by it later, (2).
 *
 * A write of the VMM, racing with all of it: before the take it is in the copy
 * by (3), whoever's bit the taker took; after it M is set again. CLEAR and
 * RESET have no part in it. For the kernel writing on our behalf (io_uring,
 * read(2) into guest memory), "after the bytes" means after the completion; a
 * copy in between may have half of it, and the mark brings the page back.
 *
 * Begin. All of M is set and published before KVM starts to log, and nothing
 * is taken before KVM does. With INITIALLY_SET all of K is set and nothing is
 * armed: the CLEAR of the first take does that. Otherwise KVM arms everything
 * when logging is switched on. Never both INITIALLY_SET and rings: KVM would
 * arm nothing, and no CLEAR would ever follow. Writers that found no map when
 * they looked are dealt with in ram_dirty_start().
 */
#include "mem/dirty.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/log.h"
#include "mem/dirty_priv.h"

const char *const dirty_method_names[3] = {
	[DIRTY_AUTO] = "auto",
	[DIRTY_BITMAP] = "bitmap",
	[DIRTY_RING] = "ring",
};

static const struct dirty_ops *const dirty_methods[] = {
	&dirty_bitmap_ops,
	&dirty_ring_ops,
};

/*
 * CLEAR holds the VM's slots_lock, and on x86 its mmu_lock for write, all the
 * while: 128 MiB at a time, so that faults of vCPUs get in between.
 */
#define CLEAR_PAGES 32768u

/* ---- the kernel's side ---- */

static int kvm_set_logging(void *ctx, const struct ram *ram,
			   const struct ram_region *region, bool on)
{
	return kvm_vm_set_slot(ctx, region->slot, region->base.v, region->size,
			       ram->base + region->base.v,
			       on ? KVM_MEM_LOG_DIRTY_PAGES : 0);
}

static int kvm_get_log(void *ctx, unsigned int slot, uint64_t *bitmap)
{
	return kvm_dirty_get_log(ctx, slot, bitmap);
}

static int kvm_clear_log(void *ctx, unsigned int slot, uint64_t first,
			 uint32_t num, const uint64_t *bitmap)
{
	return kvm_dirty_clear_log(ctx, slot, first, num, bitmap);
}

static int kvm_reset_rings(void *ctx)
{
	return kvm_dirty_reset_rings(ctx);
}

const struct dirty_kernel dirty_kernel_kvm = {
	.set_logging = kvm_set_logging,
	.get_log = kvm_get_log,
	.clear_log = kvm_clear_log,
	.reset_rings = kvm_reset_rings,
};

/* ---- choice and set-up ---- */

/*
 * What `quire bench dirty` shows (1 vCPU, 1 GiB, software KVM; in the lab under
 * a real second stage the ratios are alike): a round of the bitmap costs some 4
 * us per GiB for reading it, whoever wrote; an entry of a ring costs 45 ns more
 * than a bit (75 against 31) when neighbours follow each other, and more when
 * they do not, since KVM takes its lock anew for each. With a round in a second
 * rings are ahead below 90 dirty pages per GiB and second.
 *
 * They begin with a handicap: logging then arms every page at once, 14 ms per
 * GiB of 4K pages against less than 0.5 ms. It takes an hour of idle rounds to
 * earn that back, so for a single migration the bitmap is right whatever the
 * guest does; that is why somebody has to expect little before rings are taken.
 * Below 16 GiB a read of the bitmap takes less than 0.1 ms: not worth it.
 */
#define POLICY_RING_MIN_BYTES  (16 * GIB)
#define POLICY_READ_NS_PER_GIB 4000u
#define POLICY_ENTRY_NS	       45u

enum dirty_method dirty_policy(const struct kvm_dirty_offer *offer,
			       uint64_t memory_bytes, uint64_t pages_per_s)
{
	uint64_t ring_ns,
		bitmap_ns = memory_bytes / GIB * POLICY_READ_NS_PER_GIB;

	if (!offer->ring_cap)
		return DIRTY_BITMAP;
	if (!offer->bitmap)
		return DIRTY_RING;
	if (!pages_per_s || memory_bytes < POLICY_RING_MIN_BYTES)
		return DIRTY_BITMAP;
	return mul_u64(pages_per_s, POLICY_ENTRY_NS, &ring_ns) &&
			       ring_ns < bitmap_ns
		       ? DIRTY_RING
		       : DIRTY_BITMAP;
}

static const struct dirty_ops *find_ops(enum dirty_method method)
{
	for (size_t i = 0; i < ARRAY_SIZE(dirty_methods); i++) {
		if (dirty_methods[i]->method == method)
			return dirty_methods[i];
	}
	return NULL;
}

static int setup(struct dirty_tracker *t, const struct dirty_config *cfg,
		 struct err *err)
{
	struct kvm_dirty_offer offer = {
		.bitmap = true,
		.initially_set = true,
		.ring_cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
		.ring_max_entries = DIRTY_RING_MAX_ENTRIES,
	};
	enum dirty_method method = cfg->method;

	if (t->vm)
		kvm_dirty_probe(t->vm, &offer);
	if (method == DIRTY_AUTO)
		method = dirty_policy(&offer, cfg->memory_bytes,
				      cfg->pages_per_s);
	t->ops = find_ops(method);
	BUG_ON(!t->ops);
	return t->ops->setup(t, cfg, &offer, err);
}

int dirty_setup_vm(struct dirty_tracker **ret, const struct kvm_vm *vm,
		   const struct dirty_config *cfg, struct err *err)
{
	struct dirty_tracker *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return err_set(err, ENOMEM, "dirty tracking: out of memory");
	t->vm = vm;
	t->kernel = cfg->kernel ?: &dirty_kernel_kvm;
	t->kernel_ctx = cfg->kernel ? cfg->kernel_ctx : (void *)vm;
	pthread_mutex_init(&t->lock, NULL);
	ram_dirty_prepare();
	r = setup(t, cfg, err);
	if (r) {
		dirty_free(t);
		return r;
	}
	*ret = t;
	return 0;
}

int dirty_add_vcpu(struct dirty_tracker *t, const struct kvm_vcpu *vcpu,
		   struct err *err)
{
	return t->ops->add_vcpu ? t->ops->add_vcpu(t, vcpu, err) : 0;
}

void dirty_free(struct dirty_tracker *t)
{
	if (!t)
		return;
	t->ops->free(t);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

enum dirty_method dirty_method(const struct dirty_tracker *t)
{
	return t->ops->method;
}

uint32_t dirty_ring_entries(const struct dirty_tracker *t)
{
	return t->ring_entries;
}

/* ---- begin and end ---- */

static bool is_tracking(struct dirty_tracker *t)
{
	return atomic_load_explicit(&t->tracking, memory_order_acquire);
}

static uint64_t count_waiting(const struct ram *ram)
{
	uint64_t n = 0;

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		const struct ram_region *region = &ram->regions[i];
		uint64_t words = ram_region_words(region);

		for (uint64_t w = 0; w < words; w++)
			n += (uint64_t)__builtin_popcountll(
				atomic_load_explicit(&region->dirty_map[w],
						     memory_order_relaxed));
	}
	return n;
}

/* Switch logging off in the first num slots. */
static void logging_off(struct dirty_tracker *t, unsigned int num)
{
	for (unsigned int i = 0; i < num; i++) {
		int r = t->kernel->set_logging(t->kernel_ctx, t->ram,
					       &t->ram->regions[i], false);

		/* Then it goes on for nothing: slow, but not wrong. */
		if (r < 0)
			log_warn("KVM keeps logging writes to memory at %#llx: "
				 "%s",
				 (unsigned long long)t->ram->regions[i].base.v,
				 strerror(-r));
	}
}

static int logging_on(struct dirty_tracker *t, struct err *err)
{
	for (unsigned int i = 0; i < t->ram->num_regions; i++) {
		const struct ram_region *region = &t->ram->regions[i];
		int r = t->kernel->set_logging(t->kernel_ctx, t->ram, region,
					       true);

		if (r >= 0)
			continue;
		logging_off(t, i);
		return err_errno(err, -r,
				 "dirty tracking: switching it on for memory "
				 "at %#llx",
				 (unsigned long long)region->base.v);
	}
	return 0;
}

static int start_locked(struct dirty_tracker *t, struct ram *ram,
			struct err *err)
{
	uint64_t began = clock_now_ns();
	int r;

	t->ram = ram;
	r = t->ops->prepare ? t->ops->prepare(t) : 0;
	if (r)
		return err_errno(err, -r, "dirty tracking");
	r = ram_dirty_start(ram, err);
	if (!r)
		r = logging_on(t, err);
	if (r) {
		ram_dirty_stop(ram);
		t->ops->finish(t);
		return r;
	}
	atomic_store(&t->start_ns, clock_now_ns() - began);
	dirty_count(&t->starts, 1);
	dirty_count(&t->pages_initial, ram_size(ram) / PAGE_4K);
	atomic_store_explicit(&t->tracking, true, memory_order_release);
	return 0;
}

int dirty_start(struct dirty_tracker *t, struct ram *ram, struct err *err)
{
	int r;

	BUG_ON(is_tracking(t));
	pthread_mutex_lock(&t->lock);
	r = start_locked(t, ram, err);
	pthread_mutex_unlock(&t->lock);
	return r;
}

void dirty_stop(struct dirty_tracker *t)
{
	if (!is_tracking(t))
		return;
	pthread_mutex_lock(&t->lock);
	atomic_store_explicit(&t->tracking, false, memory_order_release);
	logging_off(t, t->ram->num_regions);
	t->ops->finish(t);
	ram_dirty_stop(t->ram);
	dirty_count(&t->pages_dropped, count_waiting(t->ram));
	pthread_mutex_unlock(&t->lock);
}

/* ---- rounds ---- */

static int round_locked(struct dirty_tracker *t, bool last,
			struct dirty_round *ret, struct err *err)
{
	uint64_t began = clock_now_ns(), calls, now;
	int r;

	do {
		calls = atomic_load(&t->clear_calls);
		r = t->ops->harvest(t);
		/* Rings: one that was full to its last entry may have more. */
	} while (!r && last && t->ops->make_room &&
		 calls != atomic_load(&t->clear_calls));
	if (r)
		return err_errno(err, -r, "dirty tracking: reading KVM's log");
	now = atomic_load(&t->pages_kvm);
	*ret = (struct dirty_round){
		.pages = now - t->round_base,
		.ns = clock_now_ns() - began,
	};
	t->round_base = now;
	dirty_count(&t->rounds, 1);
	atomic_store(&t->round_pages, ret->pages);
	return 0;
}

static int do_round(struct dirty_tracker *t, bool last, struct dirty_round *ret,
		    struct err *err)
{
	struct dirty_round round = { 0 };
	int r;

	pthread_mutex_lock(&t->lock);
	if (is_tracking(t))
		r = round_locked(t, last, &round, err);
	else
		r = err_set(err, EINVAL, "dirty tracking is off");
	pthread_mutex_unlock(&t->lock);
	if (ret)
		*ret = round;
	return r;
}

int dirty_harvest(struct dirty_tracker *t, struct dirty_round *ret,
		  struct err *err)
{
	return do_round(t, false, ret, err);
}

int dirty_final(struct dirty_tracker *t, struct dirty_round *ret,
		struct err *err)
{
	return do_round(t, true, ret, err);
}

int dirty_ring_full(struct dirty_tracker *t, unsigned int i)
{
	int r;

	if (!t->ops->make_room)
		return -EINVAL;
	dirty_count(&t->ring_full, 1);
	pthread_mutex_lock(&t->lock);
	/* No memory was ever tracked: then KVM has nothing to fill a ring. */
	r = t->ram ? t->ops->make_room(t, i) : -EINVAL;
	pthread_mutex_unlock(&t->lock);
	return r;
}

uint64_t dirty_vcpu_entries(struct dirty_tracker *t, unsigned int i)
{
	uint64_t num = 0;

	pthread_mutex_lock(&t->lock);
	if (t->ops->count_entries)
		num = t->ops->count_entries(t, i);
	pthread_mutex_unlock(&t->lock);
	return num;
}

/* ---- taking ---- */

static void put_back(const struct ram_region *region, uint64_t first_word,
		     uint64_t num_words, const uint64_t *bits)
{
	for (uint64_t i = 0; i < num_words; i++) {
		if (bits[i])
			dirty_publish(region, first_word + i, bits[i]);
	}
}

/* Returns how many pages; *from and *to bound the words that have any. */
static uint64_t take_words(const struct ram_region *region, uint64_t first_word,
			   uint64_t num_words, uint64_t *bits, uint64_t *from,
			   uint64_t *to)
{
	uint64_t pages = 0;

	*from = num_words;
	*to = 0;
	for (uint64_t i = 0; i < num_words; i++) {
		_Atomic uint64_t *word = &region->dirty_map[first_word + i];

		/* A bit set just now is taken next time: no need to lock. */
		bits[i] = 0;
		if (!atomic_load_explicit(word, memory_order_relaxed))
			continue;
		/* Acquire: the bytes that the bits stand for. */
		bits[i] = atomic_exchange_explicit(word, 0,
						   memory_order_acquire);
		if (!bits[i])
			continue;
		*from = MIN(*from, i);
		*to = i + 1;
		pages += (uint64_t)__builtin_popcountll(bits[i]);
	}
	return pages;
}

/* At most CLEAR_PAGES pages; otherwise as dirty_take(). */
static int64_t take_chunk(struct dirty_tracker *t,
			  const struct ram_region *region, uint64_t first,
			  uint64_t num, uint64_t *bits)
{
	uint64_t words = div_round_up(num, 64), from, to, pages, first_page;
	int r;

	pages = take_words(region, first / 64, words, bits, &from, &to);
	if (!pages || !t->ops->protect)
		return (int64_t)pages;
	first_page = first + from * 64;
	r = t->ops->protect(
		t, region, first_page,
		(uint32_t)(MIN(first + to * 64, first + num) - first_page),
		bits + from);
	if (r >= 0)
		return (int64_t)pages;
	put_back(region, first / 64, words, bits);
	return r;
}

int64_t dirty_take(struct dirty_tracker *t, unsigned int index, uint64_t first,
		   uint64_t num, uint64_t *bits)
{
	const struct ram_region *region;
	uint64_t end, total = 0, at;
	int64_t n;

	if (!is_tracking(t) || index >= t->ram->num_regions)
		return -EINVAL;
	region = &t->ram->regions[index];
	end = ram_region_pages(region);
	if (!range_ok(first, num, end) || first % 64 ||
	    (num % 64 && first + num != end))
		return -EINVAL;
	for (at = 0; at < num; at += CLEAR_PAGES) {
		n = take_chunk(t, region, first + at,
			       MIN(num - at, (uint64_t)CLEAR_PAGES),
			       bits + at / 64);
		if (n < 0) {
			put_back(region, first / 64, at / 64, bits);
			return n;
		}
		total += (uint64_t)n;
	}
	dirty_count(&t->pages_taken, total);
	return (int64_t)total;
}

/* The first bit at or after `at` that is as wanted, or num_bits. */
static uint64_t find_bit(const uint64_t *bits, uint64_t num_bits, uint64_t at,
			 bool wanted)
{
	while (at < num_bits) {
		uint64_t word = wanted ? bits[at / 64] : ~bits[at / 64];

		word >>= at % 64;
		if (word)
			return MIN(at + (uint64_t)__builtin_ctzll(word),
				   num_bits);
		at = align_down(at, 64) + 64;
	}
	return num_bits;
}

bool dirty_next_run(const uint64_t *bits, uint64_t num_bits, uint64_t *at,
		    uint64_t *len)
{
	*at = find_bit(bits, num_bits, *at, true);
	if (*at == num_bits)
		return false;
	*len = find_bit(bits, num_bits, *at, false) - *at;
	return true;
}

void dirty_stats_read(struct dirty_tracker *t, struct dirty_stats *ret)
{
	uint64_t known, gone;

	*ret = (struct dirty_stats){
		.tracking = is_tracking(t),
		.starts = atomic_load(&t->starts),
		.start_ns = atomic_load(&t->start_ns),
		.rounds = atomic_load(&t->rounds),
		.round_pages = atomic_load(&t->round_pages),
		.pages_initial = atomic_load(&t->pages_initial),
		.pages_kvm = atomic_load(&t->pages_kvm),
		.pages_taken = atomic_load(&t->pages_taken),
		.ring_full = atomic_load(&t->ring_full),
		.log_calls = atomic_load(&t->log_calls),
		.log_ns = atomic_load(&t->log_ns),
		.clear_calls = atomic_load(&t->clear_calls),
		.clear_ns = atomic_load(&t->clear_ns),
	};
	if (ret->tracking)
		ret->pages_waiting = count_waiting(t->ram);
	gone = ret->pages_taken + ret->pages_waiting +
	       atomic_load(&t->pages_dropped);
	known = ret->pages_initial + ret->pages_kvm;
	ret->pages_vmm = gone > known ? gone - known : 0;
}
