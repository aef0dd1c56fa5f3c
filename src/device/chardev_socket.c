/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chardev "socket": a listening Unix stream socket, one client at a time.
 *
 * Theory of operation. While a client is connected the listening socket is not
 * watched: further ones wait in its backlog until the first has gone. Output is
 * kept while there is no client, the newest OUTQ_BYTES of it, so one that
 * connects later sees how the guest got there; a client that does not read
 * loses the oldest in the same way. The guest never waits.
 *
 * A connection that cannot be taken (no free descriptor) stays in the backlog,
 * and the listening socket stays readable. It is left alone for RETRY_NS then,
 * or the control thread would do nothing else.
 *
 * Everything here runs on the control thread but the sink, which runs on the
 * output queue's and uses client_fd. To close a client: hold the queue, shut
 * the socket down (which ends a blocked send), wait for the sink to return,
 * close.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/evloop.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "device/chardev_priv.h"
#include "device/inpump.h"
#include "device/outq.h"
#include "device/timer.h"

#define RETRY_NS (NSEC_PER_SEC / 5)
#define BACKLOG	 4

struct sock {
	struct chardev chr;
	struct unix_listener listener;
	char *path; /* for messages */
	struct evloop *loop;
	int client_fd; /* -1: none. Changed only while the queue is held */
	bool accepting;
	bool input_over; /* client_fd is watched for its hang-up only */
	struct dev_timer retry;
	struct outq *out;
	struct inpump in;
};

static struct sock *to_sock(struct chardev *chr)
{
	return container_of(chr, struct sock, chr);
}

