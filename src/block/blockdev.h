/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block back end: a raw image file or a block device, locked against a second
 * user, with asynchronous requests through one io_uring per queue. Where the
 * host has no io_uring (or forbids it) requests run synchronously instead.
 *
 * Threads: struct blockdev is immutable after opening, but for its lock, which
 * is the control thread's, and the note of what is written (block/track.h), and
 * shared by all queues.
 * A struct blockq belongs to one thread, the first that uses it after
 * blockq_new(): submit, wait, complete and free all happen there. Only
 * blockq_cancel() comes from another.
 *
 * Source: io_uring(7), io_uring_enter(2), fallocate(2), fcntl(2) (OFD locks).
 */
#ifndef QUIRE_BLOCK_BLOCKDEV_H
#define QUIRE_BLOCK_BLOCKDEV_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "block/track.h"

struct blockdev;
struct blockq;

struct blockdev_config {
	const char *path;
	bool readonly;
	bool direct; /* O_DIRECT */
	/* Somebody else's still: blockdev_lock() follows before it is used. */
	bool unlocked;
};

/*
 * Open and lock, with OFD locks: a writer locks the whole file exclusively, a
 * reader what keeps writers out and readers not. That goes for other quires,
 * for QEMU, and for whoever locks whole files. The message names the file and
 * what to do. The size has to be a multiple of 512 bytes (of the device's block
 * size with direct).
 */
__must_check int blockdev_open(struct blockdev **ret,
			       const struct blockdev_config *cfg,
			       struct err *err);
void blockdev_close(struct blockdev *dev);

/*
 * Handing an image to another process. Leave: what was written is durable, and
 * the lock is gone; no request is under way, or comes. Lock: have it (again);
 * -EBUSY: somebody else does.
 */
__must_check int blockdev_leave(struct blockdev *dev, struct err *err);
__must_check int blockdev_lock(struct blockdev *dev, struct err *err);

uint64_t blockdev_size(const struct blockdev *dev); /* bytes, multiple of 512 */
/* Logical block: requests are multiples of it. 512 unless the host wants more.
 */
uint32_t blockdev_block_bytes(const struct blockdev *dev);
/* Hints for the guest: what the host writes, and frees, in one piece. */
uint32_t blockdev_physical_bytes(const struct blockdev *dev);
uint32_t blockdev_discard_bytes(const struct blockdev *dev);
/* Of all writes through its queues; off until somebody starts it. */
struct block_track *blockdev_track(struct blockdev *dev);
/* As it was given. */
const char *blockdev_path(const struct blockdev *dev);
/* Stays dev's; its file offset is nobody's. */
int blockdev_fd(const struct blockdev *dev);
bool blockdev_readonly(const struct blockdev *dev);
bool blockdev_can_discard(const struct blockdev *dev);
bool blockdev_can_write_zeroes(const struct blockdev *dev);

enum block_op {
	BLOCK_READ,
	BLOCK_WRITE,
	BLOCK_FLUSH,
	BLOCK_DISCARD,
	BLOCK_WRITE_ZEROES,	  /* may unmap */
	BLOCK_WRITE_ZEROES_NOMAP, /* must keep blocks allocated */
};

struct block_req {
	enum block_op op;
	uint64_t offset;   /* bytes */
	uint64_t len;	   /* bytes; = sum of iov for read and write */
	struct iovec *iov; /* stays with the request until done() */
	unsigned int num_iov;
	/* Called on the queue's thread. result: 0 or a negative errno. */
	void (*done)(struct block_req *req, int result);

	/* Private to block/; blockq_submit() sets them. */
	struct block_req *next; /* in one of the queue's lists */
	uint64_t transferred;	/* bytes done so far */
	size_t step;		/* bytes asked for in the current step */
	unsigned int iov_index; /* where the next step starts: entry, */
	size_t iov_skip;	/* and byte inside it */
	unsigned int iov_last;	/* where the current step ends: entry, */
	size_t iov_rest;	/* and bytes of it that are not in the step */
	uint8_t method;		/* enum block_method */
	uint8_t retries;
	bool bounced; /* goes through the queue's bounce buffer */
};

/* depth: how many requests are in flight at the most (more only cost speed). */
__must_check int blockq_new(struct blockq **ret, struct blockdev *dev,
			    unsigned int depth, struct err *err);
/* In-flight requests must have completed. NULL is fine. */
void blockq_free(struct blockq *q);

/*
 * Queue a request (validated against size and read-only here, once more). It
 * always completes through done(), possibly before this returns; done() may
 * submit again. Requests are not ordered among themselves: a flush covers the
 * writes that completed before it was submitted. What is queued reaches the
 * kernel with blockq_poll() or blockq_wait() at the latest.
 */
void blockq_submit(struct blockq *q, struct block_req *req);

/* Submit what is queued and run done() of what has completed; do not wait. */
__must_check int blockq_poll(struct blockq *q);

/* Would blockq_poll() find something completed? Costs no system call. */
bool blockq_ready(const struct blockq *q);

/*
 * Submit what is queued, wait until a request completed or wake_fd (an eventfd,
 * the same in every call) fired, run done() of all completed ones. Returns 1
 * when the eventfd fired, 0 otherwise (also without any reason), or a negative
 * errno. One system call in the common case. The eventfd's count need not be
 * cleared by anybody.
 */
__must_check int blockq_wait(struct blockq *q, int wake_fd);

unsigned int blockq_inflight(const struct blockq *q);

/*
 * The way to an early end, for good: no request takes another step. Those that
 * the kernel has nothing of, and all that are submitted from now on, end with
 * -ECANCELED. The kernel is asked to drop what it has, and that ends as it ends
 * there: bounded work (BLOCK_DATA_LIMIT in blockq.c), for large requests are
 * carried out in steps. Any thread may call it; it does not wait. The queue's
 * thread acts between two steps and in blockq_poll() and blockq_wait(): wake it
 * with its eventfd. blockq_wait() then sleeps for what the kernel has only, and
 * not without.
 */
void blockq_cancel(struct blockq *q);
bool blockq_cancelled(const struct blockq *q);

#endif
