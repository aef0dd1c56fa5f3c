/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-blk requests: any chain that the queue may hand over, any bytes in it.
 *
 * Input: a 4-byte head (size of the disk in sectors, block size and flags,
 * number of readable and writable descriptors), two bytes of length for each
 * descriptor, then the readable bytes. Each descriptor gets its own heap block,
 * so that a byte too many is seen by AddressSanitizer.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "virtio/blk/blk_req.h"

#define HEAD_BYTES 4
#define MAX_DESCS  24
#define IN_GPA	   0x100000

struct input {
	const uint8_t *data;
	size_t left;
};

/* The next len bytes, zeroes behind the end. */
static void take(struct input *in, void *buf, size_t len)
{
	size_t n = MIN(len, in->left);

	memset(buf, 0, len);
	if (n)
		memcpy(buf, in->data, n);
	in->data += n;
	in->left -= n;
}

static void build(struct input *in, unsigned int num_out, unsigned int num_in,
		  struct vq_chain *chain)
{
	uint64_t gpa = IN_GPA;

	memset(chain, 0, sizeof(*chain));
	chain->num_out = num_out;
	chain->num_in = num_in;
	for (unsigned int i = 0; i < num_out + num_in; i++) {
		uint16_t len;

		take(in, &len, sizeof(len));
		/* The queue lets no empty descriptor through. */
		len = MAX(len, 1);
		chain->iov[i].iov_len = len;
		chain->iov[i].iov_base = malloc(len);
		BUG_ON(!chain->iov[i].iov_base);
		if (i < num_out) {
			chain->out_bytes += len;
			continue;
		}
		chain->in_gpa[i - num_out] = GPA(gpa);
		chain->in_bytes += len;
		memset(chain->iov[i].iov_base, 0, len);
		gpa += len;
	}
	for (unsigned int i = 0; i < num_out; i++)
		take(in, chain->iov[i].iov_base, chain->iov[i].iov_len);
}

static void check_range(const struct blk_limits *lim, uint64_t offset,
			uint64_t len)
{
	BUG_ON(!range_ok(offset, len, lim->size));
	BUG_ON(offset % lim->block_bytes || len % lim->block_bytes);
}

/* The iovecs cover the data once, inside the chain, not the status byte. */
static void check_data(const struct vq_chain *chain, const struct blk_req *req)
{
	unsigned int num = blk_req_count_iov(chain, req);
	struct iovec iov[VQ_MAX_IOV];
	uint64_t total = 0;

	BUG_ON(num > chain->num_out + chain->num_in);
	blk_req_fill_iov(chain, req, iov);
	for (unsigned int i = 0; i < num; i++) {
		volatile char *p = iov[i].iov_base;

		BUG_ON(!iov[i].iov_len);
		/* Readable and, for a read, writable: ASan looks on. */
		for (size_t j = 0; j < iov[i].iov_len; j++) {
			char c = p[j];

			if (req->data_in) {
				BUG_ON((uint8_t *)iov[i].iov_base + j ==
				       req->status);
				BUG_ON(c); /* not handed out before */
				p[j] = 1;
			}
		}
		total += iov[i].iov_len;
	}
	BUG_ON(total != req->data_bytes);
}

static void check_request(const struct vq_chain *chain,
			  const struct blk_limits *lim,
			  const struct blk_req *req)
{
	switch (req->kind) {
	case BLK_READ:
		BUG_ON(!req->data_in);
		BUG_ON(req->data_bytes != chain->in_bytes - 1);
		BUG_ON(req->len != req->data_bytes);
		check_range(lim, req->offset, req->len);
		break;
	case BLK_WRITE:
		BUG_ON(req->data_in || lim->readonly);
		BUG_ON(req->data_bytes != chain->out_bytes - 16);
		BUG_ON(req->len != req->data_bytes);
		check_range(lim, req->offset, req->len);
		break;
	case BLK_GET_ID:
		BUG_ON(!req->data_in || req->data_bytes > BLK_ID_BYTES);
		break;
	case BLK_FLUSH:
		BUG_ON(req->data_bytes);
		break;
	case BLK_RANGES:
		BUG_ON(lim->readonly || !req->num_ranges);
		BUG_ON(req->num_ranges > BLK_MAX_SEGMENTS);
		for (unsigned int i = 0; i < req->num_ranges; i++) {
			const struct blk_range *r = &req->ranges[i];

			BUG_ON(r->op == BLOCK_DISCARD ? !lim->discard
						      : !lim->write_zeroes);
			check_range(lim, r->offset, r->len);
		}
		break;
	}
	check_data(chain, req);
}

static void check_status(const struct vq_chain *chain,
			 const struct blk_req *req)
{
	unsigned int last = chain->num_out + chain->num_in - 1;
	const struct iovec *iov = &chain->iov[last];

	BUG_ON(req->status != (uint8_t *)iov->iov_base + iov->iov_len - 1);
	BUG_ON(req->status_gpa.v != IN_GPA + chain->in_bytes - 1);
	*req->status = BLK_S_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct vq_chain chain;
	struct input in = { data, size };
	uint8_t head[HEAD_BYTES];
	struct blk_limits lim;
	struct blk_req req;
	int r;

	take(&in, head, sizeof(head));
	lim = (struct blk_limits){
		.block_bytes = head[1] & 1 ? 4096 : 512,
		.size = (uint64_t)head[0] * 4096,
		.readonly = head[1] & 2,
		.discard = head[1] & 4,
		.write_zeroes = head[1] & 8,
	};
	build(&in, head[2] % MAX_DESCS, head[3] % MAX_DESCS, &chain);
	r = blk_req_parse(&chain, &lim, &req);
	BUG_ON((r < 0) != (chain.num_in == 0));
	if (r >= 0)
		check_status(&chain, &req);
	if (r == 0)
		check_request(&chain, &lim, &req);
	for (unsigned int i = 0; i < chain.num_out + chain.num_in; i++)
		free(chain.iov[i].iov_base);
	return 0;
}
