/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A back end's replies to every request, any bytes in them.
 *
 * Input: the request, its queue, whether it is an ack; then a header, then a
 * payload.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "virtio/vhost_user/vhost_user_msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vhost_user_header header = { 0 };
	uint8_t payload[VHOST_USER_REPLY_BYTES];
	const char *why = NULL;
	struct vhost_user_ask ask;
	uint64_t value = 0;
	int r;

	if (size < 3 + sizeof(header) + sizeof(payload))
		return 0;
	ask = (struct vhost_user_ask){
		.request = data[0],
		.index = data[1],
		.ack = data[2] & 1,
	};
	memcpy(&header, data + 3, sizeof(header));
	memcpy(payload, data + 3 + sizeof(header), sizeof(payload));
	BUG_ON(!vhost_user_request_name(header.request));
	r = vhost_user_check_header(&ask, &header, &why);
	BUG_ON(r && (r != -EPROTO || !why));
	if (!r) {
		BUG_ON(header.request != ask.request);
		BUG_ON(header.size != sizeof(payload));
	}
	r = vhost_user_check_payload(&ask, payload, &value, &why);
	BUG_ON(r && !why);
	BUG_ON(r && r != -EPROTO && r != -EREMOTEIO);
	if (r)
		return 0;
	BUG_ON(ask.ack && value);
	if (!ask.ack && ask.request == VHOST_USER_GET_VRING_BASE)
		BUG_ON(value > UINT16_MAX);
	if (!ask.ack && ask.request == VHOST_USER_GET_QUEUE_NUM)
		BUG_ON(!value || value > 0x8000);
	return 0;
}
