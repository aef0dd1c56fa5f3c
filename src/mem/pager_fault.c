/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handlers: one fault after the other, each read, served and answered
 * before the next is read, so that what a slow source delays is no more than
 * that.
 *
 * A fault may come late: its page was installed meanwhile, or its range has
 * left userfaultfd. Who waits is then woken here, always. Not every such thread
 * has been woken by what made it late: a fault that runs under the lock of its
 * mapping alone (Linux 6.6) may begin to wait after UFFDIO_UNREGISTER has woken
 * all and before it has changed the mapping. (Seen on 6.18.)
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/thread_class.h"
#include "mem/pager_priv.h"
#include "mem/uffd.h"

/*
 * Taking a run of zero units out of userfaultfd splits a mapping. Beyond so
 * many (a process has 65530) they get pages of zeroes instead.
 */
#define MAX_SPLITS 4096

/* From one userfaultfd before a look at the others. */
#define MAX_IN_A_ROW 16

static void note_touch(struct pager *p, uint64_t gpa)
{
	uint64_t page = gpa / PAGE_4K, unit = gpa / UNIT_BYTES;

	if (!atomic_load_explicit(&p->recording, memory_order_relaxed))
		return;
	if (p->page == UNIT_BYTES) {
		for (unsigned int i = 0; i < WORKING_SET_WORDS; i++)
			atomic_store(&p->touched[page / 64 + i], UINT64_MAX);
	} else {
		atomic_fetch_or(&p->touched[page / 64], 1ull << (page % 64));
	}
	if (atomic_exchange(&p->units[unit].touched, 1))
		return;
	pthread_mutex_lock(&p->lock);
	p->order[p->num_order++] = unit;
	pthread_mutex_unlock(&p->lock);
}

/* ---- zeroes ---- */

static bool is_zero_unit(const struct pager *p, uint64_t gpa)
{
	uint8_t kind = atomic_load(&p->units[gpa / UNIT_BYTES].kind);

	return kind == UNIT_ZERO || kind == UNIT_RELEASED;
}

/* All zero units around gpa, as far as they are registered. */
static struct mem_range zero_run(const struct pager *p, uint64_t gpa)
{
	const struct mem_range *in = &pager_block_at(p, gpa)->registered;
	uint64_t start = align_down(gpa, UNIT_BYTES), end = start;

	while (end < in->start + in->len && is_zero_unit(p, end))
		end += UNIT_BYTES;
	while (start > in->start && is_zero_unit(p, start - UNIT_BYTES))
		start -= UNIT_BYTES;
	/* A unit with data is the last that is registered. */
	return (struct mem_range){ .start = start, .len = end - start };
}

/* The functions below that serve return 1: installed, and so woken; 0: it is
 * there, wake; or a negative errno. */
static int served(int64_t n)
{
	if (n == -ENOENT) /* its block has left */
		return 0;
	return n < 0 ? (int)n : n > 0;
}

static int release(struct pager *p, const struct mem_range *run)
{
	int r = uffd_unregister(pager_uffd_at(p, run->start),
				p->cfg.ram->base + run->start, run->len);

	if (r)
		return r;
	atomic_fetch_add(&p->splits, 1);
	for (uint64_t at = run->start; at < run->start + run->len;
	     at += UNIT_BYTES) {
		if (atomic_exchange(&p->units[at / UNIT_BYTES].kind,
				    UNIT_RELEASED) == UNIT_ZERO)
			atomic_fetch_add(&p->released_units, 1);
	}
	return 0;
}

/*
 * Not a page of zeroes: out of userfaultfd the kernel serves the whole run by
 * itself, in 2M pages where it may.
 */
static int serve_zero_unit(struct pager *p, uint64_t gpa)
{
	struct mem_range run = zero_run(p, gpa);
	uint64_t start = align_down(gpa, UNIT_BYTES);
	char *hva = p->cfg.ram->base + start;

	if (!run.len)
		return 0; /* its block has left */
	if (atomic_load(&p->splits) < MAX_SPLITS && !release(p, &run))
		return 0;
	return served(
		p->page == UNIT_BYTES
			? uffd_copy(pager_uffd_at(p, gpa), hva, p->zeroes,
				    UNIT_BYTES, UNIT_BYTES)
			: uffd_zero(pager_uffd_at(p, gpa), hva, UNIT_BYTES));
}

/*
 * Zeroes in a unit that has data: the page, and the rest of its run up to the
 * unit's end in one go. Who writes gets a page of its own at once, for on the
 * shared page of zeroes it would fault again.
 */
static int serve_zero_pages(struct pager *p, uint64_t gpa, uint64_t run,
			    bool write)
{
	char *hva = p->cfg.ram->base + gpa;
	int fd = pager_uffd_at(p, gpa), r;

	if (write || p->page != PAGE_4K)
		r = served(uffd_copy(fd, hva, p->zeroes, p->page, p->page));
	else
		r = served(uffd_zero(fd, hva, PAGE_4K));
	if (r < 0)
		return r;
	/* The rest is a favour: should it fail, it faults for itself. */
	if (run > p->page && uffd_zero(fd, hva + p->page, run - p->page) < 0)
		run = p->page;
	pager_settle(p, gpa, run);
	return r;
}

/* ---- data ---- */

/*
 * Most of the unit is to come anyway, and it has to be read and checked for
 * this page: the guest is not let to wait for its neighbours again.
 */
