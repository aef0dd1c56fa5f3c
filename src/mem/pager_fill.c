/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fillers. In this order: blocks that are complete leave userfaultfd; the
 * working set comes, in its order; all the rest, from the lowest address up.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "base/arith.h"
#include "base/bitmap.h"
#include "base/clock.h"
#include "base/cond.h"
#include "base/log.h"
#include "base/thread_class.h"
#include "base/zero.h"
#include "mem/pager_priv.h"
#include "mem/uffd.h"

#ifndef MADV_COLLAPSE /* Linux 6.1 */
#define MADV_COLLAPSE 25
#endif

/* Fewer pages are left in 4K: a 2M page would cost more than it saves. */
#define COLLAPSE_MIN_BYTES (UNIT_BYTES / 2)

/* How long a filler stands back for faults, at most, before each unit. */
#define STAND_BACK_STEP_NS (50 * 1000ull)
#define STAND_BACK_STEPS   20

static void nap(uint64_t ns)
{
	struct timespec ts = { .tv_nsec = (long)ns };

	nanosleep(&ts, NULL);
}

/*
 * Somebody waits for a fault, and should not wait for the source, the memory
 * bus or a CPU because of us. Not for ever: with many vCPUs there may always be
 * one.
 */
static void stand_back(const struct pager *p)
{
	for (int i = 0; i < STAND_BACK_STEPS && !atomic_load(&p->stop); i++) {
		if (!atomic_load(&p->serving))
			return;
		nap(STAND_BACK_STEP_NS);
	}
}

/* ---- filling ---- */

/* The first run of [*at, end) that is wanted and not settled. */
static bool next_wanted(const struct pager *p, const uint64_t *wanted,
			uint64_t *at, uint64_t end, uint64_t *ret_len)
{
	uint64_t from = *at, to;

#define WANTED(gpa)                   \
	(!pager_is_settled(p, gpa) && \
	 (!wanted || bitmap_test(wanted, (gpa) / PAGE_4K % UNIT_PAGES)))
	while (from < end && !WANTED(from))
		from += PAGE_4K;
	for (to = from; to < end && WANTED(to);)
		to += PAGE_4K;
#undef WANTED
	*at = from;
	*ret_len = to - from;
	return to > from;
}

/* The whole unit is one page. */
static int fill_huge(struct pager_thread *t, uint64_t gpa,
		     enum pager_priority priority, struct err *err)
{
	struct pager *p = t->pager;
	enum mem_content content = MEM_CONTENT_ABSENT;
	uint64_t len = 0;
	int r;

	if (pager_is_settled(p, gpa))
		return 0;
	r = mem_source_extent(p->cfg.source, GPA(gpa), UNIT_BYTES, &content,
			      &len);
	if (r || content == MEM_CONTENT_ABSENT)
		return r;
	r = mem_source_read(p->cfg.source, GPA(gpa), t->buf, UNIT_BYTES, err);
	if (r)
		return r == -EAGAIN ? 0 : r;
	return pager_install(p, gpa, t->buf, UNIT_BYTES, priority);
}

static int fill_run(struct pager_thread *t, uint64_t gpa, uint64_t len,
		    enum mem_content content, enum pager_priority priority,
		    struct err *err)
{
	struct pager *p = t->pager;
	int r;

	if (content == MEM_CONTENT_ABSENT)
		return 0;
	if (content == MEM_CONTENT_ZERO) {
		pager_settle(p, gpa, len);
		return 0;
	}
	r = mem_source_read(p->cfg.source, GPA(gpa), t->buf, len, err);
	if (r)
		return r == -EAGAIN ? 0 : r;
	return pager_install(p, gpa, t->buf, len, priority);
}

int pager_install_runs(struct pager *p, uint64_t gpa, const char *buf,
		       uint64_t len, enum pager_priority priority)
{
	int r = 0;

	for (uint64_t at = 0, next; r >= 0 && at < len; at = next) {
		bool zero = zero_is_all(buf + at, PAGE_4K);

		next = at + PAGE_4K;
		if (pager_is_settled(p, gpa + at))
			continue;
		while (next < len && !pager_is_settled(p, gpa + next) &&
		       zero_is_all(buf + next, PAGE_4K) == zero)
			next += PAGE_4K;
		if (zero)
			pager_settle(p, gpa + at, next - at);
		else
			r = pager_install(p, gpa + at, buf + at, next - at,
					  priority);
	}
	return r;
}

