/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory on its way into a snapshot: what the threads that write it in turn
 * (writer_memory.c) and those that serve who waits (writer_serve.c) share.
 */
#ifndef QUIRE_SNAPSHOT_MEMORY_JOB_H
#define QUIRE_SNAPSHOT_MEMORY_JOB_H

#include <pthread.h>
#include <stdatomic.h>

#include "snapshot/unit_pages.h"
#include "snapshot/writer_priv.h"

struct memory_out;
struct memory_servers;

struct memory_job {
	struct snapshot_writer *w;
	struct snapshot_memory_request req; /* what it points to is borrowed */
	int fd;
	bool reflinked;
	const uint64_t *parent_sums; /* NULL: none */
	_Atomic uint64_t data_bytes, zero_bytes;

	/* With a window. */
	_Atomic uint8_t *turns; /* of each unit an enum turn */
	_Atomic uint64_t waited_units;
	struct memory_servers *servers;
};

/* What a thread needs of its own; ctx is the job. As struct unit_job says. */
struct memory_worker {
	struct memory_out *out;
	struct unit_pages unit;
};

__must_check int memory_worker_begin(void *ctx, void **ret_own,
				     struct err *err);
int memory_worker_end(void *ctx, void *own, struct err *err);

/* The unit's turn has come, unless it was taken out of turn. */
__must_check bool memory_take_turn(struct memory_job *job, uint64_t index);
/* Whose turn was taken: write it, and let it be written to once copied. */
__must_check int memory_write_unit(struct memory_job *job,
				   struct memory_worker *worker, uint64_t index,
				   const struct mem_range *where,
				   struct err *err);
/* Is it copied? Then who waits for it may go on. */
bool memory_is_over(const struct memory_job *job, uint64_t index);
__must_check int memory_release(const struct memory_job *job,
				const struct mem_range *where, struct err *err);

/* Faults are served from here on, until they are ended. NULL is fine then. */
__must_check int memory_servers_start(struct memory_servers **ret,
				      struct memory_job *job, struct err *err);
/* The first failure of one of them, or 0. */
__must_check int memory_servers_error(struct memory_servers *servers,
				      struct err *err);
/*
 * When every turn is taken: until what the servers took is in the file, and its
 * sum in its place. The first failure of one of them, or 0.
 */
__must_check int memory_servers_wait(struct memory_servers *servers,
				     struct err *err);
void memory_servers_end(struct memory_servers *servers);

#endif
