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
#define MAX_FDS (MIGRATE_MAX_CONNECTIONS + TLS_NUM_FILES)

union control {
	struct cmsghdr header;
	char bytes[CMSG_SPACE(MAX_FDS * sizeof(int))];
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
	bytes = MIN(cmsg->cmsg_len - CMSG_LEN(0), MAX_FDS * sizeof(int));
	memcpy(fds, CMSG_DATA(cmsg), bytes);
	return (unsigned int)(bytes / sizeof(int));
}

/* *ret_num: of all; *ret_sockets: of these the first. */
static int receive(int fd, int *fds, unsigned int *ret_num,
		   unsigned int *ret_sockets)
{
	union control control = { .bytes = { 0 } };
	uint8_t bytes[8] = { 0 };
	struct iovec iov = { bytes, sizeof(bytes) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	uint32_t sockets, files;
	ssize_t n;

	if (poll(&pfd, 1, TAKE_MS) <= 0)
		return -ETIMEDOUT;
	n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	if (n < 0)
		return -errno;
	*ret_num = collect(&msg, fds);
	sockets = le32_load(bytes);
	files = le32_load(bytes + 4);
	if (n != sizeof(bytes) || (msg.msg_flags & MSG_CTRUNC) || sockets < 2 ||
	    sockets > MIGRATE_MAX_CONNECTIONS ||
	    (files && files != TLS_NUM_FILES) || sockets + files != *ret_num)
		return -EPROTO;
	for (uint32_t i = 0; i < sockets; i++) {
		if (!is_stream(fds[i]))
			return -EPROTO;
	}
	*ret_sockets = sockets;
	return 0;
}

int migrate_handed_take(const char *path, int *ret_fd, int *fds,
			unsigned int *ret_num, int files[TLS_NUM_FILES],
			bool *ret_has_files, struct err *err)
{
	_cleanup_close_ int fd = -1;
	int all[MAX_FDS];
	unsigned int num = 0, sockets = 0;
	int r = unix_socket_connect(path, 0, &fd);

	if (!r)
		r = receive(fd, all, &num, &sockets);
	if (!r) {
		*ret_fd = take_fd(&fd);
		*ret_num = sockets;
		*ret_has_files = num > sockets;
		memcpy(fds, all, sockets * sizeof(int));
		memcpy(files, all + sockets, (num - sockets) * sizeof(int));
		return 0;
	}
	while (num)
		close_fd(&all[--num]);
	return err_errno(err, -r, "getting connections from who made them (%s)",
			 path);
}

/* ---- who makes them ---- */

int migrate_handed_give(int fd, const int *fds, unsigned int num,
			const int *files)
{
	unsigned int all = num + (files ? TLS_NUM_FILES : 0);
	union control control = { .bytes = { 0 } };
	uint8_t bytes[8];
	struct iovec iov = { bytes, sizeof(bytes) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = CMSG_SPACE(all * sizeof(int)),
	};
	unsigned char *to = CMSG_DATA(&control.header);
	ssize_t n;

	if (!num || num > MIGRATE_MAX_CONNECTIONS)
		return -EINVAL;
	le32_store(bytes, num);
	le32_store(bytes + 4, all - num);
	control.header = (struct cmsghdr){
		.cmsg_level = SOL_SOCKET,
		.cmsg_type = SCM_RIGHTS,
		.cmsg_len = CMSG_LEN(all * sizeof(int)),
	};
	memcpy(to, fds, num * sizeof(int));
	if (files)
		memcpy(to + num * sizeof(int), files,
		       TLS_NUM_FILES * sizeof(int));
	n = sendmsg(fd, &msg, MSG_NOSIGNAL);
	if (n < 0)
		return -errno;
	return n == sizeof(bytes) ? 0 : -EPIPE;
}
