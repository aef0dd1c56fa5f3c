/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/link.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"

/* A wait is cut into these, to ask whether it is given up. */
#define SLICE_MS 50

static bool is_given_up(const struct link *l)
{
	return l->given_up && l->given_up(l->ctx);
}

/*
 * Who gives or takes a little each time never has us wait for a whole slice:
 * between two transfers it is asked as often.
 */
static bool is_given_up_meanwhile(const struct link *l, uint64_t *asked_ns)
{
	uint64_t now = clock_now_ns();

	if (now - *asked_ns < SLICE_MS * NSEC_PER_MSEC)
		return false;
	*asked_ns = now;
	return is_given_up(l);
}

/* Until events, or since_ns is too long ago. */
static int wait_for(struct link *l, short events, uint64_t since_ns)
{
	struct pollfd pfd = { .fd = l->fd, .events = events };

	for (;;) {
		int n = poll(&pfd, 1, SLICE_MS);
		uint64_t now = clock_now_ns();

		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (is_given_up(l))
			return -ECANCELED;
		if (now - since_ns > atomic_load(&l->patience_ns) ||
		    (l->until_ns && now > l->until_ns))
			return -ETIMEDOUT;
	}
}

static int error_of(int error)
{
	return error == ECONNRESET ? -EPIPE : -error;
}

static void use_up(struct iovec **iov, unsigned int *num, size_t bytes)
{
	while (*num && bytes >= (*iov)->iov_len) {
		bytes -= (*iov)->iov_len;
		(*iov)++;
		(*num)--;
	}
	if (!*num)
		return;
	(*iov)->iov_base = (char *)(*iov)->iov_base + bytes;
	(*iov)->iov_len -= bytes;
}

/* ---- through TLS ---- */

int link_handshake(struct link *l, struct err *err)
{
	uint64_t since = clock_now_ns();
	int r;

	while ((r = tls_handshake(l->tls, err)) == -EAGAIN) {
		r = wait_for(l, tls_wants(l->tls), since);
		if (r == -ECANCELED)
			return err_set(err, ECANCELED, "cancelled");
		if (r)
			return err_errno(err, -r, "TLS handshake");
	}
	return r;
}

/* As much of iov as fits, in one piece. */
static size_t gather(struct iovec **iov, unsigned int *num, uint8_t *out,
		     size_t size)
{
	size_t len = 0;

	while (*num && len < size) {
		size_t n = MIN((*iov)->iov_len, size - len);

		memcpy(out + len, (*iov)->iov_base, n);
		len += n;
		use_up(iov, num, n);
	}
	return len;
}

static int send_record(struct link *l, const void *buf, size_t len)
{
	uint64_t since = clock_now_ns();
	int r;

	if (l->is_stuck)
		return -EPIPE;
	while ((r = tls_send(l->tls, buf, len)) == -EAGAIN) {
		r = wait_for(l, POLLOUT, since);
		if (r)
			break;
	}
	l->is_stuck = r != 0;
	return r;
}

static int send_records(struct link *l, struct iovec *iov, unsigned int num)
{
	uint64_t asked = clock_now_ns();
	uint8_t record[TLS_MAX_RECORD];
	size_t len;
	int r = 0;

	while (!r && (len = gather(&iov, &num, record, sizeof(record)))) {
		r = send_record(l, record, len);
		if (!r && num && is_given_up_meanwhile(l, &asked))
			r = -ECANCELED;
	}
	return r;
}

static ssize_t recv_records(struct link *l, void *buf, size_t size)
{
	uint64_t since = clock_now_ns();
	ssize_t n;

	while ((n = tls_recv(l->tls, buf, size)) == -EAGAIN) {
		int r = wait_for(l, POLLIN, since);

		if (r)
			return r;
	}
	return n;
}

/* ---- transfers ---- */

