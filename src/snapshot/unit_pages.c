/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/unit_pages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/io.h"
#include "base/zero.h"
#include "mem/source.h"

int unit_pages_init(struct unit_pages *u, const struct ram *ram,
		    const struct write_window *window, struct err *err)
{
	int r;

	memset(u, 0, sizeof(*u));
	u->ram = ram;
	u->window = window;
	u->pagemap.fd = -1;
	/* Aligned for O_DIRECT. */
	u->scratch = aligned_alloc(PAGE_4K, MEM_UNIT_BYTES);
	if (!u->scratch)
		return err_set(err, ENOMEM, "snapshot: out of memory");
	r = pagemap_open(&u->pagemap);
	return r ? err_errno(err, -r, "/proc/self/pagemap") : 0;
}

void unit_pages_fini(struct unit_pages *u)
{
	pagemap_close(&u->pagemap);
	free(u->scratch);
	u->scratch = NULL;
}

static void set_pages(struct unit_pages *u, uint64_t offset, uint64_t len,
		      const char *p)
{
	for (uint64_t i = 0; i < len / PAGE_4K; i++)
		u->pages[offset / PAGE_4K + i] = p + i * PAGE_4K;
}

/* Pages that came since the window was opened are not what is wanted. */
static void drop_newer(struct unit_pages *u, const struct mem_range *where)
{
	const struct ram_region *region = ram_region_at(u->ram,
							GPA(where->start));
	unsigned int index = (unsigned int)(region - u->ram->regions);
	uint64_t first = (where->start - region->base.v) / PAGE_4K;

	if (!u->window)
		return;
	for (unsigned int i = 0; i < u->num; i++) {
		if (!write_window_held(u->window, index, first + i))
			u->pages[i] = NULL;
	}
}

struct loading {
	struct unit_pages *unit;
	uint64_t start;
};

static void load_run(void *ctx, struct gpa gpa, uint64_t len)
{
	const struct loading *l = ctx;

	set_pages(l->unit, gpa.v - l->start, len, l->unit->ram->base + gpa.v);
}

/*
 * What is in the host's page table is read where it is. Of a memfd only what is
 * mapped: the rest is in the file, or is a hole, which a look would fill.
 */
static int load_held(struct unit_pages *u, const struct mem_range *where,
		     struct err *err)
{
	struct loading loading = { u, where->start };
	int r = pagemap_each_held(&u->pagemap, u->ram, GPA(where->start),
				  where->len, u->ram->fd >= 0, load_run,
				  &loading);

	return r ? err_errno(err, -r, "/proc/self/pagemap") : 0;
}

/* Where [gpa, ...) is in the memfd. */
static uint64_t file_offset(const struct ram *ram, uint64_t gpa)
{
	uint64_t offset = 0;

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		const struct ram_region *region = &ram->regions[i];

		if (gpa - region->base.v < region->size)
			return offset + gpa - region->base.v;
		offset += region->size;
	}
	BUG_ON(true);
}

/*
 * Reading a hole of a memfd makes no page, a touch would. Others may map it
 * too, so what this process has not mapped is not nothing.
 */
static int load_file(struct unit_pages *u, const struct mem_range *where,
		     uint64_t at, uint64_t len, struct err *err)
{
	uint64_t offset = file_offset(u->ram, at);
	off_t data = lseek(u->ram->fd, (off_t)offset, SEEK_DATA);
	char *to = u->scratch + (at - where->start);
	int r;

	if (data >= 0 && (uint64_t)data >= offset + len)
		return 0;
	if (data < 0 && errno == ENXIO)
		return 0;
	r = io_pread_full(u->ram->fd, to, len, offset);
	if (r)
		return err_errno(err, -r, "reading guest memory at %#llx",
				 (unsigned long long)at);
	set_pages(u, at - where->start, len, to);
	u->scratch_used = true;
	return 0;
}

static int load_behind(struct unit_pages *u, const struct mem_range *where,
		       uint64_t at, uint64_t len, struct err *err)
{
	const struct mem_source *behind = u->ram->behind;
	enum mem_content content = MEM_CONTENT_ABSENT;
	uint64_t step = 0;

	for (uint64_t end = at + len; at < end; at += step) {
		char *to = u->scratch + (at - where->start);
		int r = mem_source_extent(behind, GPA(at), end - at, &content,
					  &step);

		if (!r && content == MEM_CONTENT_ABSENT)
			r = -ENODATA;
		if (r)
			return err_errno(err, -r, "memory at %#llx in %s",
					 (unsigned long long)at,
					 behind->ops->name);
		BUG_ON(!step || step > end - at);
		if (content == MEM_CONTENT_ZERO)
			continue;
		r = mem_source_read(behind, GPA(at), to, step, err);
		if (r)
			return r;
		set_pages(u, at - where->start, step, to);
		u->scratch_used = true;
	}
	return 0;
}

static int load_missing(struct unit_pages *u, const struct mem_range *where,
			unsigned int first, unsigned int num, struct err *err)
{
	uint64_t at = where->start + first * PAGE_4K, len = num * PAGE_4K;

	if (u->ram->behind)
		return load_behind(u, where, at, len, err);
	if (u->ram->fd >= 0)
		return load_file(u, where, at, len, err);
	return 0;
}

int unit_pages_load(struct unit_pages *u, const struct mem_range *where,
		    struct err *err)
{
	int r;

	u->num = (unsigned int)(where->len / PAGE_4K);
	u->scratch_used = false;
	memset(u->pages, 0, sizeof(u->pages));
	r = load_held(u, where, err);
	drop_newer(u, where);
	for (unsigned int i = 0, next; !r && i < u->num; i = next) {
		next = i + 1;
		if (u->pages[i])
			continue;
		while (next < u->num && !u->pages[next])
			next++;
		r = load_missing(u, where, i, next - i, err);
	}
	for (unsigned int i = 0; !r && i < u->num; i++) {
		if (u->pages[i] && zero_is_all(u->pages[i], PAGE_4K))
			u->pages[i] = NULL;
	}
	return r;
}

int unit_pages_detach(struct unit_pages *u, const struct mem_range *where,
		      struct err *err)
{
	int r;

	for (unsigned int i = 0; i < u->num; i++) {
		char *to = u->scratch + i * PAGE_4K;

		if (!u->pages[i] || u->pages[i] == to)
			continue;
		memcpy(to, u->pages[i], PAGE_4K);
		u->pages[i] = to;
	}
	r = write_window_check(u->window, &u->pagemap, GPA(where->start),
			       where->len);
	if (r == -ESTALE)
		return err_set(err, ESTALE,
			       "guest memory at %#llx was written before it "
			       "was copied: this kernel lost its protection "
			       "(6.12 to 6.17 do so when they split "
			       "transparent pages); take a snapshot that is "
			       "not live, or use page=4k",
			       (unsigned long long)where->start);
	return r ? err_errno(err, -r, "/proc/self/pagemap") : 0;
}
