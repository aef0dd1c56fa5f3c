/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. The descriptor's number stays the same for the life of
 * the back end: a new connection is put over the dead one with dup3(), so the
 * two threads of the pair need not agree on when a number changes.
 *
 * Only recv makes and unmakes the connection. When send finds it dead, it shuts
 * it down, and recv, which is woken by that, does the rest. send and the change
 * of connection exclude each other by a lock, for the rest of a frame belongs
 * to the connection it was begun on.
 *
 * Received bytes are read in large pieces and frames copied out of them: most
 * are small, and a system call costs more than such a copy.
 *
 * system calls of recv: read, socket, connect, dup3, close, shutdown,
 * clock_gettime; of send: sendmsg, shutdown.
 */
#include "virtio/net/net_stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/unix_socket.h"

#define LEN_BYTES   4u
#define IN_BYTES    (256 * KIB)
#define OUT_BYTES   (LEN_BYTES + NET_MAX_FRAME)
#define UNIX_PREFIX "socket"

_Static_assert(IN_BYTES >= 2ull * OUT_BYTES, "a frame must fit, and more");

struct stream {
	struct net_backend b;
	int fd;
	char *path; /* NULL: the connection cannot be made anew */
	struct net_stream_hooks hooks;

	/* recv's */
	bool up;
	uint64_t retry_at_ns;
	unsigned int retry_ms;
	char *in;	   /* IN_BYTES; what is between start and end: */
	size_t start, end; /* received, not yet taken */

	pthread_mutex_t lock; /* the rest */
	bool may_send;
	char *out; /* OUT_BYTES; between out_start and out_end: */
	size_t out_start, out_end; /* the rest of a frame */
};

static struct stream *stream_of(struct net_backend *b)
{
	return container_of(b, struct stream, b);
}

/* ---- the connection ---- */

static void set_link(struct stream *s, bool link)
{
	s->up = link;
	pthread_mutex_lock(&s->lock);
	s->may_send = link;
	s->out_start = s->out_end = 0;
	pthread_mutex_unlock(&s->lock);
	s->start = s->end = 0;
	atomic_store(&s->b.link, link);
	if (s->b.link_changed)
		s->b.link_changed(s->b.link_ctx);
}

static void disconnect(struct stream *s, const char *why)
{
	log_ratelimited(LOG_LEVEL_WARN,
			"--net %s: connection lost (%s); the guest's link is "
			"down%s",
			s->b.label, why,
			s->path ? " until it is there again" : "");
	shutdown(s->fd, SHUT_RDWR);
	s->retry_ms = NET_STREAM_RETRY_MIN_MS;
	s->retry_at_ns = clock_now_ns() + s->retry_ms * NSEC_PER_MSEC;
	set_link(s, false);
	if (!s->path && s->hooks.ended)
		s->hooks.ended(s->hooks.ctx);
}

/* One that is not there yet is no news. */
static void say_why_not(const struct stream *s, int r)
{
	if (r == -EACCES || r == -EPERM)
		log_ratelimited(LOG_LEVEL_WARN,
				"--net %s: cannot connect again: %s; quire has "
				"no capabilities, and must own the socket or "
				"be let in by its mode",
				s->b.label, strerror(-r));
}

/* Is there a connection, perhaps a new one? */
static bool connected(struct stream *s)
{
	uint64_t now;
	int fd = -1, r;

	if (s->up)
		return true;
	if (!s->path)
		return false;
	now = clock_now_ns();
	if (now < s->retry_at_ns)
		return false;
	r = unix_socket_connect(s->path, SOCK_NONBLOCK, &fd);
	if (r) {
		say_why_not(s, r);
		s->retry_ms = MIN(s->retry_ms * 2,
				  (unsigned int)NET_STREAM_RETRY_MAX_MS);
		s->retry_at_ns = now + s->retry_ms * NSEC_PER_MSEC;
		return false;
	}
	/* Beside a sender that waits on the old one: that is dead already. */
	pthread_mutex_lock(&s->lock);
	dup3(fd, s->fd, O_CLOEXEC);
	pthread_mutex_unlock(&s->lock);
	close(fd);
	log_info("--net %s: connected again", s->b.label);
	set_link(s, true);
	return true;
}

