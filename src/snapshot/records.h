/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of equal records behind one kind of header: sums, maps, working sets.
 *
 *	 0  8  magic
 *	 8  4  version, 1
 *	12  4  bytes in a record
 *	16  8  number of records
 *	24  8  XXH3 of what follows
 *	32     for some kinds a preface; the records
 *
 * Little-endian. The bytes are hostile; a refusal names file and offset.
 */
#ifndef QUIRE_SNAPSHOT_RECORDS_H
#define QUIRE_SNAPSHOT_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/unit_job.h"

#define RECORDS_HEADER_BYTES 32

struct records_kind {
	const char *name;  /* of the file */
	const char *magic; /* 8 bytes */
	uint32_t record_bytes;
	/* Between header and records, and in their sum; multiple of 8. */
	uint32_t preface_bytes;
};

/* Each sum is 8 bytes. */
extern const struct records_kind records_sums;
/* Start and length of a run, 8 bytes each. */
extern const struct records_kind records_map;
/* Address of a unit, 8 bytes, and a bit for each of its pages, 64 bytes. */
extern const struct records_kind records_working_set;
/* A bit for each page of a unit, 64 bytes, and a sum; snapshot/set_pages.c. */
extern const struct records_kind records_set_pages;

#define RECORDS_WORKING_SET_BYTES 72ull
#define RECORDS_SET_PAGES_BYTES	  72ull
#define RECORDS_SET_PAGES_PREFACE 48ull

/* Write the header for what follows it: the preface, and num records. */
void records_header(const struct records_kind *kind, const void *body,
		    uint64_t num, uint8_t ret[RECORDS_HEADER_BYTES]);

/*
 * Check a whole file. Returns how many records it has, behind header and
 * preface, at most max, or -EBADMSG, -ENOTSUP (a newer version).
 */
__must_check int64_t records_check(const struct records_kind *kind,
				   const void *bytes, size_t len, uint64_t max,
				   struct err *err);

/*
 * The runs of a map: ascending, apart, whole 4K pages of the ranges. ret has
 * room for all that records_check() counted.
 */
__must_check int records_read_map(const void *records, uint64_t num,
				  const struct mem_range *ranges,
				  unsigned int num_ranges,
				  struct mem_range *ret, struct err *err);

/* Does one of the ranges hold all of [start, start + len)? */
bool records_in_ranges(const struct mem_range *ranges, unsigned int num,
		       uint64_t start, uint64_t len);

#endif
