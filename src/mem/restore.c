/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/restore.h"

#include <errno.h>
#include <stdatomic.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/thread_class.h"
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

/*
 * The page is populated first, for a hugetlb pool that is empty or a cgroup at
 * its limit is an error then, and not a SIGBUS.
 */
static int read_run(struct eager *e, uint64_t at, uint64_t len, struct err *err)
{
	uint64_t unit = ram_page_bytes(e->ram->page);
	uint64_t from = align_down(at, unit), to = align_up(at + len, unit);
	int r = hostmem_guard_take(e->guard, GPA(from), to - from, err);

	if (r) {
		err_prefix(err, "guest memory %#llx-%#llx",
			   (unsigned long long)from, (unsigned long long)to);
		return r;
	}
	r = host_fill(e->ram, GPA(from), to - from, err);
	if (!r)
		r = mem_source_read(e->req->source, GPA(at), e->ram->base + at,
				    len, err);
	hostmem_guard_done(e->guard, to - from);
	if (!r)
		atomic_fetch_add(&e->read_bytes, len);
	return r;
}

static int read_unit(void *ctx, void *own, uint64_t index,
		     const struct mem_range *where, struct err *err)
{
	struct eager *e = ctx;
	uint64_t at = where->start, end = where->start + where->len, len = 0;
	enum mem_content content = MEM_CONTENT_ZERO;
	int r = 0;

	for (; !r && at < end; at += len) {
		r = mem_source_extent(e->req->source, GPA(at), end - at,
				      &content, &len);
		if (r)
			return err_errno(err, -r, "memory at %#llx",
					 (unsigned long long)at);
		BUG_ON(!len || len > end - at);
		if (content == MEM_CONTENT_ABSENT)
			return err_set(err, ENODATA,
				       "memory at %#llx is not there",
				       (unsigned long long)at);
		if (content == MEM_CONTENT_DATA)
			r = read_run(e, at, len, err);
	}
	return r;
}

/* And what populating takes. */
static const struct thread_call restore_calls[] = {
	CALL(pread64),
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
		.unit = read_unit,
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
