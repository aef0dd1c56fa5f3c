/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot's file of what is in the pages of its working set, where that is
 * few pages here and there (docs/snapshot-format.md). Memory itself is checked
 * by units of 2 MiB: a page that is wanted by itself would cost reading all of
 * its unit, some 500 times as much.
 *
 * It may be missing, or be of another set: then memory is read instead.
 */
#ifndef QUIRE_SNAPSHOT_SET_PAGES_H
#define QUIRE_SNAPSHOT_SET_PAGES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "mem/unit_job.h"
#include "mem/working_set.h"

struct snapshot_reader;
struct set_pages;

/*
 * Units with more pages than these in the set are not kept: reading all of such
 * a unit is as quick. So the file is at most half as large as memory.
 */
#define SET_PAGES_MAX 256u

/*
 * Put it beside the snapshot's other files, or in place of the one there;
 * without pages to keep there is none afterwards. -ECANCELED: *stop was set
 * meanwhile. Any thread; reads much of memory.
 */
__must_check int set_pages_save(const struct snapshot_reader *r,
				const struct working_set *set,
				const _Atomic bool *stop, struct err *err);

/*
 * Open the file that goes with set. -ENOENT: there is none; -ESTALE: it is of
 * another set, or of another snapshot. *ret does not need the reader.
 */
__must_check int set_pages_open(struct set_pages **ret,
				const struct snapshot_reader *r,
				const struct working_set *set, struct err *err);
/* NULL is fine. */
void set_pages_free(struct set_pages *p);

/* Its i-th unit is the set's. As long as *p. */
const struct working_set_store *set_pages_store(const struct set_pages *p);

/* What of one unit is kept. */
struct set_pages_unit {
	uint64_t pages[WORKING_SET_WORDS];
	uint64_t sum;	 /* 0: it is not kept */
	uint64_t offset; /* in the file */
};

/*
 * Check and parse all in front of the pages: bytes is as long as that for this
 * set, at the start of a file of file_len. id: SNAPSHOT_ID_CHARS characters.
 * ret has room for as many as the set has.
 */
__must_check int set_pages_parse(const void *bytes, uint64_t file_len,
				 const struct working_set *set, const char *id,
				 struct set_pages_unit *ret, struct err *err);

/* How long that is. */
size_t set_pages_head_bytes(const struct working_set *set);

#endif
