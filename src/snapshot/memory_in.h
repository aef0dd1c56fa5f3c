/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of a snapshot as a source: files stacked upon each other, the
 * lowest of which has all of memory, checked by unit.
 *
 * Made on one thread; the source then serves any.
 */
#ifndef QUIRE_SNAPSHOT_MEMORY_IN_H
#define QUIRE_SNAPSHOT_MEMORY_IN_H

#include "mem/ram.h"
#include "mem/source.h"
#include "mem/unit_job.h"
#include "snapshot/format.h"

struct memory_layer {
	int fd;		  /* borrowed */
	const char *path; /* of the snapshot, for people; borrowed */
	/* What it has, ascending and apart; borrowed. NULL: everything. */
	const struct mem_range *runs;
	uint64_t num_runs;
};

struct memory_in;

/*
 * layers[0] is the newest, the last has everything. ranges and sums stay the
 * caller's and are kept. -ENOMEM.
 */
__must_check int memory_in_new(struct memory_in **ret,
			       const struct memory_layer *layers,
			       unsigned int num_layers,
			       const struct mem_range *ranges,
			       unsigned int num_ranges, const uint64_t *sums);
void memory_in_free(struct memory_in *in);

const struct mem_source *memory_in_source(const struct memory_in *in);

/* See snapshot_reader_map(); the ranges are those of ram. */
__must_check int memory_in_map(const struct memory_in *in, struct ram *ram,
			       struct err *err);

#endif
