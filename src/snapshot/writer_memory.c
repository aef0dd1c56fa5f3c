/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing the memory file. A thread takes a unit of 2 MiB, finds its pages, has
 * the ones that are not zero written at the offset that is their address,
 * computes the unit's checksum meanwhile, and waits for the writes. Zeroes
 * become holes by not being written; over a parent's blocks (reflink) by being
 * punched.
 *
 * With a window (mem/window.h) the guest goes on. A unit is released once it
 * was copied. Those that somebody waits for are taken out of turn, by threads
 * of their own, which copy them into memory of theirs before they write them:
 * whoever waits does not wait for the file.
 *
 * Sums are of the whole memory that the snapshot stands for, also in a delta:
 * those of units without a dirty page are the parent's.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/thread.h"
#include "mem/dirty.h"
#include "mem/restore.h"
#include "snapshot/format.h"
#include "snapshot/memory_out.h"
#include "snapshot/reader.h"
#include "snapshot/sum.h"
#include "snapshot/unit_pages.h"
#include "snapshot/writer_priv.h"

struct job {
	struct snapshot_writer *w;
	const struct snapshot_memory_request *req;
	int fd;
	bool reflinked;
	const uint64_t *parent_sums; /* NULL: none */
	_Atomic uint64_t data_bytes, zero_bytes;

	/* With a window. */
	_Atomic uint8_t *turns; /* of each unit an enum turn */
	int end_fd;		/* eventfd: no unit is left */
	_Atomic uint64_t waited_units;
	pthread_mutex_t lock; /* the two below */
	int error;	      /* of a server, the first */
	struct err err;
};

struct worker {
	struct memory_out *out;
	struct unit_pages unit;
	bool serves; /* whom it works for waits */
};

enum turn { TURN_OPEN, TURN_TAKEN, TURN_OVER };

static int say(const struct job *job, uint64_t at, int error, struct err *err)
{
	return err_errno(err, -error,
			 "snapshot %s: writing " SNAPSHOT_MEMORY
			 " at offset %#llx",
			 job->w->dir.path, (unsigned long long)at);
}

