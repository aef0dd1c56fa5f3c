/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside virtio-blk: the device (blk.c) and one of its queues with the thread
 * that serves it (blk_queue.c).
 *
 * Threads: struct blk_dev does not change between activate() and deactivate().
 * A struct blk_queue belongs to its own thread then; cancelling ->bq is all
 * that others do.
 */
#ifndef QUIRE_VIRTIO_BLK_PRIV_H
#define QUIRE_VIRTIO_BLK_PRIV_H

#include <pthread.h>

#include "virtio/blk/blk_poll.h"
#include "virtio/blk/blk_req.h"
#include "virtio/virtio.h"

struct blk_dev;
struct blk_io;

struct blk_queue {
	struct blk_dev *dev;
	unsigned int index;
	pthread_t thread;
	bool running;	/* thread is to be joined; */
	bool cancelled; /* it was told to end: the stopping thread's */
	struct blockq *bq;
	struct blk_limits limits;
	/* The driver has no flush: a write is done when it is on the disk. */
	bool writethrough;
	bool broken;
	bool pushed;	 /* since the last interrupt */
	uint64_t popped; /* chains, since the start */
	struct blk_poll poll;
	struct blk_io *ios;   /* one for each entry of the ring */
	unsigned int num_ios; /* of these, touched so far: */
	unsigned int num_used;
	struct blk_io *free;
	/* Of the request being popped; too large to be cleared each time. */
	struct vq_chain chain;
	struct blk_req req;
};

struct blk_dev {
	struct virtio_dev vdev;
	struct blockdev *bdev;
	bool owns_bdev; /* else the configuration does */
	bool may_poll;	/* direct, and the host has more CPUs than the guest */
	char serial[BLK_ID_BYTES];
	struct blk_config_space config;
	struct blk_queue *queues; /* between activate and deactivate */
};

extern const struct thread_class *const blk_thread_classes[];

/* Start serving dev->vdev.queues[q->index]; undone by blk_queue_stop(). */
__must_check int blk_queue_start(struct blk_queue *q, struct blk_dev *dev,
				 unsigned int index);
/* Tell it to end; does not wait. Fine on a queue that did not start. */
void blk_queue_cancel(struct blk_queue *q);
/* The same, and wait for it: what was popped is completed, done or failed. */
void blk_queue_stop(struct blk_queue *q);

#endif