/*
 * Most of the unit is wanted: one read is quicker than one for each run, even
 * of holes, and it is what checksums are of. 0: not done, go by runs.
 */
static int fill_whole(struct pager_thread *t, uint64_t gpa, uint64_t len,
		      enum pager_priority priority, struct err *err)
{
	struct pager *p = t->pager;
	enum mem_content content = MEM_CONTENT_ABSENT;
	uint64_t same = 0;
	int r = mem_source_extent(p->cfg.source, GPA(gpa), len, &content,
				  &same);

	if (r || content == MEM_CONTENT_ABSENT)
		return r;
	r = mem_source_read(p->cfg.source, GPA(gpa), t->buf, len, err);
	if (r)
		return r == -EAGAIN ? 0 : r;
	r = pager_install_runs(p, gpa, t->buf, len, priority);
	return r < 0 ? r : 1;
}

/* wanted: a bit for each page; NULL: all. */
static int fill_unit(struct pager_thread *t, uint64_t unit,
		     const uint64_t *wanted, enum pager_priority priority,
		     struct err *err)
{
	struct pager *p = t->pager;
	const struct mem_range *in = &p->blocks[p->block_of[unit]].range;
	uint64_t at = unit * UNIT_BYTES, want = 0, len = 0;
	uint64_t end = MIN(at + UNIT_BYTES, in->start + in->len);
	enum mem_content content = MEM_CONTENT_ABSENT;
	int r = 0;

	if (p->page == UNIT_BYTES)
		return fill_huge(t, at, priority, err);
	if (!wanted && atomic_load(&p->units[unit].left) > UNIT_PAGES / 2)
		r = fill_whole(t, at, end - at, priority, err);
	while (r == 0 && next_wanted(p, wanted, &at, end, &want)) {
		r = mem_source_extent(p->cfg.source, GPA(at), want, &content,
				      &len);
		if (!r)
			r = fill_run(t, at, len, content, priority, err);
		r = MIN(r, 0);
		at += len;
	}
	return r;
}

static void fill(struct pager_thread *t, uint64_t unit, const uint64_t *wanted,
		 enum pager_priority priority)
{
	struct err err = ERR_INIT;
	int r;

	stand_back(t->pager);
	r = fill_unit(t, unit, wanted, priority, &err);
	if (r >= 0 || atomic_load(&t->pager->stop))
		return;
	if (!err.text[0])
		err_errno(&err, -r, "guest memory at %#llx",
			  (unsigned long long)(unit * UNIT_BYTES));
	pager_fail(t->pager, &err);
}

/* ---- the working set ---- */

/* The next run from *at on whose pages are all in the set, and kept or not. */
static uint64_t next_in_set(const struct working_set_unit *unit,
			    const uint64_t *kept, uint64_t *at, bool *ret_kept)
{
	uint64_t from = *at, to;

	while (from < UNIT_PAGES && !bitmap_test(unit->pages, from))
		from++;
	if (from == UNIT_PAGES)
		return 0;
	*ret_kept = bitmap_test(kept, from);
	for (to = from + 1; to < UNIT_PAGES; to++) {
		if (!bitmap_test(unit->pages, to) ||
		    bitmap_test(kept, to) != *ret_kept)
			break;
	}
	*at = from;
	return to - from;
}

/* Somebody may have had a page of it meanwhile: that one is left alone. */
static int install_unsettled(struct pager *p, uint64_t gpa, const char *buf,
			     uint64_t len)
{
	uint64_t step;
	int r = 0;

	for (uint64_t at = 0; r >= 0 && at < len; at += step) {
		bool settled = pager_is_settled(p, gpa + at);

		for (step = PAGE_4K;
		     at + step < len &&
		     pager_is_settled(p, gpa + at + step) == settled;)
			step += PAGE_4K;
		if (!settled)
			r = pager_install(p, gpa + at, buf + at, step,
					  PAGER_WORKING_SET);
	}
	return MIN(r, 0);
}

/* buf has the kept pages, one behind the other; the rest of the set is zero. */
static int install_kept(struct pager *p, const struct working_set_unit *unit,
			const uint64_t *kept, const char *buf)
{
	uint64_t num;
	bool is_kept = false;
	int r = 0;

	for (uint64_t at = 0;
	     !r && (num = next_in_set(unit, kept, &at, &is_kept)); at += num) {
		uint64_t gpa = unit->gpa + at * PAGE_4K, len = num * PAGE_4K;

		if (!is_kept) {
			pager_settle(p, gpa, len);
			continue;
		}
		r = install_unsettled(p, gpa, buf, len);
		buf += len;
	}
	return r;
}

