/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What virtio 1.2 section 5.10 defines for socket devices: queues, feature
 * bits, addresses and the packet header. All fields are little-endian.
 */
#ifndef QUIRE_VIRTIO_VSOCK_SPEC_H
#define QUIRE_VIRTIO_VSOCK_SPEC_H

#include <stdint.h>

#include "base/compiler.h"

#define VSOCK_DEVICE_ID 19

/* 5.10.2 */
enum {
	VSOCK_QUEUE_RX = 0,
	VSOCK_QUEUE_TX = 1,
	VSOCK_QUEUE_EVENT = 2,
	VSOCK_NUM_QUEUES = 3,
};

/* 5.10.3 */
#define VSOCK_F_STREAM (1ull << 0)

/* 5.10.4: of CIDs, the upper half is reserved and these have a meaning. */
#define VSOCK_CID_HOST 2u
#define VSOCK_CID_MIN  3u
#define VSOCK_CID_MAX  0xfffffffeu

struct vsock_config_space {
	uint64_t guest_cid;
};
_Static_assert(sizeof(struct vsock_config_space) == 8, "5.10.4");

/* 5.10.6 */
struct vsock_header {
	uint64_t src_cid;
	uint64_t dst_cid;
	uint32_t src_port;
	uint32_t dst_port;
	uint32_t len;
	uint16_t type;
	uint16_t op;
	uint32_t flags;
	uint32_t buf_alloc;
	uint32_t fwd_cnt;
} __packed_struct;
_Static_assert(sizeof(struct vsock_header) == 44, "5.10.6");

#define VSOCK_TYPE_STREAM 1

enum vsock_op {
	VSOCK_OP_INVALID = 0,
	VSOCK_OP_REQUEST = 1,
	VSOCK_OP_RESPONSE = 2,
	VSOCK_OP_RST = 3,
	VSOCK_OP_SHUTDOWN = 4,
	VSOCK_OP_RW = 5,
	VSOCK_OP_CREDIT_UPDATE = 6,
	VSOCK_OP_CREDIT_REQUEST = 7,
};

/* Flags of VSOCK_OP_SHUTDOWN: the sender will no more ... */
#define VSOCK_SHUTDOWN_RCV  1u
#define VSOCK_SHUTDOWN_SEND 2u
#define VSOCK_SHUTDOWN_BOTH 3u

/* 5.10.6.7 */
struct vsock_event {
	uint32_t id;
};
_Static_assert(sizeof(struct vsock_event) == 4, "5.10.6.7");

#define VSOCK_EVENT_TRANSPORT_RESET 0u

#endif
