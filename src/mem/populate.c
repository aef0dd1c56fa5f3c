/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/populate.h"

#include <errno.h>
#include <sys/mman.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/cpus.h"
#include "base/thread.h"

#ifndef MADV_POPULATE_WRITE /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif

const char *const populate_mode_names[2] = {
	[POPULATE_NONE] = "none",
	[POPULATE_HOST] = "host",
};

/*
 * Work is taken in chunks of 16 MiB: eight huge pages, so that no two threads
 * build the same page-table page, and small enough that threads end together.
 * 1G pages are chunks of their own: one is cleared under a lock.
 */
#define POPULATE_CHUNK	     (16 * MIB)
#define POPULATE_MAX_THREADS 256

struct populate_job {
	const struct ram *ram;
	struct gpa start;
	uint64_t len;
	uint64_t chunk;
	_Atomic uint64_t next; /* address of the next chunk to take */
	_Atomic int error;     /* first failure: positive errno */
};

/* Populate one chunk: the parts of it that lie in a region. */
static int populate_chunk(const struct ram *ram, uint64_t from, uint64_t to)
{
	for (unsigned int i = 0; i < ram->num_regions; i++) {
		const struct ram_region *region = &ram->regions[i];
		uint64_t a = MAX(from, region->base.v);
		uint64_t b = MIN(to, region->base.v + region->size);

		if (a >= b)
			continue;
		while (madvise(ram->base + a, b - a, MADV_POPULATE_WRITE)) {
			if (errno != EINTR && errno != EAGAIN)
				return errno;
		}
	}
	return 0;
}

/* The first failure is the job's; it also makes the other workers stop. */
static void job_fail(struct populate_job *job, int code)
{
	int none = 0;

	atomic_compare_exchange_strong(&job->error, &none, code);
}

static void work(struct populate_job *job, const struct populate_cancel *cancel)
{
	uint64_t end = job->start.v + job->len;

	while (!atomic_load(&job->error)) {
		uint64_t from = atomic_fetch_add(&job->next, job->chunk);
		int code;

		if (from >= end)
			break;
		code = populate_chunk(job->ram, MAX(from, job->start.v),
				      MIN(from + job->chunk, end));
		if (!code && cancel && cancel->fn(cancel->ctx))
			code = ECANCELED;
		if (code)
			job_fail(job, code);
	}
}

static void *populate_worker(void *arg)
{
	work(arg, NULL);
	return NULL;
}

static int job_error(const struct populate_job *job, struct err *err)
{
	int code = atomic_load(&job->error);

	switch (code) {
	case 0:
		return 0;
	case EINVAL:
		return err_set(err, ENOTSUP,
			       "populate: this kernel has no "
			       "MADV_POPULATE_WRITE (Linux 5.14); use "
			       "populate=none");
	case ENOMEM:
	case EFAULT:
		return err_set(err, ENOMEM,
			       "populate: the host ran out of memory (or of "
			       "hugetlb pages) for guest RAM");
	case ECANCELED:
		return err_set(err, ECANCELED, "populate: cancelled");
	case EHWPOISON:
		return err_set(err, EHWPOISON,
			       "populate: a host page is hardware-poisoned");
	default:
		return err_errno(err, code, "populate: madvise");
	}
}

int populate_host(const struct ram *ram, struct gpa gpa, uint64_t len,
		  unsigned int num_threads,
		  const struct populate_cancel *cancel, struct err *err)
{
	struct populate_job job = {
		.ram = ram,
		.start = gpa,
		.len = len,
		.chunk = ram->page == RAM_PAGE_1G ? PAGE_1G : POPULATE_CHUNK,
	};
	pthread_t threads[POPULATE_MAX_THREADS];
	uint64_t chunks = div_round_up(len, job.chunk), end;
	unsigned int n = num_threads ? num_threads : cpus_allowed();
	unsigned int started = 0;

	if (!add_u64(gpa.v, len, &end))
		return err_set(err, EINVAL, "populate: range wraps");
	/* Chunk borders are the same whoever takes them. */
	atomic_init(&job.next, align_down(gpa.v, job.chunk));
	n = MIN(n, (unsigned int)POPULATE_MAX_THREADS);
	if (n > chunks)
		n = (unsigned int)chunks;
	/* The caller is one of the workers; a thread that fails to start is
	 * only missed, not needed. */
	while (started + 1 < n) {
		if (thread_start(&threads[started], "populate", populate_worker,
				 &job))
			break;
		started++;
	}
	work(&job, cancel);
	while (started)
		pthread_join(threads[--started], NULL);
	return job_error(&job, err);
}
