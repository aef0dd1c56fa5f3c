/* SPDX-License-Identifier: Apache-2.0 */
/* Which units of memory go over a stream: wire_stream_of(), as a list. */
#ifndef QUIRE_MIGRATE_STREAM_UNITS_H
#define QUIRE_MIGRATE_STREAM_UNITS_H

#include <stddef.h>

#include "base/compiler.h"
#include "mem/ram.h"
#include "mem/unit_job.h"

struct stream_units {
	struct mem_range *list; /* ascending; a unit each, the last shorter */
	size_t num;
};

/*
 * Those of stream index, of num. 0 or -ENOMEM; what is there already of u is
 * overwritten. The caller frees list.
 */
__must_check int stream_units_make(struct stream_units *u,
				   const struct ram *ram, unsigned int num,
				   unsigned int index);

#endif
