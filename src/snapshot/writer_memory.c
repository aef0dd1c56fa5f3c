/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing the memory file. A thread takes a unit of 2 MiB, finds its pages, has
 * the ones that are not zero written at the offset that is their address,
 * computes the unit's checksum meanwhile, and waits for the writes. Zeroes
 * become holes by not being written; over a parent's blocks (reflink) by being
 * punched.
 *
 * With a window (mem/window.h) the guest goes on. A unit is copied into memory
 * of the thread first, and released: whoever waits does not wait for the file.
 * Units that somebody waits for are taken out of turn (writer_serve.c).
 *
 * Sums are of the whole memory that the snapshot stands for, also in a delta:
 * those of units without a dirty page are the parent's.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/cpus.h"
#include "base/thread.h"
#include "mem/dirty.h"
#include "mem/pagemap_scan.h"
#include "mem/restore.h"
#include "snapshot/format.h"
#include "snapshot/memory_job.h"
#include "snapshot/memory_out.h"
#include "snapshot/reader.h"
#include "snapshot/sum.h"
#include "snapshot/unit_pages.h"

enum turn { TURN_OPEN, TURN_TAKEN, TURN_OVER };

static int say(const struct memory_job *job, uint64_t at, int error,
	       struct err *err)
{
	return err_errno(err, -error,
			 "snapshot %s: writing " SNAPSHOT_MEMORY
			 " at offset %#llx",
			 job->w->dir.path, (unsigned long long)at);
}

int memory_worker_begin(void *ctx, void **ret_own, struct err *err)
{
	struct memory_job *job = ctx;
	struct memory_worker *worker = calloc(1, sizeof(*worker));
	int r;

	if (!worker)
		return err_set(err, ENOMEM, "snapshot: out of memory");
	r = unit_pages_init(&worker->unit, job->req.ram, job->req.window, err);
	if (!r) {
		r = memory_out_new(&worker->out, job->fd);
		if (r)
			err_set(err, ENOMEM, "snapshot: out of memory");
	}
	if (r) {
		unit_pages_fini(&worker->unit);
		free(worker);
		return r;
	}
	*ret_own = worker;
	return 0;
}

int memory_worker_end(void *ctx, void *own, struct err *err)
{
	struct memory_worker *worker = own;

	memory_out_free(worker->out);
	unit_pages_fini(&worker->unit);
	free(worker);
	return 0;
}

/* May this page of the region differ from the parent's? */
static bool is_dirty(const struct memory_job *job, unsigned int region,
		     uint64_t page)
{
	const uint64_t *dirty = job->req.dirty[region];

	return !job->parent_sums || !dirty || bitmap_test(dirty, page);
}

static unsigned int region_at(const struct ram *ram, uint64_t gpa,
			      uint64_t *ret_page)
{
	const struct ram_region *region = ram_region_at(ram, GPA(gpa));

	*ret_page = (gpa - region->base.v) / PAGE_4K;
	return (unsigned int)(region - ram->regions);
}

static bool any_dirty(const struct memory_job *job,
		      const struct mem_range *where)
{
	uint64_t page;
	unsigned int region = region_at(job->req.ram, where->start, &page);

	for (uint64_t i = 0; i < where->len / PAGE_4K; i++) {
		if (is_dirty(job, region, page + i))
			return true;
	}
	return false;
}

static int punch(const struct memory_job *job, uint64_t at, uint64_t len,
		 struct err *err)
{
	if (fallocate(job->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      (off_t)at, (off_t)len))
		return say(job, at, -errno, err);
	return 0;
}

/* A run of dirty pages that lie one after the other, or are all zero. */
static int write_run(struct memory_job *job, struct memory_worker *worker,
		     uint64_t at, const char *p, uint64_t len, struct err *err)
{
	int r;

	if (!p) {
		atomic_fetch_add(&job->zero_bytes, len);
		return job->reflinked ? punch(job, at, len, err) : 0;
	}
	atomic_fetch_add(&job->data_bytes, len);
	r = memory_out_write(worker->out, p, len, at);
	return r ? say(job, at, r, err) : 0;
}

