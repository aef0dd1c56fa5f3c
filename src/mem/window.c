/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private memory in small and transparent pages: the kernel protects what is in
 * the page table. A page that is not there can be made and written without
 * notice; so which are there is looked up at the instant, and what comes later
 * is not read. Of other memory missing pages are protected as well.
 * (UFFD_FEATURE_WP_UNPOPULATED would do that here too, by making page tables
 * for all that is missing, where no transparent page could come then.)
 *
 * A page that was there ahead is there at the instant, protected unless its
 * unit was let go: nobody discards, and what the kernel does to it by itself
 * (swapping, moving, splitting) keeps the protection. So the instant looks at
 * units that were let go, and at those that were not there in full.
 *
 * But Linux 6.12 to about 6.17 loses it where it splits a transparent page and
 * gives parts that are zero the shared page of zeroes. Hence
 * write_window_check().
 */
#include "mem/window.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "mem/pagemap.h"
#include "mem/uffd.h"

#define UNIT_BYTES (2 * MIB)

struct write_window {
	const struct ram *ram;
	int uffd;
	unsigned int num_registered;
	struct pagemap pagemap;
	uint64_t *held[RAM_MAX_REGIONS]; /* NULL: all are protected */
	/* Of each unit a bit: it was let go since it was protected. */
	_Atomic uint64_t *let[RAM_MAX_REGIONS];
	bool ahead;		  /* memory was protected ahead */
	bool armed;		  /* the instant has come */
	pthread_rwlock_t instant; /* writing: it comes */
	uint64_t armed_units;
};

static char *hva_of(const struct write_window *w, unsigned int region)
{
	return w->ram->base + w->ram->regions[region].base.v;
}

static uint64_t num_units(const struct write_window *w, unsigned int region)
{
	return div_round_up(w->ram->regions[region].size, UNIT_BYTES);
}

static bool protects_missing(const struct ram *ram)
{
	return ram->shared || ram_page_is_hugetlb(ram->page);
}

static int check_kind(const struct ram *ram, bool all_kinds, struct err *err)
{
	if (ram->page == RAM_PAGE_1G)
		return err_set(err, ENOTSUP,
			       "memory in pages of 1 GiB cannot be written "
			       "out while the guest runs: who writes to one "
			       "would wait for all of it");
	if (protects_missing(ram) && !all_kinds)
		return err_set(err, ENOTSUP,
			       "this kernel cannot protect %s memory from "
			       "being written (Linux 5.19 can)",
			       ram->shared ? "shared" : "hugetlb");
	return 0;
}

static int say_register(int r, struct err *err)
{
	if (r == -EBUSY)
		return err_set(err, EBUSY,
			       "guest memory has not all come yet: wait for "
			       "the event \"resident\"");
	if (r == -EINVAL)
		return err_set(err, ENOTSUP,
			       "guest memory that is mapped from a file, as "
			       "after restoring it privately, cannot be "
			       "protected from being written");
	return err_errno(err, -r, "protecting guest memory");
}

static int make_maps(struct write_window *w, unsigned int i, struct err *err)
{
	const struct ram_region *region = &w->ram->regions[i];

	w->let[i] = calloc(BITMAP_WORDS(num_units(w, i)), sizeof(*w->let[i]));
	if (!protects_missing(w->ram))
		w->held[i] = calloc(ram_region_words(region),
				    sizeof(*w->held[i]));
	return w->let[i] && (w->held[i] || protects_missing(w->ram))
		       ? 0
		       : err_set(err, ENOMEM, "out of memory");
}

int write_window_open(struct write_window **ret, const struct ram *ram,
		      int uffd, bool all_kinds, struct err *err)
{
	struct write_window *w;
	int r = check_kind(ram, all_kinds, err);

	if (r)
		return r;
	w = calloc(1, sizeof(*w));
	if (!w)
		return err_set(err, ENOMEM, "out of memory");
	w->ram = ram;
	w->uffd = uffd;
	pthread_rwlock_init(&w->instant, NULL);
	r = pagemap_open(&w->pagemap);
	if (r)
		err_errno(err, -r, "/proc/self/pagemap");
	for (unsigned int i = 0; !r && i < ram->num_regions; i++) {
		r = make_maps(w, i, err);
		if (r)
			break;
		r = uffd_register_protecting(uffd, hva_of(w, i),
					     ram->regions[i].size);
		if (r)
			r = say_register(r, err);
		else
			w->num_registered++;
	}
	if (r)
		write_window_close(w);
	else
		*ret = w;
	return r;
}

