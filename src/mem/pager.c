/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation.
 *
 * A page is settled when it is there or when it needs nothing, being zero. One
 * bit for each page, and counts of what is left for each unit and block, tell
 * when a block can leave userfaultfd. The bits decide only what the fillers
 * skip; whether a page is installed the kernel alone decides: it refuses to
 * install one that is there, so that a page the guest has written is never
 * overwritten, whoever comes late.
 *
 * A page that is zero is settled without being installed. Who touches it while
 * its block is registered is served by a handler like anybody else; once the
 * block has left, by the kernel.
 *
 * A failing source leaves a fault unresolved: no answer, the thread goes on
 * waiting in the kernel. Nobody has to remember it, since UFFDIO_WAKE over all
 * that is registered makes each such thread fault, and be reported, again.
 *
 * Leaving userfaultfd splits mappings and adjoining blocks that have left are
 * one mapping again, so there are never many more than blocks.
 */
#include "mem/pager_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "base/arith.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/cond.h"
#include "base/cpus.h"
#include "base/io.h"
#include "base/thread.h"
#include "mem/uffd.h"

/* A block is this large at least, and there are so many at most. */
#define BLOCK_MIN_BYTES (16 * MIB)
#define MAX_BLOCKS	1024

const char *const pager_priority_names[PAGER_NUM_PRIORITIES] = {
	[PAGER_FAULT] = "fault",
	[PAGER_WORKING_SET] = "working-set",
	[PAGER_SWEEP] = "sweep",
	[PAGER_PUT] = "put",
};

struct pager_block *pager_block_at(const struct pager *p, uint64_t gpa)
{
	return &p->blocks[p->block_of[gpa / UNIT_BYTES]];
}

int pager_uffd_at(const struct pager *p, uint64_t gpa)
{
	return p->uffds[pager_block_at(p, gpa)->uffd];
}

/* ---- settling ---- */

bool pager_is_settled(const struct pager *p, uint64_t gpa)
{
	uint64_t page = gpa / PAGE_4K;

	return atomic_load_explicit(&p->settled[page / 64],
				    memory_order_acquire) >>
		       (page % 64) &
	       1;
}