static bool takes_unit(const struct pager *p, uint64_t gpa)
{
	return p->cfg.source->ops->by_unit && p->page == PAGE_4K &&
	       p->cfg.sweep && !atomic_load(&p->recording) &&
	       atomic_load(&p->units[gpa / UNIT_BYTES].left) > UNIT_PAGES / 2;
}

/* [start, end) is the unit that gpa is in. */
static int serve_unit(struct pager *p, uint64_t gpa, uint64_t start,
		      uint64_t end, char *buf, struct err *err)
{
	int r = mem_source_read(p->cfg.source, GPA(start), buf, end - start,
				err);

	if (r)
		return r;
	r = pager_install(p, gpa, buf + (gpa - start), PAGE_4K, PAGER_FAULT);
	/* The rest is a favour: should it fail, it faults for itself. */
	if (r >= 0)
		(void)!pager_install_runs(p, start, buf, end - start,
					  PAGER_SWEEP);
	return r;
}

/* It is there, or was found to be zero; the source need not be read again. */
static int serve_settled(struct pager *p, uint64_t gpa, bool write)
{
	int r = serve_zero_pages(p, gpa, p->page, write);

	if (r > 0)
		atomic_fetch_add(&p->zero_faults, 1);
	return r;
}

static int serve_data(struct pager *p, uint64_t gpa, bool write, char *buf,
		      struct err *err)
{
	uint64_t unit_end = align_down(gpa, UNIT_BYTES) + UNIT_BYTES, len = 0;
	const struct mem_range *in = &pager_block_at(p, gpa)->range;
	uint64_t end = MIN(unit_end, in->start + in->len);
	enum mem_content content = MEM_CONTENT_ABSENT;
	int r = mem_source_extent(p->cfg.source, GPA(gpa), end - gpa, &content,
				  &len);

	if (r)
		return err_errno(err, -r, "memory at %#llx",
				 (unsigned long long)gpa);
	if (content == MEM_CONTENT_ZERO && len >= p->page) {
		atomic_fetch_add(&p->zero_faults, 1);
		return serve_zero_pages(p, gpa, align_down(len, p->page),
					write);
	}
	if (pager_is_settled(p, gpa))
		return serve_settled(p, gpa, write);
	if (takes_unit(p, gpa))
		return serve_unit(p, gpa, align_down(gpa, UNIT_BYTES), end, buf,
				  err);
	r = mem_source_read(p->cfg.source, GPA(gpa), buf, p->page, err);
	if (r)
		return r;
	return pager_install(p, gpa, buf, p->page, PAGER_FAULT);
}

static void serve(struct pager_thread *t, const struct uffd_fault *fault)
{
	struct pager *p = t->pager;
	uint64_t offset = fault->address - (uintptr_t)p->cfg.ram->base;
	uint64_t gpa = align_down(offset, p->page), began = clock_now_ns();
	struct err err = ERR_INIT;
	int r;

	if (atomic_load(&p->abandoned)) {
		uffd_wake(pager_uffd_at(p, gpa), p->cfg.ram->base + gpa,
			  p->page);
		return;
	}
	note_touch(p, gpa);
	if (is_zero_unit(p, gpa)) {
		atomic_fetch_add(&p->zero_faults, 1);
		r = serve_zero_unit(p, gpa);
	} else {
		r = serve_data(p, gpa, fault->write, t->buf, &err);
	}
	if (r == -EAGAIN) /* it will be put */
		return;
	if (r < 0) {
		if (!err.text[0])
			err_errno(&err, -r, "guest memory at %#llx",
				  (unsigned long long)gpa);
		pager_fail(p, &err);
		return;
	}
	if (!r) {
		atomic_fetch_add(&p->late_faults, 1);
		uffd_wake(pager_uffd_at(p, gpa), p->cfg.ram->base + gpa,
			  p->page);
	}
	atomic_fetch_add(&p->faults, 1);
	histogram_record(&p->service, clock_now_ns() - began);
}

static void serve_some(struct pager_thread *t, unsigned int uffd)
{
	struct pager *p = t->pager;
	struct uffd_fault fault;

	for (unsigned int i = 0; i < MAX_IN_A_ROW && !atomic_load(&p->stop);
	     i++) {
		if (uffd_next(p->uffds[uffd], &fault) <= 0)
			return;
		atomic_fetch_add(&p->serving, 1);
		serve(t, &fault);
		atomic_fetch_sub(&p->serving, 1);
	}
}

static const struct thread_call handler_calls[] = {
	CALL(epoll_wait),
	CALL_IOCTL(UFFDIO_COPY),
	RARE_IOCTL("a page of zeroes is read", UFFDIO_ZEROPAGE),
	RARE_IOCTL("zeroes are touched between data", UFFDIO_UNREGISTER),
	RARE_IOCTL("a fault comes late", UFFDIO_WAKE),
	/* The source: a snapshot. */
	CALL(pread64),
	RARE("its data is in very many pieces, or it was cut off", lseek),
	/* Or a migration. */
	RARE("a page is asked for that another host has", sendmsg),
	RARE("so are very many", poll),
};

const struct thread_class pager_handler_thread_class = {
	.name = "pager-fault",
	.what = "brings memory that somebody waits for",
	THREAD_CALLS(handler_calls),
};

void *pager_handler(void *arg)
{
	struct pager_thread *t = arg;

	while (!atomic_load(&t->pager->stop)) {
		struct epoll_event events[8];
		int n = epoll_wait(t->epoll_fd, events, ARRAY_SIZE(events), -1);

		for (int i = 0; i < n; i++) {
			if (events[i].data.u32 != PAGER_STOP)
				serve_some(t, events[i].data.u32);
		}
	}
	return NULL;
}
