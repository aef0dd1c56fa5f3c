/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What virtio 1.2 section 5.1 defines for network devices: feature bits, the
 * configuration space, the header of each frame and control commands. All
 * fields are little-endian.
 */
#ifndef QUIRE_VIRTIO_NET_SPEC_H
#define QUIRE_VIRTIO_NET_SPEC_H

#include <stdint.h>

#define NET_DEVICE_ID 1

/* 5.1.3 */
#define NET_F_CSUM		  (1ull << 0)
#define NET_F_GUEST_CSUM	  (1ull << 1)
#define NET_F_CTRL_GUEST_OFFLOADS (1ull << 2)
#define NET_F_MTU		  (1ull << 3)
#define NET_F_MAC		  (1ull << 5)
#define NET_F_GUEST_TSO4	  (1ull << 7)
#define NET_F_GUEST_TSO6	  (1ull << 8)
#define NET_F_GUEST_ECN		  (1ull << 9)
#define NET_F_GUEST_UFO		  (1ull << 10)
#define NET_F_HOST_TSO4		  (1ull << 11)
#define NET_F_HOST_TSO6		  (1ull << 12)
#define NET_F_HOST_ECN		  (1ull << 13)
#define NET_F_HOST_UFO		  (1ull << 14)
#define NET_F_MRG_RXBUF		  (1ull << 15)
#define NET_F_STATUS		  (1ull << 16)
#define NET_F_CTRL_VQ		  (1ull << 17)
#define NET_F_CTRL_RX		  (1ull << 18)
#define NET_F_MQ		  (1ull << 22)
#define NET_F_CTRL_MAC_ADDR	  (1ull << 23)

#define NET_GUEST_OFFLOADS                                        \
	(NET_F_GUEST_CSUM | NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | \
	 NET_F_GUEST_ECN | NET_F_GUEST_UFO)

#define NET_MAC_BYTES 6

/* 5.1.4; later fields belong to features that are not offered. */
struct net_config_space {
	uint8_t mac[NET_MAC_BYTES];
	uint16_t status;
	uint16_t max_virtqueue_pairs;
	uint16_t mtu;
};
_Static_assert(sizeof(struct net_config_space) == 12, "5.1.4");

#define NET_S_LINK_UP 1

/* 5.1.6, in front of every frame. */
struct net_hdr {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t hdr_len;
	uint16_t gso_size;
	uint16_t csum_start;
	uint16_t csum_offset;
	uint16_t num_buffers;
};
_Static_assert(sizeof(struct net_hdr) == 12, "5.1.6");

#define NET_HDR_BYTES	    12u
#define NET_HDR_NUM_BUFFERS 10u /* offset of num_buffers */

#define NET_HDR_F_NEEDS_CSUM 1
#define NET_HDR_F_DATA_VALID 2

#define NET_GSO_NONE  0
#define NET_GSO_TCPV4 1
#define NET_GSO_UDP   3
#define NET_GSO_TCPV6 4
#define NET_GSO_ECN   0x80 /* a bit beside the others */

/* 5.1.6.5: class, command, then the command's data; one byte of answer. */
#define NET_CTRL_RX		0
#define NET_CTRL_RX_COMMANDS	6 /* 0 to 5, each with one byte of data */
#define NET_CTRL_MAC		1
#define NET_CTRL_MAC_TABLE_SET	0
#define NET_CTRL_MAC_ADDR_SET	1
#define NET_CTRL_MQ		4
#define NET_CTRL_MQ_PAIRS_SET	0
#define NET_CTRL_GUEST_OFFLOADS 5
#define NET_CTRL_OFFLOADS_SET	0

#define NET_CTRL_OK  0
#define NET_CTRL_ERR 1

#endif