static void set_bits(uint64_t *bits, uint64_t first, uint64_t num)
{
	for (; num && first % 64; first++, num--)
		bitmap_set(bits, first);
	for (; num >= 64; first += 64, num -= 64)
		bits[first / 64] = UINT64_MAX;
	for (; num; first++, num--)
		bitmap_set(bits, first);
}

struct noting {
	const struct ram_region *region;
	uint64_t *held;
};

static void note_run(void *ctx, struct gpa gpa, uint64_t len)
{
	const struct noting *n = ctx;

	set_bits(n->held, (gpa.v - n->region->base.v) / PAGE_4K, len / PAGE_4K);
}

/* Units [first, end) of the region, and the bytes of them. */
struct stretch {
	unsigned int region;
	uint64_t first, end;
};

static struct gpa stretch_start(const struct write_window *w,
				const struct stretch *s)
{
	return GPA(w->ram->regions[s->region].base.v + s->first * UNIT_BYTES);
}

static uint64_t stretch_len(const struct write_window *w,
			    const struct stretch *s)
{
	uint64_t end = MIN(s->end * UNIT_BYTES,
			   w->ram->regions[s->region].size);

	return end - s->first * UNIT_BYTES;
}

/* What is there now is noted, and protected. */
static int protect_stretch(struct write_window *w, const struct stretch *s,
			   struct err *err)
{
	struct gpa start = stretch_start(w, s);
	uint64_t len = stretch_len(w, s);
	struct noting noting = {
		.region = &w->ram->regions[s->region],
		.held = w->held[s->region],
	};
	int r = 0;

	if (noting.held)
		r = pagemap_each_held(&w->pagemap, w->ram, start, len, false,
				      note_run, &noting);
	if (r)
		return err_errno(err, -r, "/proc/self/pagemap");
	r = uffd_protect(w->uffd, w->ram->base + start.v, len, true);
	return r ? err_errno(err, -r, "protecting guest memory") : 0;
}

/*
 * Let the guest in between: a call for all of memory would keep who waits, and
 * who wants to change a mapping, from going on.
 */
#define AHEAD_UNITS 16

int write_window_protect_ahead(struct write_window *w, struct err *err)
{
	int r = 0;

	w->ahead = true;
	for (unsigned int i = 0; !r && i < w->ram->num_regions; i++) {
		uint64_t units = num_units(w, i);

		for (uint64_t at = 0; !r && at < units; at += AHEAD_UNITS) {
			uint64_t end = MIN(at + AHEAD_UNITS, units);
			const struct stretch s = { i, at, end };

			r = protect_stretch(w, &s, err);
		}
	}
	return r;
}

int write_window_let_ahead(struct write_window *w, struct gpa gpa)
{
	int r = 0;

	pthread_rwlock_rdlock(&w->instant);
	if (!w->armed) {
		const struct ram_region *region = ram_region_at(w->ram, gpa);
		uint64_t unit = (gpa.v - region->base.v) / UNIT_BYTES;
		unsigned int i = (unsigned int)(region - w->ram->regions);
		const struct stretch s = { i, unit, unit + 1 };

		/* Before it can be written, so that it is not missed. */
		atomic_fetch_or(&w->let[i][unit / 64], 1ull << (unit % 64));
		r = write_window_release(w, stretch_start(w, &s),
					 stretch_len(w, &s));
		r = r ? r : 1;
	}
	pthread_rwlock_unlock(&w->instant);
	return r;
}

static bool all_held(const struct write_window *w, unsigned int region,
		     uint64_t unit)
{
	const struct stretch s = { region, unit, unit + 1 };
	uint64_t first = unit * (UNIT_BYTES / PAGE_4K);
	uint64_t end = first + stretch_len(w, &s) / PAGE_4K;

	for (; first < end && first % 64 == 0 && end - first >= 64; first += 64)
		if (w->held[region][first / 64] != UINT64_MAX)
			return false;
	while (first < end && bitmap_test(w->held[region], first))
		first++;
	return first == end;
}

