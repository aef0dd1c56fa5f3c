/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/populate.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/cond.h"
#include "base/cpus.h"
#include "base/thread.h"
#include "kvm/uapi.h"
#include "mem/host_fill.h"
#include "mem/hostmem_guard.h"
#include "mem/pagemap.h"

/*
 * Theory of operation. The range is cut into lanes (one for each segment with
 * one owner that it touches), a lane into units. A worker takes units off its
 * home lane's shared counter, and off the others' when that is done. Unit
 * borders are the same whoever takes them, and multiples of 2 MiB, so no two
 * workers build the same page-table page.
 *
 * Worker i owns port i of the second stage, if there is one. With a port it
 * fills a unit's second stage right after the unit's host pages. Without, it
 * hands the unit over through the queue, which workers with a port serve
 * first. So at any time there are as many busy threads as asked for, and no
 * more: separate threads for the second stage would only take CPUs away from
 * the first, which is seven times the work.
 *
 * The queue has room for every unit, so handing over never waits. A worker with
 * a port that finds no unit left waits for the queue until the last worker
 * without one is through.
 */
const char *const populate_mode_names[4] = {
	[POPULATE_NONE] = "none",
	[POPULATE_HOST] = "host",
	[POPULATE_FULL] = "full",
	[POPULATE_BACKGROUND] = "background",
};

/*
 * Large enough that taking a unit costs nothing against filling it, small
 * enough that workers end together and a cancel is heard. 1G pages are units of
 * their own: one is cleared under a lock.
 */
#define UNIT_MAX_BYTES	     (16 * MIB)
#define UNIT_MIN_BYTES	     PAGE_2M
#define UNITS_PER_THREAD     8
#define POPULATE_MAX_THREADS 256
#define WAIT_SLICE_NS	     (50 * NSEC_PER_MSEC)

struct unit {
	uint64_t gpa, len;
};

struct lane {
	uint64_t start, end;
	int node;	       /* that owns it, or -1 */
	_Atomic uint64_t next; /* address of the next unit to take */
};

struct job {
	const struct ram *ram;
	const struct populate_request *req;
	uint64_t unit_bytes, total_bytes, began_ns;
	struct lane lanes[RAM_MAX_SEGMENTS];
	unsigned int num_lanes, num_ports;
	struct hostmem_guard *guard; /* of the host stage */

	_Atomic bool stop;
	_Atomic uint64_t host_bytes, stage2_bytes, host_ns, stage2_ns, units;

	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed;
	struct unit *queue; /* NULL: every worker has a port, or nobody */
	size_t head, tail;
	unsigned int feeders; /* workers that may still hand over */
	int error;	      /* first failure, negative errno */
	struct err err;
};

struct worker {
	struct job *job;
	pthread_t thread;
	unsigned int index;
	bool is_caller, has_port;
	struct numa_binding binding;
	int node;		/* bound to */
	struct pagemap pagemap; /* with req->present_only */
};

/* The first failure is the job's; it also makes the other workers stop. */
static void job_fail(struct job *job, int error, const struct err *err)
{
	pthread_mutex_lock(&job->lock);
	if (!job->error) {
		job->error = error;
		job->err = *err;
	}
	atomic_store(&job->stop, true);
	pthread_cond_broadcast(&job->changed);
	pthread_mutex_unlock(&job->lock);
}

static bool stopped(struct job *job)
{
	return atomic_load_explicit(&job->stop, memory_order_relaxed);
}

static bool to_host(const struct job *job)
{
	return job->req->host;
}

static bool to_second_stage(const struct job *job)
{
	return job->num_ports > 0;
}

static uint64_t bytes_done(struct job *job)
{
	return atomic_load(to_second_stage(job) ? &job->stage2_bytes
						: &job->host_bytes);
}

