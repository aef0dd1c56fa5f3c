/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connections of a virtio-vsock device.
 *
 * Theory of operation. A connection is known by its two ports (the CIDs are
 * given) and has a Unix socket.
 *
 * Guest to host: payload goes to the socket at once. What the socket does not
 * take is kept, at most VSOCK_BUF_BYTES, which is the credit the guest was
 * given; a guest that sends more broke the protocol and is reset. The device's
 * thread never waits for a host program, so a slow one stalls only its own
 * connection: its guest runs out of credit. Credit is told again, unasked, when
 * the guest could believe that less than half is left.
 *
 * Host to guest: nothing is kept. Bytes are read from the socket right into the
 * guest's buffer, when there is one and the guest's credit allows.
 *
 * The ready list holds the connections that have something for the guest; each
 * sends one packet in its turn. vsock_conn_schedule() puts one there, after
 * whatever may have given it something to send.
 *
 * Ends. The host's end of file becomes SHUTDOWN(SEND), a socket that takes no
 * more SHUTDOWN(RCV); after both the guest answers RST (VSOCK_CLOSING, or is
 * reset after CLOSE_NS). The guest's SHUTDOWN of both is answered by RST at
 * once, which frees its ports; what it had sent before is still passed on
 * (VSOCK_LINGER).
 *
 * Source: virtio 1.2 sections 5.10.6.3 to 5.10.6.6.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "virtio/vsock/vsock_priv.h"

/* The guest's answer to the end of both directions. */
#define CLOSE_NS (10 * NSEC_PER_SEC)

/* -- the table -- */

static struct vsock_conn_chain *
chain_of(struct vsock_dev *dev, uint32_t host_port, uint32_t guest_port)
{
	uint32_t mixed = (host_port ^ guest_port * 0x9e3779b1u) * 0x85ebca6bu;

	return &dev->table[(mixed >> 16) % VSOCK_HASH_SIZE];
}

struct vsock_conn *vsock_conn_find(struct vsock_dev *dev, uint32_t host_port,
				   uint32_t guest_port)
{
	struct vsock_conn *conn;

	LIST_FOREACH(conn, chain_of(dev, host_port, guest_port), hash)
	if (conn->host_port == host_port && conn->guest_port == guest_port)
		return conn;
	return NULL;
}

void vsock_conn_enter(struct vsock_conn *conn)
{
	LIST_INSERT_HEAD(chain_of(conn->dev, conn->host_port, conn->guest_port),
			 conn, hash);
	conn->in_hash = true;
}

static void leave(struct vsock_conn *conn)
{
	if (conn->in_hash)
		LIST_REMOVE(conn, hash);
	conn->in_hash = false;
}

static void unready(struct vsock_conn *conn)
{
	if (conn->in_ready)
		TAILQ_REMOVE(&conn->dev->ready, conn, ready);
	conn->in_ready = false;
}

/* fd is taken over, also on failure. */
struct vsock_conn *vsock_conn_new(struct vsock_dev *dev, enum vsock_state state,
				  int fd)
{
	struct epoll_event ev = {
		.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | (uint32_t)EPOLLET,
	};
	struct vsock_conn *conn = calloc(1, sizeof(*conn));

	if (!conn)
		goto fail;
	ev.data.ptr = conn;
	if (fd >= 0 && epoll_ctl(dev->epoll_fd, EPOLL_CTL_ADD, fd, &ev))
		goto fail;
	conn->dev = dev;
	conn->state = state;
	conn->fd = fd;
	TAILQ_INSERT_TAIL(&dev->conns, conn, all);
	dev->num_conns++;
	return conn;

fail:
	free(conn);
	close_fd(&fd);
	return NULL;
}

void vsock_conn_kill(struct vsock_conn *conn)
{
	struct vsock_dev *dev = conn->dev;

	if (conn->state == VSOCK_DEAD)
		return;
	conn->state = VSOCK_DEAD;
	leave(conn);
	unready(conn);
	close_fd(&conn->fd);
	free(take_ptr(conn->buf));
	TAILQ_REMOVE(&dev->conns, conn, all);
	TAILQ_INSERT_TAIL(&dev->dead, conn, all);
	dev->num_conns--;
}

