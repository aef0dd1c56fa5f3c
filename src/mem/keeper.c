/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/keeper.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/arith.h"
#include "base/bitmap.h"
#include "base/clock.h"
#include "base/cond.h"
#include "base/log.h"
#include "base/thread.h"
#include "kvm/stats.h"
#include "mem/coverage.h"
#include "mem/pagemap.h"
#include "mem/pagemap_scan.h"

#ifndef MADV_COLLAPSE /* Linux 6.1 */
#define MADV_COLLAPSE 25
#endif

/*
 * Theory of operation. For each kind of work one bit per 2 MiB of the
 * guest-physical span says "to do". The thread takes the first run of bits,
 * clears them and works on that range; what is asked for meanwhile sets bits
 * again and is done later. So a request costs a few stores, any number of them
 * needs no more memory, and none is lost.
 *
 * The watch compares what the second stage maps with what it mapped after the
 * last own work, and takes the new count as the measure after a repair: if the
 * host pages themselves went (a balloon), nothing can be mapped again, and that
 * is not to be tried every second.
 *
 * What is zapped behind a pass while it goes on would so be taken for the
 * measure. Therefore the pass adds up what it mapped; if the second stage has
 * less than that at its end, there is another one, up to MAX_REPEATS times: a
 * host that zaps for ever is not to be run after. What is asked for again while
 * the pass goes on is done again and added up once.
 */
#define UNIT_BYTES  PAGE_2M
#define MAX_REPEATS 8

/* In one go: progress of other kinds, and of a stop, waits for it. */
#define RUN_MAX_UNITS 128

#define WATCH_NS  NSEC_PER_SEC
#define LOGGED_NS NSEC_PER_SEC

/* A unit of which the guest uses little is not worth 2 MiB of the host. */
#define COALESCE_MIN_PRESENT (UNIT_BYTES / 2)

const char *const keeper_work_names[KEEPER_NUM_WORKS] = {
	[KEEPER_REPAIR] = "repair",
	[KEEPER_POPULATE] = "populate",
	[KEEPER_COALESCE] = "coalesce",
};

struct keeper {
	struct keeper_config cfg;
	uint64_t num_units;
	struct kvm_stats *vm_stats; /* the thread's */
	uint64_t covered_bytes;	    /* the thread's; see the theory */
	/* The thread's: mapped by each kind of work since it last had none. */
	uint64_t pass_bytes[KEEPER_NUM_WORKS];
	unsigned int repeats; /* the thread's: passes since all was well */
	pthread_t thread;
	bool started;
	_Atomic bool stop;

	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed;
	uint64_t *todo[KEEPER_NUM_WORKS];
	uint64_t *done[KEEPER_NUM_WORKS];    /* of the pass that goes on */
	uint64_t num_todo[KEEPER_NUM_WORKS]; /* bits set */
	uint64_t coalesce_at_ns;	     /* the next pass over all RAM */
	bool busy;
	enum keeper_work busy_with;
	struct keeper_stats stats;
};

struct piece {
	enum keeper_work work;
	struct gpa gpa;
	uint64_t len;
	bool again; /* all of it was done before in this pass */
};

/* ---- the list of work; lock held ---- */

static void add_units(struct keeper *k, enum keeper_work work, uint64_t from,
		      uint64_t to)
{
	for (uint64_t i = from; i < to; i++) {
		if (bitmap_test(k->todo[work], i))
			continue;
		bitmap_set(k->todo[work], i);
		k->num_todo[work]++;
	}
}

static uint64_t first_unit(const uint64_t *map, uint64_t num)
{
	for (uint64_t w = 0; w < BITMAP_WORDS(num); w++) {
		if (map[w])
			return w * 64 + (uint64_t)__builtin_ctzll(map[w]);
	}
	return num;
}

static bool take_piece(struct keeper *k, struct piece *ret)
{
	for (unsigned int w = 0; w < KEEPER_NUM_WORKS; w++) {
		uint64_t first, end;
		bool again;

		if (!k->num_todo[w])
			continue;
		first = first_unit(k->todo[w], k->num_units);
		again = bitmap_test(k->done[w], first);
		end = first;
		while (end < k->num_units && end - first < RUN_MAX_UNITS &&
		       bitmap_test(k->todo[w], end) &&
		       bitmap_test(k->done[w], end) == again) {
			bitmap_clear(k->todo[w], end++);
			k->num_todo[w]--;
		}
		*ret = (struct piece){ .work = (enum keeper_work)w,
				       .gpa = GPA(first * UNIT_BYTES),
				       .len = (end - first) * UNIT_BYTES,
				       .again = again };
		return true;
	}
	return false;
}

