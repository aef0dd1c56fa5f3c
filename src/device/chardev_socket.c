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
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/evloop.h"
#include "base/log.h"
#include "device/chardev_priv.h"
#include "device/inpump.h"
#include "device/outq.h"
#include "device/timer.h"

#define RETRY_NS (NSEC_PER_SEC / 5)

struct sock {
	struct chardev chr;
	char *path; /* NULL until the socket is ours */
	dev_t dev;  /* of the socket's inode: remove no other */
	ino_t ino;
	struct evloop *loop;
	int listen_fd;
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
		evloop_del(sock->loop, sock->listen_fd);
	} else if (evloop_add(sock->loop, sock->listen_fd, EPOLLIN, on_connect,
			      sock)) {
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
	int fd = accept4(sock->listen_fd, NULL, NULL, SOCK_CLOEXEC);

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

static void remove_own_socket(const struct sock *sock)
{
	struct stat st;

	if (sock->path && !lstat(sock->path, &st) && st.st_dev == sock->dev &&
	    st.st_ino == sock->ino)
		unlink(sock->path);
}

static void sock_free(struct chardev *chr)
{
	struct sock *sock = to_sock(chr);

	remove_own_socket(sock);
	if (sock->loop) {
		set_accepting(sock, false);
		/* Without a client, or with one that is stuck, it is lost. */
		(void)outq_flush(sock->out, CHARDEV_FINAL_STALL_NS);
		drop_client(sock);
		inpump_fini(&sock->in);
		dev_timer_fini(&sock->retry);
	}
	close_fd(&sock->listen_fd);
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

/* A socket left behind by a process that died refuses connections. */
static bool is_stale_socket(const struct sockaddr_un *addr)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct stat st;

	if (fd < 0 || lstat(addr->sun_path, &st) || !S_ISSOCK(st.st_mode))
		return false;
	return connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 &&
	       errno == ECONNREFUSED;
}

static int bind_path(int fd, const struct chardev_config *cfg, struct err *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	const struct sockaddr *sa = (const struct sockaddr *)&addr;
	const char *path = cfg->path;

	if (strlen(path) >= sizeof(addr.sun_path))
		return err_set(err, ENAMETOOLONG,
			       "%s socket=%s: the path is too long for a "
			       "socket (at most %zu bytes)",
			       cfg->option, path, sizeof(addr.sun_path) - 1);
	memcpy(addr.sun_path, path, strlen(path) + 1);
	if (!bind(fd, sa, sizeof(addr)))
		return 0;
	if (errno == EADDRINUSE && is_stale_socket(&addr)) {
		unlink(path);
		if (!bind(fd, sa, sizeof(addr)))
			return 0;
	}
	if (errno == EADDRINUSE)
		return err_set(err, EADDRINUSE,
			       "%s socket=%s: in use by another process, or "
			       "not a socket; remove it or use another path",
			       cfg->option, path);
	return err_errno(err, errno, "%s socket=%s", cfg->option, path);
}

static int listen_on(struct sock *sock, const struct chardev_config *cfg,
		     struct err *err)
{
	const char *path = cfg->path;
	struct stat st;
	int r;

	sock->listen_fd = socket(AF_UNIX,
				 SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock->listen_fd < 0)
		return err_errno(err, errno, "%s socket=%s", cfg->option, path);
	r = bind_path(sock->listen_fd, cfg, err);
	if (r)
		return r;
	sock->path = strdup(path);
	if (!sock->path || lstat(path, &st) || listen(sock->listen_fd, 4)) {
		r = errno;
		unlink(path);
		return err_errno(err, r, "%s socket=%s", cfg->option, path);
	}
	sock->dev = st.st_dev;
	sock->ino = st.st_ino;
	return 0;
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
	sock->listen_fd = -1;
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
