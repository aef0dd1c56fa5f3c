/* SPDX-License-Identifier: Apache-2.0 */
/* Every virtio device type there is: one declaration and one line each. */
#include "virtio/virtio.h"

#include "virtio/blk/blk.h"
#include "virtio/console/console.h"
#include "virtio/fs/fs.h"
#include "virtio/net/net.h"
#include "virtio/rng/rng.h"
#include "virtio/vsock/vsock.h"

/* One line each. */
/* clang-format off */
const struct virtio_class *const virtio_classes[] = {
	&virtio_blk_class,
	&virtio_fs_class,
	&virtio_net_class,
	&virtio_rng_class,
	&virtio_vsock_class,
	&virtio_console_class,
	NULL,
};
/* clang-format on */
