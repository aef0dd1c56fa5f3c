/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot's file of the pages that a restored guest touches first
 * (mem/working_set.h). It is put into a finished snapshot, by one rename, when
 * somebody has recorded it; it is a hint, and what is wrong with it costs no
 * more than time. Its bytes are checked all the same. Any thread.
 */
#ifndef QUIRE_SNAPSHOT_WORKING_SET_H
#define QUIRE_SNAPSHOT_WORKING_SET_H

#include <stddef.h>

#include "base/err.h"
#include "mem/unit_job.h"
#include "mem/working_set.h"

struct snapshot_reader;

/* Put it beside the snapshot's other files, or in place of the one there. */
__must_check int snapshot_working_set_save(const struct snapshot_reader *r,
					   const struct working_set *set,
					   struct err *err);

/* -ENOENT: none was recorded. ret is the caller's to free. */
__must_check int snapshot_working_set_load(const struct snapshot_reader *r,
					   struct working_set *ret,
					   struct err *err);

/* Check and parse a whole file about memory in these ranges. */
__must_check int working_set_parse(const void *bytes, size_t len,
				   const struct mem_range *ranges,
				   unsigned int num_ranges,
				   struct working_set *ret, struct err *err);

#endif
