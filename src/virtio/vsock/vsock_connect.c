/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How connections of a virtio-vsock device begin, from either side, and what
 * happens to those that take too long.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "virtio/vsock/vsock_priv.h"

#define HELLO_BYTES 64u /* of the line CONNECT <port> */
/* Host ports of host-initiated connections: [2^30, 2^31), above what anybody
 * listens on. */
#define FIRST_PORT (1u << 30)

#define HELLO_NS   (60 * NSEC_PER_SEC) /* a person may be typing it */
#define ANSWER_NS  (10 * NSEC_PER_SEC) /* the guest's, to a request */
#define CONNECT_NS (2 * NSEC_PER_SEC)  /* as long as Linux guests wait */
#define RETRY_NS   (NSEC_PER_SEC / 50)
#define ACCEPT_NS  (NSEC_PER_SEC / 5) /* when descriptors ran out */

/* -- connections that the guest begins -- */

/* 0: connected, -EAGAIN: not now, else nobody listens. */
static int connect_port(struct vsock_dev *dev, uint32_t port, int *ret_fd)
{
	char path[UNIX_SOCKET_PATH_MAX + 1];

	/* Its length was checked with the longest port (vsock.c). */
	snprintf(path, sizeof(path), "%s_%u", dev->path, port);
	return unix_socket_connect(path, SOCK_NONBLOCK, ret_fd);
}

static void receive_request(struct vsock_dev *dev, const struct vsock_packet *p)
{
	struct vsock_conn *conn = NULL;
	int fd = -1, r = -ENOSPC;

	if (!vsock_table_full(dev))
		r = connect_port(dev, p->dst_port, &fd);
	if (r == 0 || r == -EAGAIN)
		conn = vsock_conn_new(dev, r ? VSOCK_CONNECTING : VSOCK_OPEN,
				      fd);
	if (!conn) {
		vsock_send_rst(dev, VSOCK_CID_HOST, p->dst_port, p->src_port);
		return;
	}
	conn->host_port = p->dst_port;
	conn->guest_port = p->src_port;
	vsock_conn_enter(conn);
	vsock_conn_take_credit(conn, p);
	if (r == 0) {
		conn->due = VSOCK_DUE_RESPONSE;
		vsock_conn_schedule(conn);
		return;
	}
	conn->deadline_ns = clock_now_ns() + CONNECT_NS;
	vsock_conn_set_timer(conn, RETRY_NS);
}

/* The backlog was full: a new connection takes the place of this one. */
static void retry_connect(struct vsock_conn *conn, uint64_t now_ns)
{
	struct epoll_event ev = {
		.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | (uint32_t)EPOLLET,
		.data.ptr = conn,
	};
	int r = connect_port(conn->dev, conn->host_port, &conn->fd);

	if (!r && epoll_ctl(conn->dev->epoll_fd, EPOLL_CTL_ADD, conn->fd, &ev))
		r = -errno;
	if (r == -EAGAIN && now_ns < conn->deadline_ns) {
		vsock_conn_set_timer(conn, RETRY_NS);
		return;
	}
	if (r) {
		vsock_conn_reset(conn);
		return;
	}
	conn->state = VSOCK_OPEN;
	conn->due = VSOCK_DUE_RESPONSE;
	vsock_conn_schedule(conn);
}

void vsock_receive(struct vsock_dev *dev, const struct vsock_packet *packet)
{
	struct vsock_conn *conn = vsock_conn_find(dev, packet->dst_port,
						  packet->src_port);

	if (conn)
		vsock_conn_receive(conn, packet);
	else if (packet->op == VSOCK_OP_REQUEST)
		receive_request(dev, packet);
	else if (packet->op != VSOCK_OP_RST)
		vsock_send_rst(dev, VSOCK_CID_HOST, packet->dst_port,
			       packet->src_port);
}

void vsock_refuse(struct vsock_dev *dev, const struct vsock_packet *packet)
{
	struct vsock_conn *conn = NULL;

	if (packet->dst_cid == VSOCK_CID_HOST)
		conn = vsock_conn_find(dev, packet->dst_port, packet->src_port);
	if (conn)
		vsock_conn_kill(conn);
	vsock_send_rst(dev, packet->dst_cid, packet->dst_port,
		       packet->src_port);
}

/* -- connections that the host begins -- */

/* "CONNECT <port>", a line without its end; false: something else. */
static bool parse_hello(const char *line, uint32_t *ret_port)
{
	static const char word[] = "connect";
	size_t len = strlen(word);
	unsigned long port;
	char *end;

	line += strspn(line, " \t");
	if (strncasecmp(line, word, len) != 0 || !isblank(line[len]))
		return false;
	line += len;
	line += strspn(line, " \t");
	if (!isdigit((unsigned char)*line))
		return false;
	errno = 0;
	port = strtoul(line, &end, 10);
	end += strspn(end, " \t\r");
	if (errno || *end || port > UINT32_MAX)
		return false;
	*ret_port = (uint32_t)port;
	return true;
}

