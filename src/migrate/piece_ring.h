/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Work from one thread, which takes what was written out of the logs, to
 * several that send it. All of them go over all pieces in the same order, and a
 * piece that all have done makes room for another: so pages are taken a few
 * pieces before they are sent at the most, with few calls into KVM, and nobody
 * waits for another but at the ends of a round.
 */
#ifndef QUIRE_MIGRATE_PIECE_RING_H
#define QUIRE_MIGRATE_PIECE_RING_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/err.h"
#include "migrate/wire.h"

#define PIECE_PAGES    16384u
#define PIECE_CLUSTERS 1024u /* of disks: the same 64 MiB */
#define PIECE_RING_NUM 4u
/* Who waits is asked that often whether to give up. */
#define PIECE_RING_TICK_NS (50 * NSEC_PER_MSEC)

struct piece {
	bool of_disk;
	unsigned int region; /* or which disk */
	uint64_t first, num; /* pages in the region, or clusters */
	uint64_t bits[PIECE_PAGES / 64];
};

/* All of it is private, but that anybody may look at stop. */
struct piece_ring {
	_Atomic bool stop;
	unsigned int num_readers;
	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed;
	struct piece pieces[PIECE_RING_NUM]; /* those between done and taken */
	uint64_t taken, rounds;		     /* published; closed */
	bool ended;
	int error;
	struct err err;
	struct piece_reader {
		uint64_t done, rounds;
	} readers[WIRE_MAX_STREAMS];
};

void piece_ring_init(struct piece_ring *r, unsigned int num_readers);
void piece_ring_fini(struct piece_ring *r);

/* Whoever asks, or waits, is told to stop. Any thread. */
void piece_ring_stop(struct piece_ring *r);
/* The same, for an error that piece_ring_error() has then: the first one. */
void piece_ring_fail(struct piece_ring *r, int error, const struct err *err);
/* 0, or that, and the words for it. */
int piece_ring_error(struct piece_ring *r, struct err *err);

/* ---- who takes ---- */

struct piece_ring_tick {
	/* Each time that it has waited so long; an error ends that. */
	int (*fn)(void *ctx, struct err *err);
	void *ctx;
};

/* A piece that all are done with. It is to be filled, and published, or not. */
__must_check int piece_ring_room(struct piece_ring *r, struct piece **ret,
				 const struct piece_ring_tick *tick,
				 struct err *err);
void piece_ring_publish(struct piece_ring *r);
/* What was published since the last one was a round; waits until all did it. */
__must_check int piece_ring_end_round(struct piece_ring *r,
				      const struct piece_ring_tick *tick,
				      struct err *err);
/* Nothing comes any more. */
void piece_ring_end(struct piece_ring *r);

/* ---- who sends: reader i, one thread ---- */

enum piece_work { PIECE_STOP, PIECE_SEND, PIECE_END_ROUND, PIECE_END };

/* What to do next; waits. With PIECE_SEND *ret, until it is done. */
enum piece_work piece_ring_next(struct piece_ring *r, unsigned int i,
				const struct piece **ret);
/* That, PIECE_SEND or PIECE_END_ROUND, was done, or failed. */
void piece_ring_done(struct piece_ring *r, unsigned int i,
		     enum piece_work what);

#endif
