/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unix stream sockets with a path in the file system: the address, and a
 * listener that owns its path. A socket that a dead process left behind (it
 * refuses connections) is replaced, any other file at the path is not. Only the
 * inode that was made here is removed at the end.
 *
 * No thread of its own: the caller serialises the calls on one listener.
 */
#ifndef QUIRE_BASE_UNIX_SOCKET_H
#define QUIRE_BASE_UNIX_SOCKET_H

#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>

#include "base/err.h"

/* Bytes of the longest path a socket can have, without the NUL. */
#define UNIX_SOCKET_PATH_MAX (sizeof(((struct sockaddr_un *)0)->sun_path) - 1)

struct unix_listener {
	int fd;	    /* -1: not open. Non-blocking, close-on-exec */
	char *path; /* NULL: nothing to remove; owned */
	dev_t dev;
	ino_t ino;
};

#define UNIX_LISTENER_INIT \
	{                  \
		.fd = -1   \
	}

/*
 * A close-on-exec socket connected to path; flags: SOCK_NONBLOCK, or 0. With it
 * -EAGAIN: its backlog is full. -ENOENT, -ECONNREFUSED: nobody listens there.
 */
__must_check int unix_socket_connect(const char *path, int flags, int *ret_fd);

/* -ENAMETOOLONG if path does not fit. */
__must_check int unix_socket_address(struct sockaddr_un *ret, const char *path);

/*
 * Bind and listen. The text of err names neither option nor path: callers put
 * both in front (err_prefix). *ret is an initialised listener in any case.
 */
__must_check int unix_listener_open(struct unix_listener *ret, const char *path,
				    int backlog, struct err *err);
/* The same with mode 0600, whatever the umask: for its user alone. */
__must_check int unix_listener_open_private(struct unix_listener *ret,
					    const char *path, int backlog,
					    struct err *err);

/* Remove the path, if it is still ours; clients in the backlog stay. */
void unix_listener_remove(struct unix_listener *listener);

/* The same, and close. Harmless on an initialised or closed one. */
void unix_listener_close(struct unix_listener *listener);

#endif
