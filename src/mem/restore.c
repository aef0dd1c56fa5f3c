/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/restore.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/thread_class.h"
#include "base/zero.h"
#include "mem/host_fill.h"
#include "mem/hostmem_guard.h"

const char *const restore_mode_names[4] = {
	[RESTORE_PRIVATE] = "private",
	[RESTORE_EAGER] = "eager",
	[RESTORE_LAZY] = "lazy",
	[RESTORE_WORKING_SET] = "working-set",
};

struct eager {
	const struct ram *ram;
	const struct restore_request *req;
	struct hostmem_guard *guard;
	_Atomic uint64_t read_bytes;
};

unsigned int ram_ranges(const struct ram *ram, struct mem_range *ret)
{
	for (unsigned int i = 0; i < ram->num_regions; i++)
		ret[i] = (struct mem_range){
			.start = ram->regions[i].base.v,
			.len = ram->regions[i].size,
		};
	return ram->num_regions;
}

static bool by_large_pages(const struct eager *e)
{
	return e->ram->page != RAM_PAGE_4K;
}

/*
 * A page is populated before it is read into, for a hugetlb pool that is empty
 * or a bad page is an error then, and not a SIGBUS.
 */
static int fill(struct eager *e, uint64_t at, uint64_t len, struct err *err)
{
	uint64_t page = ram_page_bytes(e->ram->page);
	uint64_t from = align_down(at, page), to = align_up(at + len, page);

	atomic_fetch_add(&e->read_bytes, len);
	return host_fill(e->ram, GPA(from), to - from, err);
}

/* Where pages are 4K, those of zeroes are not made. */
static int copy_runs(struct eager *e, const struct mem_range *where,
		     const char *buf, struct err *err)
{
	int r = 0;

	for (uint64_t at = 0, next; !r && at < where->len; at = next) {
		next = at + PAGE_4K;
		if (zero_is_all(buf + at, PAGE_4K))
			continue;
		while (next < where->len && !zero_is_all(buf + next, PAGE_4K))
			next += PAGE_4K;
		r = fill(e, where->start + at, next - at, err);
		if (!r)
			memcpy(e->ram->base + where->start + at, buf + at,
			       next - at);
	}
	return r;
}

/*
 * One read for the unit, whatever holes it has: that is what checksums are of,
 * and one for each run would take longer.
 */
static int read_data(struct eager *e, const struct mem_range *where, bool whole,
		     char *buf, struct err *err)
{
	int r = 0;

	if (!whole && !by_large_pages(e)) {
		r = mem_source_read(e->req->source, GPA(where->start), buf,
				    where->len, err);
		return r ? r : copy_runs(e, where, buf, err);
	}
	r = fill(e, where->start, where->len, err);
	return r ? r
		 : mem_source_read(e->req->source, GPA(where->start),
				   e->ram->base + where->start, where->len,
				   err);
}

static int read_guarded(struct eager *e, const struct mem_range *where,
			bool whole, char *buf, struct err *err)
{
	int r = hostmem_guard_take(e->guard, GPA(where->start), where->len,
				   err);

	if (r) {
		err_prefix(err, "guest memory %#llx-%#llx",
			   (unsigned long long)where->start,
			   (unsigned long long)where->start + where->len);
		return r;
	}
	r = read_data(e, where, whole, buf, err);
	hostmem_guard_done(e->guard, where->len);
	return r;
}

static int read_unit(void *ctx, void *own, uint64_t index,
		     const struct mem_range *where, struct err *err)
{
	struct eager *e = ctx;
	enum mem_content content = MEM_CONTENT_ABSENT;
	uint64_t len = 0;
	int r = mem_source_extent(e->req->source, GPA(where->start), where->len,
				  &content, &len);

	if (r || content == MEM_CONTENT_ABSENT)
		return err_errno(err, r ? -r : ENODATA, "memory at %#llx",
				 (unsigned long long)where->start);
	if (content == MEM_CONTENT_ZERO && len == where->len)
		return 0;
	return read_guarded(e, where,
			    content == MEM_CONTENT_DATA && len == where->len,
			    own, err);
}

static int begin(void *ctx, void **ret_own, struct err *err)
{
	*ret_own = aligned_alloc(PAGE_4K, MEM_UNIT_BYTES);
	return *ret_own ? 0 : err_set(err, ENOMEM, "out of memory");
}

static int finish(void *ctx, void *own, struct err *err)
{
	free(own);
	return 0;
}

/* And what populating takes, which reads, too. */
static const struct thread_call restore_calls[] = {
	CALL(lseek),
};

const struct thread_class restore_thread_class = {
	.name = "restore",
	.what = "reads memory out of a snapshot",
	THREAD_CALLS(restore_calls),
	.also = &populate_thread_class,
};

int restore_eager(const struct ram *ram, const struct restore_request *req,
		  struct restore_result *ret, struct err *err)
{
	struct mem_range ranges[RAM_MAX_REGIONS];
	struct eager e = { .ram = ram, .req = req };
	const struct unit_job job = {
		.name = "restore",
		.cls = &restore_thread_class,
		.ranges = ranges,
		.num_ranges = ram_ranges(ram, ranges),
		.threads = req->threads,
		.watch = req->watch,
		.ctx = &e,
		.begin = begin,
		.unit = read_unit,
		.end = finish,
	};
	uint64_t began = clock_now_ns();
	unsigned int threads = 0;
	int r = hostmem_guard_new(&e.guard, ram, "");

	if (r)
		return err_set(err, ENOMEM, "restore: out of memory");
	r = unit_job_run(&job, &threads, err);
	hostmem_guard_free(e.guard);
	if (r)
		err_prefix(err, "restore");
	if (ret)
		*ret = (struct restore_result){
			.total_bytes = ram_size(ram),
			.read_bytes = atomic_load(&e.read_bytes),
			.wall_ns = clock_now_ns() - began,
			.threads = threads,
		};
	return r;
}
