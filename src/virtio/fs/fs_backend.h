/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtiofsd behind one --fs: the connection to it and, where quire started
 * it, the process. It outlives the machine: virtiofsd ends with its
 * connection, and a guest that reboots must find it still there.
 *
 * Threads: options, ref, unref and fs_backend_open() on the control thread; the
 * rest under the device's lock, while there is a device.
 */
#ifndef QUIRE_VIRTIO_FS_BACKEND_H
#define QUIRE_VIRTIO_FS_BACKEND_H

#include <sys/types.h>

#include "virtio/vhost_user/vhost_user.h"

enum fs_cache {
	FS_CACHE_AUTO,
	FS_CACHE_NONE,
	FS_CACHE_ALWAYS,
};

enum fs_sandbox {
	FS_SANDBOX_NAMESPACE,
	FS_SANDBOX_CHROOT,
};

/* virtiofsd's own words, indexed by the above. */
extern const char *const fs_cache_names[3];
extern const char *const fs_sandbox_names[2];

struct fs_backend {
	unsigned int refs;
	/* Options: socket, of a virtiofsd that the user runs; or path. */
	char *socket;
	char *path;
	char *daemon; /* NULL: searched for */
	enum fs_cache cache;
	enum fs_sandbox sandbox;
	bool readonly, xattr;

	struct vhost_user vu;
	pid_t pid;	/* of the process we started, 0: none */
	int pid_fd;	/* of that process, or -1 */
	int log_fd;	/* what it prints; non-blocking, or -1 */
	char line[200]; /* the last of it, without its end if that is to come */
	size_t line_len;
	bool line_done;
};

/* One reference; NULL: out of memory. */
struct fs_backend *fs_backend_new(void);
struct fs_backend *fs_backend_ref(struct fs_backend *b);
void fs_backend_unref(struct fs_backend *b); /* the last ends it all */

/* Started by us, and thus killed when that is the way to stop it? */
static inline bool fs_backend_is_ours(const struct fs_backend *b)
{
	return b->path;
}

/*
 * Connect, unless a connection from before stands; start virtiofsd first if it
 * is ours. Waits for it some seconds. As vhost_user_connect().
 */
__must_check int fs_backend_open(struct fs_backend *b, uint64_t features,
				 unsigned int num_queues, struct err *err);

/*
 * Connect to a virtiofsd of the user's that may be there again. Waits only for
 * its replies. -ENOENT, -ECONNREFUSED: not there.
 */
__must_check int fs_backend_reopen(struct fs_backend *b, uint64_t features,
				   unsigned int num_queues, struct err *err);

/*
 * End the connection; a process of ours is killed, so that it surely touches
 * no memory any more when this returns. ret_how, if not NULL, says how a
 * process of ours ended.
 */
void fs_backend_close(struct fs_backend *b, const char **ret_how);

/* Log what virtiofsd has printed (log_fd is readable). */
void fs_backend_log(struct fs_backend *b, const char *id);

#endif
