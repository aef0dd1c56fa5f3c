/* SPDX-License-Identifier: Apache-2.0 */
#include "base/unix_socket.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

int unix_socket_address(struct sockaddr_un *ret, const char *path)
{
	size_t len = strlen(path);

	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (len > UNIX_SOCKET_PATH_MAX)
		return -ENAMETOOLONG;
	memcpy(ret->sun_path, path, len + 1);
	return 0;
}

int unix_socket_connect(const char *path, int flags, int *ret_fd)
{
	_cleanup_close_ int fd = -1;
	struct sockaddr_un addr;
	int r = unix_socket_address(&addr, path);

	if (r)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&addr, sizeof(addr)))
		return -errno;
	*ret_fd = take_fd(&fd);
	return 0;
}

/* A socket left behind by a process that died refuses connections. */
static bool is_stale(const struct sockaddr_un *addr)
{
	_cleanup_close_ int fd = socket(
		AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct stat st;

	if (fd < 0 || lstat(addr->sun_path, &st) || !S_ISSOCK(st.st_mode))
		return false;
	return connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 &&
	       errno == ECONNREFUSED;
}

static int bind_path(int fd, const char *path, struct err *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	const struct sockaddr *sa = (const struct sockaddr *)&addr;

	if (unix_socket_address(&addr, path))
		return err_set(err, ENAMETOOLONG,
			       "the path is too long for a socket (at most %zu "
			       "bytes)",
			       UNIX_SOCKET_PATH_MAX);
	if (!bind(fd, sa, sizeof(addr)))
		return 0;
	if (errno == EADDRINUSE && is_stale(&addr)) {
		unlink(path);
		if (!bind(fd, sa, sizeof(addr)))
			return 0;
	}
	if (errno == EADDRINUSE)
		return err_set(err, EADDRINUSE,
			       "in use by another process, or not a socket; "
			       "remove it or use another path");
	return err_errno(err, errno, "cannot make the socket");
}

/* mode: of the file, less the umask. */
static int open_with_mode(struct unix_listener *ret, const char *path,
			  mode_t mode, int backlog, struct err *err)
{
	_cleanup_close_ int fd = -1;
	struct stat st;
	int r;

	*ret = (struct unix_listener)UNIX_LISTENER_INIT;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* Before bind(): the file never has a wider mode. */
	if (fd < 0 || fchmod(fd, mode))
		return err_errno(err, errno, "cannot make a socket");
	r = bind_path(fd, path, err);
	if (r)
		return r;
	ret->path = strdup(path);
	if (!ret->path || lstat(path, &st) || listen(fd, backlog)) {
		r = errno;
		unlink(path);
		free(take_ptr(ret->path));
		return err_errno(err, r, "cannot listen");
	}
	ret->dev = st.st_dev;
	ret->ino = st.st_ino;
	ret->fd = take_fd(&fd);
	return 0;
}

int unix_listener_open(struct unix_listener *ret, const char *path, int backlog,
		       struct err *err)
{
	return open_with_mode(ret, path, 0777, backlog, err);
}

int unix_listener_open_private(struct unix_listener *ret, const char *path,
			       int backlog, struct err *err)
{
	return open_with_mode(ret, path, 0600, backlog, err);
}

void unix_listener_remove(struct unix_listener *l)
{
	struct stat st;

	if (l->path && !lstat(l->path, &st) && st.st_dev == l->dev &&
	    st.st_ino == l->ino)
		unlink(l->path);
	free(take_ptr(l->path));
}

void unix_listener_close(struct unix_listener *l)
{
	unix_listener_remove(l);
	close_fd(&l->fd);
}
