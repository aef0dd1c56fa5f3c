/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages of the vhost-user protocol as bytes: their layout, and the one place
 * where a back end's reply is checked. No I/O here, so that it can be fuzzed.
 *
 * A message is a header and a payload of the size that the header tells, both
 * in the host's byte order; descriptors travel beside them (SCM_RIGHTS).
 *
 * Source: docs/interop/vhost-user.rst of QEMU, "vhost-user Protocol".
 */
#ifndef QUIRE_VIRTIO_VHOST_USER_MSG_H
#define QUIRE_VIRTIO_VHOST_USER_MSG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

enum vhost_user_request {
	VHOST_USER_GET_FEATURES = 1,
	VHOST_USER_SET_FEATURES = 2,
	VHOST_USER_SET_OWNER = 3,
	VHOST_USER_SET_MEM_TABLE = 5,
	VHOST_USER_SET_VRING_NUM = 8,
	VHOST_USER_SET_VRING_ADDR = 9,
	VHOST_USER_SET_VRING_BASE = 10,
	VHOST_USER_GET_VRING_BASE = 11,
	VHOST_USER_SET_VRING_KICK = 12,
	VHOST_USER_SET_VRING_CALL = 13,
	VHOST_USER_SET_VRING_ERR = 14,
	VHOST_USER_GET_PROTOCOL_FEATURES = 15,
	VHOST_USER_SET_PROTOCOL_FEATURES = 16,
	VHOST_USER_GET_QUEUE_NUM = 17,
	VHOST_USER_SET_VRING_ENABLE = 18,
	VHOST_USER_RESET_DEVICE = 34,
};

/* Among the virtio feature bits: GET_PROTOCOL_FEATURES and rings that wait. */
#define VHOST_USER_F_PROTOCOL_FEATURES (1ull << 30)

/* Protocol feature bits. */
#define VHOST_USER_PROTOCOL_F_MQ	   (1ull << 0)
#define VHOST_USER_PROTOCOL_F_REPLY_ACK	   (1ull << 3)
#define VHOST_USER_PROTOCOL_F_RESET_DEVICE (1ull << 13)

/* Header flags: the protocol's version, and two bits. */
#define VHOST_USER_VERSION	0x1u
#define VHOST_USER_VERSION_MASK 0x3u
#define VHOST_USER_REPLY	0x4u
#define VHOST_USER_NEED_REPLY	0x8u
#define VHOST_USER_HEADER_BYTES 12u
#define VHOST_USER_REPLY_BYTES	8u /* payload of every reply we ask for */
#define VHOST_USER_MAX_REGIONS	8u
#define VHOST_USER_MAX_FDS	VHOST_USER_MAX_REGIONS
/* With a queue's index in SET_VRING_KICK, CALL, ERR: no descriptor comes. */
#define VHOST_USER_VRING_NOFD (1ull << 8)

struct vhost_user_header {
	uint32_t request;
	uint32_t flags;
	uint32_t size; /* of the payload */
};

struct vhost_user_vring_state {
	uint32_t index;
	uint32_t num;
};

struct vhost_user_vring_addr {
	uint32_t index;
	uint32_t flags;
	uint64_t desc, used, avail; /* in the front end's addresses */
	uint64_t log;
};

struct vhost_user_region {
	uint64_t gpa;
	uint64_t size;
	uint64_t user_addr; /* what the front end's addresses refer to */
	uint64_t mmap_offset;
};

struct vhost_user_memory {
	uint32_t num_regions;
	uint32_t padding;
	struct vhost_user_region regions[VHOST_USER_MAX_REGIONS];
};

/* What was asked, to hold the reply against. */
struct vhost_user_ask {
	uint32_t request;
	uint32_t index; /* GET_VRING_BASE: the queue */
	bool ack;	/* the reply says only whether it was done */
};

/* A request's name for messages: "SET_MEM_TABLE". */
const char *vhost_user_request_name(uint32_t request);

/*
 * Is this header that of a reply to ask? 0, or -EPROTO and *ret_why. Then
 * VHOST_USER_REPLY_BYTES of payload follow.
 */
__must_check int vhost_user_check_header(const struct vhost_user_ask *ask,
					 const struct vhost_user_header *header,
					 const char **ret_why);

/*
 * The payload's value: features, number of queues, index of a ring; 0 for an
 * ack. -EPROTO: nonsense; -EREMOTEIO: the back end could not do it. Both set
 * *ret_why.
 */
__must_check int
vhost_user_check_payload(const struct vhost_user_ask *ask,
			 const uint8_t payload[VHOST_USER_REPLY_BYTES],
			 uint64_t *ret_value, const char **ret_why);

#endif
