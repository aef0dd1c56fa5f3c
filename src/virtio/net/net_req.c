/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio/net/net_req.h"

#include <errno.h>

#include "base/arith.h"

#define CTRL_HEAD_BYTES 2u /* class, command */

/* ---- frames ---- */

/* The part of the chain behind the header; returns the number of iovecs. */
static unsigned int fill_iov(const struct vq_chain *chain, struct iovec *iov)
{
	size_t skip = NET_HDR_BYTES;
	unsigned int num = 0;

	for (unsigned int i = 0; i < chain->num_out; i++) {
		size_t len = chain->iov[i].iov_len;
		size_t drop = MIN(skip, len);

		skip -= drop;
		if (drop == len)
			continue;
		iov[num].iov_base = (char *)chain->iov[i].iov_base + drop;
		iov[num++].iov_len = len - drop;
	}
	return num;
}

/* The feature that a segmentation type needs; 0: no such type. */
static uint64_t gso_feature(uint8_t type)
{
	switch (type) {
	case NET_GSO_TCPV4:
		return NET_F_HOST_TSO4;
	case NET_GSO_TCPV6:
		return NET_F_HOST_TSO6;
	case NET_GSO_UDP:
		return NET_F_HOST_UFO;
	default:
		return 0;
	}
}

static bool gso_ok(const struct net_hdr *hdr, uint64_t features)
{
	uint8_t type = hdr->gso_type & (uint8_t)~NET_GSO_ECN;

	if ((hdr->gso_type & NET_GSO_ECN) && !(features & NET_F_HOST_ECN))
		return false;
	return (gso_feature(type) & features) && le16toh(hdr->gso_size) &&
	       (hdr->flags & NET_HDR_F_NEEDS_CSUM);
}

/* Check the copy and clear what has no meaning. */
static bool hdr_sanitize(struct net_hdr *hdr, uint32_t bytes, uint64_t features)
{
	uint32_t csum_end = (uint32_t)le16toh(hdr->csum_start) +
			    le16toh(hdr->csum_offset) + 2u;

	/* Unknown flags are to be ignored, and num_buffers. */
	hdr->flags &= NET_HDR_F_NEEDS_CSUM;
	hdr->num_buffers = 0;
	if (!hdr->flags) {
		hdr->csum_start = 0;
		hdr->csum_offset = 0;
	} else if (!(features & NET_F_CSUM) || csum_end > bytes) {
		return false;
	}
	if (hdr->gso_type == NET_GSO_NONE) {
		hdr->gso_size = 0;
		hdr->hdr_len = 0;
		return true;
	}
	/* A hint that need not be right; the kernel wants it inside. */
	if (le16toh(hdr->hdr_len) > bytes)
		hdr->hdr_len = htole16((uint16_t)bytes);
	return gso_ok(hdr, features);
}

int net_tx_parse(const struct vq_chain *chain, uint64_t features,
		 struct net_tx_frame *ret)
{
	if (vq_chain_read(chain, 0, &ret->hdr, NET_HDR_BYTES) != NET_HDR_BYTES)
		return -EINVAL;
	if (chain->out_bytes < NET_HDR_BYTES + NET_ETH_BYTES ||
	    chain->out_bytes > NET_HDR_BYTES + NET_MAX_FRAME)
		return -EBADMSG;
	ret->bytes = (uint32_t)(chain->out_bytes - NET_HDR_BYTES);
	if (!hdr_sanitize(&ret->hdr, ret->bytes, features))
		return -EBADMSG;
	ret->iov[0].iov_base = &ret->hdr;
	ret->iov[0].iov_len = NET_HDR_BYTES;
	ret->num_iov = 1 + fill_iov(chain, &ret->iov[1]);
	return 0;
}

bool net_rx_acceptable(const struct net_hdr *hdr, uint64_t features)
{
	uint64_t needed = 0;

	if (hdr->flags & NET_HDR_F_NEEDS_CSUM)
		needed |= NET_F_GUEST_CSUM;
	switch (hdr->gso_type & (uint8_t)~NET_GSO_ECN) {
	case NET_GSO_NONE:
		break;
	case NET_GSO_TCPV4:
		needed |= NET_F_GUEST_TSO4;
		break;
	case NET_GSO_TCPV6:
		needed |= NET_F_GUEST_TSO6;
		break;
	case NET_GSO_UDP:
		needed |= NET_F_GUEST_UFO;
		break;
	default:
		return false;
	}
	if (hdr->gso_type & NET_GSO_ECN)
		needed |= NET_F_GUEST_ECN;
	return (features & needed) == needed;
}

