/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Should a queue's thread poll for a while before it sleeps? Where a kick and a
 * wake-up are dear, as under nested virtualization, that can double a disk's
 * speed; where they are cheap it burns a CPU for nothing. Neither can be told
 * from outside, so it is tried out while the disk works.
 *
 * It can also be slower: where requests complete at once, the kick's delay is
 * what lets the driver add more of them, to be answered by one interrupt.
 *
 * Requests are counted in epochs. A trial is an epoch without polling, two with
 * it, one without: so a steady trend favours neither. Polling stays on until
 * the next trial if a request took clearly less time with it in both halves,
 * else off. Once on, it ends early when requests come to cost what they did
 * without. Time in which the driver had nothing to do does not count.
 *
 * Pure bookkeeping on times that the caller gives; one thread.
 */
#ifndef QUIRE_VIRTIO_BLK_POLL_H
#define QUIRE_VIRTIO_BLK_POLL_H

#include <stdbool.h>
#include <stdint.h>

/* The longest to poll. A longer pause is the driver's own, not ours. */
#define BLK_POLL_NS	     800000ull
#define BLK_POLL_EPOCH	     256 /* requests */
#define BLK_POLL_TRIAL	     4	 /* epochs */
#define BLK_POLL_HOLD_EPOCHS 28	 /* from one trial to the next */

struct blk_poll {
	bool allowed;
	bool on;	   /* in this epoch */
	bool paused;	   /* the last idle time was longer than polling */
	bool running;	   /* since when is known: */
	uint64_t start_ns; /* of this epoch, moved on by long idle times */
	uint64_t start_requests;
	unsigned int epoch; /* of the trial, then of the time after it */
	uint64_t cost_ns[BLK_POLL_TRIAL]; /* of a request, in the trial */
};

/* allowed: there are CPUs to spare for it, and it may be of use. */
void blk_poll_init(struct blk_poll *p, bool allowed);

/*
 * The queue ran out of work at now_ns, after so many requests in all. Returns
 * for how many nanoseconds to poll; 0: sleep at once.
 */
uint64_t blk_poll_idle(struct blk_poll *p, uint64_t now_ns, uint64_t requests);

/* There is work again, after idle_ns of polling and sleeping. */
void blk_poll_work(struct blk_poll *p, uint64_t idle_ns);

#endif
