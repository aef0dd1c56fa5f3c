/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/unit_job.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/cond.h"
#include "base/cpus.h"
#include "base/thread.h"

#define MAX_THREADS   64
#define WAIT_SLICE_NS (50 * NSEC_PER_MSEC)

struct run {
	const struct unit_job *job;
	uint64_t num_units, total_bytes, began_ns;
	_Atomic uint64_t next, done_bytes;
	_Atomic bool stop;

	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed, answered;
	unsigned int working;
	bool asked; /* the first worker waits for the watch */
	int error;  /* first failure */
	struct err err;
};

struct worker {
	struct run *run;
	pthread_t thread;
	void *own;
	struct err err; /* of begin */
	bool is_first;
};

uint64_t mem_units(const struct mem_range *ranges, unsigned int num)
{
	uint64_t units = 0;

	for (unsigned int i = 0; i < num; i++)
		units += div_round_up(ranges[i].len, MEM_UNIT_BYTES);
	return units;
}

struct mem_range mem_unit(const struct mem_range *ranges, unsigned int num,
			  uint64_t index)
{
	for (unsigned int i = 0; i < num; i++) {
		uint64_t units = div_round_up(ranges[i].len, MEM_UNIT_BYTES);
		uint64_t offset = index * MEM_UNIT_BYTES;
		struct mem_range unit = { .start = ranges[i].start + offset };

		if (index < units) {
			unit.len = MIN(ranges[i].len - offset, MEM_UNIT_BYTES);
			return unit;
		}
		index -= units;
	}
	BUG_ON(true);
}

uint64_t mem_ranges_bytes(const struct mem_range *ranges, unsigned int num)
{
	uint64_t bytes = 0;

	for (unsigned int i = 0; i < num; i++)
		bytes += ranges[i].len;
	return bytes;
}

static void fail(struct run *run, int error, const struct err *err)
{
	pthread_mutex_lock(&run->lock);
	if (!run->error) {
		run->error = error;
		run->err = *err;
	}
	pthread_mutex_unlock(&run->lock);
	atomic_store(&run->stop, true);
}

/* Only ever on the caller's thread. */
static void poll_watch(struct run *run)
{
	const struct populate_watch *watch = run->job->watch;
	struct populate_progress progress = {
		.total_bytes = run->total_bytes,
		.done_bytes = atomic_load(&run->done_bytes),
		.elapsed_ns = clock_now_ns() - run->began_ns,
	};
	struct err err = ERR_INIT;

	if (watch && watch->poll(watch->ctx, &progress))
		fail(run, err_set(&err, ECANCELED, "cancelled"), &err);
}

/*
 * The first worker has the watch asked after each of its units: so a job can be
 * stopped at a certain one, and progress is not told behind the caller's back.
 */
static void ask_watch(struct run *run)
{
	pthread_mutex_lock(&run->lock);
	run->asked = true;
	pthread_cond_signal(&run->changed);
	while (run->asked)
		pthread_cond_wait(&run->answered, &run->lock);
	pthread_mutex_unlock(&run->lock);
}

static int begin(void *arg)
{
	struct worker *w = arg;
	const struct unit_job *job = w->run->job;

	return job->begin ? job->begin(job->ctx, &w->own, &w->err) : 0;
}

static void work(struct worker *w)
{
	struct run *run = w->run;
	const struct unit_job *job = run->job;
	struct err err = ERR_INIT;
	int r;

	while (!atomic_load_explicit(&run->stop, memory_order_relaxed)) {
		uint64_t index = atomic_fetch_add(&run->next, 1);
		struct mem_range where;

		if (index >= run->num_units)
			break;
		where = mem_unit(job->ranges, job->num_ranges, index);
		r = job->unit(job->ctx, w->own, index, &where, &err);
		if (r)
			fail(run, r, &err);
		atomic_fetch_add(&run->done_bytes, where.len);
		if (w->is_first && job->watch)
			ask_watch(run);
	}
	r = job->end ? job->end(job->ctx, w->own, &err) : 0;
	if (r)
		fail(run, r, &err);
}

static void *worker_thread(void *arg)
{
	struct worker *w = arg;
	struct run *run = w->run;

	work(w);
	pthread_mutex_lock(&run->lock);
	run->working--;
	pthread_cond_signal(&run->changed);
	pthread_mutex_unlock(&run->lock);
	return NULL;
}

/*
 * The caller does nothing but to ask the watch: it may be a thread that is
 * confined to less than the workers.
 */
static void wait_workers(struct run *run)
{
	pthread_mutex_lock(&run->lock);
	while (run->working) {
		uint64_t until = clock_now_ns() + WAIT_SLICE_NS;
		bool more = true;

		while (run->working && !run->asked && more)
			more = cond_wait_until(&run->changed, &run->lock,
					       until);
		if (!run->asked && more)
			continue;
		pthread_mutex_unlock(&run->lock);
		poll_watch(run);
		pthread_mutex_lock(&run->lock);
		if (run->asked)
			pthread_cond_signal(&run->answered);
		run->asked = false;
	}
	pthread_mutex_unlock(&run->lock);
}

static unsigned int num_threads(const struct run *run)
{
	uint64_t n = run->job->threads ? run->job->threads : cpus_allowed();

	n = MIN(n, (uint64_t)MAX_THREADS);
	n = MIN(n, run->num_units);
	return (unsigned int)MAX(n, (uint64_t)1);
}

/*
 * Each works from when it is made. One that cannot be made is only missed,
 * unless it is the first. Returns how many there are.
 */
static unsigned int start_workers(struct run *run, struct worker *workers,
				  unsigned int num)
{
	unsigned int started = 0;
	int r = 0;

	run->working = num;
	for (; !r && started < num; started += !r) {
		struct worker *w = &workers[started];
		const struct thread_spec spec = {
			.cls = run->job->cls,
			.name = run->job->name,
			.prepare = begin,
			.run = worker_thread,
			.arg = w,
		};

		w->run = run;
		w->is_first = !started;
		r = thread_create(&w->thread, &spec);
	}
	pthread_mutex_lock(&run->lock);
	run->working -= num - started;
	pthread_mutex_unlock(&run->lock);
	if (started)
		return started;
	if (!workers[0].err.text[0])
		(void)err_errno(&workers[0].err, -r, "starting a thread");
	fail(run, r, &workers[0].err);
	return 0;
}

static unsigned int run_workers(struct run *run)
{
	struct worker workers[MAX_THREADS] = { { 0 } };
	unsigned int started = start_workers(run, workers, num_threads(run));

	wait_workers(run);
	for (unsigned int i = 0; i < started; i++)
		pthread_join(workers[i].thread, NULL);
	return started;
}

int unit_job_run(const struct unit_job *job, unsigned int *ret_threads,
		 struct err *err)
{
	struct run run = {
		.job = job,
		.num_units = mem_units(job->ranges, job->num_ranges),
		.total_bytes = mem_ranges_bytes(job->ranges, job->num_ranges),
		.began_ns = clock_now_ns(),
	};
	unsigned int threads;

	pthread_cond_init(&run.changed, NULL);
	pthread_cond_init(&run.answered, NULL);
	pthread_mutex_init(&run.lock, NULL);
	threads = run_workers(&run);
	pthread_cond_destroy(&run.changed);
	pthread_cond_destroy(&run.answered);
	pthread_mutex_destroy(&run.lock);
	if (run.error && err)
		*err = run.err;
	if (ret_threads)
		*ret_threads = threads;
	return run.error;
}