static int write_pages(struct memory_job *job, struct memory_worker *worker,
		       const struct mem_range *where, struct err *err)
{
	const struct unit_pages *u = &worker->unit;
	uint64_t page;
	unsigned int region = region_at(u->ram, where->start, &page);
	int r = 0;

	for (unsigned int i = 0, next; !r && i < u->num; i = next) {
		const char *p = u->pages[i];

		next = i + 1;
		if (!is_dirty(job, region, page + i))
			continue;
		while (next < u->num && is_dirty(job, region, page + next) &&
		       u->pages[next] == (p ? p + (next - i) * PAGE_4K : NULL))
			next++;
		r = write_run(job, worker, where->start + i * PAGE_4K, p,
			      (next - i) * PAGE_4K, err);
	}
	memory_out_kick(worker->out);
	return r;
}

bool memory_take_turn(struct memory_job *job, uint64_t index)
{
	uint8_t open = TURN_OPEN;

	return !job->turns || atomic_compare_exchange_strong(&job->turns[index],
							     &open, TURN_TAKEN);
}

bool memory_is_over(const struct memory_job *job, uint64_t index)
{
	return atomic_load(&job->turns[index]) == TURN_OVER;
}

int memory_release(const struct memory_job *job, const struct mem_range *where,
		   struct err *err)
{
	int r = write_window_release(job->req.window, GPA(where->start),
				     where->len);

	return r ? err_errno(err, -r, "guest memory at %#llx",
			     (unsigned long long)where->start)
		 : 0;
}

/* Over first: who finds it so releases by himself whom this comes too early. */
static int end_turn(struct memory_job *job, uint64_t index,
		    const struct mem_range *where, struct err *err)
{
	if (!job->turns)
		return 0;
	atomic_store(&job->turns[index], TURN_OVER);
	return memory_release(job, where, err);
}

static int load_unit(struct memory_job *job, struct memory_worker *worker,
		     uint64_t index, const struct mem_range *where,
		     struct err *err)
{
	int r = unit_pages_load(&worker->unit, where, err);

	if (r || !job->turns)
		return r;
	r = unit_pages_detach(&worker->unit, where, err);
	return r ? r : end_turn(job, index, where, err);
}

int memory_write_unit(struct memory_job *job, struct memory_worker *worker,
		      uint64_t index, const struct mem_range *where,
		      struct err *err)
{
	uint64_t at = where->start;
	int r, r2;

	if (job->parent_sums && !any_dirty(job, where)) {
		job->w->sums[index] = job->parent_sums[index];
		return end_turn(job, index, where, err);
	}
	r = load_unit(job, worker, index, where, err);
	if (r)
		return r;
	r = write_pages(job, worker, where, err);
	job->w->sums[index] = sum_unit_pages(worker->unit.pages,
					     worker->unit.num);
	r2 = memory_out_drain(worker->out, &at);
	if (r2 && !r)
		r = say(job, at, r2, err);
	return r;
}

static int unit(void *ctx, void *own, uint64_t index,
		const struct mem_range *where, struct err *err)
{
	struct memory_job *job = ctx;
	int r = job->servers ? memory_servers_error(job->servers, err) : 0;

	if (!r && memory_take_turn(job, index))
		r = memory_write_unit(job, own, index, where, err);
	return r;
}

static int open_memory(struct memory_job *job, struct err *err)
{
	job->fd = snapshot_dir_make_file(&job->w->dir, SNAPSHOT_MEMORY,
					 job->req.direct);
	return job->fd < 0 ? say(job, 0, job->fd, err) : 0;
}

static int check_parent(const struct memory_job *job, struct err *err)
{
	const struct snapshot_manifest *m = &job->w->manifest, *parent;

	if (!job->w->cfg.parent)
		return 0;
	parent = snapshot_reader_manifest(job->w->cfg.parent);
	if (parent->num_ranges == m->num_ranges &&
	    !memcmp(parent->ranges, m->ranges,
		    m->num_ranges * sizeof(m->ranges[0])))
		return 0;
	return err_set(err, EINVAL,
		       "snapshot %s: its memory has another size than that of "
		       "its parent %s",
		       job->w->dir.path, m->parent_path);
}

/* What only a snapshot that shares its parent's blocks can be. */
static int check_delta(const struct snapshot_writer *w, struct err *err)
{
	if (w->replaces_parent)
		return err_set(err, EINVAL,
			       "snapshot %s: cannot be an increment of what it "
			       "replaces",
			       w->dir.path);
	return snapshot_reader_check_depth(w->cfg.parent, err);
}

/*
 * How the file begins: as the parent's blocks, if it has all of memory and the
 * file system can share them; as one hole otherwise.
 */
