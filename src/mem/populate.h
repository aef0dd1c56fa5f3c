/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fill the host page table of guest RAM ahead of the guest.
 *
 * MADV_POPULATE_WRITE (madvise(2), Linux 5.14) rather than a touch loop: it
 * breaks copy-on-write without changing contents, reports a failure as an
 * errno where a touch would raise SIGBUS, and takes mmap_lock for read, so
 * threads work in parallel.
 */
#ifndef QUIRE_MEM_POPULATE_H
#define QUIRE_MEM_POPULATE_H

#include "mem/ram.h"

enum populate_mode {
	POPULATE_NONE,
	POPULATE_HOST,
};

extern const char *const populate_mode_names[2];

/* Asked between chunks, on the calling thread: true gives up (-ECANCELED). */
struct populate_cancel {
	bool (*fn)(void *ctx);
	void *ctx;
};

/*
 * Populate [gpa, gpa + len) of ram for write on num_threads threads (0: one per
 * CPU this process may run on), the caller's among them. Workers take chunks
 * off a shared counter. The range may span regions; holes are skipped. Blocks
 * until done. cancel may be NULL.
 */
__must_check int populate_host(const struct ram *ram, struct gpa gpa,
			       uint64_t len, unsigned int num_threads,
			       const struct populate_cancel *cancel,
			       struct err *err);

#endif