/* Was it kept, and is it in its place? The source has it in any case. */
static bool fill_kept(struct pager_thread *t, uint64_t num)
{
	struct pager *p = t->pager;
	const struct working_set_store *store = p->cfg.store;
	uint64_t kept[WORKING_SET_WORDS];
	struct err err = ERR_INIT;
	int r;

	if (!store || p->page != PAGE_4K || atomic_load(&p->store_off))
		return false;
	stand_back(p);
	r = store->read(store->ctx, p->ahead_place[num], t->buf, kept, &err);
	if (r > 0) {
		r = install_kept(p, &p->ahead.units[num], kept, t->buf);
		if (!r)
			return true;
		err_errno(&err, -r, "guest memory at %#llx",
			  (unsigned long long)p->ahead.units[num].gpa);
	}
	if (r < 0 && !atomic_exchange(&p->store_off, true))
		log_warn("the working set is taken from memory, slowly: %s",
			 err.text);
	return false;
}

static void fill_ahead(struct pager_thread *t, uint64_t num)
{
	const struct working_set_unit *unit = &t->pager->ahead.units[num];

	if (!fill_kept(t, num))
		fill(t, unit->gpa / UNIT_BYTES, unit->pages, PAGER_WORKING_SET);
	/* Not complete, perhaps; what has come can be mapped. */
	if (t->pager->cfg.filled)
		t->pager->cfg.filled(t->pager->cfg.ctx, GPA(unit->gpa),
				     UNIT_BYTES);
}

/* ---- leaving ---- */

static void collapse_unit(struct pager_thread *t, uint64_t gpa)
{
	struct pager *p = t->pager;
	char *hva = p->cfg.ram->base + gpa;
	uint64_t present;

	if (pagemap_count_present(&t->pagemap, p->cfg.ram, GPA(gpa), UNIT_BYTES,
				  &present) ||
	    present < COLLAPSE_MIN_BYTES)
		return;
	if (!madvise(hva, UNIT_BYTES, MADV_COLLAPSE))
		atomic_fetch_add(&p->collapsed_units, 1);
	else if (errno == EINVAL)
		atomic_store(&p->collapse_off, true);
}

/* While it is registered the kernel collapses nothing; now it may. */
static void collapse_block(struct pager_thread *t,
			   const struct pager_block *block)
{
	struct pager *p = t->pager;
	uint64_t end = block->range.start + block->range.len;

	for (uint64_t at = block->range.start; at + UNIT_BYTES <= end;
	     at += UNIT_BYTES) {
		if (atomic_load(&p->stop) || atomic_load(&p->collapse_off))
			return;
		if (atomic_load(&p->units[at / UNIT_BYTES].kind) == UNIT_DATA)
			collapse_unit(t, at);
	}
}

static void finish_block(struct pager_thread *t, struct pager_block *block)
{
	struct pager *p = t->pager;
	struct err err = ERR_INIT;
	int r = uffd_unregister(p->uffds[block->uffd],
				p->cfg.ram->base + block->registered.start,
				block->registered.len);

	/* It stays then, and faults there are served: nothing is lost. */
	if (r) {
		err_errno(&err, -r, "taking %#llx out of userfaultfd",
			  (unsigned long long)block->registered.start);
		pager_fail(p, &err);
	}
	atomic_store(&block->done, !r);
	if (p->cfg.ram->page != RAM_PAGE_THP)
		return;
	collapse_block(t, block);
	if (p->cfg.filled)
		p->cfg.filled(p->cfg.ctx, GPA(block->registered.start),
			      block->registered.len);
}

/* ---- what to do next ---- */

enum task { TASK_NONE, TASK_FINISH, TASK_AHEAD, TASK_SWEEP, TASK_TELL };

static bool may_sweep_locked(const struct pager *p)
{
	return p->cfg.sweep && !atomic_load(&p->recording) &&
	       p->sweeping < p->cfg.sweepers;
}

/* The next unit that has data to bring, or none. */
static bool take_sweep_locked(struct pager *p, uint64_t *ret)
{
	while (p->next_sweep < p->num_units) {
		uint64_t unit = p->next_sweep++;

		if (atomic_load(&p->units[unit].kind) == UNIT_DATA &&
		    atomic_load(&p->units[unit].left)) {
			*ret = unit;
			return true;
		}
	}
	return false;
}

