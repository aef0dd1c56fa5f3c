/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets of a virtio socket device: what the guest sent, copied once out of
 * its descriptor chain and checked, and the header of what it gets. No device,
 * no sockets, no threads.
 *
 * Framing is up to the driver (virtio 1.2 section 2.7.4): the header is the
 * first 44 bytes of the chain, wherever its descriptors end.
 *
 * Source: virtio 1.2 section 5.10.6.
 */
#ifndef QUIRE_VIRTIO_VSOCK_PACKET_H
#define QUIRE_VIRTIO_VSOCK_PACKET_H

#include "virtio/queue.h"
#include "virtio/vsock/vsock_spec.h"

/* In host byte order. */
struct vsock_packet {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port;
	enum vsock_op op;
	uint32_t flags;
	uint32_t buf_alloc, fwd_cnt; /* of the sender's receive buffer */
	uint32_t len; /* payload: bytes [44, 44 + len) of the chain */
};

enum vsock_verdict {
	VSOCK_TAKE,   /* well-formed, from this guest to the host */
	VSOCK_REFUSE, /* answer with RST, and reset the connection if any */
	VSOCK_DROP,   /* wrong sender, or an RST that makes no sense */
};

/*
 * Read the packet in chain that a guest with CID guest_cid sent. -EINVAL: there
 * is no room for a header, which no driver does. Else an enum vsock_verdict;
 * with VSOCK_REFUSE the addresses in *ret are valid and nothing else.
 */
__must_check int vsock_packet_parse(const struct vq_chain *chain,
				    uint64_t guest_cid,
				    struct vsock_packet *ret);

/*
 * Put the header of packet to the start of the chain's in-part. False: no room.
 */
__must_check bool vsock_packet_write(struct vq_chain *chain,
				     const struct vsock_packet *packet);

/*
 * The iovecs of bytes [skip, skip + len) of num iovecs, into ret (at least num
 * of them). Returns their number; fewer bytes than len where these end.
 */
unsigned int vsock_payload_iov(const struct iovec *iov, unsigned int num,
			       size_t skip, size_t len, struct iovec *ret);

#endif
