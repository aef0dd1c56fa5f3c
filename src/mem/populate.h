/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fill guest RAM ahead of the guest, on all CPUs: the host's page table, then
 * KVM's second stage, as a pipeline over units of 2 MiB and more.
 *
 * Both tables have to be filled, in this order. The second stage alone would
 * map the zero page for reading, and each first write would fault again; KVM
 * maps a page for writing only where the host's entry is writable already.
 *
 * What can be filled is filled in one pass: a unit's second stage follows its
 * host pages at once, usually on the same thread and while the kernel's
 * structures of these pages are in its cache.
 *
 * Population is perishable. docs/memory-engine.md lists what takes it away.
 */
#ifndef QUIRE_MEM_POPULATE_H
#define QUIRE_MEM_POPULATE_H

#include <stdbool.h>

#include "base/histogram.h"
#include "base/thread_class.h"
#include "mem/ram.h"
#include "mem/second_stage.h"

enum populate_mode {
	POPULATE_NONE,
	POPULATE_HOST,	     /* host pages */
	POPULATE_FULL,	     /* and the second stage, before the guest starts */
	POPULATE_BACKGROUND, /* both, while the guest already runs */
};

extern const struct thread_class populate_thread_class;

/* "none", "host", "full", "background". */
extern const char *const populate_mode_names[4];

struct populate_progress {
	uint64_t total_bytes;
	uint64_t done_bytes; /* through the last stage asked for */
	uint64_t elapsed_ns;
};

/*
 * Asked every now and then, on the calling thread, also while it waits for
 * others: true gives up (-ECANCELED).
 */
struct populate_watch {
	bool (*poll)(void *ctx, const struct populate_progress *progress);
	void *ctx;
};

/*
 * How long one 4K page took in each stage, as the mean of the unit it came in:
 * what a fault on it would have cost here, less the way into the kernel.
 */
struct populate_service {
	struct histogram host_page, second_stage_page;
};

struct populate_request {
	struct gpa gpa; /* holes between regions are skipped */
	uint64_t len;
	bool host; /* fill host pages */
	/* NULL: leave the second stage alone. */
	const struct second_stage_filler *second_stage;
	/*
	 * Repair: second stage only, and only where host pages are present, so
	 * that nothing the guest gave back is brought back.
	 */
	bool present_only;
	unsigned int threads;	   /* 0: one per CPU this process may use */
	uint64_t rate_bytes_per_s; /* 0: as fast as it goes */
	const struct populate_watch *watch; /* may be NULL */
	struct populate_service *service;   /* recorded into; may be NULL */
};

struct populate_result {
	uint64_t total_bytes;
	uint64_t host_bytes, second_stage_bytes; /* done, also on failure */
	uint64_t wall_ns;
	/* Summed over threads. */
	uint64_t host_ns, second_stage_ns;
	uint64_t units;
	unsigned int threads, ports; /* that worked */
};

/*
 * Populate as asked, on req->threads threads, the caller's among them. Blocks
 * until done, cancelled or failed; nobody works on it any more then. Host pages
 * may be filled while the guest runs; so may the second stage through ports of
 * vCPUs that do not.
 *
 * -EBUSY: second stage asked for and memory is being logged: each page mapped
 * writable would count as dirty, and in 4K. -ENOMEM, -EHWPOISON, -EFAULT: err
 * names the range. ret may be NULL.
 */
__must_check int populate_run(const struct ram *ram,
			      const struct populate_request *req,
			      struct populate_result *ret, struct err *err);

#endif