void vsock_reap(struct vsock_dev *dev)
{
	struct vsock_conn *conn;

	while ((conn = TAILQ_FIRST(&dev->dead))) {
		TAILQ_REMOVE(&dev->dead, conn, all);
		free(conn);
	}
}

bool vsock_has_unsent(const struct vsock_dev *dev)
{
	const struct vsock_conn *conn;

	TAILQ_FOREACH(conn, &dev->conns, all)
	if (conn->fd >= 0 && conn->rx_cnt != conn->fwd_cnt)
		return true;
	return false;
}

void vsock_drop_all(struct vsock_dev *dev)
{
	struct vsock_conn *conn;

	while ((conn = TAILQ_FIRST(&dev->conns)))
		vsock_conn_kill(conn);
	dev->rst_head = dev->rst_tail;
}

void vsock_conn_set_timer(struct vsock_conn *conn, uint64_t ns)
{
	struct vsock_dev *dev = conn->dev;

	conn->timer_ns = clock_now_ns() + ns;
	if (!dev->timer_ns || conn->timer_ns < dev->timer_ns)
		dev->timer_ns = conn->timer_ns;
}

bool vsock_table_full(struct vsock_dev *dev)
{
	if (dev->num_conns < VSOCK_MAX_CONNS)
		return false;
	log_ratelimited(LOG_LEVEL_WARN,
			"%s: %u connections; further ones are refused",
			dev->vdev.id, VSOCK_MAX_CONNS);
	return true;
}

/* -- resets -- */

unsigned int vsock_num_rsts(const struct vsock_dev *dev)
{
	return dev->rst_tail - dev->rst_head;
}

void vsock_send_rst(struct vsock_dev *dev, uint64_t cid, uint32_t host_port,
		    uint32_t guest_port)
{
	if (vsock_num_rsts(dev) == VSOCK_RSTS_MAX)
		return; /* see VSOCK_RSTS_MAX */
	dev->rsts[dev->rst_tail++ % VSOCK_RSTS_MAX] = (struct vsock_rst){
		.cid = cid,
		.host_port = host_port,
		.guest_port = guest_port,
	};
}

/* Does the guest know of this connection? */
static bool is_known(const struct vsock_conn *conn)
{
	return conn->in_hash && !(conn->due & VSOCK_DUE_REQUEST);
}

/* End it on both sides. */
void vsock_conn_reset(struct vsock_conn *conn)
{
	if (is_known(conn))
		vsock_send_rst(conn->dev, VSOCK_CID_HOST, conn->host_port,
			       conn->guest_port);
	vsock_conn_kill(conn);
}

/* -- credit -- */

static uint32_t num_buffered(const struct vsock_conn *conn)
{
	return conn->rx_cnt - conn->fwd_cnt;
}

/* How much the guest takes; a guest that counts wrongly takes nothing. */
static uint32_t peer_credit(const struct vsock_conn *conn)
{
	uint32_t in_flight = conn->tx_cnt - conn->peer_fwd_cnt;

	if (in_flight >= conn->peer_buf_alloc)
		return 0;
	return conn->peer_buf_alloc - in_flight;
}

/* Bytes left the buffer: has the guest to be told? */
static void passed_on(struct vsock_conn *conn, uint32_t len)
{
	conn->fwd_cnt += len;
	if (conn->fwd_cnt != conn->fwd_cnt_told &&
	    conn->rx_cnt - conn->fwd_cnt_told > VSOCK_BUF_BYTES / 2)
		conn->due |= VSOCK_DUE_CREDIT_UPDATE;
}

static bool is_connected(const struct vsock_conn *conn)
{
	return conn->state == VSOCK_OPEN;
}

/* Does the socket have something, and may it be told? */
static bool wants_to_read(const struct vsock_conn *conn)
{
	return is_connected(conn) && conn->readable &&
	       !(conn->host_shut & VSOCK_SHUTDOWN_SEND) &&
	       !(conn->guest_shut & VSOCK_SHUTDOWN_RCV);
}

