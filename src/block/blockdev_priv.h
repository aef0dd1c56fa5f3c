/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside block/: the opened image, and one step of a request.
 *
 * A request is carried out in steps, each one operation the kernel may finish
 * partly: block_step_prepare() says what to do next, the queue does it (through
 * the ring or by a system call), block_step_result() takes what came back. This
 * part knows nothing of rings and is the same for both ways.
 */
#ifndef QUIRE_BLOCK_BLOCKDEV_PRIV_H
#define QUIRE_BLOCK_BLOCKDEV_PRIV_H

#include "base/arith.h"
#include "block/blockdev.h"

struct blockdev {
	int fd;
	char *path;
	bool readonly;
	bool direct;
	bool is_bdev;
	bool can_discard;
	bool can_write_zeroes;
	uint64_t size;
	uint32_t block_bytes;
	uint32_t physical_bytes;
	uint32_t discard_bytes;
	uint32_t mem_align; /* of buffers, for O_DIRECT; else 1 */
	struct block_track track;
};

/* How a request is being carried out; the later ones are fallbacks. */
enum block_method {
	METHOD_RW,	   /* vectored read or write */
	METHOD_SYNC,	   /* fdatasync */
	METHOD_PUNCH,	   /* fallocate, punch hole */
	METHOD_DISCARD,	   /* BLKDISCARD, blocking */
	METHOD_ZERO_RANGE, /* fallocate, zero range */
	METHOD_ZERO_WRITE, /* write zero bytes */
};

/* What one queue found out that its host cannot do. */
struct block_caps {
	bool no_punch;
	bool no_zero_range;
};

/* The next operation. One that transfers has iov, or buf when iov is NULL. */
struct block_step {
	enum block_method method;
	bool write;
	bool force_async; /* the kernel said EAGAIN: let it use a thread */
	const struct iovec *iov;
	unsigned int num_iov;
	void *buf;
	uint64_t offset;
	uint64_t len;
	int fallocate_mode;
};

#define BLOCK_BOUNCE_BYTES (256 * KIB)

/*
 * The most that one step does, for a step cannot be taken back: bytes that are
 * read or written (and above what a Linux guest asks for at once), and bytes
 * whose blocks are only freed or marked.
 */
#define BLOCK_STEP_BYTES  (2 * MIB)
#define BLOCK_RANGE_BYTES (64 * MIB)

/* What a queue has issued, for tests. */
struct blockq_counts {
	uint64_t steps;
	uint64_t bytes; /* read or written */
	/* The most at one time in the kernel: bytes, and steps on ranges. */
	uint64_t peak_bytes;
	uint64_t peak_range_steps;
};

void blockq_counts(const struct blockq *q, struct blockq_counts *ret);

/* Set the private fields; 0, or why the request is refused. */
__must_check int block_step_init(const struct blockdev *dev,
				 const struct block_caps *caps,
				 struct block_req *req);

/*
 * bounce is BLOCK_BOUNCE_BYTES large; only for requests that are ->bounced. The
 * iov of a request may be altered until block_step_result() restores it, which
 * has to follow.
 */
void block_step_prepare(const struct blockdev *dev, struct block_req *req,
			void *bounce, struct block_step *ret);

/*
 * res is what the operation returned: bytes, 0 or a negative errno. Returns 1
 * when another step is needed, else the request's result.
 */
__must_check int block_step_result(const struct blockdev *dev,
				   struct block_caps *caps,
				   struct block_req *req, void *bounce,
				   int64_t res);

/* Carry out a step by plain system calls; the result as a ring would give. */
__must_check int64_t block_step_run(const struct blockdev *dev,
				    const struct block_step *step);

#endif
