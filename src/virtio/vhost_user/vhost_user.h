/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Front end of the vhost-user protocol: another process, the back end, serves
 * the queues of a virtio device in guest memory that both map.
 *
 * What is here is the connection: shaking hands, handing over guest memory and
 * rings, taking rings back. What a device does when the back end dies is the
 * device's matter (virtio/fs). Kicks go from KVM to the back end (kick_fd is
 * the ioeventfd), interrupts from the back end to KVM (call_fd); quire has no
 * part in a request.
 *
 * Every exchange has a deadline, after which the connection is closed: the back
 * end may be slow, dead or hostile. A closed connection has fd -1. A back end
 * can read and write all of guest memory: it is trusted as much as the guest,
 * no more.
 *
 * Threads: one at a time, the device's lock sees to that.
 *
 * Not negotiated: inflight buffers (virtiofsd has none), the back end's own
 * channel (needed for DAX only), configuration space (the devices here have
 * their own), and dirty logging. Live migration will need the latter:
 * LOG_SHMFD, SET_LOG_BASE with a shared bitmap, VHOST_F_LOG_ALL in SET_FEATURES
 * and the used ring's log address in SET_VRING_ADDR.
 */
#ifndef QUIRE_VIRTIO_VHOST_USER_H
#define QUIRE_VIRTIO_VHOST_USER_H

#include "base/err.h"
#include "virtio/virtio.h"

struct vhost_user {
	int fd; /* -1: not connected */
	bool reply_ack, reset_device;
	uint64_t features;	 /* virtio's, that the back end offers */
	unsigned int max_queues; /* that it serves */
	uint64_t deadline_ns;	 /* of what is being exchanged */
};

void vhost_user_init(struct vhost_user *vu);
/* Fine on one that is not connected. */
void vhost_user_close(struct vhost_user *vu);

/*
 * Shake hands with the back end at the other end of fd, a connected stream
 * socket that is taken over, on failure as well. It must offer `features` and
 * num_queues queues, or is refused with -ENOTSUP.
 */
__must_check int vhost_user_connect(struct vhost_user *vu, int fd,
				    uint64_t features, unsigned int num_queues,
				    unsigned int timeout_ms, struct err *err);

/* Did the back end hang up? A look, no exchange. */
bool vhost_user_hung_up(const struct vhost_user *vu);

/*
 * Hand memory and the started queues of dev to the back end, to go on at each
 * queue's vq.last_avail. err_fd is an eventfd that it signals when it cannot go
 * on. A failure closes the connection.
 */
__must_check int vhost_user_start(struct vhost_user *vu, struct virtio_dev *dev,
				  int err_fd, unsigned int timeout_ms,
				  struct err *err);

/*
 * Take the queues back: on return the back end touches them no more and has
 * completed what it took; or it did not say so in time, and the connection is
 * closed.
 */
__must_check int vhost_user_stop(struct vhost_user *vu, struct virtio_dev *dev,
				 unsigned int timeout_ms, struct err *err);

#endif