static bool has_work(const struct keeper *k)
{
	for (unsigned int w = 0; w < KEEPER_NUM_WORKS; w++) {
		if (k->num_todo[w])
			return true;
	}
	return false;
}

/* Until it changes, or ns went by. */
static void wait_changed(struct keeper *k, uint64_t ns)
{
	(void)cond_wait_until(&k->changed, &k->lock, clock_now_ns() + ns);
}

/* ---- the work itself; on the thread, no lock held ---- */

static bool stop_poll(void *ctx, const struct populate_progress *progress)
{
	struct keeper *k = ctx;

	return atomic_load(&k->stop);
}

static int fill(struct keeper *k, const struct piece *piece, bool host,
		struct err *err)
{
	struct populate_result result = { 0 };
	const struct populate_watch watch = { .poll = stop_poll, .ctx = k };
	const struct populate_request req = {
		.gpa = piece->gpa,
		.len = piece->len,
		.host = host,
		.second_stage = k->cfg.second_stage,
		.present_only = !host,
		.threads = k->cfg.threads,
		.rate_bytes_per_s = k->cfg.rate_bytes_per_s,
		.watch = &watch,
	};
	int r = populate_run(k->cfg.ram, &req, &result, err);

	/* Busy: it comes again, whole. */
	if (r != -EBUSY && !piece->again)
		k->pass_bytes[piece->work] += result.second_stage_bytes;
	return r;
}

static bool in_region(const struct ram *ram, uint64_t gpa)
{
	for (unsigned int i = 0; i < ram->num_regions; i++) {
		const struct ram_region *region = &ram->regions[i];

		if (gpa >= region->base.v &&
		    gpa + UNIT_BYTES <= region->base.v + region->size)
			return true;
	}
	return false;
}

static void hold_rate(struct keeper *k, uint64_t began_ns, uint64_t bytes)
{
	uint64_t rate = k->cfg.rate_bytes_per_s, due, now;

	if (!rate)
		return;
	due = began_ns + (uint64_t)((double)bytes / (double)rate * 1e9);
	pthread_mutex_lock(&k->lock);
	while (!atomic_load(&k->stop) && (now = clock_now_ns()) < due)
		wait_changed(k, due - now);
	pthread_mutex_unlock(&k->lock);
}

static void count_unit(struct keeper *k, uint64_t *counter)
{
	pthread_mutex_lock(&k->lock);
	(*counter)++;
	pthread_mutex_unlock(&k->lock);
}

/*
 * What is large already is left alone, where the kernel can tell; a collapse of
 * it would do nothing, but the second stage would be gone over again in each
 * pass.
 *
 * The unit becomes MADV_HUGEPAGE: on a host where THP is "madvise" the kernel
 * refuses others, and it would undo the work where 4K is advised. Collapsing
 * maps the page anew and so zaps the second stage: fill it after.
 */
static int coalesce_unit(struct keeper *k, struct pagemap *pm,
			 const struct piece *unit, struct err *err)
{
	char *hva = k->cfg.ram->base + unit->gpa.v;
	uint64_t present = 0;
	int r;

	if (pagemap_is_huge(pm, k->cfg.ram, unit->gpa, unit->len) > 0) {
		count_unit(k, &k->stats.large_units);
		return 0;
	}
	r = pagemap_count_present(pm, k->cfg.ram, unit->gpa, unit->len,
				  &present);
	if (r)
		return err_errno(err, -r, "/proc/self/pagemap");
	if (present < COALESCE_MIN_PRESENT) {
		count_unit(k, &k->stats.sparse_units);
		return 0;
	}
	(void)madvise(hva, unit->len, MADV_HUGEPAGE);
	if (madvise(hva, unit->len, MADV_COLLAPSE)) {
		count_unit(k, &k->stats.refused_units);
		return 0;
	}
	count_unit(k, &k->stats.coalesced_units);
	return k->cfg.second_stage ? fill(k, unit, false, err) : 0;
}

static int coalesce(struct keeper *k, const struct piece *piece,
		    struct err *err)
{
	uint64_t began = clock_now_ns();
	struct pagemap pm;
	int r = pagemap_open(&pm);

	if (r)
		return err_errno(err, -r, "/proc/self/pagemap");
	for (uint64_t off = 0; !r && off < piece->len && !atomic_load(&k->stop);
	     off += UNIT_BYTES) {
		struct piece unit = { .work = piece->work,
				      .gpa = gpa_add(piece->gpa, off),
				      .len = UNIT_BYTES };

		if (in_region(k->cfg.ram, unit.gpa.v))
			r = coalesce_unit(k, &pm, &unit, err);
		hold_rate(k, began, off + UNIT_BYTES);
	}
	pagemap_close(&pm);
	return r;
}

