/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio/blk/blk_req.h"

#include <errno.h>

#include "base/arith.h"

#define HEADER_BYTES  sizeof(struct blk_header)
#define SEGMENT_BYTES sizeof(struct blk_segment)

/* The last byte of the in-part. No entry is empty: vq_pop() refuses those. */
static int find_status(const struct vq_chain *chain, struct blk_req *ret)
{
	const struct iovec *iov;
	size_t last;

	if (!chain->num_in)
		return -EINVAL;
	iov = &chain->iov[chain->num_out + chain->num_in - 1];
	last = iov->iov_len - 1;
	ret->status = (uint8_t *)iov->iov_base + last;
	ret->status_gpa = gpa_add(chain->in_gpa[chain->num_in - 1], last);
	return 0;
}

static int parse_rw(const struct vq_chain *chain, const struct blk_limits *lim,
		    uint64_t sector, struct blk_req *ret)
{
	bool write = ret->kind == BLK_WRITE;

	ret->data_in = !write;
	ret->data_skip = write ? HEADER_BYTES : 0;
	ret->data_bytes = write ? chain->out_bytes - HEADER_BYTES
				: chain->in_bytes - 1;
	ret->len = ret->data_bytes;
	if (write && lim->readonly)
		return BLK_S_IOERR;
	if (!mul_u64(sector, BLK_SECTOR_BYTES, &ret->offset) ||
	    !range_ok(ret->offset, ret->len, lim->size) ||
	    !is_aligned(ret->offset, lim->block_bytes) ||
	    !is_aligned(ret->len, lim->block_bytes))
		return BLK_S_IOERR;
	return 0;
}

/* One segment, from a private copy. */
static int parse_segment(const struct blk_segment *seg,
			 const struct blk_limits *lim, bool discard,
			 struct blk_range *ret)
{
	uint64_t sector = le64toh(seg->sector);
	uint32_t num = le32toh(seg->num_sectors);
	uint32_t flags = le32toh(seg->flags);

	/* Unknown flags, and unmap on a discard, are to be answered so. */
	if (flags & ~BLK_SEGMENT_UNMAP)
		return BLK_S_UNSUPP;
	if (discard && flags)
		return BLK_S_UNSUPP;
	ret->op = BLOCK_WRITE_ZEROES_NOMAP;
	if (discard)
		ret->op = BLOCK_DISCARD;
	else if (flags & BLK_SEGMENT_UNMAP)
		ret->op = BLOCK_WRITE_ZEROES;
	ret->len = (uint64_t)num * BLK_SECTOR_BYTES;
	if (num > BLK_MAX_RANGE_SECTORS ||
	    !mul_u64(sector, BLK_SECTOR_BYTES, &ret->offset) ||
	    !range_ok(ret->offset, ret->len, lim->size) ||
	    !is_aligned(ret->offset, lim->block_bytes) ||
	    !is_aligned(ret->len, lim->block_bytes))
		return BLK_S_IOERR;
	return 0;
}

static int parse_ranges(const struct vq_chain *chain,
			const struct blk_limits *lim, bool discard,
			struct blk_req *ret)
{
	uint64_t bytes = chain->out_bytes - HEADER_BYTES;

	if (!(discard ? lim->discard : lim->write_zeroes))
		return BLK_S_UNSUPP;
	if (lim->readonly || bytes == 0 || bytes % SEGMENT_BYTES ||
	    bytes / SEGMENT_BYTES > BLK_MAX_SEGMENTS)
		return BLK_S_IOERR;
	ret->num_ranges = (unsigned int)(bytes / SEGMENT_BYTES);
	for (unsigned int i = 0; i < ret->num_ranges; i++) {
		struct blk_segment seg;
		int r;

		if (vq_chain_read(chain, HEADER_BYTES + i * SEGMENT_BYTES, &seg,
				  sizeof(seg)) != sizeof(seg))
			return BLK_S_IOERR;
		r = parse_segment(&seg, lim, discard, &ret->ranges[i]);
		if (r)
			return r;
	}
	return 0;
}

int blk_req_parse(const struct vq_chain *chain, const struct blk_limits *limits,
		  struct blk_req *ret)
{
	struct blk_header hdr;

	ret->num_ranges = 0;
	ret->data_in = false;
	ret->data_skip = 0;
	ret->data_bytes = 0;
	if (find_status(chain, ret))
		return -EINVAL;
	if (vq_chain_read(chain, 0, &hdr, sizeof(hdr)) != sizeof(hdr))
		return BLK_S_IOERR;
	switch (le32toh(hdr.type)) {
	case BLK_T_IN:
		ret->kind = BLK_READ;
		return parse_rw(chain, limits, le64toh(hdr.sector), ret);
	case BLK_T_OUT:
		ret->kind = BLK_WRITE;
		return parse_rw(chain, limits, le64toh(hdr.sector), ret);
	case BLK_T_FLUSH:
		ret->kind = BLK_FLUSH;
		return 0;
	case BLK_T_GET_ID:
		ret->kind = BLK_GET_ID;
		ret->data_in = true;
		ret->data_skip = 0;
		ret->data_bytes = MIN(chain->in_bytes - 1, BLK_ID_BYTES);
		return 0;
	case BLK_T_DISCARD:
		ret->kind = BLK_RANGES;
		return parse_ranges(chain, limits, true, ret);
	case BLK_T_WRITE_ZEROES:
		ret->kind = BLK_RANGES;
		return parse_ranges(chain, limits, false, ret);
	default:
		return BLK_S_UNSUPP;
	}
}

/* Walk the data's pieces; fill iov unless it is NULL. Returns their number. */
static unsigned int walk_data(const struct vq_chain *chain,
			      const struct blk_req *req, struct iovec *iov)
{
	const struct iovec *in = chain->iov +
				 (req->data_in ? chain->num_out : 0);
	uint64_t skip = req->data_skip, left = req->data_bytes;
	unsigned int num = 0;

	for (; left; in++) {
		size_t n;

		if (skip >= in->iov_len) {
			skip -= in->iov_len;
			continue;
		}
		n = MIN(in->iov_len - (size_t)skip, left);
		if (iov)
			iov[num] = (struct iovec){
				.iov_base = (char *)in->iov_base + skip,
				.iov_len = n,
			};
		num++;
		left -= n;
		skip = 0;
	}
	return num;
}

unsigned int blk_req_count_iov(const struct vq_chain *chain,
			       const struct blk_req *req)
{
	return walk_data(chain, req, NULL);
}

void blk_req_fill_iov(const struct vq_chain *chain, const struct blk_req *req,
		      struct iovec *iov)
{
	(void)walk_data(chain, req, iov);
}