/* Give the caller's watch a look; only ever on the caller's thread. */
static void poll_watch(struct worker *w)
{
	struct job *job = w->job;
	const struct populate_watch *watch = job->req->watch;
	struct populate_progress progress = {
		.total_bytes = job->total_bytes,
		.done_bytes = bytes_done(job),
		.elapsed_ns = clock_now_ns() - job->began_ns,
	};
	struct err err = ERR_INIT;

	if (!w->is_caller || !watch || !watch->poll(watch->ctx, &progress))
		return;
	job_fail(job, err_set(&err, ECANCELED, "populate: cancelled"), &err);
}

static void nap(uint64_t ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(ns / NSEC_PER_SEC),
		.tv_nsec = (long)(ns % NSEC_PER_SEC),
	};

	nanosleep(&ts, NULL);
}

/* Behind the rate asked for there is nothing to do; ahead of it, wait. */
static void hold_rate(struct worker *w)
{
	struct job *job = w->job;
	uint64_t rate = job->req->rate_bytes_per_s, due, now;

	if (!rate)
		return;
	due = job->began_ns +
	      (uint64_t)((double)bytes_done(job) / (double)rate * 1e9);
	while (!stopped(job) && (now = clock_now_ns()) < due) {
		nap(MIN(due - now, WAIT_SLICE_NS));
		poll_watch(w);
	}
}

static bool lane_take(struct job *job, struct lane *lane, struct unit *ret)
{
	uint64_t from = atomic_fetch_add(&lane->next, job->unit_bytes);
	uint64_t to = MIN(from + job->unit_bytes, lane->end);

	if (from >= lane->end)
		return false;
	ret->gpa = MAX(from, lane->start);
	ret->len = to - ret->gpa;
	return true;
}

/*
 * Page tables come from the node of the thread that makes them: go where the
 * memory is. Also for a unit of another lane, since what this thread cannot do
 * there in its own time somebody else would have done from afar.
 */
static void move_to(struct worker *w, int node)
{
	if (node == w->node)
		return;
	numa_bind_thread(&w->binding, node);
	w->node = node;
}

static bool take_unit(struct worker *w, struct unit *ret)
{
	struct job *job = w->job;

	for (unsigned int i = 0; i < job->num_lanes; i++) {
		struct lane *lane =
			&job->lanes[(w->index + i) % job->num_lanes];

		if (lane_take(job, lane, ret)) {
			atomic_fetch_add(&job->units, 1);
			move_to(w, lane->node);
			return true;
		}
	}
	return false;
}

static void hand_over(struct job *job, const struct unit *unit)
{
	pthread_mutex_lock(&job->lock);
	job->queue[job->tail++] = *unit;
	pthread_cond_signal(&job->changed);
	pthread_mutex_unlock(&job->lock);
}

static bool take_handed_over(struct job *job, struct unit *ret)
{
	bool found;

	if (!job->queue)
		return false;
	pthread_mutex_lock(&job->lock);
	found = job->head < job->tail;
	if (found)
		*ret = job->queue[job->head++];
	pthread_mutex_unlock(&job->lock);
	return found;
}

/* False: nothing will come any more. True: look again. */
static bool wait_handed_over(struct worker *w)
{
	struct job *job = w->job;
	uint64_t until = clock_now_ns() + WAIT_SLICE_NS;
	bool more;

	pthread_mutex_lock(&job->lock);
	if (job->head == job->tail && job->feeders && !stopped(job))
		(void)cond_wait_until(&job->changed, &job->lock, until);
	more = job->head < job->tail || job->feeders;
	pthread_mutex_unlock(&job->lock);
	poll_watch(w);
	return more;
}

static void record(struct histogram *pages, uint64_t ns, uint64_t bytes)
{
	histogram_record(pages, ns / (bytes / PAGE_4K));
}

/*
 * Never beyond what the cgroup and the host have left: the kernel's answer to
 * that is the OOM killer. A failure ends the job, so what it held does not
 * matter then.
 */
static int fill_guarded(struct job *job, const struct unit *unit,
			struct err *err)
{
	unsigned long long from = unit->gpa, to = unit->gpa + unit->len;
	int r = hostmem_guard_take(job->guard, GPA(unit->gpa), unit->len, err);