/* When the rate allows the next unit; 0: now. */
static uint64_t sweep_due_locked(struct pager *p)
{
	uint64_t rate = p->cfg.sweep_bytes_per_s, now, due;

	if (!rate || p->next_sweep >= p->num_units)
		return 0;
	now = clock_now_ns();
	if (!p->sweep_began_ns)
		p->sweep_began_ns = now;
	due = p->sweep_began_ns +
	      (uint64_t)((double)atomic_load(&p->bytes[PAGER_SWEEP]) /
			 (double)rate * 1e9);
	return due > now ? due : 0;
}

struct next {
	enum task task;
	struct pager_block *block;
	uint64_t unit;		/* number, or place in the working set */
	uint64_t wait_until_ns; /* with TASK_NONE; 0: for ever */
	void (*tell)(void *ctx);
};

static bool tell_locked(struct pager *p, struct next *next)
{
	if (!p->ahead_done && !p->failed && p->next_ahead == p->ahead.num &&
	    !p->filling_ahead) {
		p->ahead_done = true;
		next->tell = p->cfg.ahead_done;
	} else if (!p->all_done && !p->blocks_left) {
		p->all_done = true;
		next->tell = p->cfg.all_done;
	} else {
		return false;
	}
	pthread_cond_broadcast(&p->changed);
	return true;
}

static void choose_locked(struct pager *p, struct next *next)
{
	*next = (struct next){ .task = TASK_NONE };
	if (atomic_load(&p->abandoned))
		return;
	if (p->finish) {
		next->task = TASK_FINISH;
		next->block = p->finish;
		p->finish = next->block->next_finish;
		return;
	}
	if (!p->failed && p->next_ahead < p->ahead.num) {
		next->task = TASK_AHEAD;
		next->unit = p->next_ahead++;
		p->filling_ahead++;
		return;
	}
	if (tell_locked(p, next)) {
		next->task = TASK_TELL;
		return;
	}
	if (p->failed || !may_sweep_locked(p))
		return;
	next->wait_until_ns = sweep_due_locked(p);
	if (!next->wait_until_ns && take_sweep_locked(p, &next->unit)) {
		next->task = TASK_SWEEP;
		p->sweeping++;
	}
}

static void wait_locked(struct pager *p, uint64_t until_ns)
{
	if (until_ns)
		(void)cond_wait_until(&p->changed, &p->lock, until_ns);
	else
		pthread_cond_wait(&p->changed, &p->lock);
}

static void do_task(struct pager_thread *t, const struct next *next)
{
	struct pager *p = t->pager;

	switch (next->task) {
	case TASK_FINISH:
		finish_block(t, next->block);
		break;
	case TASK_AHEAD:
		fill_ahead(t, next->unit);
		break;
	case TASK_SWEEP:
		fill(t, next->unit, NULL, PAGER_SWEEP);
		break;
	case TASK_TELL:
		if (next->tell)
			next->tell(p->cfg.ctx);
		break;
	case TASK_NONE:
		break;
	}
}

/* Collapsing is madvise(2), which any thread may. */
static const struct thread_call filler_calls[] = {
	CALL_IOCTL(UFFDIO_COPY),
	CALL_IOCTL(UFFDIO_UNREGISTER),
	RARE_IOCTL("the source is tried again", UFFDIO_WAKE),
	RARE("somebody waits for a fault", clock_nanosleep),
	/* What is present, and the source: a snapshot. */
	CALL(pread64),
	RARE("its data is in very many pieces, or it was cut off", lseek),
};

const struct thread_class pager_filler_thread_class = {
	.name = "pager-fill",
	.what = "brings memory ahead and behind",
	THREAD_CALLS(filler_calls),
};

void *pager_filler(void *arg)
{
	struct pager_thread *t = arg;
	struct pager *p = t->pager;
	struct next next;

	pthread_mutex_lock(&p->lock);
	while (!atomic_load(&p->stop)) {
		choose_locked(p, &next);
		if (next.task == TASK_NONE) {
			wait_locked(p, next.wait_until_ns);
			continue;
		}
		pthread_mutex_unlock(&p->lock);
		do_task(t, &next);
		pthread_mutex_lock(&p->lock);
		p->filling_ahead -= next.task == TASK_AHEAD;
		p->sweeping -= next.task == TASK_SWEEP;
		p->blocks_left -= next.task == TASK_FINISH;
		if (next.task == TASK_AHEAD || next.task == TASK_FINISH)
			pthread_cond_broadcast(&p->changed);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}
