/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio/vhost_user/vhost_user_msg.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"

#define KNOWN_FLAGS \
	(VHOST_USER_VERSION_MASK | VHOST_USER_REPLY | VHOST_USER_NEED_REPLY)
/* More queues than any device has; a larger number is no number of queues. */
#define MAX_QUEUE_NUM 0x8000u
#define MAX_INDEX     0xffffu

const char *vhost_user_request_name(uint32_t request)
{
	static const char *const names[] = {
		[VHOST_USER_GET_FEATURES] = "GET_FEATURES",
		[VHOST_USER_SET_FEATURES] = "SET_FEATURES",
		[VHOST_USER_SET_OWNER] = "SET_OWNER",
		[VHOST_USER_SET_MEM_TABLE] = "SET_MEM_TABLE",
		[VHOST_USER_SET_VRING_NUM] = "SET_VRING_NUM",
		[VHOST_USER_SET_VRING_ADDR] = "SET_VRING_ADDR",
		[VHOST_USER_SET_VRING_BASE] = "SET_VRING_BASE",
		[VHOST_USER_GET_VRING_BASE] = "GET_VRING_BASE",
		[VHOST_USER_SET_VRING_KICK] = "SET_VRING_KICK",
		[VHOST_USER_SET_VRING_CALL] = "SET_VRING_CALL",
		[VHOST_USER_SET_VRING_ERR] = "SET_VRING_ERR",
		[VHOST_USER_GET_PROTOCOL_FEATURES] = "GET_PROTOCOL_FEATURES",
		[VHOST_USER_SET_PROTOCOL_FEATURES] = "SET_PROTOCOL_FEATURES",
		[VHOST_USER_GET_QUEUE_NUM] = "GET_QUEUE_NUM",
		[VHOST_USER_SET_VRING_ENABLE] = "SET_VRING_ENABLE",
		[VHOST_USER_RESET_DEVICE] = "RESET_DEVICE",
	};

	return request < ARRAY_SIZE(names) && names[request] ? names[request]
							     : "unknown";
}

static int bad(const char **ret_why, const char *why)
{
	*ret_why = why;
	return -EPROTO;
}

int vhost_user_check_header(const struct vhost_user_ask *ask,
			    const struct vhost_user_header *header,
			    const char **ret_why)
{
	if ((header->flags & VHOST_USER_VERSION_MASK) != VHOST_USER_VERSION)
		return bad(ret_why, "another version of the protocol");
	if (!(header->flags & VHOST_USER_REPLY))
		return bad(ret_why, "a message that is no reply");
	if (header->flags & ~KNOWN_FLAGS)
		return bad(ret_why, "unknown flags");
	if (header->request != ask->request)
		return bad(ret_why, "a reply to something else");
	if (header->size != VHOST_USER_REPLY_BYTES)
		return bad(ret_why, "a reply of the wrong size");
	return 0;
}

static int check_vring_base(const struct vhost_user_ask *ask,
			    const uint8_t *payload, uint64_t *ret_value,
			    const char **ret_why)
{
	struct vhost_user_vring_state state;

	memcpy(&state, payload, sizeof(state));
	if (state.index != ask->index)
		return bad(ret_why, "the state of another queue");
	if (state.num > MAX_INDEX)
		return bad(ret_why, "a ring index of more than 16 bits");
	*ret_value = state.num;
	return 0;
}

int vhost_user_check_payload(const struct vhost_user_ask *ask,
			     const uint8_t payload[VHOST_USER_REPLY_BYTES],
			     uint64_t *ret_value, const char **ret_why)
{
	uint64_t value;

	if (!ask->ack && ask->request == VHOST_USER_GET_VRING_BASE)
		return check_vring_base(ask, payload, ret_value, ret_why);
	memcpy(&value, payload, sizeof(value));
	if (ask->ack && value) {
		*ret_why = "it was refused";
		return -EREMOTEIO;
	}
	if (!ask->ack && ask->request == VHOST_USER_GET_QUEUE_NUM &&
	    (!value || value > MAX_QUEUE_NUM))
		return bad(ret_why, "an impossible number of queues");
	*ret_value = value;
	return 0;
}