int link_send(struct link *l, struct iovec *iov, unsigned int num)
{
	uint64_t since = clock_now_ns(), asked = since;

	if (l->tls)
		return send_records(l, iov, num);
	while (num) {
		const struct msghdr msg = { .msg_iov = iov, .msg_iovlen = num };
		ssize_t n = sendmsg(l->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		int r;

		if (n >= 0) {
			use_up(&iov, &num, (size_t)n);
			if (num && is_given_up_meanwhile(l, &asked))
				return -ECANCELED;
			since = clock_now_ns();
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return error_of(errno);
		r = wait_for(l, POLLOUT, since);
		if (r)
			return r;
	}
	return 0;
}

ssize_t link_recv_some(struct link *l, void *buf, size_t size)
{
	uint64_t since = clock_now_ns();

	if (l->tls)
		return recv_records(l, buf, size);
	for (;;) {
		ssize_t n = recv(l->fd, buf, size, MSG_DONTWAIT);
		int r;

		if (n > 0)
			return n;
		if (!n)
			return -EPIPE;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return error_of(errno);
		r = wait_for(l, POLLIN, since);
		if (r)
			return r;
	}
}

int link_recv(struct link *l, void *buf, size_t len)
{
	uint64_t asked = clock_now_ns();

	for (size_t done = 0; done < len;) {
		ssize_t n = link_recv_some(l, (char *)buf + done, len - done);

		if (n < 0)
			return (int)n;
		done += (size_t)n;
		if (done < len && is_given_up_meanwhile(l, &asked))
			return -ECANCELED;
	}
	return 0;
}

int link_wait(struct link *l)
{
	if (l->tls && tls_has_more(l->tls))
		return 0;
	return wait_for(l, POLLIN, clock_now_ns());
}

bool link_is_readable(const struct link *l)
{
	struct pollfd pfd = { .fd = l->fd, .events = POLLIN };

	return (l->tls && tls_has_more(l->tls)) || poll(&pfd, 1, 0) > 0;
}

bool link_is_closed(const struct link *l)
{
	struct pollfd pfd = { .fd = l->fd, .events = POLLRDHUP };

	return poll(&pfd, 1, 0) > 0;
}

/* ---- messages ---- */

static int broken(const struct link *l, int r, const char *doing,
		  enum wire_control type, struct err *err)
{
	if (r == -EKEYREJECTED)
		return err_set(err, EKEYREJECTED,
			       "the other side refuses us: %s",
			       tls_refusal(l->tls));
	if (r == -EPIPE)
		return err_set(err, EPIPE, "the other side is gone (%s %s)",
			       doing, wire_control_name(type));
	if (r == -ETIMEDOUT)
		return err_set(err, ETIMEDOUT,
			       "the other side does not answer (%s %s)", doing,
			       wire_control_name(type));
	if (r == -ECANCELED)
		return err_set(err, ECANCELED, "cancelled");
	return err_errno(err, -r, "%s %s", doing, wire_control_name(type));
}

int link_put(struct link *l, enum wire_control type, const void *payload,
	     size_t bytes, struct err *err)
{
	uint8_t header[WIRE_CONTROL_BYTES];
	struct iovec iov[2] = {
		{ header, sizeof(header) },
		{ (void *)payload, bytes },
	};
	int r;

	wire_put_control(header, type, bytes);
	r = link_send(l, iov, bytes ? 2 : 1);
	return r ? broken(l, r, "sending", type, err) : 0;
}

/* A record that TLS has only begun to send authenticates nothing. */
int link_put_at_once(struct link *l, enum wire_control type, struct err *err)
{
	uint8_t message[WIRE_CONTROL_BYTES];
	ssize_t n;
	int r;

	wire_put_control(message, type, 0);
	if (l->tls) {
		r = l->is_stuck ? -EPIPE
				: tls_send(l->tls, message, sizeof(message));
		l->is_stuck = r != 0;
		return r ? broken(l, r, "sending", type, err) : 0;
	}
	n = send(l->fd, message, sizeof(message), MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0)
		return err_errno(err, errno, "the other side is gone");
	return n == sizeof(message)
		       ? 0
		       : err_set(err, EPIPE, "the other side takes nothing");
}

/* It does not wait: there may be nobody. */
void link_put_failure(struct link *l, enum wire_control type,
		      const struct err *why)
{
	size_t bytes = strnlen(why->text, WIRE_MAX_TEXT);
	uint8_t message[WIRE_CONTROL_BYTES + WIRE_MAX_TEXT];

	wire_put_control(message, type, bytes);
	memcpy(message + WIRE_CONTROL_BYTES, why->text, bytes);
	if (l->tls && l->is_stuck)
		return;
	if (l->tls)
		l->is_stuck = tls_send(l->tls, message,
				       WIRE_CONTROL_BYTES + bytes) != 0;
	else
		(void)!send(l->fd, message, WIRE_CONTROL_BYTES + bytes,
			    MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Read as it comes: what was only announced takes no memory. */
static int get_payload(struct link *l, size_t bytes, uint8_t **ret)
{
	_cleanup_free_ uint8_t *buf = NULL;
	size_t capacity = 0;
	int r = 0;

	for (size_t done = 0; !r && done < bytes; done = capacity) {
		uint8_t *more;

		capacity = MIN(bytes, MAX((size_t)MIB, 2 * capacity));
		more = realloc(buf, capacity);
		if (!more)
			return -ENOMEM;
		buf = more;
		r = link_recv(l, buf + done, capacity - done);
	}
	if (!r)
		*ret = take_ptr(buf);
	return r;
}

static int other_gave_up(const uint8_t *payload, size_t bytes, struct err *err)
{
	char text[WIRE_MAX_TEXT + 1];

	wire_parse_text(payload, bytes, text);
	return err_set(err, ECONNABORTED, "the other side gave up: %s",
		       text[0] ? text : "it does not say why");
}

/* Behind its header. ret and ret_bytes may be NULL. */
static int get_rest(struct link *l, const uint8_t *header,
		    enum wire_control wanted, uint8_t **ret, size_t *ret_bytes,
		    struct err *err)
{
	_cleanup_free_ uint8_t *payload = NULL;
	struct wire_control_header h;
	int r = wire_parse_control(header, wanted, &h, err);

	if (r)
		return r;
	r = get_payload(l, h.bytes, &payload);
	if (r)
		return broken(l, r, "receiving", h.type, err);
	if (h.type != wanted)
		return other_gave_up(payload, h.bytes, err);
	if (ret)
		*ret = take_ptr(payload);
	if (ret_bytes)
		*ret_bytes = h.bytes;
	return 0;
}

int link_get(struct link *l, enum wire_control wanted, uint8_t **ret,
	     size_t *ret_bytes, struct err *err)
{
	uint8_t header[WIRE_CONTROL_BYTES];
	int r = link_recv(l, header, sizeof(header));

	return r ? broken(l, r, "waiting for", wanted, err)
		 : get_rest(l, header, wanted, ret, ret_bytes, err);
}

/* ---- a message with a descriptor ---- */

union fd_control {
	struct cmsghdr header;
	char bytes[CMSG_SPACE(sizeof(int))];
};

static bool can_carry_fds(const struct link *l)
{
	int domain = 0;
	socklen_t len = sizeof(domain);

	return !l->tls &&
	       !getsockopt(l->fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) &&
	       domain == AF_UNIX;
}

int link_put_fd(struct link *l, enum wire_control type, int fd, struct err *err)
{
	uint8_t header[WIRE_CONTROL_BYTES];
	struct iovec iov = { header, sizeof(header) };
	union fd_control control = { .bytes = { 0 } };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = CMSG_LEN(sizeof(int)),
	};
	ssize_t n;

	if (!can_carry_fds(l))
		return err_set(err, ENOTSUP,
			       "memory can be handed over through a Unix "
			       "socket only, without TLS");
	wire_put_control(header, type, 0);
	control.header = (struct cmsghdr){
		.cmsg_level = SOL_SOCKET,
		.cmsg_type = SCM_RIGHTS,
		.cmsg_len = CMSG_LEN(sizeof(int)),
	};
	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	/* There is room: the other side has taken all that came before. */
	n = sendmsg(l->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0)
		return broken(l, errno == ECONNRESET ? -EPIPE : -errno,
			      "sending", type, err);
	return n == sizeof(header)
		       ? 0
		       : err_set(err, EPIPE, "the other side takes nothing");
}

/* It comes with the first byte; one that is too many is closed. */
static int recv_with_fd(struct link *l, uint8_t *header, int *ret_fd)
{
	struct iovec iov = { header, WIRE_CONTROL_BYTES };
	union fd_control control = { .bytes = { 0 } };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		/* Padding would be room for a second one. */
		.msg_controllen = CMSG_LEN(sizeof(int)),
	};
	struct cmsghdr *cmsg;
	ssize_t n;
	int r = link_wait(l);

	if (r)
		return r;
	n = recvmsg(l->fd, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (n < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg && cmsg->cmsg_level == SOL_SOCKET &&
	    cmsg->cmsg_type == SCM_RIGHTS &&
	    cmsg->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(ret_fd, CMSG_DATA(cmsg), sizeof(int));
	if (!n)
		return -EPIPE;
	if (msg.msg_flags & MSG_CTRUNC)
		return -EBADMSG;
	return link_recv(l, header + n, WIRE_CONTROL_BYTES - (size_t)n);
}

int link_get_fd(struct link *l, enum wire_control wanted, int *ret_fd,
		struct err *err)
{
	uint8_t header[WIRE_CONTROL_BYTES];
	_cleanup_close_ int fd = -1;
	int r;

	if (!can_carry_fds(l))
		return err_set(err, ENOTSUP,
			       "memory can be taken over through a Unix "
			       "socket only, without TLS");
	r = recv_with_fd(l, header, &fd);
	if (r)
		return broken(l, r, "waiting for", wanted, err);
	r = get_rest(l, header, wanted, NULL, NULL, err);
	if (!r && fd < 0)
		r = err_set(err, EBADMSG, "%s without a descriptor",
			    wire_control_name(wanted));
	if (!r)
		*ret_fd = take_fd(&fd);
	return r;
}