static int begin(void *ctx, void **ret_own, struct err *err)
{
	struct job *job = ctx;
	struct worker *worker = calloc(1, sizeof(*worker));
	int r;

	if (!worker)
		return err_set(err, ENOMEM, "snapshot: out of memory");
	r = unit_pages_init(&worker->unit, job->req->ram, job->req->window,
			    err);
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

static int end(void *ctx, void *own, struct err *err)
{
	struct worker *worker = own;

	memory_out_free(worker->out);
	unit_pages_fini(&worker->unit);
	free(worker);
	return 0;
}

/* May this page of the region differ from the parent's? */
static bool is_dirty(const struct job *job, unsigned int region, uint64_t page)
{
	const uint64_t *dirty = job->req->dirty[region];

	return !job->parent_sums || !dirty || bitmap_test(dirty, page);
}

static unsigned int region_at(const struct ram *ram, uint64_t gpa,
			      uint64_t *ret_page)
{
	for (unsigned int i = 0; i < ram->num_regions; i++) {
		const struct ram_region *region = &ram->regions[i];

		if (gpa - region->base.v < region->size) {
			*ret_page = (gpa - region->base.v) / PAGE_4K;
			return i;
		}
	}
	BUG_ON(true);
}

static bool any_dirty(const struct job *job, const struct mem_range *where)
{
	uint64_t page;
	unsigned int region = region_at(job->req->ram, where->start, &page);

	for (uint64_t i = 0; i < where->len / PAGE_4K; i++) {
		if (is_dirty(job, region, page + i))
			return true;
	}
	return false;
}

static int punch(const struct job *job, uint64_t at, uint64_t len,
		 struct err *err)
{
	if (fallocate(job->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      (off_t)at, (off_t)len))
		return say(job, at, -errno, err);
	return 0;
}

/* A run of dirty pages that lie one after the other, or are all zero. */
static int write_run(struct job *job, struct worker *worker, uint64_t at,
		     const char *p, uint64_t len, struct err *err)
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

static int write_pages(struct job *job, struct worker *worker,
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

static int release(struct job *job, uint64_t index,
		   const struct mem_range *where, struct err *err)
{
	int r;

	if (!job->req->window ||
	    atomic_exchange(&job->turns[index], TURN_OVER) == TURN_OVER)
		return 0;
	r = write_window_release(job->req->window, GPA(where->start),
				 where->len);
	return r ? err_errno(err, -r, "guest memory at %#llx",
			     (unsigned long long)where->start)
		 : 0;
}

static int write_unit(struct job *job, struct worker *worker, uint64_t index,
		      const struct mem_range *where, struct err *err)
{
	uint64_t at = where->start;
	int r, r2;

	if (job->parent_sums && !any_dirty(job, where)) {
		job->w->sums[index] = job->parent_sums[index];
		return 0;
	}
	r = unit_pages_load(&worker->unit, where, err);
	if (r)
		return r;
	if (worker->serves) {
		unit_pages_detach(&worker->unit);
		r = release(job, index, where, err);
		if (r)
			return r;
	}
	r = write_pages(job, worker, where, err);
	job->w->sums[index] = sum_unit_pages(worker->unit.pages,
					     worker->unit.num);
	r2 = memory_out_drain(worker->out, &at);
	if (r2 && !r)
		r = say(job, at, r2, err);
	return r;
}

/* Its turn has come, unless it was taken out of turn. */
static bool take_turn(struct job *job, uint64_t index)
{
	uint8_t open = TURN_OPEN;

	return !job->req->window ||
	       atomic_compare_exchange_strong(&job->turns[index], &open,
					      TURN_TAKEN);
}

static int servers_error(struct job *job, struct err *err)
{
	int r;

	pthread_mutex_lock(&job->lock);
	r = job->error;
	if (r && err)
		*err = job->err;
	pthread_mutex_unlock(&job->lock);
	return r;
}

static int unit(void *ctx, void *own, uint64_t index,
		const struct mem_range *where, struct err *err)
{
	struct job *job = ctx;
	int r = servers_error(job, err);

	if (!r && take_turn(job, index)) {
		r = write_unit(job, own, index, where, err);
		if (!r)
			r = release(job, index, where, err);
	}
	return r;
}

/* ---- whom somebody waits for ---- */

#define NUM_SERVERS 2

struct server {
	struct job *job;
	pthread_t thread;
	void *own;
	struct err err; /* of begin */
};

static uint64_t unit_of(const struct job *job, uint64_t gpa)
{
	const struct snapshot_manifest *m = &job->w->manifest;
	uint64_t index = 0;

	for (unsigned int i = 0; i < m->num_ranges; i++) {
		const struct mem_range *range = &m->ranges[i];

		if (gpa - range->start < range->len)
			return index + (gpa - range->start) / MEM_UNIT_BYTES;
		index += div_round_up(range->len, MEM_UNIT_BYTES);
	}
	BUG_ON(true); /* nothing else is registered */
}

/*
 * One that is being written already will be released by who does that. One that
 * is over was released just before, or its waiter came too late for that.
 */
static int serve(struct job *job, struct worker *worker, struct gpa gpa,
		 struct err *err)
{
	const struct snapshot_manifest *m = &job->w->manifest;
	uint64_t index = unit_of(job, gpa.v);
	struct mem_range where = mem_unit(m->ranges, m->num_ranges, index);
	int r;

	if (take_turn(job, index)) {
		atomic_fetch_add(&job->waited_units, 1);
		r = write_unit(job, worker, index, &where, err);
		return r ? r : release(job, index, &where, err);
	}
	if (atomic_load(&job->turns[index]) != TURN_OVER)
		return 0;
	r = write_window_release(job->req->window, GPA(where.start), where.len);
	return r ? err_errno(err, -r, "guest memory at %#llx",
			     (unsigned long long)where.start)
		 : 0;
}

static int serve_all(struct job *job, struct worker *worker, struct err *err)
{
	struct gpa gpa;
	int r;

	while ((r = write_window_next(job->req->window, &gpa)) > 0) {
		r = serve(job, worker, gpa, err);
		if (r)
			return r;
	}
	return r ? err_errno(err, -r, "userfaultfd") : 0;
}

static int server_begin(void *arg)
{
	struct server *s = arg;
	int r = begin(s->job, &s->own, &s->err);

	if (!r)
		((struct worker *)s->own)->serves = true;
	return r;
}

static void *server_main(void *arg)
{
	struct server *s = arg;
	struct job *job = s->job;
	struct pollfd fds[2] = {
		{ .fd = write_window_fd(job->req->window), .events = POLLIN },
		{ .fd = job->end_fd, .events = POLLIN },
	};
	struct err err = ERR_INIT;
	int r = 0;

	while (!r && !fds[1].revents) {
		if (poll(fds, ARRAY_SIZE(fds), -1) < 0 && errno != EINTR)
			r = err_errno(&err, errno, "poll");
		if (!r)
			r = serve_all(job, s->own, &err);
	}
	pthread_mutex_lock(&job->lock);
	if (r && !job->error) {
		job->error = r;
		job->err = err;
	}
	pthread_mutex_unlock(&job->lock);
	(void)end(job, s->own, NULL);
	return NULL;
}

static const struct thread_call window_calls[] = {
	CALL(poll),
};

const struct thread_class snapshot_window_thread_class = {
	.name = "snapshot-window",
	.what = "copies what a running guest is about to write",
	THREAD_CALLS(window_calls),
	.also = &snapshot_thread_class,
};

/* Returns how many there are; without any *err says why. */
static unsigned int start_servers(struct job *job, struct server *servers,
				  struct err *err)
{
	unsigned int num = 0;
	int r = 0;

	while (!r && num < NUM_SERVERS) {
		struct server *s = &servers[num];
		const struct thread_spec spec = {
			.cls = &snapshot_window_thread_class,
			.name = "snapshot-window",
			.prepare = server_begin,
			.run = server_main,
			.arg = s,
		};

		s->job = job;
		r = thread_create(&s->thread, &spec);
		num += !r;
	}
	if (!num && servers[0].err.text[0])
		*err = servers[0].err;
	else if (!num)
		(void)err_errno(err, -r, "starting a thread");
	return num;
}

static int prepare_window(struct job *job, struct err *err)
{
	const struct snapshot_manifest *m = &job->w->manifest;

	job->turns = calloc(mem_units(m->ranges, m->num_ranges), 1);
	job->end_fd = eventfd(0, EFD_CLOEXEC);
	if (!job->turns || job->end_fd < 0)
		return err_set(err, ENOMEM, "snapshot: out of memory");
	return 0;
}

/* Nobody is served any more; who waits is let go when the window is closed. */
static int end_servers(struct job *job, struct server *servers,
		       unsigned int num, int r, struct err *err)
{
	io_eventfd_signal(job->end_fd);
	for (unsigned int i = 0; i < num; i++)
		pthread_join(servers[i].thread, NULL);
	return r ? r : servers_error(job, err);
}

static int open_memory(struct job *job, struct err *err)
{
	job->fd = snapshot_dir_make_file(&job->w->dir, SNAPSHOT_MEMORY,
					 job->req->direct);
	return job->fd < 0 ? say(job, 0, job->fd, err) : 0;
}

static int check_parent(const struct job *job, struct err *err)
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
static int prepare_file(struct job *job, struct err *err)
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
static uint64_t list_dirty(const struct job *job, uint8_t *ret)
{
	const struct ram *ram = job->req->ram;
	uint64_t num = 0;

	for (unsigned int i = 0; i < ram->num_regions; i++) {
		uint64_t pages = ram_region_pages(&ram->regions[i]);
		uint64_t at = 0, len = pages;

		while (at < pages &&
		       (!job->req->dirty[i] ||
			dirty_next_run(job->req->dirty[i], pages, &at, &len))) {
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

static int put_map(struct job *job, struct err *err)
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

static int put_sums(struct job *job, struct err *err)
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
	CALL(pread64),
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

static int run_units(struct job *job, unsigned int *ret_threads,
		     struct err *err)
{
	struct snapshot_manifest *m = &job->w->manifest;
	const struct unit_job units = {
		.name = "snapshot",
		.cls = &snapshot_thread_class,
		.ranges = m->ranges,
		.num_ranges = m->num_ranges,
		.threads = job->req->threads,
		.watch = job->req->watch,
		.ctx = job,
		.begin = begin,
		.unit = unit,
		.end = end,
	};
	int r = unit_job_run(&units, ret_threads, err);

	if (r == -ECANCELED)
		err_prefix(err, "snapshot %s", job->w->dir.path);
	return r;
}

static int run(struct job *job, unsigned int *ret_threads, struct err *err)
{
	struct snapshot_manifest *m = &job->w->manifest;
	struct server servers[NUM_SERVERS] = { { 0 } };
	unsigned int num_servers;
	int r = 0;

	job->w->sums = calloc(mem_units(m->ranges, m->num_ranges),
			      sizeof(*job->w->sums));
	if (!job->w->sums)
		return err_set(err, ENOMEM, "snapshot: out of memory");
	if (!job->req->window) {
		r = run_units(job, ret_threads, err);
	} else {
		r = prepare_window(job, err);
		if (r)
			return r;
		num_servers = start_servers(job, servers, err);
		r = num_servers ? job->req->serving(job->req->ctx, err)
				: -ENOMEM;
		if (!r)
			r = run_units(job, ret_threads, err);
		r = end_servers(job, servers, num_servers, r, err);
	}
	m->data_bytes = atomic_load(&job->data_bytes);
	return r;
}

int snapshot_writer_put_memory(struct snapshot_writer *w,
			       const struct snapshot_memory_request *req,
			       struct snapshot_memory_result *ret,
			       struct err *err)
{
	struct job job = { .w = w, .req = req, .fd = -1, .end_fd = -1 };
	uint64_t began = clock_now_ns();
	unsigned int threads = 0;
	int r;

	BUG_ON(w->sums);
	pthread_mutex_init(&job.lock, NULL);
	w->manifest.num_ranges = ram_ranges(req->ram, w->manifest.ranges);
	r = check_parent(&job, err);
	if (!r)
		r = open_memory(&job, err);
	if (!r)
		r = prepare_file(&job, err);
	if (!r)
		r = run(&job, &threads, err);
	if (!r)
		r = put_sums(&job, err);
	if (!r && w->manifest.layout == SNAPSHOT_DELTA)
		r = put_map(&job, err);
	if (!r)
		r = snapshot_writer_keep(w, &job.fd, SNAPSHOT_MEMORY, err);
	close_fd(&job.fd);
	close_fd(&job.end_fd);
	free(job.turns);
	pthread_mutex_destroy(&job.lock);
	if (!r && ret)
		*ret = (struct snapshot_memory_result){
			.total_bytes = ram_size(req->ram),
			.data_bytes = atomic_load(&job.data_bytes),
			.zero_bytes = atomic_load(&job.zero_bytes),
			.wall_ns = clock_now_ns() - began,
			.threads = threads,
			.layout = w->manifest.layout,
			.reflinked = job.reflinked,
			.waited_units = atomic_load(&job.waited_units),
		};
	return r;
}
