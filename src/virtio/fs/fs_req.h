/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FUSE requests as far as quire itself answers them, which is with an error:
 * when virtiofsd has gone, nobody else does. Any thread; no I/O.
 *
 * Source: linux/fuse.h; virtio 1.2 section 5.11.6.
 */
#ifndef QUIRE_VIRTIO_FS_REQ_H
#define QUIRE_VIRTIO_FS_REQ_H

#include <stdbool.h>

#include "virtio/queue.h"

/* Is this the request that begins a session (a mount)? */
bool fs_req_is_init(const struct vq_chain *chain);

/*
 * Write the reply "not connected" into the chain; how many bytes, for
 * vq_push(). 0 for a request that has no reply, or that is none.
 */
uint32_t fs_req_fail(struct vq_chain *chain);

#endif
