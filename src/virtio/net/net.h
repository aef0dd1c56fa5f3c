/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-net (virtio 1.2 section 5.1): a network interface, connected to a tap
 * interface of the host, to passt, or to a Unix stream socket.
 *
 * Threads: see virtio/virtio.h. Each receive and transmit queue has a thread,
 * and so has the control queue.
 */
#ifndef QUIRE_VIRTIO_NET_H
#define QUIRE_VIRTIO_NET_H

#include "virtio/virtio.h"

extern const struct virtio_class virtio_net_class;

#endif
