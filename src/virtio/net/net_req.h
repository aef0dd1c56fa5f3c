/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a driver says in its chains: the header of a frame to send, and control
 * commands, read out and checked.
 *
 * No device, no files, no threads: chain and negotiated features come in, plain
 * values come out, so that the parser of guest bytes can be tested and fuzzed
 * alone. Guest bytes are copied once; what is handed on to the host's kernel is
 * the checked copy.
 *
 * Source: virtio 1.2 sections 5.1.6.2 and 5.1.6.5.
 */
#ifndef QUIRE_VIRTIO_NET_REQ_H
#define QUIRE_VIRTIO_NET_REQ_H

#include "virtio/net/net_spec.h"
#include "virtio/queue.h"

#define NET_ETH_BYTES 14u
/* A frame without its virtio header: 64 KiB of IP, Ethernet and VLAN tags. */
#define NET_MAX_FRAME (65536u + 64u)

/* Room for the header and what a chain has. */
#define NET_TX_IOV (VQ_MAX_IOV + 1u)

/* The frame to send: iov[0] is hdr, the rest is in guest memory. */
struct net_tx_frame {
	struct net_hdr hdr;
	uint32_t bytes; /* without the header */
	unsigned int num_iov;
	struct iovec iov[NET_TX_IOV];
};

/*
 * 0: *ret is to be sent. -EBADMSG: a frame that nobody can send (too short, too
 * long, a header that asks for what was not negotiated); to be dropped.
 * -EINVAL: no frame at all, the driver broke the rules.
 */
__must_check int net_tx_parse(const struct vq_chain *chain, uint64_t features,
			      struct net_tx_frame *ret);

/* May a frame with this header be given to a driver with these features? */
bool net_rx_acceptable(const struct net_hdr *hdr, uint64_t features);

/*
 * The features that take effect: one that lacks another it needs is left out
 * (5.1.3.1).
 */
uint64_t net_features_effective(uint64_t features);

enum net_ctrl_kind {
	NET_CTRL_REFUSE, /* unknown, malformed, or not negotiated */
	NET_CTRL_ACCEPT, /* a filter: everything is let through anyway */
	NET_CTRL_SET_PAIRS,
	NET_CTRL_SET_MAC,
	NET_CTRL_SET_OFFLOADS,
};

struct net_ctrl {
	enum net_ctrl_kind kind;
	uint16_t pairs;		    /* from 1 to max_pairs */
	uint8_t mac[NET_MAC_BYTES]; /* unicast, not zero */
	uint64_t offloads;	    /* a subset of the negotiated ones */
	/* Where the answer goes. */
	uint8_t *ack;
	struct gpa ack_gpa;
};

/* 0, or -EINVAL: no room for command or answer, the driver broke the rules. */
__must_check int net_ctrl_parse(const struct vq_chain *chain, uint64_t features,
				unsigned int max_pairs, struct net_ctrl *ret);

#endif
