/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who writes to memory that is protected (mem/window.h) waits for these
 * threads. Before the instant they let him go at once; after it they take the
 * unit out of turn, and let him go when it is copied: he does not wait for the
 * file.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/thread.h"
#include "mem/unit_job.h"
#include "snapshot/memory_job.h"

#define NUM_SERVERS 2

struct server {
	struct memory_servers *all;
	pthread_t thread;
	void *own;
	struct err err; /* of begin */
};

struct memory_servers {
	struct memory_job *job;
	int end_fd; /* eventfd */
	unsigned int num;
	struct server servers[NUM_SERVERS];
	pthread_mutex_t lock; /* the four below */
	pthread_cond_t idle;  /* nobody is busy any more */
	unsigned int busy;    /* servers that may have taken a unit's turn */
	int error;	      /* the first */
	struct err err;
};

static uint64_t unit_of(const struct memory_job *job, struct gpa gpa)
{
	const struct snapshot_manifest *m = &job->w->manifest;
	uint64_t index = 0;

	for (unsigned int i = 0; i < m->num_ranges; i++) {
		const struct mem_range *range = &m->ranges[i];

		if (gpa.v - range->start < range->len)
			return index + (gpa.v - range->start) / MEM_UNIT_BYTES;
		index += div_round_up(range->len, MEM_UNIT_BYTES);
	}
	BUG_ON(true); /* nothing else is registered */
}

/*
 * One that is being copied already will be released by who does that. One that
 * is over was released just before, or its waiter came too late for that.
 */
static int serve(struct memory_job *job, struct memory_worker *worker,
		 struct gpa gpa, struct err *err)
{
	const struct snapshot_manifest *m = &job->w->manifest;
	uint64_t index = unit_of(job, gpa);
	struct mem_range where = mem_unit(m->ranges, m->num_ranges, index);

	if (memory_take_turn(job, index)) {
		atomic_fetch_add(&job->waited_units, 1);
		return memory_write_unit(job, worker, index, &where, err);
	}
	return memory_is_over(job, index) ? memory_release(job, &where, err)
					  : 0;
}

static void begin_serving(struct memory_servers *all)
{
	pthread_mutex_lock(&all->lock);
	all->busy++;
	pthread_mutex_unlock(&all->lock);
}

/* The error first: who waits until nobody is busy asks for it then. */
static void end_serving(struct memory_servers *all, int r,
			const struct err *err)
{
	pthread_mutex_lock(&all->lock);
	if (r && !all->error) {
		all->error = r;
		all->err = *err;
	}
	if (!--all->busy)
		pthread_cond_broadcast(&all->idle);
	pthread_mutex_unlock(&all->lock);
}

/* All that wait now. Busy before a turn is taken, until its unit is written. */
static int serve_all(struct memory_job *job, struct memory_worker *worker,
		     struct err *err)
{
	struct write_window *window = job->req.window;
	struct gpa gpa;
	int r;

	while ((r = write_window_next(window, &gpa)) > 0) {
		r = write_window_let_ahead(window, gpa);
		if (r < 0)
			break;
		r = r ? 0 : serve(job, worker, gpa, err);
		if (r)
			return r;
	}
	return r ? err_errno(err, -r, "userfaultfd") : 0;
}

static int server_begin(void *arg)
{
	struct server *s = arg;

	return memory_worker_begin(s->all->job, &s->own, &s->err);
}

static void *server_main(void *arg)
{
	struct server *s = arg;
	struct memory_servers *all = s->all;
	struct pollfd fds[2] = {
		{ .fd = write_window_fd(all->job->req.window),
		  .events = POLLIN },
		{ .fd = all->end_fd, .events = POLLIN },
	};
	struct err err = ERR_INIT;
	int r = 0;

	while (!r && !fds[1].revents) {
		if (poll(fds, ARRAY_SIZE(fds), -1) < 0 && errno != EINTR)
			r = err_errno(&err, errno, "poll");
		begin_serving(all);
		if (!r)
			r = serve_all(all->job, s->own, &err);
		end_serving(all, r, &err);
	}
	(void)memory_worker_end(all->job, s->own, NULL);
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

static int start(struct memory_servers *all, struct server *s, struct err *err)
{
	const struct thread_spec spec = {
		.cls = &snapshot_window_thread_class,
		.name = "snapshot-window",
		.prepare = server_begin,
		.run = server_main,
		.arg = s,
	};
	int r;

	s->all = all;
	r = thread_create(&s->thread, &spec);
	if (r && s->err.text[0])
		*err = s->err;
	else if (r)
		err_errno(err, -r, "starting a thread");
	return r;
}

/* One that could not be started is missed; one is enough. */
int memory_servers_start(struct memory_servers **ret, struct memory_job *job,
			 struct err *err)
{
	struct memory_servers *all = calloc(1, sizeof(*all));
	int r = 0;

	if (!all)
		return err_set(err, ENOMEM, "snapshot: out of memory");
	all->job = job;
	pthread_mutex_init(&all->lock, NULL);
	pthread_cond_init(&all->idle, NULL);
	all->end_fd = eventfd(0, EFD_CLOEXEC);
	if (all->end_fd < 0)
		r = err_errno(err, errno, "eventfd");
	while (!r && all->num < NUM_SERVERS) {
		r = start(all, &all->servers[all->num], err);
		all->num += !r;
	}
	if (all->num) {
		*ret = all;
		return 0;
	}
	memory_servers_end(all);
	return r;
}

int memory_servers_error(struct memory_servers *servers, struct err *err)
{
	int r;

	pthread_mutex_lock(&servers->lock);
	r = servers->error;
	if (r && err)
		*err = servers->err;
	pthread_mutex_unlock(&servers->lock);
	return r;
}

int memory_servers_wait(struct memory_servers *servers, struct err *err)
{
	pthread_mutex_lock(&servers->lock);
	while (servers->busy)
		pthread_cond_wait(&servers->idle, &servers->lock);
	pthread_mutex_unlock(&servers->lock);
	return memory_servers_error(servers, err);
}

/* Nobody is served any more; who waits is let go when the window is closed. */
void memory_servers_end(struct memory_servers *servers)
{
	if (!servers)
		return;
	if (servers->end_fd >= 0)
		io_eventfd_signal(servers->end_fd);
	for (unsigned int i = 0; i < servers->num; i++)
		pthread_join(servers->servers[i].thread, NULL);
	close_fd(&servers->end_fd);
	pthread_cond_destroy(&servers->idle);
	pthread_mutex_destroy(&servers->lock);
	free(servers);
}
