/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/handed.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/unix_socket.h"

/* Making an empty file takes no time, and the guest stands still. */
#define ANSWER_MS 10000

/* Room for one descriptor. */
union control {
	struct cmsghdr header;
	char bytes[CMSG_SPACE(sizeof(int))];
};

static bool is_flat(const char *name)
{
	return name[0] && name[0] != '.' && !strchr(name, '/');
}

/* ---- who is handed files ---- */

int handed_connect(const char *path, int *ret_fd, struct err *err)
{
	int r = unix_socket_connect(path, 0, ret_fd);

	return r ? err_errno(err, -r, "connecting to who makes the files (%s)",
			     path)
		 : 0;
}

static int wait_answer(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	int n;

	do {
		n = poll(&pfd, 1, ANSWER_MS);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return n ? 0 : -ETIMEDOUT;
}

/* Of what it is not, none stays open. */
static int take_answer(struct msghdr *msg, ssize_t len, const uint8_t *answer)
{
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg);
	_cleanup_close_ int fd = -1;
	struct stat st;
	uint32_t error;

	if (cmsg && cmsg->cmsg_level == SOL_SOCKET &&
	    cmsg->cmsg_type == SCM_RIGHTS &&
	    cmsg->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(cmsg), sizeof(int));
	if (!len)
		return -EPIPE;
	if (len != 4)
		return -EPROTO;
	error = le32_load(answer);
	if (error)
		return error < 4096 ? -(int)error : -EPROTO;
	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size)
		return -EPROTO;
	return take_fd(&fd);
}

static int read_answer(int fd)
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
	int r = wait_answer(fd);
	ssize_t n;

	if (r)
		return r;
	do {
		n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	return take_answer(&msg, n, bytes);
}

int handed_ask(int fd, const char *name)
{
	char request[HANDED_NAME_BYTES] = { 0 };
	size_t len = strlen(name);
	ssize_t n;

	if (!is_flat(name) || len >= sizeof(request))
		return -EINVAL;
	memcpy(request, name, len + 1);
	do {
		n = send(fd, request, sizeof(request), MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	return n == sizeof(request) ? read_answer(fd) : -EPROTO;
}

bool handed_is_over(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLRDHUP };

	return poll(&pfd, 1, 0) > 0;
}

/* ---- who makes them ---- */

static int read_name(int fd, char name[HANDED_NAME_BYTES])
{
	ssize_t n = recv(fd, name, HANDED_NAME_BYTES, MSG_DONTWAIT);

	if (n <= 0)
		return n < 0 && errno != ECONNRESET ? -errno : -EPIPE;
	/* Sent in one go, so it arrives in one. */
	if (n < HANDED_NAME_BYTES)
		return -EPROTO;
	return name[HANDED_NAME_BYTES - 1] || !is_flat(name) ? -EPROTO : 0;
}

static int answer(int fd, int error, int file)
{
	union control control = { .bytes = { 0 } };
	uint8_t bytes[4];
	struct iovec iov = { bytes, sizeof(bytes) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	le32_store(bytes, (uint32_t)error);
	if (!error) {
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		control.header = (struct cmsghdr){
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
			.cmsg_len = CMSG_LEN(sizeof(int)),
		};
		memcpy(CMSG_DATA(&control.header), &file, sizeof(file));
	}
	return sendmsg(fd, &msg, MSG_NOSIGNAL) == sizeof(bytes) ? 0 : -EPIPE;
}

int handed_serve(int fd, int dir_fd)
{
	char name[HANDED_NAME_BYTES];
	_cleanup_close_ int file = -1;
	int r = read_name(fd, name);

	if (r)
		return r;
	file = openat(dir_fd, name,
		      O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	return answer(fd, file < 0 ? errno : 0, file);
}
