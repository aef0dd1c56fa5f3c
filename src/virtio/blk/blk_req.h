/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio-blk request, read out of a descriptor chain and checked.
 *
 * No device, no files, no threads: a chain and the device's limits come in, a
 * plain struct comes out, so the parser of guest bytes can be tested and fuzzed
 * alone. Framing is up to the driver (virtio 1.2 section 2.7.4): the header is
 * the first 16 readable bytes, the status the last writable byte, wherever the
 * descriptors' borders are.
 *
 * Source: virtio 1.2 section 5.2.6.
 */
#ifndef QUIRE_VIRTIO_BLK_REQ_H
#define QUIRE_VIRTIO_BLK_REQ_H

#include "block/blockdev.h"
#include "virtio/blk/blk_spec.h"
#include "virtio/queue.h"

#define BLK_SECTOR_BYTES 512u
#define BLK_MAX_SEGMENTS 16 /* of one discard or write-zeroes request */
/* 1 GiB: large enough to be rare, small enough to come back from. */
#define BLK_MAX_RANGE_SECTORS (1u << 21)

enum blk_kind {
	BLK_READ,
	BLK_WRITE,
	BLK_FLUSH,
	BLK_GET_ID,
	BLK_RANGES, /* discard or write zeroes: the segments say which */
};

struct blk_limits {
	uint64_t size; /* bytes */
	uint32_t block_bytes;
	bool readonly;
	bool discard, write_zeroes; /* negotiated */
};

struct blk_range {
	enum block_op op;
	uint64_t offset, len; /* bytes */
};

struct blk_req {
	enum blk_kind kind;
	uint64_t offset, len; /* of read and write, in bytes */
	/* Data in the chain: bytes [data_skip, data_skip + data_bytes) of it.
	 */
	bool data_in; /* of the in-part; else of the out-part */
	uint64_t data_skip, data_bytes;
	unsigned int num_ranges;
	struct blk_range ranges[BLK_MAX_SEGMENTS];
	/* Where the status byte goes. */
	uint8_t *status;
	struct gpa status_gpa;
};

/*
 * Returns 0: *ret is a request to carry out; a positive enum blk_status: to be
 * answered with that (only ret->status and ret->status_gpa are set); -EINVAL:
 * the chain has no room for a status.
 */
__must_check int blk_req_parse(const struct vq_chain *chain,
			       const struct blk_limits *limits,
			       struct blk_req *ret);

/* How many iovecs the request's data takes; at most VQ_MAX_IOV. */
unsigned int blk_req_count_iov(const struct vq_chain *chain,
			       const struct blk_req *req);
/* Fill that many. */
void blk_req_fill_iov(const struct vq_chain *chain, const struct blk_req *req,
		      struct iovec *iov);

#endif
