/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/handed.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/unix_socket.h"

#define TAKE_MS 10000

union control {
	struct cmsghdr header;
	char bytes[CMSG_SPACE(MIGRATE_MAX_CONNECTIONS * sizeof(int))];
};

/* ---- who is handed them ---- */

static bool is_stream(int fd)
{
	int type = 0;
	socklen_t len = sizeof(type);

	return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) &&
	       type == SOCK_STREAM;
}

/* All descriptors that came, whatever else is wrong. */
static unsigned int collect(struct msghdr *msg, int *fds)
{
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg);
	size_t bytes;

	if (!cmsg || cmsg->cmsg_level != SOL_SOCKET ||
	    cmsg->cmsg_type != SCM_RIGHTS || cmsg->cmsg_len < CMSG_LEN(0))
		return 0;
	bytes = MIN(cmsg->cmsg_len - CMSG_LEN(0),
		    MIGRATE_MAX_CONNECTIONS * sizeof(int));
	memcpy(fds, CMSG_DATA(cmsg), bytes);
	return (unsigned int)(bytes / sizeof(int));
}

static int receive(int fd, int *fds, unsigned int *ret_num)
{
	union control control = { .bytes = { 0 } };
	uint8_t bytes[4] = { 0 };
	struct iovec iov = { bytes, sizeof(bytes) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	ssize_t n;

	if (poll(&pfd, 1, TAKE_MS) <= 0)
		return -ETIMEDOUT;
	n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	if (n < 0)
		return -errno;
	*ret_num = collect(&msg, fds);
	if (n != sizeof(bytes) || (msg.msg_flags & MSG_CTRUNC) ||
	    *ret_num < 2 || le32_load(bytes) != *ret_num)
		return -EPROTO;
	for (unsigned int i = 0; i < *ret_num; i++) {
		if (!is_stream(fds[i]))
			return -EPROTO;
	}
	return 0;
}

int migrate_handed_take(const char *path, int *ret_fd, int *fds,
			unsigned int *ret_num, struct err *err)
{
	_cleanup_close_ int fd = -1;
	unsigned int num = 0;
	int r = unix_socket_connect(path, 0, &fd);

	if (!r)
		r = receive(fd, fds, &num);
	if (!r) {
		*ret_fd = take_fd(&fd);
		*ret_num = num;
		return 0;
	}
	while (num)
		close_fd(&fds[--num]);
	return err_errno(err, -r, "getting connections from who made them (%s)",
			 path);
}

/* ---- who makes them ---- */

int migrate_handed_give(int fd, const int *fds, unsigned int num)
{
	union control control = { .bytes = { 0 } };
	uint8_t bytes[4];
	struct iovec iov = { bytes, sizeof(bytes) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = CMSG_SPACE(num * sizeof(int)),
	};
	ssize_t n;

	if (!num || num > MIGRATE_MAX_CONNECTIONS)
		return -EINVAL;
	le32_store(bytes, num);
	control.header = (struct cmsghdr){
		.cmsg_level = SOL_SOCKET,
		.cmsg_type = SCM_RIGHTS,
		.cmsg_len = CMSG_LEN(num * sizeof(int)),
	};
	memcpy(CMSG_DATA(&control.header), fds, num * sizeof(int));
	n = sendmsg(fd, &msg, MSG_NOSIGNAL);
	if (n < 0)
		return -errno;
	return n == sizeof(bytes) ? 0 : -EPIPE;
}
