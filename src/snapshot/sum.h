/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checksums: XXH3, 64 bits, seed 0 (libxxhash). They find damage, not forgery:
 * who may write a snapshot may as well write its checksums.
 *
 * A unit of memory, 2 MiB or what is left of its region, that is all zero has
 * the sum 0; any other has its XXH3, or 1 should that be 0.
 *
 * Any thread.
 */
#ifndef QUIRE_SNAPSHOT_SUM_H
#define QUIRE_SNAPSHOT_SUM_H

#include <stddef.h>
#include <stdint.h>

#include "mem/unit_job.h"

#define SUM_UNIT_PAGES (MEM_UNIT_BYTES / 4096)

uint64_t sum_bytes(const void *bytes, size_t len);

/* len is a multiple of 8, bytes aligned to 8. */
uint64_t sum_unit(const void *bytes, size_t len);

/* The same of pages in different places; NULL is a page of zeroes. */
uint64_t sum_unit_pages(const char *const *pages, unsigned int num);

#endif
