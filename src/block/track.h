/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest has written of an image, for whoever copies the image meanwhile:
 * a bit for each cluster of 64 KiB, set when a write, discard or zeroing has
 * ended (however: what failed may have been done in part), before the guest
 * hears of it. So what is read after its bit was taken is as new as the guest
 * knows, or the bit is set again.
 *
 * Threads: start, stop and fini come from one, note from all queues' threads,
 * take and count from any. Off it costs note a load.
 */
#ifndef QUIRE_BLOCK_TRACK_H
#define QUIRE_BLOCK_TRACK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define BLOCK_CLUSTER_BYTES 65536ull

/* All zero is off. */
struct block_track {
	_Atomic bool on;
	/* Made once; a queue that saw it on may use it after it is off. */
	_Atomic uint64_t *words;
	uint64_t clusters;
};

/*
 * All of bytes is dirty, and what is written from now on is noted. Each time of
 * the same number of bytes. -ENOMEM.
 */
__attribute__((warn_unused_result)) int block_track_start(struct block_track *t,
							  uint64_t bytes);
void block_track_stop(struct block_track *t);
void block_track_fini(struct block_track *t);

/* [offset, offset + len) is inside the image. */
void block_track_set(struct block_track *t, uint64_t offset, uint64_t len);

static inline void block_track_note(struct block_track *t, uint64_t offset,
				    uint64_t len)
{
	if (atomic_load_explicit(&t->on, memory_order_relaxed))
		block_track_set(t, offset, len);
}

/*
 * Move the bits of clusters [first, first + num), first a multiple of 64, to
 * bits; they are clean then. Returns how many were set.
 */
uint64_t block_track_take(struct block_track *t, uint64_t first, uint64_t num,
			  uint64_t *bits);
/* Dirty clusters. */
uint64_t block_track_count(const struct block_track *t);

#endif
