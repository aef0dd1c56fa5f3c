/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio/vhost_user/vhost_user_io.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"

#define MAX_WAIT_MS 60000u

/* 0 when fd is ready for events or in trouble, which the next call tells. */
static int wait_ready(int fd, short events, uint64_t deadline_ns)
{
	struct pollfd pfd = { .fd = fd, .events = events };

	for (;;) {
		uint64_t now = clock_now_ns(), left_ms;
		int n;

		if (now >= deadline_ns)
			return -ETIMEDOUT;
		left_ms = (deadline_ns - now) / NSEC_PER_MSEC + 1;
		n = poll(&pfd, 1, (int)MIN(left_ms, (uint64_t)MAX_WAIT_MS));
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
}

/* Put num_fds descriptors beside the message. */
static void attach_fds(struct msghdr *msg, void *control, const int *fds,
		       unsigned int num_fds)
{
	struct cmsghdr *cmsg;

	if (!num_fds)
		return;
	msg->msg_control = control;
	msg->msg_controllen = CMSG_SPACE(num_fds * sizeof(int));
	cmsg = CMSG_FIRSTHDR(msg);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(num_fds * sizeof(int));
	memcpy(CMSG_DATA(cmsg), fds, num_fds * sizeof(int));
}

/* Drop the first n bytes of what is to be sent. */
static void advance(struct msghdr *msg, size_t n)
{
	while (n) {
		struct iovec *iov = msg->msg_iov;
		size_t take = MIN(n, iov->iov_len);

		iov->iov_base = (char *)iov->iov_base + take;
		iov->iov_len -= take;
		n -= take;
		if (!iov->iov_len) {
			msg->msg_iov++;
			msg->msg_iovlen--;
		}
	}
	/* Descriptors go with the first byte. */
	msg->msg_control = NULL;
	msg->msg_controllen = 0;
}

int vhost_user_send(int fd, uint64_t deadline_ns, uint32_t request,
		    uint32_t flags, const void *payload, uint32_t len,
		    const int *fds, unsigned int num_fds)
{
	struct vhost_user_header header = {
		.request = request,
		.flags = flags | VHOST_USER_VERSION,
		.size = len,
	};
	/* sendmsg() takes buffers that it only reads without const. */
	struct iovec iov[2] = {
		{ &header, sizeof(header) },
		{ (void *)(uintptr_t)payload, len },
	};
	_Alignas(struct cmsghdr) char
		control[CMSG_SPACE(VHOST_USER_MAX_FDS * sizeof(int))] = { 0 };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = len ? 2 : 1 };
	size_t left = sizeof(header) + len;

	BUG_ON(num_fds > VHOST_USER_MAX_FDS);
	attach_fds(&msg, control, fds, num_fds);
	while (left) {
		ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		int r;

		if (n > 0) {
			left -= (size_t)n;
			advance(&msg, (size_t)n);
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		r = wait_ready(fd, POLLOUT, deadline_ns);
		if (r)
			return r;
	}
	return 0;
}

/* Nobody asked for descriptors. Returns whether there were any. */
static bool close_fds(struct msghdr *msg)
{
	bool any = msg->msg_flags & MSG_CTRUNC;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c;
	     c = CMSG_NXTHDR(msg, c)) {
		size_t num = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < num; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			close(fd);
			any = true;
		}
	}
	return any;
}

static int recv_full(int fd, uint64_t deadline_ns, void *buf, size_t len)
{
	/* Room for some: what does not fit the kernel closes itself. */
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
	struct iovec iov = { buf, len };

	while (iov.iov_len) {
		struct msghdr msg = {
			.msg_iov = &iov,
			.msg_iovlen = 1,
			.msg_control = control,
			.msg_controllen = sizeof(control),
		};
		ssize_t n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
		int r;

		if (n == 0)
			return -ECONNRESET;
		if (n > 0) {
			if (close_fds(&msg))
				return -EBADMSG;
			iov.iov_base = (char *)iov.iov_base + n;
			iov.iov_len -= (size_t)n;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		r = wait_ready(fd, POLLIN, deadline_ns);
		if (r)
			return r;
	}
	return 0;
}

int vhost_user_recv(int fd, uint64_t deadline_ns,
		    const struct vhost_user_ask *ask, uint64_t *ret_value,
		    const char **ret_why)
{
	uint8_t payload[VHOST_USER_REPLY_BYTES];
	struct vhost_user_header header;
	int r = recv_full(fd, deadline_ns, &header, sizeof(header));

	if (!r)
		r = vhost_user_check_header(ask, &header, ret_why);
	if (!r)
		r = recv_full(fd, deadline_ns, payload, sizeof(payload));
	if (!r)
		r = vhost_user_check_payload(ask, payload, ret_value, ret_why);
	if (r == -EBADMSG) {
		*ret_why = "descriptors that nobody asked for";
		r = -EPROTO;
	}
	return r;
}
