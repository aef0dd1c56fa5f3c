/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private memory in small and transparent pages: the kernel protects what is in
 * the page table. A page that is not there can be made and written without
 * notice; so which are there is looked up at the instant, and what comes later
 * is not read. Of other memory missing pages are protected as well.
 */
#include "mem/window.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "mem/pagemap.h"
#include "mem/uffd.h"

struct write_window {
	const struct ram *ram;
	int uffd;
	unsigned int num_registered;
	uint64_t *held[RAM_MAX_REGIONS]; /* NULL: all are protected */
};

static char *hva_of(const struct write_window *w, unsigned int region)
{
	return w->ram->base + w->ram->regions[region].base.v;
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

static int make_held(struct write_window *w, unsigned int i, struct err *err)
{
	if (protects_missing(w->ram))
		return 0;
	w->held[i] = calloc(ram_region_words(&w->ram->regions[i]),
			    sizeof(uint64_t));
	return w->held[i] ? 0 : err_set(err, ENOMEM, "out of memory");
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
	for (unsigned int i = 0; !r && i < ram->num_regions; i++) {
		r = make_held(w, i, err);
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

static int note_held(struct write_window *w, struct pagemap *pm, unsigned int i)
{
	const struct ram_region *region = &w->ram->regions[i];
	uint64_t end = region->base.v + region->size, len = 0;
	struct gpa at = region->base;
	int r;

	while ((r = pagemap_next_held(pm, w->ram, at, end - at.v, false, &at,
				      &len)) > 0) {
		set_bits(w->held[i], (at.v - region->base.v) / PAGE_4K,
			 len / PAGE_4K);
		at.v += len;
	}
	return r;
}

static int note_all_held(struct write_window *w, struct err *err)
{
	struct pagemap pm;
	int r;

	if (protects_missing(w->ram))
		return 0;
	r = pagemap_open(&pm);
	if (r)
		return err_errno(err, -r, "/proc/self/pagemap");
	for (unsigned int i = 0; !r && i < w->ram->num_regions; i++)
		r = note_held(w, &pm, i);
	pagemap_close(&pm);
	return r ? err_errno(err, -r, "/proc/self/pagemap") : 0;
}

int write_window_arm(struct write_window *w, struct err *err)
{
	int r = note_all_held(w, err);

	for (unsigned int i = 0; !r && i < w->ram->num_regions; i++) {
		r = uffd_protect(w->uffd, hva_of(w, i), w->ram->regions[i].size,
				 true);
		if (r)
			err_errno(err, -r, "protecting guest memory");
	}
	return r;
}

bool write_window_held(const struct write_window *w, unsigned int region,
		       uint64_t page)
{
	return !w->held[region] || bitmap_test(w->held[region], page);
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
	for (unsigned int i = 0; i < RAM_MAX_REGIONS; i++)
		free(w->held[i]);
	free(w);
}
