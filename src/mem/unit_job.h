/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The same work on every 2 MiB unit of guest memory, on several threads: what
 * reading, writing and checking snapshots have in common.
 *
 * Units are taken off one counter, in address order. The first failure, or a
 * watch that gives up, ends the job: no more units are begun, those that run
 * come to their end.
 */
#ifndef QUIRE_MEM_UNIT_JOB_H
#define QUIRE_MEM_UNIT_JOB_H

#include <stdint.h>

#include "base/err.h"
#include "mem/gpa.h"
#include "mem/populate.h"

#define MEM_UNIT_BYTES (2ull << 20)

/* A stretch of guest memory; regions and runs of pages. */
struct mem_range {
	uint64_t start, len; /* bytes, multiples of 4K */
};

/*
 * Units of 2 MiB over ranges that start at multiples of 2 MiB, numbered
 * through; the last one of a range may be shorter.
 */
uint64_t mem_units(const struct mem_range *ranges, unsigned int num);
/* The place of unit number index, which there is. */
struct mem_range mem_unit(const struct mem_range *ranges, unsigned int num,
			  uint64_t index);
uint64_t mem_ranges_bytes(const struct mem_range *ranges, unsigned int num);

struct thread_class;

struct unit_job {
	const char *name;		/* of the threads */
	const struct thread_class *cls; /* of them */
	const struct mem_range *ranges;
	unsigned int num_ranges;
	unsigned int threads; /* 0: one per CPU this process may use */
	const struct populate_watch *watch; /* may be NULL */
	void *ctx;
	/*
	 * On each thread: what it needs of its own. begin and end may be NULL.
	 * begin runs before the thread is confined; a thread where it fails is
	 * missed, and it is a failure on the first only. end is called also
	 * after a failure; its own counts like that of a unit.
	 */
	int (*begin)(void *ctx, void **ret_own, struct err *err);
	int (*unit)(void *ctx, void *own, uint64_t index,
		    const struct mem_range *where, struct err *err);
	int (*end)(void *ctx, void *own, struct err *err);
};

/*
 * Blocks until done, failed or cancelled (-ECANCELED, the caller names what);
 * nobody works on it any more then. The caller's thread only waits, and asks
 * the watch: after each unit of the first worker, and some times a second.
 * ret_threads (may be NULL): how many worked.
 */
__must_check int unit_job_run(const struct unit_job *job,
			      unsigned int *ret_threads, struct err *err);

#endif
