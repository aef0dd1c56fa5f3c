/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-net: any chain on a transmit or control queue, with any features.
 *
 * Input: a 12-byte head (features, number of readable and writable descriptors,
 * maximum of pairs, unused), two bytes of length for each descriptor, then the
 * readable bytes. Each descriptor gets its own heap block, so that a byte too
 * many is seen by AddressSanitizer.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/compiler.h"
#include "virtio/net/net_req.h"

#define HEAD_BYTES 12
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
	memset(chain, 0, sizeof(*chain));
	chain->num_out = num_out;
	chain->num_in = num_in;
	for (unsigned int i = 0; i < num_out + num_in; i++) {
		uint16_t len;

		take(in, &len, sizeof(len));
		len = MAX(len, 1);
		chain->iov[i].iov_len = len;
		chain->iov[i].iov_base = malloc(len);
		BUG_ON(!chain->iov[i].iov_base);
		if (i < num_out) {
			chain->out_bytes += len;
			continue;
		}
		chain->in_gpa[i - num_out] = GPA(IN_GPA + chain->in_bytes);
		chain->in_bytes += len;
		memset(chain->iov[i].iov_base, 0, len);
	}
	for (unsigned int i = 0; i < num_out; i++)
		take(in, chain->iov[i].iov_base, chain->iov[i].iov_len);
}

static void check_header(const struct net_hdr *h, uint32_t bytes,
			 uint64_t features)
{
	uint8_t type = h->gso_type & 0x7f;

	BUG_ON(h->num_buffers || (h->flags & ~NET_HDR_F_NEEDS_CSUM));
	BUG_ON(le16toh(h->hdr_len) > bytes);
	if (h->flags) {
		BUG_ON(!(features & NET_F_CSUM));
		BUG_ON(le16toh(h->csum_start) + le16toh(h->csum_offset) + 2u >
		       bytes);
	}
	if (!h->gso_type) {
		BUG_ON(h->gso_size);
		return;
	}
	BUG_ON(!h->flags || !h->gso_size);
	BUG_ON(type != NET_GSO_TCPV4 && type != NET_GSO_TCPV6 &&
	       type != NET_GSO_UDP);
	BUG_ON(type == NET_GSO_TCPV4 && !(features & NET_F_HOST_TSO4));
	BUG_ON(type == NET_GSO_TCPV6 && !(features & NET_F_HOST_TSO6));
	BUG_ON(type == NET_GSO_UDP && !(features & NET_F_HOST_UFO));
	BUG_ON((h->gso_type & NET_GSO_ECN) && !(features & NET_F_HOST_ECN));
}

/* The iovecs are the chain's bytes behind the header, each once. */
static void check_frame(const struct vq_chain *chain,
			const struct net_tx_frame *frame, uint64_t features)
{
	uint64_t at = NET_HDR_BYTES;

	BUG_ON(frame->bytes != chain->out_bytes - NET_HDR_BYTES);
	BUG_ON(frame->bytes < NET_ETH_BYTES || frame->bytes > NET_MAX_FRAME);
	BUG_ON(frame->iov[0].iov_base != &frame->hdr ||
	       frame->iov[0].iov_len != NET_HDR_BYTES);
	check_header(&frame->hdr, frame->bytes, features);
	for (unsigned int i = 1; i < frame->num_iov; i++) {
		const char *p = frame->iov[i].iov_base;

		BUG_ON(!frame->iov[i].iov_len);
		for (size_t j = 0; j < frame->iov[i].iov_len; j++, at++) {
			char c;

			BUG_ON(vq_chain_read(chain, at, &c, 1) != 1);
			BUG_ON(c != p[j]);
		}
	}
	BUG_ON(at != chain->out_bytes);
}

static void check_ctrl(const struct vq_chain *chain,
		       const struct net_ctrl *ctrl, uint64_t features,
		       unsigned int max_pairs)
{
	BUG_ON(ctrl->ack != chain->iov[chain->num_out].iov_base);
	BUG_ON(ctrl->ack_gpa.v != IN_GPA);
	*ctrl->ack = NET_CTRL_OK;
	switch (ctrl->kind) {
	case NET_CTRL_REFUSE:
	case NET_CTRL_ACCEPT:
		break;
	case NET_CTRL_SET_PAIRS:
		BUG_ON(!(features & NET_F_MQ));
		BUG_ON(!ctrl->pairs || ctrl->pairs > max_pairs);
		break;
	case NET_CTRL_SET_MAC:
		BUG_ON(!(features & NET_F_CTRL_MAC_ADDR));
		BUG_ON(ctrl->mac[0] & 1);
		break;
	case NET_CTRL_SET_OFFLOADS:
		BUG_ON(!(features & NET_F_CTRL_GUEST_OFFLOADS));
		BUG_ON(ctrl->offloads & ~(features & NET_GUEST_OFFLOADS));
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct vq_chain chain;
	static struct net_tx_frame frame;
	struct input in = { data, size };
	uint8_t head[HEAD_BYTES];
	struct net_ctrl ctrl;
	unsigned int max_pairs;
	uint64_t features;
	int r;

	take(&in, head, sizeof(head));
	features = net_features_effective(le64_load(head));
	BUG_ON(net_features_effective(features) != features);
	max_pairs = 1 + head[10] % 31;
	build(&in, head[8] % MAX_DESCS, head[9] % MAX_DESCS, &chain);
	r = net_tx_parse(&chain, features, &frame);
	BUG_ON((r == -EINVAL) != (chain.out_bytes < NET_HDR_BYTES));
	if (!r) {
		check_frame(&chain, &frame, features);
		net_rx_acceptable(&frame.hdr, features);
	}
	r = net_ctrl_parse(&chain, features, max_pairs, &ctrl);
	BUG_ON((r < 0) != (!chain.num_in || chain.out_bytes < 2));
	if (!r)
		check_ctrl(&chain, &ctrl, features, max_pairs);
	for (unsigned int i = 0; i < chain.num_out + chain.num_in; i++)
		free(chain.iov[i].iov_base);
	return 0;
}