static int do_piece(struct keeper *k, const struct piece *piece,
		    struct err *err)
{
	switch (piece->work) {
	case KEEPER_REPAIR:
		return k->cfg.second_stage ? fill(k, piece, false, err) : 0;
	case KEEPER_POPULATE:
		return fill(k, piece, true, err);
	case KEEPER_COALESCE:
		break;
	}
	/* Pages of a hugetlb pool are what they are. */
	if (ram_page_is_hugetlb(k->cfg.ram->page))
		return 0;
	return coalesce(k, piece, err);
}

/* ---- the watch ---- */

static uint64_t covered_now(struct keeper *k)
{
	struct coverage_table t = { 0 };

	if (!k->vm_stats || coverage_read_second_stage(k->vm_stats, &t))
		return 0;
	return coverage_total(&t);
}

/* Lock held. */
static void look(struct keeper *k)
{
	uint64_t now = covered_now(k);

	if (now + UNIT_BYTES <= k->covered_bytes) {
		k->stats.zaps_seen++;
		k->stats.zapped_bytes += k->covered_bytes - now;
		add_units(k, KEEPER_REPAIR, 0, k->num_units);
	}
	/* What the guest faults in by itself is worth keeping, too. */
	k->covered_bytes = now;
}

/*
 * After each piece: begin again where a whole pass has lost some of its own
 * work. Lock held.
 */
static void settle(struct keeper *k, enum keeper_work work)
{
	uint64_t mapped = k->pass_bytes[work];

	if (k->num_todo[work])
		return;
	k->pass_bytes[work] = 0;
	memset(k->done[work], 0, BITMAP_WORDS(k->num_units) * sizeof(uint64_t));
	if (!k->cfg.watch || work == KEEPER_COALESCE)
		return;
	if (k->covered_bytes + UNIT_BYTES > mapped) {
		k->repeats = 0;
	} else if (k->repeats < MAX_REPEATS) {
		k->repeats++;
		k->stats.zaps_seen++;
		k->stats.zapped_bytes += mapped - k->covered_bytes;
		add_units(k, KEEPER_REPAIR, 0, k->num_units);
	}
}

static void begin_coalesce_pass(struct keeper *k)
{
	uint64_t now = clock_now_ns();

	if (!k->cfg.coalesce_every_s || now < k->coalesce_at_ns)
		return;
	k->coalesce_at_ns = now + k->cfg.coalesce_every_s * NSEC_PER_SEC;
	add_units(k, KEEPER_COALESCE, 0, k->num_units);
}

/* ---- the thread ---- */

static void account(struct keeper *k, const struct piece *piece, uint64_t ns,
		    int error)
{
	struct keeper_work_stats *s = &k->stats.works[piece->work];

	s->runs++;
	s->ns += ns;
	if (error)
		s->failed_bytes += piece->len;
	else
		s->bytes += piece->len;
}

static void mark_done(struct keeper *k, const struct piece *piece)
{
	uint64_t first = piece->gpa.v / UNIT_BYTES;

	for (uint64_t i = first; i < first + piece->len / UNIT_BYTES; i++)
		bitmap_set(k->done[piece->work], i);
}

/* Lock held on entry and return. */
static void run_piece(struct keeper *k, const struct piece *piece)
{
	struct err err = ERR_INIT;
	uint64_t began = clock_now_ns();
	int r;

	k->busy = true;
	k->busy_with = piece->work;
	pthread_mutex_unlock(&k->lock);
	r = do_piece(k, piece, &err);
	if (r && r != -EBUSY && r != -ECANCELED)
		log_ratelimited(LOG_LEVEL_WARN, "background %s: %s",
				keeper_work_names[piece->work], err.text);
	pthread_mutex_lock(&k->lock);
	k->busy = false;
	if (r == -EBUSY) {
		add_units(k, piece->work, piece->gpa.v / UNIT_BYTES,
			  (piece->gpa.v + piece->len) / UNIT_BYTES);
		wait_changed(k, LOGGED_NS);
		return;
	}
	account(k, piece, clock_now_ns() - began, r);
	mark_done(k, piece);
	k->covered_bytes = covered_now(k);
	settle(k, piece->work);
	pthread_cond_broadcast(&k->changed);
}

static const struct thread_call keeper_calls[] = {
	RARE_IOCTL("coalesce=on", PAGEMAP_SCAN_IOCTL),
};

/* It is one of the workers of its own population. */
const struct thread_class keeper_thread_class = {
	.name = "keeper",
	.what = "repairs, fills and coalesces memory in the background",
	THREAD_CALLS(keeper_calls),
	.also = &populate_thread_class,
};

