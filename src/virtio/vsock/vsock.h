/* SPDX-License-Identifier: Apache-2.0 */
/* virtio-vsock: sockets between guest and host. See vsock.c. */
#ifndef QUIRE_VIRTIO_VSOCK_H
#define QUIRE_VIRTIO_VSOCK_H

#include "virtio/virtio.h"

extern const struct virtio_class virtio_vsock_class;

#endif
