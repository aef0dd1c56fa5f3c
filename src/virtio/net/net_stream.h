/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames over a Unix stream socket, as QEMU's stream netdev and passt speak:
 * each has its length before it, 32 bits, big-endian.
 *
 * A lost connection is link-down for the guest. With a path it is made anew,
 * after a pause that doubles from 100 ms to 5 s; without one (a socket pair) it
 * stays down. Frames sent meanwhile are lost, as on any cable. A peer whose
 * lengths make no sense cannot be followed any more: the connection is ended.
 */
#ifndef QUIRE_VIRTIO_NET_STREAM_H
#define QUIRE_VIRTIO_NET_STREAM_H

#include "virtio/net/net_backend.h"

#define NET_STREAM_RETRY_MIN_MS 100
#define NET_STREAM_RETRY_MAX_MS 5000

/*
 * Takes fd, a connected stream socket, also on failure. path: where to connect
 * to when it is lost, or NULL; copied. ended, unless NULL, is called once the
 * connection is lost for good (a thread in recv), closed by close.
 */
struct net_stream_hooks {
	void (*ended)(void *ctx);
	void (*closed)(void *ctx); /* the socket is closed; ctx is not used
				      afterwards */
	void *ctx;
};

__must_check int net_stream_new(struct net_backend **ret, int fd,
				const char *path,
				const struct net_stream_hooks *hooks,
				struct err *err);

#endif