/* May something of it be there that is not protected? */
static bool is_open(const struct write_window *w, unsigned int region,
		    uint64_t unit)
{
	return !w->ahead ||
	       atomic_load(&w->let[region][unit / 64]) >> (unit % 64) & 1 ||
	       (w->held[region] && !all_held(w, region, unit));
}

static int arm_region(struct write_window *w, unsigned int i, struct err *err)
{
	uint64_t units = num_units(w, i);
	struct stretch s = { .region = i };
	int r = 0;

	while (!r && s.first < units) {
		if (!is_open(w, i, s.first)) {
			s.first++;
			continue;
		}
		s.end = s.first + 1;
		while (s.end < units && is_open(w, i, s.end))
			s.end++;
		r = protect_stretch(w, &s, err);
		w->armed_units += s.end - s.first;
		s.first = s.end;
	}
	return r;
}

int write_window_arm(struct write_window *w, struct err *err)
{
	int r = 0;

	pthread_rwlock_wrlock(&w->instant);
	w->armed = true;
	pthread_rwlock_unlock(&w->instant);
	for (unsigned int i = 0; !r && i < w->ram->num_regions; i++)
		r = arm_region(w, i, err);
	return r;
}

uint64_t write_window_armed_units(const struct write_window *w)
{
	return w->armed_units;
}

bool write_window_held(const struct write_window *w, unsigned int region,
		       uint64_t page)
{
	return !w->held[region] || bitmap_test(w->held[region], page);
}

struct checking {
	const struct write_window *w;
	unsigned int region;
	bool lost;
};

static void check_run(void *ctx, struct gpa gpa, uint64_t len)
{
	struct checking *c = ctx;
	uint64_t base = c->w->ram->regions[c->region].base.v;

	for (uint64_t at = gpa.v; at < gpa.v + len; at += PAGE_4K)
		c->lost |= write_window_held(c->w, c->region,
					     (at - base) / PAGE_4K);
}

int write_window_check(const struct write_window *w, struct pagemap *pm,
		       struct gpa gpa, uint64_t len)
{
	const struct ram_region *region = ram_region_at(w->ram, gpa);
	struct checking checking = {
		.w = w,
		.region = (unsigned int)(region - w->ram->regions),
	};
	int r;

	if (!w->held[checking.region])
		return 0;
	r = pagemap_each_unprotected(pm, w->ram, gpa, len, check_run,
				     &checking);
	/* Kernels that cannot tell are older than the fault. */
	if (r == -ENOTTY)
		return 0;
	return r ? r : checking.lost ? -ESTALE : 0;
}

int write_window_fd(const struct write_window *w)
{
	return w->uffd;
}

int write_window_next(const struct write_window *w, struct gpa *ret)
{
	struct uffd_fault fault;
	int r = uffd_next(w->uffd, &fault);

	if (r > 0)
		*ret = GPA(fault.address - (uintptr_t)w->ram->base);
	return r;
}

int write_window_release(const struct write_window *w, struct gpa gpa,
			 uint64_t len)
{
	return uffd_protect(w->uffd, w->ram->base + gpa.v, len, false);
}

/*
 * Unregistering takes protection away but wakes nobody who waits for that.
 * Woken are all after it: who began to wait meanwhile is among them, and nobody
 * begins any more.
 */
static void let_go(const struct write_window *w, unsigned int i)
{
	uint64_t size = w->ram->regions[i].size;

	if (uffd_unregister(w->uffd, hva_of(w, i), size))
		(void)!uffd_protect(w->uffd, hva_of(w, i), size, false);
	uffd_wake(w->uffd, hva_of(w, i), size);
}

void write_window_close(struct write_window *w)
{
	if (!w)
		return;
	for (unsigned int i = 0; i < w->num_registered; i++)
		let_go(w, i);
	for (unsigned int i = 0; i < RAM_MAX_REGIONS; i++) {
		free(w->held[i]);
		free(w->let[i]);
	}
	pagemap_close(&w->pagemap);
	pthread_rwlock_destroy(&w->instant);
	free(w);
}
