/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FUSE requests that quire answers itself: any chain, any bytes.
 *
 * Input: numbers of readable and writable descriptors, one byte of length for
 * each, then the readable bytes. Each descriptor is a heap block of its own.
 */
#include <errno.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "virtio/fs/fs_req.h"

#define MAX_DESCS 8u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t next(const uint8_t **data, size_t *size)
{
	if (!*size)
		return 0;
	(*size)--;
	return *(*data)++;
}

static void build(struct vq_chain *chain, const uint8_t *data, size_t size)
{
	unsigned int total;

	memset(chain, 0, sizeof(*chain));
	chain->num_out = next(&data, &size) % MAX_DESCS;
	chain->num_in = next(&data, &size) % MAX_DESCS;
	total = chain->num_out + chain->num_in;
	for (unsigned int i = 0; i < total; i++) {
		/* The queue lets no empty descriptor through. */
		size_t len = MAX(next(&data, &size), 1);

		chain->iov[i].iov_len = len;
		chain->iov[i].iov_base = calloc(1, len);
		BUG_ON(!chain->iov[i].iov_base);
		*(i < chain->num_out ? &chain->out_bytes
				     : &chain->in_bytes) += len;
	}
	for (unsigned int i = 0; i < chain->num_out; i++) {
		size_t n = MIN(size, chain->iov[i].iov_len);

		if (n)
			memcpy(chain->iov[i].iov_base, data, n);
		data += n;
		size -= n;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct vq_chain chain;
	struct fuse_out_header out;
	struct fuse_in_header in;
	uint32_t written;

	build(&chain, data, size);
	if (fs_req_is_init(&chain))
		BUG_ON(chain.out_bytes < sizeof(in));
	written = fs_req_fail(&chain);
	BUG_ON(written && written != sizeof(out));
	BUG_ON(written > chain.in_bytes);
	if (written) {
		struct vq_chain back = chain;

		vq_chain_read(&chain, 0, &in, sizeof(in));
		/* Its in-part as if it were an out-part. */
		memmove(back.iov, chain.iov + chain.num_out,
			chain.num_in * sizeof(*chain.iov));
		back.num_out = chain.num_in;
		vq_chain_read(&back, 0, &out, sizeof(out));
		BUG_ON(out.unique != in.unique || out.error != -ENOTCONN);
	}
	for (unsigned int i = 0; i < chain.num_out + chain.num_in; i++)
		free(chain.iov[i].iov_base);
	return 0;
}