/* The fillers take the block out: the one who settled may be in a hurry. */
static void block_complete(struct pager *p, struct pager_block *block)
{
	pthread_mutex_lock(&p->lock);
	block->next_finish = p->finish;
	p->finish = block;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

static void unit_complete(struct pager *p, uint64_t unit)
{
	struct pager_block *block = &p->blocks[p->block_of[unit]];
	uint64_t gpa = unit * UNIT_BYTES;
	uint64_t end = block->range.start + block->range.len;

	/* Collapsing would zap it again: then told once that is done. */
	if (p->cfg.filled && p->cfg.ram->page != RAM_PAGE_THP)
		p->cfg.filled(p->cfg.ctx, GPA(gpa), MIN(UNIT_BYTES, end - gpa));
	if (atomic_fetch_sub(&block->left, 1) == 1)
		block_complete(p, block);
}

/* Within one word of the map, which is within one unit. */
static void settle_word(struct pager *p, uint64_t page, unsigned int num)
{
	uint64_t mask = (num == 64 ? UINT64_MAX : (1ull << num) - 1)
			<< (page % 64);
	uint64_t old = atomic_fetch_or_explicit(&p->settled[page / 64], mask,
						memory_order_acq_rel);
	uint64_t unit = page / UNIT_PAGES;
	uint16_t fresh = (uint16_t)__builtin_popcountll(mask & ~old);

	/* Zero units are accounted for from the start. */
	if (!fresh || atomic_load(&p->units[unit].kind) != UNIT_DATA)
		return;
	atomic_fetch_add(&p->settled_bytes, fresh * PAGE_4K);
	if (atomic_fetch_sub(&p->units[unit].left, fresh) == fresh)
		unit_complete(p, unit);
}

void pager_settle(struct pager *p, uint64_t gpa, uint64_t len)
{
	uint64_t page = gpa / PAGE_4K, end = (gpa + len) / PAGE_4K;

	while (page < end) {
		unsigned int num = (unsigned int)MIN(64 - page % 64,
						     end - page);

		settle_word(p, page, num);
		page += num;
	}
}

int pager_install(struct pager *p, uint64_t gpa, const void *buf, uint64_t len,
		  enum pager_priority priority)
{
	int64_t n = uffd_copy(pager_uffd_at(p, gpa), p->cfg.ram->base + gpa,
			      buf, len, p->page);

	/* Its block has left meanwhile: so all of it is there. */
	if (n == -ENOENT)
		n = 0;
	if (n < 0)
		return (int)n;
	atomic_fetch_add(&p->bytes[priority], (uint64_t)n);
	pager_settle(p, gpa, len);
	return n > 0;
}

/* ---- failing ---- */

void pager_fail(struct pager *p, const struct err *err)
{
	bool first;

	atomic_fetch_add(&p->failures, 1);
	pthread_mutex_lock(&p->lock);
	first = !p->failed;
	p->failed = true;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	if (atomic_load(&p->impatient))
		pager_abandon(p);
	if (first && p->cfg.failed)
		p->cfg.failed(p->cfg.ctx, err);
}

static void wake_all(struct pager *p)
{
	for (unsigned int i = 0; i < p->num_blocks; i++) {
		const struct pager_block *block = &p->blocks[i];

		if (block->registered.len && !atomic_load(&block->done))
			uffd_wake(p->uffds[block->uffd],
				  p->cfg.ram->base + block->registered.start,
				  block->registered.len);
	}
}

void pager_be_patient(struct pager *p)
{
	atomic_store(&p->impatient, false);
}

void pager_retry(struct pager *p)
{
	pthread_mutex_lock(&p->lock);
	p->failed = false;
	/* What failed was passed over; what is settled is skipped quickly. */
	p->next_ahead = 0;
	p->next_sweep = 0;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	wake_all(p);
}

/*
 * A thread may begin to wait after unregistering has woken all (pager_fault.c):
 * the handlers, which stay until pager_free(), then wake it.
 */
void pager_abandon(struct pager *p)
{
	if (pager_is_complete(p))
		return;
	atomic_store(&p->cfg.ram->lost, true);
	atomic_store(&p->abandoned, true);
	for (unsigned int i = 0; i < p->num_blocks; i++) {
		const struct pager_block *block = &p->blocks[i];

		if (block->registered.len && !atomic_load(&block->done))
			(void)!uffd_unregister(p->uffds[block->uffd],
					       p->cfg.ram->base +
						       block->registered.start,
					       block->registered.len);
	}
	wake_all(p);
}

int pager_put(struct pager *p, struct gpa gpa, const void *buf, uint64_t len)
{
	uint64_t end = gpa.v + len;

	BUG_ON(!is_aligned(gpa.v | len, p->page) ||
	       !mem_map_range(p->cfg.ram, gpa, len, MEM_READ));
	while (gpa.v < end) {
		uint64_t unit_end = align_down(gpa.v, UNIT_BYTES) + UNIT_BYTES;
		uint64_t step = MIN(end, unit_end) - gpa.v;
		int r = 0;

		if (buf) {
			r = MIN(0,
				pager_install(p, gpa.v, buf, step, PAGER_PUT));
			buf = (const char *)buf + step;
		} else {
			uffd_wake(pager_uffd_at(p, gpa.v),
				  p->cfg.ram->base + gpa.v, step);
			pager_settle(p, gpa.v, step);
		}
		if (r)
			return r;
		gpa.v += step;
	}
	return 0;
}

/* ---- making ---- */

/* Which units have data: by runs, which are few, not by pages. */
static int classify_range(struct pager *p, const struct mem_range *range,
			  struct err *err)
{
	uint64_t at = range->start, end = range->start + range->len, len = 0;
	enum mem_content content = MEM_CONTENT_DATA;

	for (uint64_t u = at / UNIT_BYTES; u < div_round_up(end, UNIT_BYTES);
	     u++)
		atomic_init(&p->units[u].kind, UNIT_ZERO);
	while (at < end) {
		uint64_t last;
		int r = mem_source_extent(p->cfg.source, GPA(at), end - at,
					  &content, &len);

		if (r)
			return err_errno(err, -r, "memory at %#llx",
					 (unsigned long long)at);
		BUG_ON(!len || len > end - at);
		at += len;
		if (content == MEM_CONTENT_ZERO)
			continue;
		last = (at - 1) / UNIT_BYTES;
		for (uint64_t u = (at - len) / UNIT_BYTES; u <= last; u++)
			atomic_init(&p->units[u].kind, UNIT_DATA);
		/* What else this unit has changes nothing. */
		at = MIN(end, (last + 1) * UNIT_BYTES);
	}
	return 0;
}

static bool has_data(const struct pager *p, uint64_t unit)
{
	return atomic_load(&p->units[unit].kind) == UNIT_DATA;
}

/* The block's units from the first to the last that has data. */
static void measure_block(struct pager *p, struct pager_block *block)
{
	uint64_t end = block->range.start + block->range.len;
	uint64_t first = UINT64_MAX, last = 0;
	uint32_t left = 0;

	for (uint64_t at = block->range.start; at < end; at += UNIT_BYTES) {
		uint64_t unit = at / UNIT_BYTES;
		uint64_t len = MIN(UNIT_BYTES, end - at);

		p->block_of[unit] = (uint32_t)(block - p->blocks);
		if (!has_data(p, unit)) {
			p->zero_bytes += len;
			continue;
		}
		atomic_init(&p->units[unit].left, (uint16_t)(len / PAGE_4K));
		first = MIN(first, at);
		last = at + len;
		left++;
	}
	atomic_init(&block->left, left);
	atomic_init(&block->done, !left);
	if (left)
		block->registered = (struct mem_range){ .start = first,
							.len = last - first };
}

static int make_blocks(struct pager *p, const struct mem_range *ranges,
		       unsigned int num, struct err *err)
{
	unsigned int max = 1; /* there is some */

	p->block_bytes = BLOCK_MIN_BYTES;
	while (p->cfg.ram->span / p->block_bytes > MAX_BLOCKS)
		p->block_bytes *= 2;
	for (unsigned int i = 0; i < num; i++)
		max += (unsigned int)div_round_up(ranges[i].len,
						  p->block_bytes);
	p->blocks = calloc(max, sizeof(*p->blocks));
	if (!p->blocks)
		return err_set(err, ENOMEM, "pager: out of memory");
	for (unsigned int i = 0; i < num; i++) {
		for (uint64_t off = 0; off < ranges[i].len;
		     off += p->block_bytes) {
			struct pager_block *block = &p->blocks[p->num_blocks];

			block->range.start = ranges[i].start + off;
			block->range.len = MIN(p->block_bytes,
					       ranges[i].len - off);
			block->uffd = p->num_blocks++ % p->num_uffds;
			measure_block(p, block);
			p->blocks_left += block->registered.len > 0;
		}
	}
	return 0;
}

static int make_maps(struct pager *p, struct err *err)
{
	uint64_t words;
	int r;

	p->num_units = div_round_up(p->cfg.ram->span, UNIT_BYTES);
	words = p->num_units * WORKING_SET_WORDS;
	p->units = calloc(p->num_units, sizeof(*p->units));
	p->block_of = calloc(p->num_units, sizeof(*p->block_of));
	p->settled = calloc(words, sizeof(*p->settled));
	r = posix_memalign((void **)&p->zeroes, p->page, p->page);
	if (!p->units || !p->block_of || !p->settled || r)
		return err_set(err, ENOMEM, "pager: out of memory");
	memset((void *)p->zeroes, 0, p->page);
	if (!p->cfg.record)
		return 0;
	p->touched = calloc(words, sizeof(*p->touched));
	p->order = calloc(p->num_units, sizeof(*p->order));
	if (!p->touched || !p->order)
		return err_set(err, ENOMEM, "pager: out of memory");
	return 0;
}

/* A set that somebody else recorded, or made up: what is not RAM is left out.
 */
static int copy_ahead(struct pager *p, struct err *err)
{
	const struct working_set *from = p->cfg.ahead;

	p->cfg.ahead = NULL; /* the caller's */
	if (!from || !from->num)
		return 0;
	p->ahead.units = calloc(from->num, sizeof(*p->ahead.units));
	p->ahead_place = calloc(from->num, sizeof(*p->ahead_place));
	if (!p->ahead.units || !p->ahead_place)
		return err_set(err, ENOMEM, "pager: out of memory");
	for (uint64_t i = 0; i < from->num; i++) {
		uint64_t unit = from->units[i].gpa / UNIT_BYTES;

		if (!is_aligned(from->units[i].gpa, UNIT_BYTES) ||
		    unit >= p->num_units || !has_data(p, unit))
			continue;
		p->ahead_place[p->ahead.num] = i;
		p->ahead.units[p->ahead.num++] = from->units[i];
	}
	return 0;
}

static int open_uffds(struct pager *p, struct err *err)
{
	const struct ram *ram = p->cfg.ram;

	p->uffds = calloc(p->num_uffds, sizeof(*p->uffds));
	if (!p->uffds) {
		p->num_uffds = 0;
		return err_set(err, ENOMEM, "pager: out of memory");
	}
	for (unsigned int i = 0; i < p->num_uffds; i++)
		p->uffds[i] = -1;
	for (unsigned int i = 0; i < p->num_uffds; i++) {
		p->uffds[i] = uffd_open(p->cfg.opener, ram->fd >= 0,
					ram_page_is_hugetlb(ram->page), err);
		if (p->uffds[i] < 0)
			return p->uffds[i];
	}
	return 0;
}

static int register_blocks(struct pager *p, struct err *err)
{
	for (unsigned int i = 0; i < p->num_blocks; i++) {
		const struct pager_block *block = &p->blocks[i];
		int r;

		if (!block->registered.len)
			continue;
		r = uffd_register(p->uffds[block->uffd],
				  p->cfg.ram->base + block->registered.start,
				  block->registered.len);
		if (r)
			return err_errno(
				err, -r,
				"registering guest memory at %#llx with "
				"userfaultfd",
				(unsigned long long)block->registered.start);
	}
	return 0;
}

unsigned int pager_sweepers(unsigned int cpus, unsigned int vcpus)
{
	return cpus > vcpus ? cpus - vcpus : 1;
}

static void count_threads(struct pager *p)
{
	unsigned int cpus = cpus_allowed();
	struct pager_config *cfg = &p->cfg;

	if (!cfg->handlers)
		cfg->handlers = MIN(MAX(cpus, 2u), 4u);
	if (!cfg->fillers)
		cfg->fillers = MIN(cpus, 4u);
	cfg->handlers = MIN(cfg->handlers, (unsigned int)PAGER_MAX_THREADS);
	cfg->fillers = MIN(cfg->fillers, (unsigned int)PAGER_MAX_THREADS);
	if (!cfg->sweepers)
		cfg->sweepers = pager_sweepers(cpus, cfg->num_vcpus);
	p->num_uffds = cfg->uffds ? MIN(cfg->uffds, 256u) : cfg->handlers;
}

static int add_to_epoll(int epoll_fd, int fd, uint32_t events, uint32_t value)
{
	struct epoll_event event = { .events = events, .data.u32 = value };

	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

/* Exclusive: a fault wakes one of the handlers, not all. */
static int prepare_handler(struct pager *p, struct pager_thread *t)
{
	int r;

	t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (t->epoll_fd < 0)
		return -errno;
	r = add_to_epoll(t->epoll_fd, p->stop_fd, EPOLLIN, PAGER_STOP);
	for (unsigned int i = 0; !r && i < p->num_uffds; i++)
		r = add_to_epoll(t->epoll_fd, p->uffds[i],
				 EPOLLIN | EPOLLEXCLUSIVE, i);
	return r;
}

static int prepare_threads(struct pager *p, struct pager_thread **ret,
			   unsigned int num, uint64_t buf_bytes)
{
	*ret = calloc(num, sizeof(**ret));
	for (unsigned int i = 0; *ret && i < num; i++) {
		struct pager_thread *t = &(*ret)[i];

		t->pager = p;
		t->epoll_fd = t->pagemap.fd = -1;
	}
	for (unsigned int i = 0; *ret && i < num; i++) {
		struct pager_thread *t = &(*ret)[i];
		int r = 0;

		t->buf = aligned_alloc(PAGE_4K, buf_bytes);
		if (!t->buf)
			return -ENOMEM;
		if (ret == &p->handlers)
			r = prepare_handler(p, t);
		else
			r = pagemap_open(&t->pagemap);
		if (r)
			return r;
	}
	return *ret ? 0 : -ENOMEM;
}

static int start_threads(struct pager *p, struct err *err)
{
	int r = prepare_threads(p, &p->handlers, p->cfg.handlers,
				p->cfg.source->ops->by_unit ? UNIT_BYTES
							    : p->page);

	if (!r)
		r = prepare_threads(p, &p->fillers, p->cfg.fillers, UNIT_BYTES);
	while (!r && p->num_handlers < p->cfg.handlers) {
		struct pager_thread *t = &p->handlers[p->num_handlers];

		r = thread_start(&t->thread, &pager_handler_thread_class,
				 "pager-fault", pager_handler, t);
		p->num_handlers += !r;
	}
	while (!r && p->num_fillers < p->cfg.fillers) {
		struct pager_thread *t = &p->fillers[p->num_fillers];

		r = thread_start(&t->thread, &pager_filler_thread_class,
				 "pager-fill", pager_filler, t);
		p->num_fillers += !r;
	}
	return r ? err_errno(err, -r, "pager: starting its threads") : 0;
}

static void end_threads(struct pager_thread *threads, unsigned int running,
			unsigned int num)
{
	for (unsigned int i = 0; i < running; i++)
		pthread_join(threads[i].thread, NULL);
	for (unsigned int i = 0; threads && i < num; i++) {
		close_fd(&threads[i].epoll_fd);
		pagemap_close(&threads[i].pagemap);
		free(threads[i].buf);
	}
	free(threads);
}

static int make(struct pager *p, struct err *err)
{
	struct mem_range ranges[RAM_MAX_REGIONS];
	unsigned int num = ram_ranges(p->cfg.ram, ranges);
	int r = make_maps(p, err);

	for (unsigned int i = 0; !r && i < num; i++)
		r = classify_range(p, &ranges[i], err);
	if (!r)
		r = make_blocks(p, ranges, num, err);
	if (!r)
		r = copy_ahead(p, err);
	if (!r)
		r = open_uffds(p, err);
	if (r)
		return r;
	p->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (p->stop_fd < 0)
		return err_errno(err, errno, "pager: eventfd");
	p->ahead_done = !p->ahead.num;
	return register_blocks(p, err);
}

int pager_new(struct pager **ret, const struct pager_config *cfg,
	      struct err *err)
{
	struct pager *p;
	int r;

	if (cfg->ram->page == RAM_PAGE_1G)
		return err_set(err, ENOTSUP,
			       "1G pages come in whole or not at all, and "
			       "nobody should wait for that: restore eagerly");
	p = calloc(1, sizeof(*p));
	if (!p)
		return err_set(err, ENOMEM, "pager: out of memory");
	p->cfg = *cfg;
	p->page = ram_page_bytes(cfg->ram->page);
	p->stop_fd = -1;
	atomic_init(&p->recording, cfg->record);
	atomic_init(&p->impatient, cfg->impatient);
	pthread_cond_init(&p->changed, NULL);
	pthread_mutex_init(&p->lock, NULL);
	count_threads(p);
	r = make(p, err);
	if (!r) {
		cfg->ram->behind = cfg->source;
		atomic_store(&cfg->ram->paged, true);
		r = start_threads(p, err);
	}
	if (r)
		pager_free(p);
	else
		*ret = p;
	return r;
}

void pager_end(struct pager *p)
{
	if (atomic_load(&p->stop))
		return;
	/* Before anybody is woken who then sees zeroes. */
	if (p->num_handlers && !pager_is_complete(p))
		atomic_store(&p->cfg.ram->lost, true);
	pthread_mutex_lock(&p->lock);
	atomic_store(&p->stop, true);
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	if (p->stop_fd >= 0)
		io_eventfd_signal(p->stop_fd);
	if (p->cfg.source->ops->abort && (p->num_handlers || p->num_fillers))
		p->cfg.source->ops->abort(p->cfg.source->ctx);
	end_threads(p->handlers, p->num_handlers, p->cfg.handlers);
	end_threads(p->fillers, p->num_fillers, p->cfg.fillers);
}

void pager_free(struct pager *p)
{
	if (!p)
		return;
	pager_end(p);
	/* Closing unregisters, and wakes whoever waits. */
	for (unsigned int i = 0; i < p->num_uffds; i++)
		close_fd(&p->uffds[i]);
	if (p->cfg.ram->behind == p->cfg.source)
		p->cfg.ram->behind = NULL;
	atomic_store(&p->cfg.ram->paged, false);
	close_fd(&p->stop_fd);
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->lock);
	working_set_fini(&p->ahead);
	free(p->ahead_place);
	free((void *)p->zeroes);
	free((void *)p->settled);
	free((void *)p->touched);
	free(p->order);
	free(p->uffds);
	free(p->blocks);
	free(p->block_of);
	free(p->units);
	free(p);
}

/* ---- waiting and telling ---- */

static bool all_done(const struct pager *p)
{
	return p->all_done;
}

static bool ahead_done(const struct pager *p)
{
	return p->ahead_done;
}

static int wait_for(struct pager *p, bool (*done)(const struct pager *),
		    uint64_t timeout_ns)
{
	uint64_t until = clock_now_ns();
	bool more = true;
	int r = 0;

	if (!add_u64(until, timeout_ns, &until))
		until = INT64_MAX;
	pthread_mutex_lock(&p->lock);
	while (!done(p) && !p->failed && more)
		more = cond_wait_until(&p->changed, &p->lock, until);
	if (!done(p))
		r = p->failed ? -EIO : -ETIMEDOUT;
	pthread_mutex_unlock(&p->lock);
	return r;
}

int pager_wait_ahead(struct pager *p, uint64_t timeout_ns)
{
	return wait_for(p, ahead_done, timeout_ns);
}

int pager_wait_complete(struct pager *p, uint64_t timeout_ns)
{
	return wait_for(p, all_done, timeout_ns);
}

bool pager_is_complete(struct pager *p)
{
	bool done;

	pthread_mutex_lock(&p->lock);
	done = !p->blocks_left;
	pthread_mutex_unlock(&p->lock);
	return done;
}

int pager_end_recording(struct pager *p, struct working_set *ret)
{
	struct working_set set = { 0 };

	pthread_mutex_lock(&p->lock);
	atomic_store(&p->recording, false);
	set.num = p->num_order;
	set.units = calloc(set.num + 1, sizeof(*set.units));
	for (uint64_t i = 0; set.units && i < set.num; i++) {
		struct working_set_unit *u = &set.units[i];

		u->gpa = p->order[i] * UNIT_BYTES;
		for (unsigned int w = 0; w < WORKING_SET_WORDS; w++)
			u->pages[w] = atomic_load(
				&p->touched[p->order[i] * WORKING_SET_WORDS +
					    w]);
	}
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	if (!set.units)
		return -ENOMEM;
	*ret = set;
	return 0;
}

void pager_read_stats(struct pager *p, struct pager_stats *ret)
{
	*ret = (struct pager_stats){
		.total_bytes = ram_size(p->cfg.ram),
		.zero_bytes = p->zero_bytes,
		.settled_bytes = p->zero_bytes + atomic_load(&p->settled_bytes),
		.faults = atomic_load(&p->faults),
		.zero_faults = atomic_load(&p->zero_faults),
		.late_faults = atomic_load(&p->late_faults),
		.failures = atomic_load(&p->failures),
		.released_units = atomic_load(&p->released_units),
		.collapsed_units = atomic_load(&p->collapsed_units),
		.blocks = p->num_blocks,
		.handlers = p->num_handlers,
		.fillers = p->num_fillers,
		.uffds = p->num_uffds,
	};
	for (unsigned int i = 0; i < PAGER_NUM_PRIORITIES; i++)
		ret->bytes[i] = atomic_load(&p->bytes[i]);
	for (unsigned int i = 0; i < p->num_blocks; i++)
		ret->blocks_done += atomic_load(&p->blocks[i].done);
	histogram_read(&p->service, &ret->service);
}