static void *keeper_thread(void *arg)
{
	struct keeper *k = arg;
	struct piece piece;

	bool worked = false;

	pthread_mutex_lock(&k->lock);
	k->covered_bytes = covered_now(k);
	while (!atomic_load(&k->stop)) {
		if (take_piece(k, &piece)) {
			run_piece(k, &piece);
			worked = true;
			continue;
		}
		if (worked && k->cfg.idle)
			k->cfg.idle(k->cfg.idle_ctx);
		worked = false;
		pthread_cond_broadcast(&k->changed);
		wait_changed(k, WATCH_NS);
		if (k->cfg.watch && !has_work(k))
			look(k);
		begin_coalesce_pass(k);
	}
	pthread_mutex_unlock(&k->lock);
	return NULL;
}

static int start(struct keeper *k)
{
	int r = 0;

	for (unsigned int w = 0; !r && w < KEEPER_NUM_WORKS; w++) {
		uint64_t words = BITMAP_WORDS(k->num_units);

		k->todo[w] = calloc(words, sizeof(uint64_t));
		k->done[w] = calloc(words, sizeof(uint64_t));
		if (!k->todo[w] || !k->done[w])
			r = -ENOMEM;
	}
	/* Without statistics there is nothing to watch; all else works. */
	if (!r && kvm_stats_open(k->cfg.vm_fd, &k->vm_stats))
		k->cfg.watch = false;
	if (!r)
		r = thread_start(&k->thread, &keeper_thread_class, "keeper",
				 keeper_thread, k);
	k->started = !r;
	return r;
}

int keeper_new(struct keeper **ret, const struct keeper_config *cfg,
	       struct err *err)
{
	struct keeper *k = calloc(1, sizeof(*k));
	int r;

	if (!k)
		return err_set(err, ENOMEM,
			       "starting the memory keeper: out of memory");
	pthread_cond_init(&k->changed, NULL);
	pthread_mutex_init(&k->lock, NULL);
	k->cfg = *cfg;
	k->num_units = div_round_up(cfg->ram->span, UNIT_BYTES);
	r = start(k);
	if (r) {
		keeper_free(k);
		return err_errno(err, -r, "starting the memory keeper");
	}
	*ret = k;
	return 0;
}

void keeper_free(struct keeper *k)
{
	if (!k)
		return;
	pthread_mutex_lock(&k->lock);
	atomic_store(&k->stop, true);
	pthread_cond_broadcast(&k->changed);
	pthread_mutex_unlock(&k->lock);
	if (k->started)
		pthread_join(k->thread, NULL);
	kvm_stats_close(k->vm_stats);
	for (unsigned int w = 0; w < KEEPER_NUM_WORKS; w++) {
		free(k->todo[w]);
		free(k->done[w]);
	}
	pthread_cond_destroy(&k->changed);
	pthread_mutex_destroy(&k->lock);
	free(k);
}

void keeper_request(struct keeper *k, enum keeper_work work, struct gpa gpa,
		    uint64_t len)
{
	uint64_t span = k->num_units * UNIT_BYTES, end;

	if (!len || gpa.v >= span)
		return;
	end = len > span - gpa.v ? span : gpa.v + len;
	pthread_mutex_lock(&k->lock);
	add_units(k, work, gpa.v / UNIT_BYTES, div_round_up(end, UNIT_BYTES));
	pthread_cond_broadcast(&k->changed);
	pthread_mutex_unlock(&k->lock);
}

static bool is_idle(const struct keeper *k)
{
	return !k->busy && !has_work(k);
}

static bool is_repaired(const struct keeper *k)
{
	return !k->num_todo[KEEPER_REPAIR] &&
	       !(k->busy && k->busy_with == KEEPER_REPAIR);
}

static int wait_for(struct keeper *k, bool (*done)(const struct keeper *),
		    uint64_t timeout_ns)
{
	uint64_t until = clock_now_ns() + timeout_ns;
	bool is_done, more = true;

	pthread_mutex_lock(&k->lock);
	while (!(is_done = done(k)) && more)
		more = cond_wait_until(&k->changed, &k->lock, until);
	pthread_mutex_unlock(&k->lock);
	return is_done ? 0 : -ETIMEDOUT;
}

int keeper_wait_idle(struct keeper *k, uint64_t timeout_ns)
{
	return wait_for(k, is_idle, timeout_ns);
}

int keeper_wait_repaired(struct keeper *k, uint64_t timeout_ns)
{
	return wait_for(k, is_repaired, timeout_ns);
}

void keeper_read_stats(struct keeper *k, struct keeper_stats *ret)
{
	pthread_mutex_lock(&k->lock);
	*ret = k->stats;
	pthread_mutex_unlock(&k->lock);
}