/* ---- receiving ---- */

/*
 * Is a whole frame in the buffer? 1: yes, of *ret_len bytes; 0: not yet;
 * -EPROTO: its length is nonsense.
 */
static int frame_ready(const struct stream *s, uint32_t *ret_len)
{
	size_t have = s->end - s->start;
	uint32_t len;

	if (have < LEN_BYTES)
		return 0;
	memcpy(&len, s->in + s->start, LEN_BYTES);
	len = ntohl(len);
	if (!len || len > NET_MAX_FRAME)
		return -EPROTO;
	*ret_len = len;
	return have - LEN_BYTES >= len;
}

/* Read more; 0 or a negative errno. */
static int read_more(struct stream *s)
{
	ssize_t n;

	if (s->start) {
		memmove(s->in, s->in + s->start, s->end - s->start);
		s->end -= s->start;
		s->start = 0;
	}
	n = read(s->fd, s->in + s->end, IN_BYTES - s->end);
	if (n > 0) {
		s->end += (size_t)n;
		return 0;
	}
	if (n == 0)
		return -EPIPE;
	return errno == EINTR ? -EAGAIN : -errno;
}

static ssize_t take_frame(struct stream *s, uint32_t len,
			  const struct iovec *iov, unsigned int num)
{
	const char *from = s->in + s->start + LEN_BYTES;
	size_t left = len;

	s->start += LEN_BYTES + len;
	if (len < NET_ETH_BYTES)
		return -EBADMSG;
	memset(iov[0].iov_base, 0, NET_HDR_BYTES);
	for (unsigned int i = 1; i < num && left; i++) {
		size_t n = MIN(left, iov[i].iov_len);

		memcpy(iov[i].iov_base, from, n);
		from += n;
		left -= n;
	}
	return (ssize_t)(len - left);
}

static ssize_t stream_recv(struct net_backend *b, unsigned int pair,
			   const struct iovec *iov, unsigned int num)
{
	struct stream *s = stream_of(b);
	uint32_t len = 0;
	int r;

	if (!connected(s))
		return -EAGAIN;
	while ((r = frame_ready(s, &len)) == 0) {
		r = read_more(s);
		if (r)
			break;
	}
	if (r > 0)
		return take_frame(s, len, iov, num);
	if (r == -EAGAIN)
		return r;
	disconnect(s, r == -EPIPE    ? "closed by the other end"
		      : r == -EPROTO ? "it sent a length that makes no sense"
				     : strerror(-r));
	return -EAGAIN;
}

static int stream_recv_wait(struct net_backend *b, unsigned int pair,
			    struct pollfd *pfd)
{
	struct stream *s = stream_of(b);
	uint64_t now;

	pfd->fd = s->up ? s->fd : -1;
	pfd->events = POLLIN;
	if (s->up || !s->path)
		return -1;
	now = clock_now_ns();
	return now >= s->retry_at_ns
		       ? 0
		       : (int)div_round_up(s->retry_at_ns - now, NSEC_PER_MSEC);
}

/* ---- sending ---- */