static int prepare_file(struct memory_job *job, struct err *err)
{
	struct snapshot_writer *w = job->w;
	const struct snapshot_reader *parent = w->cfg.parent;
	uint64_t span = snapshot_manifest_span(&w->manifest);

	w->manifest.layout = SNAPSHOT_WHOLE;
	if (parent) {
		int from = snapshot_reader_whole_fd(parent);

		job->parent_sums = snapshot_reader_sums(parent);
		job->reflinked = !w->cfg.delta && from >= 0 &&
				 !ioctl(job->fd, FICLONE, from);
		if (!job->reflinked) {
			int r = check_delta(w, err);

			if (r)
				return r;
			w->manifest.layout = SNAPSHOT_DELTA;
		}
	}
	return ftruncate(job->fd, (off_t)span) ? say(job, 0, -errno, err) : 0;
}

/* The runs of dirty pages of all regions. With ret NULL they are counted. */
static uint64_t list_dirty(const struct memory_job *job, uint8_t *ret)
{
	const struct ram *ram = job->req.ram;
	uint64_t num = 0;

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		uint64_t pages = ram_region_pages(&ram->regions[i]);
		uint64_t at = 0, len = pages;

		while (at < pages &&
		       (!job->req.dirty[i] ||
			dirty_next_run(job->req.dirty[i], pages, &at, &len))) {
			if (ret) {
				le64_store(ret + num * 16,
					   ram->regions[i].base.v +
						   at * PAGE_4K);
				le64_store(ret + num * 16 + 8, len * PAGE_4K);
			}
			num++;
			at += len;
		}
	}
	return num;
}

static int put_map(struct memory_job *job, struct err *err)
{
	const uint64_t max = (SNAPSHOT_MAX_MAP_BYTES - RECORDS_HEADER_BYTES) /
			     16;
	uint64_t num = list_dirty(job, NULL);
	uint8_t *runs;
	int r;

	if (num > max)
		return err_set(err, E2BIG,
			       "snapshot %s: the increment has %llu pieces, at "
			       "most %llu can be; take a whole snapshot",
			       job->w->dir.path, (unsigned long long)num,
			       (unsigned long long)max);
	runs = calloc(num + 1, 16);
	if (!runs)
		return err_set(err, ENOMEM, "snapshot: out of memory");
	list_dirty(job, runs);
	r = snapshot_writer_put_records(job->w, SNAPSHOT_FILE_MAP, &records_map,
					runs, num, err);
	free(runs);
	return r;
}

static int put_sums(struct memory_job *job, struct err *err)
{
	struct snapshot_writer *w = job->w;
	uint64_t num = mem_units(w->manifest.ranges, w->manifest.num_ranges);

	for (uint64_t i = 0; i < num; i++)
		w->sums[i] = htole64(w->sums[i]);
	return snapshot_writer_put_records(w, SNAPSHOT_FILE_SUMS, &records_sums,
					   w->sums, num, err);
}

static const struct thread_call write_calls[] = {
	/* What is in the page table, in a memfd, in the source behind. */
	CALL_IOCTL(PAGEMAP_SCAN_IOCTL),
	RARE("Linux before 6.7, memory of a file or a memfd", pread64),
	RARE("shared=on, or memory mapped from a snapshot", lseek),
	CALL(io_uring_enter),
	RARE("a full disk, a host without io_uring", pwrite64),
	RARE("an increment that shares blocks", fallocate),
	RARE_IOCTL("a guest that goes on meanwhile", UFFDIO_WRITEPROTECT),
	/* The end of the ring and of /proc/self/pagemap. */
	CALL(close),
};

static const struct thread_call write_prepare_calls[] = {
	CALL(io_uring_setup),
	CALL(io_uring_register),
	RARE_READ_ONLY("/proc/self/pagemap"),
};

const struct thread_class snapshot_thread_class = {
	.name = "snapshot",
	.what = "writes memory into a snapshot",
	THREAD_CALLS(write_calls),
	.prepare_calls = write_prepare_calls,
	.num_prepare_calls = ARRAY_SIZE(write_prepare_calls),
};

/*
 * A guest that runs needs CPUs as well: half of them are left to it, and to who
 * serves it.
 */
static unsigned int num_threads(const struct memory_job *job)
{
	if (job->req.threads || !job->req.window)
		return job->req.threads;
	return MAX(cpus_allowed() / 2, 1u);
}

