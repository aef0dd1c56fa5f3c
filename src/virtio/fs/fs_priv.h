/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private to virtio-fs: the device, and the split between fs.c (what command
 * line and driver see) and fs_watch.c (who serves the queues, and when).
 *
 * Threads: everything below lock is under it; the backend's calls, too.
 */
#ifndef QUIRE_VIRTIO_FS_PRIV_H
#define QUIRE_VIRTIO_FS_PRIV_H

#include <endian.h>
#include <pthread.h>

#include "virtio/fs/fs.h"
#include "virtio/fs/fs_backend.h"

#define FS_TAG_BYTES 36

/* struct virtio_fs_config, virtio 1.2 section 5.11.4. */
struct fs_config_space {
	char tag[FS_TAG_BYTES]; /* padded with zeroes */
	uint32_t num_request_queues;
} __packed_struct;

/* Who touches the rings. */
enum fs_server {
	FS_NOBODY,  /* the device is not active */
	FS_BACKEND, /* virtiofsd */
	FS_QUIRE,   /* fs_watch.c, which answers with errors */
	FS_HELD, /* nobody: the machine is paused, virtiofsd gave them back */
};

struct fs_dev {
	struct virtio_dev vdev;
	struct fs_config_space config;
	int wake_fd; /* eventfd: look at what has changed */
	int err_fd;  /* eventfd, signalled by the back end */
	pthread_t thread;
	bool running;
	_Atomic bool stop;

	pthread_mutex_t lock;
	struct fs_backend *backend;
	enum fs_server server;
	bool lost;   /* the back end died; said so */
	bool unseen; /* the rings became ours, nobody looked into them yet */
	unsigned int backoff_ms;
	uint64_t retry_ns;     /* when to look for a new one */
	struct vq_chain chain; /* the watch thread's */
};

/* The thread lives from create() to destroy(), for it also reads the log. */
__must_check int fs_watch_start(struct fs_dev *dev);
void fs_watch_stop(struct fs_dev *dev);

/* DRIVER_OK and its end: the rings go to the back end, and come back. */
void fs_watch_activate(struct fs_dev *dev);
void fs_watch_deactivate(struct fs_dev *dev);
/* Pausing a machine and letting it go on: the same, but the session stays. */
void fs_watch_hold(struct fs_dev *dev, bool held);

extern const struct thread_class *const fs_thread_classes[];
extern const struct thread_class fs_vcpu_calls, fs_control_calls;

#endif