/* 0: all was sent; else -errno, and out_start says how far it got. */
static int flush_locked(struct stream *s)
{
	while (s->out_start < s->out_end) {
		ssize_t n = send(s->fd, s->out + s->out_start,
				 s->out_end - s->out_start,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		s->out_start += (size_t)n;
	}
	s->out_start = s->out_end = 0;
	return 0;
}

/* Keep what is behind the first sent bytes of a frame. */
static void keep_rest_locked(struct stream *s, const struct iovec *iov,
			     unsigned int num, size_t sent)
{
	for (unsigned int i = 0; i < num; i++) {
		size_t skip = MIN(sent, iov[i].iov_len);
		size_t n = iov[i].iov_len - skip;

		memcpy(s->out + s->out_end, (char *)iov[i].iov_base + skip, n);
		s->out_end += n;
		sent -= skip;
	}
}

static int send_locked(struct stream *s, struct iovec *iov, unsigned int num,
		       uint32_t bytes)
{
	uint32_t len = htonl(bytes);
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = num };
	ssize_t n;
	int r;

	if (!s->may_send)
		return -ENOTCONN;
	r = flush_locked(s);
	if (r)
		return r;
	iov[0].iov_base = &len;
	iov[0].iov_len = LEN_BYTES;
	do {
		n = sendmsg(s->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if ((size_t)n < LEN_BYTES + bytes)
		keep_rest_locked(s, iov, num, (size_t)n);
	return 0;
}

/* What sending came to; passed on. */
static int sent_locked(struct stream *s, int r)
{
	if (r && r != -EAGAIN && r != -ENOTCONN) {
		s->may_send = false;
		shutdown(s->fd, SHUT_RDWR);
	}
	return r;
}

static int stream_send(struct net_backend *b, unsigned int pair,
		       struct iovec *iov, unsigned int num, uint32_t bytes)
{
	struct stream *s = stream_of(b);
	int r;

	pthread_mutex_lock(&s->lock);
	r = sent_locked(s, send_locked(s, iov, num, bytes));
	pthread_mutex_unlock(&s->lock);
	return r;
}

static int stream_flush(struct net_backend *b)
{
	struct stream *s = stream_of(b);
	int r;

	pthread_mutex_lock(&s->lock);
	r = s->may_send ? sent_locked(s, flush_locked(s)) : 0;
	pthread_mutex_unlock(&s->lock);
	return r;
}

static int stream_send_fd(struct net_backend *b, unsigned int pair)
{
	return stream_of(b)->fd;
}

/* ---- life ---- */

static void stream_close(struct net_backend *b)
{
	struct stream *s = stream_of(b);

	close_fd(&s->fd);
	if (s->hooks.closed)
		s->hooks.closed(s->hooks.ctx);
	pthread_mutex_destroy(&s->lock);
	free(s->path);
	free(s->in);
	free(s->out);
	free(s);
}

static struct stream *stream_alloc(const char *path)
{
	struct stream *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->fd = -1;
	pthread_mutex_init(&s->lock, NULL);
	s->in = malloc(IN_BYTES);
	s->out = malloc(OUT_BYTES);
	s->path = path ? strdup(path) : NULL;
	if (s->in && s->out && (s->path || !path))
		return s;
	stream_close(&s->b);
	return NULL;
}

int net_stream_new(struct net_backend **ret, int fd, const char *path,
		   const struct net_stream_hooks *hooks, struct err *err)
{
	struct stream *s = stream_alloc(path);
	const char *slash = path ? strrchr(path, '/') : NULL;
	int flags = fcntl(fd, F_GETFL);

	if (!s || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK)) {
		close(fd);
		if (s)
			stream_close(&s->b);
		return err_set(err, s ? EBADF : ENOMEM,
			       s ? "not a descriptor" : "out of memory");
	}
	s->fd = fd;
	s->up = s->may_send = true;
	if (hooks)
		s->hooks = *hooks;
	s->b.ops = &net_stream_ops;
	s->b.num_pairs = 1;
	snprintf(s->b.label, sizeof(s->b.label), "%s",
		 slash	? slash + 1
		 : path ? path
			: UNIX_PREFIX);
	atomic_init(&s->b.link, true);
	*ret = &s->b;
	return 0;
}

static int stream_open(struct net_backend **ret,
		       const struct net_backend_config *cfg, struct err *err)
{
	int fd = -1;
	int r = unix_socket_connect(cfg->socket, SOCK_NONBLOCK, &fd);

	if (r)
		return err_errno(err, -r,
				 "socket=%s (start its server first: passt "
				 "--socket PATH)",
				 cfg->socket);
	return net_stream_new(ret, fd, cfg->socket, NULL, err);
}

const struct net_backend_ops net_stream_ops = {
	.name = "socket",
	.open = stream_open,
	.close = stream_close,
	.recv = stream_recv,
	.recv_wait = stream_recv_wait,
	.send = stream_send,
	.flush = stream_flush,
	.send_fd = stream_send_fd,
};
