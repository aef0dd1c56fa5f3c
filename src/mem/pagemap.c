/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "mem/pagemap_scan.h"

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62) /* or any other entry that is no page */
#define PAGEMAP_FILE	(1ull << 61) /* of a file, or shared */

int pagemap_open(struct pagemap *pm)
{
	pm->num = 0;
	pm->fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	return pm->fd < 0 ? -errno : 0;
}

void pagemap_close(struct pagemap *pm)
{
	close_fd(&pm->fd);
}

/* Have the entry of page in the buffer, read afresh with those after it. */
static int load(struct pagemap *pm, uint64_t page, uint64_t end)
{
	unsigned int num = (unsigned int)MIN(end - page,
					     (uint64_t)PAGEMAP_BATCH);
	int r;

	if (page >= pm->first && page < pm->first + pm->num)
		return 0;
	pm->num = 0;
	r = io_pread_full(pm->fd, pm->entries, num * sizeof(pm->entries[0]),
			  page * sizeof(pm->entries[0]));
	if (r)
		return r;
	pm->first = page;
	pm->num = num;
	return 0;
}

/* Has the entry of page a bit of any and none of not? */
static int look(struct pagemap *pm, uint64_t page, uint64_t end, uint64_t any,
		uint64_t not, bool *ret)
{
	int r = load(pm, page, end);
	uint64_t entry;

	if (r)
		return r;
	entry = pm->entries[page - pm->first];
	*ret = (entry & any) && !(entry & not );
	return 0;
}

/* The buffer is only good within one call: pages come and go. */
static int next_run(struct pagemap *pm, const struct ram *ram, struct gpa gpa,
		    uint64_t len, uint64_t any, uint64_t not,
		    struct gpa *ret_gpa, uint64_t *ret_len)
{
	uint64_t base = (uintptr_t)ram->base / PAGE_4K;
	uint64_t page = base + gpa.v / PAGE_4K;
	uint64_t end = base + (gpa.v + len) / PAGE_4K, start = end;
	bool found = false;

	pm->num = 0;
	for (; page < end; page++) {
		int r = look(pm, page, end, any, not, &found);

		if (r)
			return r;
		if (found && start == end)
			start = page;
		if (!found && start != end)
			break;
	}
	if (start == end)
		return 0;
	*ret_gpa = GPA((start - base) * PAGE_4K);
	*ret_len = (page - start) * PAGE_4K;
	return 1;
}

int pagemap_next_present(struct pagemap *pm, const struct ram *ram,
			 struct gpa gpa, uint64_t len, struct gpa *ret_gpa,
			 uint64_t *ret_len)
{
	return next_run(pm, ram, gpa, len, PAGEMAP_PRESENT, 0, ret_gpa,
			ret_len);
}

int pagemap_next_held(struct pagemap *pm, const struct ram *ram, struct gpa gpa,
		      uint64_t len, bool own_only, struct gpa *ret_gpa,
		      uint64_t *ret_len)
{
	return next_run(pm, ram, gpa, len, PAGEMAP_PRESENT | PAGEMAP_SWAPPED,
			own_only ? PAGEMAP_FILE : 0, ret_gpa, ret_len);
}

static int each_held_by_entries(struct pagemap *pm, const struct ram *ram,
				struct gpa gpa, uint64_t len, bool present_only,
				void (*run)(void *ctx, struct gpa gpa,
					    uint64_t len),
				void *ctx)
{
	uint64_t any = PAGEMAP_PRESENT | (present_only ? 0 : PAGEMAP_SWAPPED);
	uint64_t end = gpa.v + len;
	int r;

	while ((r = next_run(pm, ram, gpa, end - gpa.v, any, 0, &gpa, &len)) >
	       0) {
		run(ctx, gpa, len);
		gpa.v += len;
	}
	return r;
}

#define SCAN_RUNS 256 /* asked for at once */

/* Runs with all categories of all, and one of any. -ENOTTY: it cannot scan. */
static int each_by_scan(const struct pagemap *pm, const struct ram *ram,
			struct gpa gpa, uint64_t len, uint64_t all,
			uint64_t any,
			void (*run)(void *ctx, struct gpa gpa, uint64_t len),
			void *ctx)
{
	struct pagemap_scan_region runs[SCAN_RUNS];
	struct pagemap_scan scan = {
		.size = sizeof(scan),
		.start = (uintptr_t)ram->base + gpa.v,
		.end = (uintptr_t)ram->base + gpa.v + len,
		.vec = (uintptr_t)runs,
		.vec_len = SCAN_RUNS,
		.category_mask = all,
		.category_anyof_mask = any,
		.return_mask = any,
	};

	while (scan.start < scan.end) {
		int n = ioctl(pm->fd, PAGEMAP_SCAN_IOCTL, &scan);

		if (n < 0)
			return -errno;
		for (int i = 0; i < n; i++)
			run(ctx, GPA(runs[i].start - (uintptr_t)ram->base),
			    runs[i].end - runs[i].start);
		BUG_ON(scan.walk_end <= scan.start);
		scan.start = scan.walk_end;
	}
	return 0;
}

int pagemap_each_held(struct pagemap *pm, const struct ram *ram, struct gpa gpa,
		      uint64_t len, bool present_only,
		      void (*run)(void *ctx, struct gpa gpa, uint64_t len),
		      void *ctx)
{
	uint64_t any = PAGEMAP_SCAN_PRESENT |
		       (present_only ? 0 : PAGEMAP_SCAN_SWAPPED);
	int r = each_by_scan(pm, ram, gpa, len, 0, any, run, ctx);

	return r == -ENOTTY ? each_held_by_entries(pm, ram, gpa, len,
						   present_only, run, ctx)
			    : r;
}

int pagemap_each_unprotected(
	struct pagemap *pm, const struct ram *ram, struct gpa gpa, uint64_t len,
	void (*run)(void *ctx, struct gpa gpa, uint64_t len), void *ctx)
{
	return each_by_scan(pm, ram, gpa, len, PAGEMAP_SCAN_WRITTEN,
			    PAGEMAP_SCAN_PRESENT | PAGEMAP_SCAN_SWAPPED, run,
			    ctx);
}

int pagemap_count_present(struct pagemap *pm, const struct ram *ram,
			  struct gpa gpa, uint64_t len, uint64_t *ret_bytes)
{
	uint64_t end = gpa.v + len, bytes = 0, run = 0;
	int r;

	while ((r = pagemap_next_present(pm, ram, gpa, end - gpa.v, &gpa,
					 &run)) > 0) {
		bytes += run;
		gpa.v += run;
	}
	if (!r)
		*ret_bytes = bytes;
	return r;
}

int pagemap_is_huge(const struct pagemap *pm, const struct ram *ram,
		    struct gpa gpa, uint64_t len)
{
	struct pagemap_scan_region found = { 0 };
	struct pagemap_scan scan = {
		.size = sizeof(scan),
		.start = (uintptr_t)ram->base + gpa.v,
		.end = (uintptr_t)ram->base + gpa.v + len,
		.vec = (uintptr_t)&found,
		.vec_len = 1,
		.category_mask = PAGEMAP_SCAN_HUGE,
		.return_mask = PAGEMAP_SCAN_HUGE,
	};
	int r = ioctl(pm->fd, PAGEMAP_SCAN_IOCTL, &scan);

	if (r < 0)
		return -errno;
	return r == 1 && found.start == scan.start && found.end == scan.end;
}
