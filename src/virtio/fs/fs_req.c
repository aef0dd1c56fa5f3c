/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio/fs/fs_req.h"

#include <errno.h>
#include <linux/fuse.h>

/* FUSE is in the guest's byte order, which is ours. */
static bool read_header(const struct vq_chain *chain,
			struct fuse_in_header *ret)
{
	return vq_chain_read(chain, 0, ret, sizeof(*ret)) == sizeof(*ret);
}

bool fs_req_is_init(const struct vq_chain *chain)
{
	struct fuse_in_header in;

	return read_header(chain, &in) && in.opcode == FUSE_INIT;
}

uint32_t fs_req_fail(struct vq_chain *chain)
{
	struct fuse_out_header out = {
		.len = sizeof(out),
		.error = -ENOTCONN,
	};
	struct fuse_in_header in;

	if (!read_header(chain, &in) || chain->in_bytes < sizeof(out))
		return 0;
	out.unique = in.unique;
	return (uint32_t)vq_chain_write(chain, 0, &out, sizeof(out));
}