	if (r) {
		err_prefix(err, "populate: guest memory %#llx-%#llx", from, to);
		return r;
	}
	r = host_fill(job->ram, GPA(unit->gpa), unit->len, err);
	hostmem_guard_done(job->guard, unit->len);
	return r;
}

static void fill_host(struct worker *w, const struct unit *unit)
{
	struct job *job = w->job;
	uint64_t began = clock_now_ns(), ns;
	struct err err = ERR_INIT;
	int r = fill_guarded(job, unit, &err);

	ns = clock_now_ns() - began;
	atomic_fetch_add(&job->host_ns, ns);
	if (r) {
		job_fail(job, r, &err);
		return;
	}
	atomic_fetch_add(&job->host_bytes, unit->len);
	if (job->req->service)
		record(&job->req->service->host_page, ns, unit->len);
}

static int fill_range(struct worker *w, uint64_t gpa, uint64_t len,
		      struct err *err)
{
	const struct second_stage_filler *f = w->job->req->second_stage;
	unsigned long long from = gpa, to = gpa + len;
	int r = -EBUSY; /* as check_request(), had it come a little later */

	if (ram_map_ahead_begin(w->job->ram)) {
		r = f->fill(f->ctx, w->index, GPA(gpa), len);
		ram_map_ahead_end(w->job->ram);
	}
	if (!r)
		return 0;
	return err_errno(err, -r,
			 "populate: guest memory %#llx-%#llx: second stage by "
			 "method %s",
			 from, to, f->name);
}

/* What is not there is no work done, and takes nothing of the rate. */
static int fill_present(struct worker *w, const struct unit *unit,
			uint64_t *ret_bytes, struct err *err)
{
	struct gpa at = GPA(unit->gpa);
	uint64_t end = unit->gpa + unit->len, len = 0;
	int r;

	*ret_bytes = 0;
	while ((r = pagemap_next_present(&w->pagemap, w->job->ram, at,
					 end - at.v, &at, &len)) > 0) {
		r = fill_range(w, at.v, len, err);
		if (r)
			return r;
		at.v += len;
		*ret_bytes += len;
	}
	return r ? err_errno(err, -r, "populate: /proc/self/pagemap") : 0;
}

static void fill_second_stage(struct worker *w, const struct unit *unit)
{
	struct job *job = w->job;
	uint64_t began = clock_now_ns(), bytes = unit->len, ns;
	struct err err = ERR_INIT;
	int r = job->req->present_only
			? fill_present(w, unit, &bytes, &err)
			: fill_range(w, unit->gpa, unit->len, &err);

	ns = clock_now_ns() - began;
	atomic_fetch_add(&job->stage2_ns, ns);
	if (r) {
		job_fail(job, r, &err);
		return;
	}
	atomic_fetch_add(&job->stage2_bytes, bytes);
	if (job->req->service && bytes)
		record(&job->req->service->second_stage_page, ns, bytes);
}

/* One unit through all stages this worker can do. */
static void do_unit(struct worker *w, const struct unit *unit)
{
	struct job *job = w->job;

	if (to_host(job))
		fill_host(w, unit);
	if (stopped(job) || !to_second_stage(job))
		return;
	if (w->has_port)
		fill_second_stage(w, unit);
	else
		hand_over(job, unit);
}

static void work(struct worker *w)
{
	struct job *job = w->job;
	struct unit unit;

	while (!stopped(job)) {
		if (w->has_port && take_handed_over(job, &unit))
			fill_second_stage(w, &unit);
		else if (take_unit(w, &unit))
			do_unit(w, &unit);
		else if (!w->has_port || !job->queue || !wait_handed_over(w))
			break;
		poll_watch(w);
		hold_rate(w);
	}
	numa_unbind_thread(&w->binding);
	pthread_mutex_lock(&job->lock);
	if (!w->has_port)
		job->feeders--;
	pthread_cond_broadcast(&job->changed);
	pthread_mutex_unlock(&job->lock);
}