void vsock_conn_schedule(struct vsock_conn *conn)
{
	bool wants = conn->due || conn->host_shut != conn->host_shut_told;

	if (!conn->in_hash)
		return;
	if (wants_to_read(conn)) {
		if (peer_credit(conn)) {
			wants = true;
		} else if (!conn->credit_asked) {
			conn->credit_asked = true;
			conn->due |= VSOCK_DUE_CREDIT_REQUEST;
			wants = true;
		}
	}
	if (wants && !conn->in_ready) {
		TAILQ_INSERT_TAIL(&conn->dev->ready, conn, ready);
		conn->in_ready = true;
	}
}

/* -- guest to host -- */

/* The socket takes no more. */
static void host_stopped_reading(struct vsock_conn *conn)
{
	conn->host_shut |= VSOCK_SHUTDOWN_RCV;
	passed_on(conn, num_buffered(conn));
	free(take_ptr(conn->buf));
}

/*
 * Bytes the socket took of these, 0 when it is full; or when it takes no more,
 * which host_shut then says.
 */
static uint32_t send_iov(struct vsock_conn *conn, struct iovec *iov,
			 unsigned int num)
{
	const struct msghdr msg = { .msg_iov = iov, .msg_iovlen = num };
	ssize_t n;

	do
		n = sendmsg(conn->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return (uint32_t)n;
	if (errno != EAGAIN)
		host_stopped_reading(conn);
	return 0;
}

/* The last byte that the guest sent has been passed on. */
static void flushed(struct vsock_conn *conn)
{
	free(take_ptr(conn->buf));
	if (conn->state == VSOCK_LINGER)
		vsock_conn_kill(conn);
	else if (conn->guest_shut & VSOCK_SHUTDOWN_SEND)
		shutdown(conn->fd, SHUT_WR);
}

/* Until the socket is full: an edge will tell when it is no more. */
static void flush(struct vsock_conn *conn)
{
	if (!num_buffered(conn))
		return;
	while (num_buffered(conn)) {
		uint32_t len = num_buffered(conn);
		uint32_t first = MIN(len, VSOCK_BUF_BYTES - conn->buf_start);
		struct iovec iov[2] = {
			{ conn->buf + conn->buf_start, first },
			{ conn->buf, len - first },
		};
		uint32_t n = send_iov(conn, iov, len > first ? 2 : 1);

		if (!n && num_buffered(conn))
			return;
		conn->buf_start = (conn->buf_start + n) % VSOCK_BUF_BYTES;
		passed_on(conn, n);
	}
	flushed(conn);
}

/* Keep the payload from byte skip on. False: out of memory. */
static bool keep(struct vsock_conn *conn, uint32_t skip, uint32_t len)
{
	const struct vq_chain *chain = &conn->dev->tx_chain;
	uint64_t at = sizeof(struct vsock_header) + skip;
	uint32_t end, first;

	if (!conn->buf) {
		conn->buf = malloc(VSOCK_BUF_BYTES);
		conn->buf_start = 0;
	}
	if (!conn->buf)
		return false;
	/* rx_cnt counts these bytes already. */
	end = (conn->buf_start + num_buffered(conn) - len) % VSOCK_BUF_BYTES;
	first = MIN(len, VSOCK_BUF_BYTES - end);
	vq_chain_read(chain, at, conn->buf + end, first);
	vq_chain_read(chain, at + first, conn->buf, len - first);
	return true;
}

/* Straight from the guest's memory, as far as the socket takes it. */
static uint32_t send_payload(struct vsock_conn *conn, uint32_t len)
{
	const struct vq_chain *chain = &conn->dev->tx_chain;
	struct iovec iov[VQ_MAX_IOV];
	unsigned int num = vsock_payload_iov(chain->iov, chain->num_out,
					     sizeof(struct vsock_header), len,
					     iov);

	return send_iov(conn, iov, num);
}

static void receive_data(struct vsock_conn *conn, uint32_t len)
{
	bool was_empty = !num_buffered(conn);
	uint32_t sent = 0;

	if (len > VSOCK_BUF_BYTES - num_buffered(conn)) {
		vsock_conn_reset(conn); /* more than it had credit for */
		return;
	}
	if (!len)
		return;
	conn->rx_cnt += len;
	if (conn->state == VSOCK_CLOSING ||
	    conn->host_shut & VSOCK_SHUTDOWN_RCV) {
		/* It was on its way when the guest was told. */
		passed_on(conn, len);
		return;
	}
	if (was_empty)
		sent = send_payload(conn, len);
	/* All of it, or none will ever be wanted: nothing is left to keep. */
	if (!num_buffered(conn))
		return;
	passed_on(conn, sent);
	if (sent == len)
		return;
	if (!keep(conn, sent, len - sent))
		vsock_conn_reset(conn);
	else if (was_empty)
		flush(conn); /* up to the edge */
}

/* -- host to guest -- */

/* Which packet of the connection is next, data excepted; false: none. */
static bool next_control(struct vsock_conn *conn, struct vsock_packet *packet)
{
	if (conn->state == VSOCK_DEAD)
		return false;
	if (conn->due & VSOCK_DUE_REQUEST) {
		conn->due &= ~(unsigned int)VSOCK_DUE_REQUEST;
		packet->op = VSOCK_OP_REQUEST;
	} else if (conn->due & VSOCK_DUE_RESPONSE) {
		conn->due &= ~(unsigned int)VSOCK_DUE_RESPONSE;
		packet->op = VSOCK_OP_RESPONSE;
	} else if (conn->host_shut != conn->host_shut_told) {
		conn->host_shut_told = conn->host_shut;
		packet->op = VSOCK_OP_SHUTDOWN;
		packet->flags = conn->host_shut;
	} else if (conn->due & VSOCK_DUE_CREDIT_REQUEST) {
		conn->due &= ~(unsigned int)VSOCK_DUE_CREDIT_REQUEST;
		packet->op = VSOCK_OP_CREDIT_REQUEST;
	} else {
		return false;
	}
	return true;
}

/* The end may be read before the event that tells of it has come. */
static bool has_hung_up(const struct vsock_conn *conn)
{
	struct pollfd pfd = { conn->fd, 0, 0 };

	return conn->hung_up || (poll(&pfd, 1, 0) > 0 && pfd.revents & POLLHUP);
}

static void host_finished(struct vsock_conn *conn)
{
	conn->host_shut |= VSOCK_SHUTDOWN_SEND;
	/* Closed, or the guest has ended the other direction. */
	if (has_hung_up(conn))
		conn->host_shut |= VSOCK_SHUTDOWN_RCV;
}

/* Data for the guest behind the header of rx_chain: bytes, or 0. */
static uint32_t read_payload(struct vsock_conn *conn)
{
	struct vq_chain *chain = &conn->dev->rx_chain;
	uint64_t room = chain->in_bytes - sizeof(struct vsock_header);
	struct iovec iov[VQ_MAX_IOV];
	unsigned int num;
	ssize_t n;

	if (!room) {
		/* Use the buffer up, for it will never do for data. */
		conn->due |= VSOCK_DUE_CREDIT_UPDATE;
		return 0;
	}
	room = MIN(room, VSOCK_MAX_PAYLOAD);
	room = MIN(room, peer_credit(conn));
	if (!room)
		return 0;
	num = vsock_payload_iov(chain->iov + chain->num_out, chain->num_in,
				sizeof(struct vsock_header), room, iov);
	do
		n = readv(conn->fd, iov, (int)num);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		return (uint32_t)n;
	if (n == 0)
		host_finished(conn);
	else if (errno == EAGAIN)
		conn->readable = false;
	else
		vsock_conn_reset(
			conn); /* closed without reading what was sent */
	return 0;
}

static bool next_data(struct vsock_conn *conn, struct vsock_packet *packet)
{
	if (!wants_to_read(conn))
		return false;
	packet->len = read_payload(conn);
	packet->op = VSOCK_OP_RW;
	conn->tx_cnt += packet->len;
	return packet->len != 0;
}

/* What is left: its credit, if that is due. */
static bool next_credit(struct vsock_conn *conn, struct vsock_packet *packet)
{
	packet->op = VSOCK_OP_CREDIT_UPDATE;
	return conn->due & VSOCK_DUE_CREDIT_UPDATE && conn->state != VSOCK_DEAD;
}

static void begin_closing(struct vsock_conn *conn)
{
	conn->state = VSOCK_CLOSING;
	close_fd(&conn->fd);
	conn->fwd_cnt = conn->rx_cnt;
	free(take_ptr(conn->buf));
	vsock_conn_set_timer(conn, CLOSE_NS);
}

static bool next_packet(struct vsock_conn *conn, struct vsock_packet *packet)
{
	*packet = (struct vsock_packet){
		.src_cid = VSOCK_CID_HOST,
		.dst_cid = conn->dev->guest_cid,
		.src_port = conn->host_port,
		.dst_port = conn->guest_port,
		.buf_alloc = VSOCK_BUF_BYTES,
	};
	/*
	 * Trying to read may be how the end of the file is found, which makes
	 * control due; or an error, which ends the connection.
	 */
	if (!next_control(conn, packet) && !next_data(conn, packet) &&
	    !next_control(conn, packet) && !next_credit(conn, packet))
		return false;
	packet->fwd_cnt = conn->fwd_cnt;
	conn->fwd_cnt_told = conn->fwd_cnt;
	conn->due &= ~(unsigned int)VSOCK_DUE_CREDIT_UPDATE;
	return true;
}

static uint32_t write_packet(struct vsock_dev *dev,
			     const struct vsock_packet *packet)
{
	/* Room for a header was made sure of by the caller. */
	if (!vsock_packet_write(&dev->rx_chain, packet))
		return 0;
	return (uint32_t)sizeof(struct vsock_header) + packet->len;
}

static uint32_t send_next_rst(struct vsock_dev *dev)
{
	struct vsock_rst *rst = &dev->rsts[dev->rst_head++ % VSOCK_RSTS_MAX];
	const struct vsock_packet packet = {
		.src_cid = rst->cid,
		.dst_cid = dev->guest_cid,
		.src_port = rst->host_port,
		.dst_port = rst->guest_port,
		.op = VSOCK_OP_RST,
	};

	return write_packet(dev, &packet);
}

bool vsock_has_output(const struct vsock_dev *dev)
{
	return vsock_num_rsts(dev) || !TAILQ_EMPTY(&dev->ready);
}

uint32_t vsock_send_next(struct vsock_dev *dev)
{
	struct vsock_conn *conn = TAILQ_FIRST(&dev->ready);
	struct vsock_packet packet;
	uint32_t written = 0;

	if (vsock_num_rsts(dev))
		return send_next_rst(dev);
	if (!conn)
		return 0;
	unready(conn);
	if (next_packet(conn, &packet))
		written = write_packet(dev, &packet);
	if (conn->state == VSOCK_OPEN &&
	    conn->host_shut_told == VSOCK_SHUTDOWN_BOTH)
		begin_closing(conn);
	if (conn->state != VSOCK_DEAD)
		vsock_conn_schedule(conn);
	return written;
}

/* -- packets of a connection -- */

void vsock_conn_take_credit(struct vsock_conn *conn,
			    const struct vsock_packet *p)
{
	conn->peer_buf_alloc = p->buf_alloc;
	conn->peer_fwd_cnt = p->fwd_cnt;
	if (peer_credit(conn))
		conn->credit_asked = false;
}

/* The guest agreed to a host's connection. */
static void receive_response(struct vsock_conn *conn)
{
	char line[32];
	int len;

	if (conn->state != VSOCK_REQUESTED || conn->due & VSOCK_DUE_REQUEST) {
		vsock_conn_reset(conn);
		return;
	}
	len = snprintf(line, sizeof(line), "OK %u\n", conn->host_port);
	/* Nothing was sent before: it fits, or nobody is there. */
	if (send(conn->fd, line, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL) !=
	    len) {
		vsock_conn_reset(conn);
		return;
	}
	conn->state = VSOCK_OPEN;
	conn->timer_ns = 0;
}

static void receive_shutdown(struct vsock_conn *conn, uint32_t flags)
{
	conn->guest_shut |= flags & VSOCK_SHUTDOWN_BOTH;
	if (conn->state == VSOCK_CLOSING) {
		if (conn->guest_shut == VSOCK_SHUTDOWN_BOTH)
			vsock_conn_reset(conn);
		return;
	}
	if (conn->guest_shut & VSOCK_SHUTDOWN_RCV) {
		shutdown(conn->fd, SHUT_RD);
		if (conn->hung_up)
			conn->host_shut = VSOCK_SHUTDOWN_BOTH;
	}
	if (conn->guest_shut == VSOCK_SHUTDOWN_BOTH) {
		vsock_send_rst(conn->dev, VSOCK_CID_HOST, conn->host_port,
			       conn->guest_port);
		leave(conn);
		unready(conn);
		conn->state = VSOCK_LINGER;
		conn->timer_ns = 0;
	}
	if (conn->guest_shut & VSOCK_SHUTDOWN_SEND && !num_buffered(conn))
		flushed(conn);
}

static bool may_send(const struct vsock_conn *conn)
{
	return (conn->state == VSOCK_OPEN || conn->state == VSOCK_CLOSING) &&
	       !(conn->guest_shut & VSOCK_SHUTDOWN_SEND);
}

void vsock_conn_receive(struct vsock_conn *conn, const struct vsock_packet *p)
{
	vsock_conn_take_credit(conn, p);
	switch (p->op) {
	case VSOCK_OP_RESPONSE:
		receive_response(conn);
		break;
	case VSOCK_OP_RST:
		vsock_conn_kill(conn);
		break;
	case VSOCK_OP_SHUTDOWN:
		if (conn->state == VSOCK_OPEN || conn->state == VSOCK_CLOSING)
			receive_shutdown(conn, p->flags);
		else
			vsock_conn_reset(conn);
		break;
	case VSOCK_OP_RW:
		if (may_send(conn))
			receive_data(conn, p->len);
		else
			vsock_conn_reset(conn);
		break;
	case VSOCK_OP_CREDIT_UPDATE:
		break;
	case VSOCK_OP_CREDIT_REQUEST:
		conn->due |= VSOCK_DUE_CREDIT_UPDATE;
		break;
	case VSOCK_OP_REQUEST: /* of ports in use */
	case VSOCK_OP_INVALID: /* refused before */
		vsock_conn_reset(conn);
		break;
	}
	if (conn->state != VSOCK_DEAD)
		vsock_conn_schedule(conn);
}

/* -- events -- */

/* Closed by its program: nothing can be sent to it any more. */
static void host_closed(struct vsock_conn *conn)
{
	conn->hung_up = true;
	if (conn->state == VSOCK_REQUESTED)
		vsock_conn_reset(conn);
	else if (conn->state == VSOCK_LINGER)
		vsock_conn_kill(conn);
	else if (is_connected(conn) && (conn->guest_shut & VSOCK_SHUTDOWN_RCV ||
					conn->host_shut & VSOCK_SHUTDOWN_SEND))
		/* Nothing is read any more that would show it. */
		conn->host_shut = VSOCK_SHUTDOWN_BOTH;
}

void vsock_conn_event(struct vsock_conn *conn, uint32_t events)
{
	if (conn->fd < 0)
		return; /* dead or closing since */
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		conn->readable = true;
	if (events & (EPOLLHUP | EPOLLERR))
		host_closed(conn);
	if (conn->state == VSOCK_HELLO)
		vsock_take_hello(conn);
	else if (is_connected(conn) || conn->state == VSOCK_LINGER)
		flush(conn);
	if (conn->state != VSOCK_DEAD)
		vsock_conn_schedule(conn);
}