/* 1: the line is there and taken, without its end; 0: not yet; else none. */
static int read_hello(struct vsock_conn *conn, char line[HELLO_BYTES + 1])
{
	ssize_t n = recv(conn->fd, line, HELLO_BYTES, MSG_PEEK | MSG_DONTWAIT);
	const char *end;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	end = memchr(line, '\n', (size_t)n);
	if (!end)
		return n == 0 || n == HELLO_BYTES || conn->hung_up ? -EBADMSG
								   : 0;
	/* What follows the line is for the guest. */
	n = end - line + 1;
	if (recv(conn->fd, line, (size_t)n, MSG_DONTWAIT) != n)
		return -EIO;
	line[n - 1] = '\0';
	return strlen(line) == (size_t)n - 1 ? 1 : -EBADMSG;
}

/* Host ports of such connections are ours to choose. */
static uint32_t choose_port(struct vsock_dev *dev, uint32_t guest_port)
{
	uint32_t port;

	/* Ends: there are fewer connections than such ports. */
	do
		port = FIRST_PORT + dev->next_port++ % FIRST_PORT;
	while (vsock_conn_find(dev, port, guest_port));
	return port;
}

void vsock_take_hello(struct vsock_conn *conn)
{
	char line[HELLO_BYTES + 1];
	int r = read_hello(conn, line);

	if (r == 0)
		return;
	/* One that is gone already has nobody to be told OK. */
	if (r < 0 || conn->hung_up || !parse_hello(line, &conn->guest_port)) {
		vsock_conn_kill(conn);
		return;
	}
	conn->host_port = choose_port(conn->dev, conn->guest_port);
	conn->state = VSOCK_REQUESTED;
	conn->due = VSOCK_DUE_REQUEST;
	conn->readable = true; /* the edge of what follows may be past */
	vsock_conn_enter(conn);
	vsock_conn_schedule(conn);
	vsock_conn_set_timer(conn, ANSWER_NS);
}

static void watch_accepting(struct vsock_dev *dev, bool accepting)
{
	struct epoll_event ev = {
		.events = accepting ? EPOLLIN : 0,
		.data.ptr = dev,
	};

	dev->accept_ns = accepting ? 0 : clock_now_ns() + ACCEPT_NS;
	if (!accepting && (!dev->timer_ns || dev->accept_ns < dev->timer_ns))
		dev->timer_ns = dev->accept_ns;
	dev->accepting = accepting;
	epoll_ctl(dev->epoll_fd, EPOLL_CTL_MOD, dev->listener.fd, &ev);
}

void vsock_accept(struct vsock_dev *dev)
{
	int fd = accept4(dev->listener.fd, NULL, NULL,
			 SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct vsock_conn *conn;

	if (fd < 0) {
		if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
			return; /* it went away again */
		/* It stays in the backlog, which would wake us for ever. */
		log_ratelimited(LOG_LEVEL_WARN,
				"%s: cannot take a connection: %s",
				dev->vdev.id, strerror(errno));
		watch_accepting(dev, false);
		return;
	}
	if (vsock_table_full(dev)) {
		close(fd);
		return;
	}
	conn = vsock_conn_new(dev, VSOCK_HELLO, fd);
	if (conn)
		vsock_conn_set_timer(conn, HELLO_NS);
}

/* -- timers -- */

static void timer_fired(struct vsock_conn *conn, uint64_t now_ns)
{
	conn->timer_ns = 0;
	if (conn->state == VSOCK_CONNECTING)
		retry_connect(conn, now_ns);
	else
		vsock_conn_reset(conn);
}

void vsock_timers(struct vsock_dev *dev, uint64_t now_ns)
{
	struct vsock_conn *conn, *next;
	uint64_t earliest = 0;

	if (dev->accept_ns && dev->accept_ns <= now_ns)
		watch_accepting(dev, true);
	for (conn = TAILQ_FIRST(&dev->conns); conn; conn = next) {
		next = TAILQ_NEXT(conn, all);
		if (conn->timer_ns && conn->timer_ns <= now_ns)
			timer_fired(conn, now_ns);
		if (conn->state != VSOCK_DEAD && conn->timer_ns &&
		    (!earliest || conn->timer_ns < earliest))
			earliest = conn->timer_ns;
	}
	if (dev->accept_ns && (!earliest || dev->accept_ns < earliest))
		earliest = dev->accept_ns;
	dev->timer_ns = earliest;
}