uint64_t net_features_effective(uint64_t f)
{
	if (!(f & NET_F_CSUM))
		f &= ~(NET_F_HOST_TSO4 | NET_F_HOST_TSO6 | NET_F_HOST_UFO);
	if (!(f & (NET_F_HOST_TSO4 | NET_F_HOST_TSO6)))
		f &= ~NET_F_HOST_ECN;
	if (!(f & NET_F_GUEST_CSUM))
		f &= ~(NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_GUEST_UFO);
	if (!(f & (NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6)))
		f &= ~NET_F_GUEST_ECN;
	if (!(f & NET_F_CTRL_VQ))
		f &= ~(NET_F_CTRL_RX | NET_F_MQ | NET_F_CTRL_MAC_ADDR |
		       NET_F_CTRL_GUEST_OFFLOADS);
	return f;
}

/* ---- control commands ---- */

/* Two lists of addresses, each after a 32-bit count, and nothing else. */
static bool mac_table_ok(const struct vq_chain *chain)
{
	uint64_t at = CTRL_HEAD_BYTES;

	for (unsigned int i = 0; i < 2; i++) {
		uint8_t count[4];

		if (vq_chain_read(chain, at, count, sizeof(count)) !=
		    sizeof(count))
			return false;
		at += sizeof(count) +
		      (uint64_t)le32_load(count) * NET_MAC_BYTES;
		if (at > chain->out_bytes)
			return false;
	}
	return true;
}

/* The command's data, which has to be of this length; false: it is not. */
static bool read_data(const struct vq_chain *chain, void *data, size_t len)
{
	return chain->out_bytes == CTRL_HEAD_BYTES + len &&
	       vq_chain_read(chain, CTRL_HEAD_BYTES, data, len) == len;
}

static enum net_ctrl_kind parse_mac(const struct vq_chain *chain,
				    uint8_t command, uint64_t features,
				    struct net_ctrl *ret)
{
	static const uint8_t zero[NET_MAC_BYTES];

	if (command == NET_CTRL_MAC_TABLE_SET)
		return (features & NET_F_CTRL_RX) && mac_table_ok(chain)
			       ? NET_CTRL_ACCEPT
			       : NET_CTRL_REFUSE;
	if (command != NET_CTRL_MAC_ADDR_SET ||
	    !(features & NET_F_CTRL_MAC_ADDR) ||
	    !read_data(chain, ret->mac, NET_MAC_BYTES) || (ret->mac[0] & 1) ||
	    !memcmp(ret->mac, zero, NET_MAC_BYTES))
		return NET_CTRL_REFUSE;
	return NET_CTRL_SET_MAC;
}

static enum net_ctrl_kind parse_pairs(const struct vq_chain *chain,
				      uint8_t command, uint64_t features,
				      unsigned int max_pairs,
				      struct net_ctrl *ret)
{
	uint8_t data[2];

	if (command != NET_CTRL_MQ_PAIRS_SET || !(features & NET_F_MQ) ||
	    !read_data(chain, data, sizeof(data)))
		return NET_CTRL_REFUSE;
	ret->pairs = le16_load(data);
	return ret->pairs >= 1 && ret->pairs <= max_pairs ? NET_CTRL_SET_PAIRS
							  : NET_CTRL_REFUSE;
}

static enum net_ctrl_kind parse_offloads(const struct vq_chain *chain,
					 uint8_t command, uint64_t features,
					 struct net_ctrl *ret)
{
	uint8_t data[8];

	if (command != NET_CTRL_OFFLOADS_SET ||
	    !(features & NET_F_CTRL_GUEST_OFFLOADS) ||
	    !read_data(chain, data, sizeof(data)))
		return NET_CTRL_REFUSE;
	ret->offloads = le64_load(data);
	if (ret->offloads & ~(features & NET_GUEST_OFFLOADS))
		return NET_CTRL_REFUSE;
	return NET_CTRL_SET_OFFLOADS;
}

int net_ctrl_parse(const struct vq_chain *chain, uint64_t features,
		   unsigned int max_pairs, struct net_ctrl *ret)
{
	uint8_t head[CTRL_HEAD_BYTES], on;

	if (!chain->num_in ||
	    vq_chain_read(chain, 0, head, sizeof(head)) != sizeof(head))
		return -EINVAL;
	ret->ack = chain->iov[chain->num_out].iov_base;
	ret->ack_gpa = chain->in_gpa[0];
	ret->kind = NET_CTRL_REFUSE;
	switch (head[0]) {
	case NET_CTRL_RX:
		if ((features & NET_F_CTRL_RX) &&
		    head[1] < NET_CTRL_RX_COMMANDS && read_data(chain, &on, 1))
			ret->kind = NET_CTRL_ACCEPT;
		break;
	case NET_CTRL_MAC:
		ret->kind = parse_mac(chain, head[1], features, ret);
		break;
	case NET_CTRL_MQ:
		ret->kind = parse_pairs(chain, head[1], features, max_pairs,
					ret);
		break;
	case NET_CTRL_GUEST_OFFLOADS:
		ret->kind = parse_offloads(chain, head[1], features, ret);
		break;
	default:
		break;
	}
	return 0;
}
