/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to vhost_user: one message out, one reply in, both before a deadline
 * (CLOCK_MONOTONIC, ns). The socket may block or not; these do not, but for the
 * deadline.
 */
#ifndef QUIRE_VIRTIO_VHOST_USER_IO_H
#define QUIRE_VIRTIO_VHOST_USER_IO_H

#include "virtio/vhost_user/vhost_user_msg.h"

/* 0, -ETIMEDOUT, -EPIPE and the like. fds are passed on, not closed. */
__must_check int vhost_user_send(int fd, uint64_t deadline_ns, uint32_t request,
				 uint32_t flags, const void *payload,
				 uint32_t len, const int *fds,
				 unsigned int num_fds);

/*
 * The reply to ask. As vhost_user_check_payload(), and: -ETIMEDOUT,
 * -ECONNRESET when the back end has gone. Descriptors are not expected and
 * closed: -EPROTO.
 */
__must_check int vhost_user_recv(int fd, uint64_t deadline_ns,
				 const struct vhost_user_ask *ask,
				 uint64_t *ret_value, const char **ret_why);

#endif
