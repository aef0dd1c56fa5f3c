/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bring guest memory back, into RAM that is mapped and untouched. Three ways,
 * all before the memslots are made and the guest runs:
 *
 *	private	the file is mapped (ram_map_file()): nothing is read; clean
 *		pages are shared between all VMs that map it
 *	eager	everything is read, here
 *	lazy	the pager (mem/pager.h) reads what the guest touches, a recorded
 *		working set, and the rest behind
 *
 * Private needs a whole, plain, local file, and RAM that is neither shared nor
 * of hugetlb pages; eager and lazy take any source and any RAM.
 */
#ifndef QUIRE_MEM_RESTORE_H
#define QUIRE_MEM_RESTORE_H

#include "mem/populate.h"
#include "mem/ram.h"
#include "mem/source.h"
#include "mem/unit_job.h"

enum restore_mode {
	RESTORE_PRIVATE,
	RESTORE_EAGER,
	RESTORE_LAZY,
	RESTORE_WORKING_SET, /* lazy, with the recorded set ahead */
};

/* "private", "eager", "lazy", "working-set". */
extern const char *const restore_mode_names[4];

struct thread_class;

/* Threads of restore_eager(). */
extern const struct thread_class restore_thread_class;

struct restore_request {
	const struct mem_source *source;
	unsigned int threads;		    /* 0: one per CPU */
	const struct populate_watch *watch; /* progress, cancel; may be NULL */
};

struct restore_result {
	uint64_t total_bytes;
	uint64_t read_bytes; /* put into RAM; the rest stays untouched */
	uint64_t wall_ns;
	unsigned int threads;
};

/*
 * Read all of RAM from the source, in parallel, zeroes skipped. Refuses (never
 * the OOM killer) when the host or the cgroup has no memory left: -ENOMEM.
 * -ECANCELED: the watch gave up. After a failure RAM holds anything. ret may be
 * NULL. Control thread.
 */
__must_check int restore_eager(const struct ram *ram,
			       const struct restore_request *req,
			       struct restore_result *ret, struct err *err);

/* The regions of ram as ranges; ret has RAM_MAX_REGIONS. Returns how many. */
unsigned int ram_ranges(const struct ram *ram, struct mem_range *ret);

#endif