/* host_fill() is madvise(2), which any thread may. */
static const struct thread_call populate_calls[] = {
	/* The second stage: mem/second_stage.h is implemented in stage2/. */
	RARE_IOCTL("stage2=ioctl", KVM_PRE_FAULT_MEMORY),
	RARE_IOCTL("stage2=stub", KVM_RUN),
	RARE_IOCTL("stage2=stub", KVM_GET_REGS),
	RARE_IOCTL("stage2=stub", KVM_SET_REGS),
	/* The host's free memory, and for repair what is present. */
	RARE("on several threads", pread64),
	RARE_READ_ONLY("limits of a cgroup or node; /proc/self/pagemap"),
	RARE("limits of a cgroup or node; /proc/self/pagemap", close),
	RARE("limits of a cgroup or node; /proc/self/pagemap", newfstatat),
	/* Staying on the node whose memory it fills. */
	RARE("numa=", sched_setaffinity),
	RARE("numa=", sched_getaffinity),
	RARE("background-rate=", clock_nanosleep),
};

const struct thread_class populate_thread_class = {
	.name = "populate",
	.what = "fills host pages and second stage",
	THREAD_CALLS(populate_calls),
};

static void *worker_thread(void *arg)
{
	work(arg);
	return NULL;
}

/* One lane for each segment, cut to the range. */
static void make_lanes(struct job *job, uint64_t from, uint64_t to)
{
	for (unsigned int i = 0; i < ram_num_segments(job->ram); i++) {
		const struct ram_segment *segment = ram_segment(job->ram, i);
		struct lane *lane = &job->lanes[job->num_lanes];

		lane->start = MAX(from, segment->base.v);
		lane->end = MIN(to, segment->base.v + segment->size);
		lane->node = segment->node;
		if (lane->start >= lane->end)
			continue;
		job->total_bytes += lane->end - lane->start;
		job->num_lanes++;
	}
}

static void size_units(struct job *job, unsigned int threads)
{
	uint64_t share = job->total_bytes / threads / UNITS_PER_THREAD;

	if (job->ram->page == RAM_PAGE_1G)
		job->unit_bytes = PAGE_1G;
	else
		job->unit_bytes = MIN(MAX(align_down(share, UNIT_MIN_BYTES),
					  UNIT_MIN_BYTES),
				      UNIT_MAX_BYTES);
	for (unsigned int i = 0; i < job->num_lanes; i++)
		atomic_init(&job->lanes[i].next,
			    align_down(job->lanes[i].start, job->unit_bytes));
}

static unsigned int num_threads(const struct job *job)
{
	const struct populate_request *req = job->req;
	uint64_t n = req->threads ? req->threads : cpus_allowed();

	n = MIN(n, (uint64_t)POPULATE_MAX_THREADS);
	n = MIN(n, div_round_up(job->total_bytes, UNIT_MIN_BYTES));
	/* A worker without a port has nothing to do but host pages. */
	if (!req->host && req->second_stage)
		n = MIN(n, (uint64_t)req->second_stage->num_ports);
	return (unsigned int)MAX(n, (uint64_t)1);
}

static bool is_logged(const struct ram *ram)
{
	for (unsigned int i = 0; i < ram->num_regions; i++) {
		if (atomic_load(&ram->regions[i].dirty))
			return true;
	}
	return false;
}

static int check_request(const struct ram *ram,
			 const struct populate_request *req, struct err *err)
{
	uint64_t end;

	if (!is_aligned(req->gpa.v | req->len, PAGE_4K) ||
	    !add_u64(req->gpa.v, req->len, &end))
		return err_set(err, EINVAL,
			       "populate: %#llx+%#llx is not a range of whole "
			       "4K pages",
			       (unsigned long long)req->gpa.v,
			       (unsigned long long)req->len);
	if (req->second_stage && is_logged(ram))
		return err_set(err, EBUSY,
			       "populate: guest memory is being tracked for "
			       "changes; its second stage would be filled in "
			       "4K pages that all count as dirty");
	return 0;
}

