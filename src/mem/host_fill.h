/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fill one piece of the host page table of guest RAM.
 *
 * MADV_POPULATE_WRITE (madvise(2), Linux 5.14) rather than a touch loop: it
 * breaks copy-on-write without changing contents, reports a failure as an
 * errno where a touch would raise SIGBUS, and takes mmap_lock for read, so
 * threads work in parallel. Any thread.
 */
#ifndef QUIRE_MEM_HOST_FILL_H
#define QUIRE_MEM_HOST_FILL_H

#include "mem/ram.h"

/*
 * Populate [gpa, gpa + len), which lies in one region, for write. On failure
 * err names the range that could not be filled, down to the page where the
 * kernel refuses a single one.
 */
__must_check int host_fill(const struct ram *ram, struct gpa gpa, uint64_t len,
			   struct err *err);

#endif
