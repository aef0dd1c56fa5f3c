/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio/vsock/vsock_packet.h"

#include <errno.h>

#include "base/arith.h"

/* What is wrong with it, as far as that does not depend on a connection? */
static bool is_sound(const struct vsock_packet *p, uint16_t type,
		     uint64_t payload_bytes)
{
	return p->dst_cid == VSOCK_CID_HOST && type == VSOCK_TYPE_STREAM &&
	       p->op > VSOCK_OP_INVALID && p->op <= VSOCK_OP_CREDIT_REQUEST &&
	       p->len <= payload_bytes;
}

int vsock_packet_parse(const struct vq_chain *chain, uint64_t guest_cid,
		       struct vsock_packet *ret)
{
	struct vsock_header h;

	if (vq_chain_read(chain, 0, &h, sizeof(h)) < sizeof(h))
		return -EINVAL;
	*ret = (struct vsock_packet){
		.src_cid = le64toh(h.src_cid),
		.dst_cid = le64toh(h.dst_cid),
		.src_port = le32toh(h.src_port),
		.dst_port = le32toh(h.dst_port),
		.op = le16toh(h.op),
		.flags = le32toh(h.flags),
		.buf_alloc = le32toh(h.buf_alloc),
		.fwd_cnt = le32toh(h.fwd_cnt),
		.len = le32toh(h.len),
	};
	if (ret->src_cid != guest_cid)
		return VSOCK_DROP;
	if (is_sound(ret, le16toh(h.type), chain->out_bytes - sizeof(h)))
		return VSOCK_TAKE;
	/* An RST must not be answered by one: two peers would never stop. */
	return ret->op == VSOCK_OP_RST ? VSOCK_DROP : VSOCK_REFUSE;
}

bool vsock_packet_write(struct vq_chain *chain, const struct vsock_packet *p)
{
	const struct vsock_header h = {
		.src_cid = htole64(p->src_cid),
		.dst_cid = htole64(p->dst_cid),
		.src_port = htole32(p->src_port),
		.dst_port = htole32(p->dst_port),
		.len = htole32(p->len),
		.type = htole16(VSOCK_TYPE_STREAM),
		.op = htole16((uint16_t)p->op),
		.flags = htole32(p->flags),
		.buf_alloc = htole32(p->buf_alloc),
		.fwd_cnt = htole32(p->fwd_cnt),
	};

	return vq_chain_write(chain, 0, &h, sizeof(h)) == sizeof(h);
}

unsigned int vsock_payload_iov(const struct iovec *iov, unsigned int num,
			       size_t skip, size_t len, struct iovec *ret)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < num && len; i++) {
		size_t part;

		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		part = MIN(iov[i].iov_len - skip, len);
		ret[n].iov_base = (char *)iov[i].iov_base + skip;
		ret[n].iov_len = part;
		n++;
		len -= part;
		skip = 0;
	}
	return n;
}
