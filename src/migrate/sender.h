/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread of one data stream: what of each piece is the stream's
 * (wire_stream_of()) goes out on it, within the budget.
 */
#ifndef QUIRE_MIGRATE_SENDER_H
#define QUIRE_MIGRATE_SENDER_H

#include "base/thread_class.h"
#include "migrate/pace.h"
#include "migrate/piece_ring.h"
#include "migrate/unit_out.h"

extern const struct thread_class migrate_send_thread_class;

/* What the threads of all streams have in common; the caller's. */
struct sender_common {
	struct piece_ring ring;
	struct pace pace;
	/* Pages, and of disks so many, taken out of the log, not yet sent. */
	_Atomic uint64_t in_hand;
	unsigned int num; /* of streams */
	enum pack_method pack;
};

struct sender {
	struct sender_common *common;
	unsigned int index; /* of the stream, from 1 on */
	pthread_t thread;
	bool started;
	uint64_t rounds;      /* its thread's */
	uint64_t paced_bytes; /* of what went out, out of the budget */
	struct unit_out out;
};

/*
 * common, index and out (as unit_out_init() wants it) are set, all else is
 * zero. An error of the thread fails the ring.
 */
__must_check int sender_start(struct sender *s);
/* Until its thread is gone, for the ring has ended or is stopped. */
void sender_join(struct sender *s);

/* Clusters count as the pages that they are as large as. */
#define SENDER_CLUSTER_PAGES (WIRE_CLUSTER_BYTES / PAGE_4K)

#endif
