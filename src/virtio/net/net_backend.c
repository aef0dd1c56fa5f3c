/* SPDX-License-Identifier: Apache-2.0 */
/* Every back end of network devices: one declaration and one line each. */
#include "virtio/net/net_backend.h"

const struct net_backend_ops *const net_backends[] = {
	&net_tap_ops,
	&net_stream_ops,
	&net_passt_ops,
	NULL,
};