static int sock_sink(void *ctx, const uint8_t *data, size_t len)
{
	struct sock *sock = ctx;

	while (len) {
		ssize_t n = send(sock->client_fd, data, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		/*
		 * The client went away. Keep this and what comes until the
		 * control thread has seen that and taken the next one.
		 */
		if (n < 0) {
			outq_hold(sock->out, true);
			return -EAGAIN;
		}
		data += n;
		len -= (size_t)n;
	}
	return 0;
}

static void drop_client(struct sock *sock)
{
	if (sock->client_fd < 0)
		return;
	inpump_close(&sock->in);
	if (sock->input_over)
		evloop_del(sock->loop, sock->client_fd);
	sock->input_over = false;
	outq_hold(sock->out, true);
	shutdown(sock->client_fd, SHUT_RDWR);
	outq_sync(sock->out);
	close_fd(&sock->client_fd);
}

static void on_connect(void *ctx, uint32_t events);

static void retry_later(struct sock *sock)
{
	dev_timer_arm(&sock->retry, clock_now_ns() + RETRY_NS);
}

static void set_accepting(struct sock *sock, bool accepting)
{
	dev_timer_cancel(&sock->retry);
	if (sock->accepting == accepting)
		return;
	if (!accepting) {
		evloop_del(sock->loop, sock->listener.fd);
	} else if (evloop_add(sock->loop, sock->listener.fd, EPOLLIN,
			      on_connect, sock)) {
		retry_later(sock);
		return;
	}
	sock->accepting = accepting;
}

static void on_retry(void *ctx)
{
	set_accepting(ctx, true);
}

static void on_client_gone(void *ctx, uint32_t events)
{
	struct sock *sock = ctx;

	drop_client(sock);
	set_accepting(sock, true);
}

static void sock_input_end(void *ctx, int error)
{
	struct sock *sock = ctx;

	/* It may have nothing more to say, and still want to listen. */
	if (!error &&
	    !evloop_add(sock->loop, sock->client_fd, 0, on_client_gone, sock))
		sock->input_over = true;
	else
		on_client_gone(sock, 0);
}

/*
 * Gone, but the guest has yet to take what it sent. Keep that, unless another
 * client comes.
 */
static void sock_hangup(void *ctx)
{
	set_accepting(ctx, true);
}

static void accept_failed(struct sock *sock, int code)
{
	if (code == EAGAIN || code == EINTR || code == ECONNABORTED)
		return; /* it went away again */
	log_ratelimited(LOG_LEVEL_WARN,
			"console on %s: cannot take a connection: %s",
			sock->path, strerror(code));
	set_accepting(sock, false);
	retry_later(sock);
}

static void on_connect(void *ctx, uint32_t events)
{
	struct sock *sock = ctx;
	int fd = accept4(sock->listener.fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0) {
		accept_failed(sock, errno);
		return;
	}
	drop_client(sock);
	sock->client_fd = fd;
	if (inpump_open(&sock->in, fd)) {
		close_fd(&sock->client_fd);
		return;
	}
	set_accepting(sock, false);
	outq_hold(sock->out, false);
}

/* -- life -- */

static int sock_start(struct chardev *chr, struct evloop *loop, struct err *err)
{
	struct sock *sock = to_sock(chr);
	struct inpump_ops ops = {
		.end = sock_input_end,
		.hangup = sock_hangup,
		.ctx = sock,
	};
	int r;

	sock->loop = loop;
	r = inpump_init(&sock->in, chr, loop, &ops);
	if (!r)
		r = dev_timer_init(&sock->retry, loop, CLOCK_MONOTONIC,
				   on_retry, sock);
	if (!r)
		r = outq_start(sock->out);
	if (!r) {
		set_accepting(sock, true);
		r = sock->accepting ? 0 : -ENOMEM;
	}
	return r ? err_errno(err, -r, "console on %s", sock->path) : 0;
}

static void sock_write(struct chardev *chr, const uint8_t *data, size_t len)
{
	outq_put(to_sock(chr)->out, data, len, false);
}

static void sock_resume_input(struct chardev *chr)
{
	inpump_resume(&to_sock(chr)->in);
}

static int sock_flush(struct chardev *chr, uint64_t stall_ns)
{
	return outq_flush(to_sock(chr)->out, stall_ns);
}

static uint64_t sock_dropped(struct chardev *chr)
{
	return outq_dropped(to_sock(chr)->out);
}

static void sock_free(struct chardev *chr)
{
	struct sock *sock = to_sock(chr);

	unix_listener_remove(&sock->listener);
	if (sock->loop) {
		set_accepting(sock, false);
		/* Without a client, or with one that is stuck, it is lost. */
		(void)outq_flush(sock->out, CHARDEV_FINAL_STALL_NS);
		drop_client(sock);
		inpump_fini(&sock->in);
		dev_timer_fini(&sock->retry);
	}
	unix_listener_close(&sock->listener);
	free(take_ptr(sock->path));
	/* drop_client() ended the sink: the thread cannot be stuck. */
	if (outq_free(sock->out) == 0)
		free(sock);
}

static const struct chardev_ops sock_ops = {
	.start = sock_start,
	.write = sock_write,
	.resume_input = sock_resume_input,
	.flush = sock_flush,
	.dropped = sock_dropped,
	.free = sock_free,
};

static int listen_on(struct sock *sock, const struct chardev_config *cfg,
		     struct err *err)
{
	int r;

	sock->path = strdup(cfg->path);
	if (!sock->path)
		return err_set(err, ENOMEM, "%s socket=%s: out of memory",
			       cfg->option, cfg->path);
	r = unix_listener_open(&sock->listener, cfg->path, BACKLOG, err);
	if (r)
		err_prefix(err, "%s socket=%s", cfg->option, cfg->path);
	return r;
}

int chardev_socket_new(struct chardev **ret, const struct chardev_config *cfg,
		       struct err *err)
{
	struct sock *sock = calloc(1, sizeof(*sock));
	int r;

	if (!sock)
		return err_set(err, ENOMEM, "%s socket=%s: out of memory",
			       cfg->option, cfg->path);
	sock->chr.ops = &sock_ops;
	sock->listener = (struct unix_listener)UNIX_LISTENER_INIT;
	sock->client_fd = -1;
	r = outq_new(&sock->out, OUTQ_KEEP_NEW, sock_sink, sock);
	if (r) {
		err_errno(err, -r, "%s socket=%s", cfg->option, cfg->path);
	} else {
		outq_hold(sock->out, true);
		r = listen_on(sock, cfg, err);
	}
	if (r) {
		sock_free(&sock->chr);
		return r;
	}
	*ret = &sock->chr;
	return 0;
}