static int run_units(struct memory_job *job, unsigned int *ret_threads,
		     struct err *err)
{
	struct snapshot_manifest *m = &job->w->manifest;
	const struct unit_job units = {
		.name = "snapshot",
		.cls = &snapshot_thread_class,
		.ranges = m->ranges,
		.num_ranges = m->num_ranges,
		.threads = num_threads(job),
		.watch = job->req.watch,
		.ctx = job,
		.begin = memory_worker_begin,
		.unit = unit,
		.end = memory_worker_end,
	};
	int r = unit_job_run(&units, ret_threads, err);

	if (r == -ECANCELED)
		err_prefix(err, "snapshot %s", job->w->dir.path);
	if (!r && job->servers)
		r = memory_servers_wait(job->servers, err);
	m->data_bytes = atomic_load(&job->data_bytes);
	return r;
}

static int make_arrays(struct memory_job *job, struct err *err)
{
	const struct snapshot_manifest *m = &job->w->manifest;
	uint64_t units = mem_units(m->ranges, m->num_ranges);

	job->w->sums = calloc(units, sizeof(*job->w->sums));
	if (job->req.window)
		job->turns = calloc(units, sizeof(*job->turns));
	return job->w->sums && (job->turns || !job->req.window)
		       ? 0
		       : err_set(err, ENOMEM, "snapshot: out of memory");
}

/* Served first: the guest may run into what is protected at once. */
static int open_window(struct memory_job *job, struct err *err)
{
	int r;

	if (!job->req.window)
		return 0;
	r = memory_servers_start(&job->servers, job, err);
	return r ? r : write_window_protect_ahead(job->req.window, err);
}

int snapshot_writer_prepare_memory(struct snapshot_writer *w,
				   const struct snapshot_memory_request *req,
				   struct err *err)
{
	struct memory_job *job = calloc(1, sizeof(*job));
	int r;

	BUG_ON(w->memory || w->sums);
	if (!job)
		return err_set(err, ENOMEM, "snapshot: out of memory");
	job->w = w;
	job->req = *req;
	job->fd = -1;
	w->memory = job;
	w->manifest.num_ranges = ram_ranges(req->ram, w->manifest.ranges);
	r = check_parent(job, err);
	if (!r)
		r = make_arrays(job, err);
	if (!r)
		r = open_memory(job, err);
	if (!r)
		r = prepare_file(job, err);
	if (!r)
		r = open_window(job, err);
	return r;
}

void snapshot_writer_set_dirty(struct snapshot_writer *w,
			       const uint64_t *const *dirty)
{
	BUG_ON(!w->memory);
	memcpy(w->memory->req.dirty, dirty, sizeof(w->memory->req.dirty));
}

void snapshot_writer_drop_memory(struct snapshot_writer *w)
{
	struct memory_job *job = take_ptr(w->memory);

	if (!job)
		return;
	memory_servers_end(job->servers);
	close_fd(&job->fd);
	free(job->turns);
	free(job);
}

static int put_memory(struct memory_job *job, unsigned int *ret_threads,
		      struct err *err)
{
	struct snapshot_writer *w = job->w;
	int r = run_units(job, ret_threads, err);

	if (!r)
		r = put_sums(job, err);
	if (!r && w->manifest.layout == SNAPSHOT_DELTA)
		r = put_map(job, err);
	return r ? r : snapshot_writer_keep(w, &job->fd, SNAPSHOT_MEMORY, err);
}

int snapshot_writer_put_memory(struct snapshot_writer *w,
			       const struct snapshot_memory_request *req,
			       struct snapshot_memory_result *ret,
			       struct err *err)
{
	uint64_t began = clock_now_ns();
	unsigned int threads = 0;
	int r = w->memory ? 0 : snapshot_writer_prepare_memory(w, req, err);
	struct memory_job *job = w->memory;

	if (!r) {
		BUG_ON(!job);
		job->req.watch = req->watch;
		r = put_memory(job, &threads, err);
	}
	if (!r && ret)
		*ret = (struct snapshot_memory_result){
			.total_bytes = ram_size(req->ram),
			.data_bytes = atomic_load(&job->data_bytes),
			.zero_bytes = atomic_load(&job->zero_bytes),
			.wall_ns = clock_now_ns() - began,
			.threads = threads,
			.layout = w->manifest.layout,
			.reflinked = job->reflinked,
			.waited_units = atomic_load(&job->waited_units),
		};
	snapshot_writer_drop_memory(w);
	return r;
}