static int make_queue(struct job *job, unsigned int threads)
{
	uint64_t units = 0;

	if (!to_second_stage(job) || threads <= job->num_ports)
		return 0;
	for (unsigned int i = 0; i < job->num_lanes; i++)
		units += div_round_up(job->lanes[i].end - job->lanes[i].start,
				      job->unit_bytes) +
			 1;
	job->queue = calloc(units, sizeof(*job->queue));
	return job->queue ? 0 : -ENOMEM;
}

static int init_worker(struct worker *w, struct job *job, unsigned int index)
{
	w->job = job;
	w->index = index;
	w->is_caller = index == 0;
	w->has_port = index < job->num_ports;
	w->node = -1;
	if (!w->has_port)
		job->feeders++;
	return job->req->present_only ? pagemap_open(&w->pagemap) : 0;
}

/*
 * The caller is worker 0. A thread that fails to start is only missed, not
 * needed.
 */
static void run_workers(struct job *job, struct worker *workers,
			unsigned int num)
{
	unsigned int started = 1;

	while (started < num &&
	       !thread_start(&workers[started].thread, &populate_thread_class,
			     "populate", worker_thread, &workers[started]))
		started++;
	pthread_mutex_lock(&job->lock);
	for (unsigned int i = started; i < num; i++)
		job->feeders -= !workers[i].has_port;
	pthread_mutex_unlock(&job->lock);
	work(&workers[0]);
	for (unsigned int i = 1; i < started; i++)
		pthread_join(workers[i].thread, NULL);
}

static int run_job(struct job *job, unsigned int threads, struct err *err)
{
	struct worker *workers = calloc(threads, sizeof(*workers));
	int r = workers ? make_queue(job, threads) : -ENOMEM;

	for (unsigned int i = 0; workers && i < threads; i++)
		workers[i].pagemap.fd = -1;
	for (unsigned int i = 0; !r && i < threads; i++)
		r = init_worker(&workers[i], job, i);
	if (r) {
		err_errno(err, -r, "populate: preparing %u threads", threads);
	} else {
		run_workers(job, workers, threads);
		r = job->error;
		if (r && err)
			*err = job->err;
	}
	for (unsigned int i = 0; workers && i < threads; i++)
		pagemap_close(&workers[i].pagemap);
	free(workers);
	free(job->queue);
	return r;
}

static void take_result(struct job *job, unsigned int threads,
			struct populate_result *ret)
{
	*ret = (struct populate_result){
		.total_bytes = job->total_bytes,
		.host_bytes = atomic_load(&job->host_bytes),
		.second_stage_bytes = atomic_load(&job->stage2_bytes),
		.wall_ns = clock_now_ns() - job->began_ns,
		.host_ns = atomic_load(&job->host_ns),
		.second_stage_ns = atomic_load(&job->stage2_ns),
		.units = atomic_load(&job->units),
		.threads = threads,
	};
	ret->ports = MIN(job->num_ports, threads);
}

int populate_run(const struct ram *ram, const struct populate_request *req,
		 struct populate_result *ret, struct err *err)
{
	struct job job = {
		.ram = ram,
		.req = req,
		.began_ns = clock_now_ns(),
	};
	unsigned int threads;
	int r = check_request(ram, req, err);

	if (r)
		return r;
	if (req->second_stage)
		job.num_ports = req->second_stage->num_ports;
	make_lanes(&job, req->gpa.v, req->gpa.v + req->len);
	threads = num_threads(&job);
	size_units(&job, threads);
	pthread_cond_init(&job.changed, NULL);
	pthread_mutex_init(&job.lock, NULL);
	if (req->host)
		r = hostmem_guard_new(&job.guard, ram, "");
	if (r)
		r = err_errno(err, -r, "populate");
	else if (job.num_lanes && (req->host || job.num_ports))
		r = run_job(&job, threads, err);
	hostmem_guard_free(job.guard);
	if (ret)
		take_result(&job, threads, ret);
	pthread_cond_destroy(&job.changed);
	pthread_mutex_destroy(&job.lock);
	return r;
}
