/* SPDX-License-Identifier: Apache-2.0 */
#include "snapshot/handed.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/unix_socket.h"
#include "snapshot/format.h"

/* Making an empty file takes no time, and the guest stands still. */
#define ANSWER_MS 10000

#define PARENT "parent/"

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

	if (!r)
		return 0;
	err_errno(err, -r, "connecting to who makes the files (%s)", path);
	err_append(err, "with --direct the VM's process makes them itself");
	return r;
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
static int take_answer(struct msghdr *msg, ssize_t len, const uint8_t *answer,
		       bool is_new)
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
	if (len != 4 || (msg->msg_flags & MSG_CTRUNC))
		return -EPROTO;
	error = le32_load(answer);
	if (error)
		return error < 4096 ? -(int)error : -EPROTO;
	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) ||
	    (is_new && st.st_size))
		return -EPROTO;
	return take_fd(&fd);
}

static int read_answer(int fd, bool is_new)
{
	union control control = { .bytes = { 0 } };
	uint8_t bytes[4] = { 0 };
	struct iovec iov = { bytes, sizeof(bytes) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		/* Padding would be room for a second one. */
		.msg_controllen = CMSG_LEN(sizeof(int)),
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
	return take_answer(&msg, n, bytes, is_new);
}

static int ask(int fd, const char *prefix, const char *name)
{
	char request[HANDED_NAME_BYTES] = { 0 };
	ssize_t n;

	if (!is_flat(name) || snprintf(request, sizeof(request), "%s%s", prefix,
				       name) >= (int)sizeof(request))
		return -EINVAL;
	/*
	 * There is room: who answers has read what was asked before. Who
	 * answers without reading shall not make us wait for ever.
	 */
	do {
		n = send(fd, request, sizeof(request),
			 MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return -EPROTO;
	if (n < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	return n == sizeof(request) ? read_answer(fd, !prefix[0]) : -EPROTO;
}

int handed_ask(int fd, const char *name)
{
	return ask(fd, "", name);
}

int handed_ask_parent(int fd, const char *name)
{
	return ask(fd, PARENT, name);
}

bool handed_is_over(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLRDHUP };

	return poll(&pfd, 1, 0) > 0;
}

/* ---- who makes them ---- */

/* What an increment needs of its parent, and no more. */
static bool is_parents(const char *name)
{
	static const char *const names[] = {
		PARENT SNAPSHOT_MANIFEST,
		PARENT SNAPSHOT_SUMS,
		PARENT SNAPSHOT_MEMORY,
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (!strcmp(name, names[i]))
			return true;
	}
	return false;
}

static int read_name(int fd, char name[HANDED_NAME_BYTES])
{
	ssize_t n = recv(fd, name, HANDED_NAME_BYTES, MSG_DONTWAIT);

	if (n <= 0)
		return n < 0 && errno != ECONNRESET ? -errno : -EPIPE;
	/* Sent in one go, so it arrives in one. */
	if (n < HANDED_NAME_BYTES)
		return -EPROTO;
	if (name[HANDED_NAME_BYTES - 1])
		return -EPROTO;
	return is_flat(name) || is_parents(name) ? 0 : -EPROTO;
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

static int open_for(const char *name, int dir_fd, int parent_fd)
{
	if (is_flat(name))
		return openat(dir_fd, name,
			      O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW |
				      O_CLOEXEC,
			      0600);
	errno = ENOENT;
	return parent_fd < 0
		       ? -1
		       : openat(parent_fd, name + strlen(PARENT),
				O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
}

int handed_serve(int fd, int dir_fd, int parent_fd)
{
	char name[HANDED_NAME_BYTES];
	_cleanup_close_ int file = -1;
	int r = read_name(fd, name);

	if (r)
		return r;
	file = open_for(name, dir_fd, parent_fd);
	return answer(fd, file < 0 ? errno : 0, file);
}
