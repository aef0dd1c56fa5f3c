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

		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (is_given_up(l))
			return -ECANCELED;
		if (clock_now_ns() - since_ns > atomic_load(&l->patience_ns))
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

int link_send(struct link *l, struct iovec *iov, unsigned int num)
{
	uint64_t since = clock_now_ns(), asked = since;

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
	return wait_for(l, POLLIN, clock_now_ns());
}

bool link_is_readable(const struct link *l)
{
	struct pollfd pfd = { .fd = l->fd, .events = POLLIN };

	return poll(&pfd, 1, 0) > 0;
}

/* ---- messages ---- */

static int broken(int r, const char *doing, enum wire_control type,
		  struct err *err)
{
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
	return r ? broken(r, "sending", type, err) : 0;
}

/* It does not wait: there may be nobody. */
void link_put_failure(struct link *l, enum wire_control type,
		      const struct err *why)
{
	size_t bytes = strnlen(why->text, WIRE_MAX_TEXT);
	uint8_t message[WIRE_CONTROL_BYTES + WIRE_MAX_TEXT];

	wire_put_control(message, type, bytes);
	memcpy(message + WIRE_CONTROL_BYTES, why->text, bytes);
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

int link_get(struct link *l, enum wire_control wanted, uint8_t **ret,
	     size_t *ret_bytes, struct err *err)
{
	_cleanup_free_ uint8_t *payload = NULL;
	uint8_t bytes[WIRE_CONTROL_BYTES];
	struct wire_control_header h;
	int r = link_recv(l, bytes, sizeof(bytes));

	if (r)
		return broken(r, "waiting for", wanted, err);
	r = wire_parse_control(bytes, wanted, &h, err);
	if (r)
		return r;
	r = get_payload(l, h.bytes, &payload);
	if (r)
		return broken(r, "receiving", h.type, err);
	if (h.type != wanted)
		return other_gave_up(payload, h.bytes, err);
	if (ret)
		*ret = take_ptr(payload);
	if (ret_bytes)
		*ret_bytes = h.bytes;
	return 0;
}
