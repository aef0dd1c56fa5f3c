/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A receive queue: frames are read from the other end straight into the
 * driver's buffers.
 *
 * Theory of operation. Buffers are popped ahead into a stock, and a frame is
 * read into as many of them as a frame usually needs. What a longer one has
 * beyond that lands in a side buffer behind them, from where it is copied into
 * further buffers, as soon as the driver has given enough: so no frame is cut,
 * and not every read has to carry room for 64 KiB in a hundred pieces. The
 * header is read apart, checked, completed (num_buffers) and copied in.
 *
 * Without MRG_RXBUF a frame has one buffer, and a longer one is dropped. So is
 * one that the whole ring is too small for.
 *
 * A frame's buffers are shown as used together: a driver that sees the first
 * looks for the others at once. Buffers in stock that were not needed go back
 * when the queue ends.
 *
 * While there are buffers, kicks are off: the driver adding more is no news.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/io.h"
#include "virtio/net/net_priv.h"

#define BUDGET 256 /* frames in one call */
/* An interrupt is considered after so many frames or bytes. */
#define BATCH_FRAMES 16
#define BATCH_BYTES  (128 * KIB)
/* Room that frames of ordinary size need. */
#define SMALL_BYTES 2048u
/* After a frame beyond that, so many reads have room for the largest. */
#define LARGE_READS 64
/* Iovecs in stock; a chain may have VQ_MAX_IOV. */
#define STOCK_IOV  (2 * VQ_MAX_IOV)
#define FULL_BYTES (NET_HDR_BYTES + NET_MAX_FRAME)
/* After an error of the host: an interface that is down or gone, no memory. */
#define ERROR_PAUSE_MS 100

struct rx_buf {
	uint16_t head;
	uint16_t num_iov;
	uint32_t bytes;
};

struct net_rx {
	struct net_queue q;
	bool mergeable;
	unsigned int unshown; /* frames, and bytes, since the last interrupt */
	size_t unshown_bytes;
	unsigned int large_reads; /* still to come */
	/* The stock, oldest first: [first_*, num_*) of the arrays. */
	size_t stock_bytes;
	unsigned int first_buf, num_bufs;
	unsigned int first_iov, num_iov;
	struct rx_buf bufs[STOCK_IOV];
	struct iovec iov[STOCK_IOV];
	/* The frame being received: */
	struct net_hdr hdr;
	uint32_t frame; /* its bytes with header; 0: there is none */
	size_t placed;	/* bytes of it, with header, that have their place */
	char *side;	/* NET_MAX_FRAME bytes; the rest of it */
	/* One before the stock for the header, one behind for the rest. */
	struct iovec read_iov[STOCK_IOV + 2];
	struct vq_chain chain;
};

/* ---- the stock of buffers ---- */

static void stock_compact(struct net_rx *rx)
{
	if (!rx->first_buf)
		return;
	memmove(rx->bufs, rx->bufs + rx->first_buf,
		(rx->num_bufs - rx->first_buf) * sizeof(rx->bufs[0]));
	memmove(rx->iov, rx->iov + rx->first_iov,
		(rx->num_iov - rx->first_iov) * sizeof(rx->iov[0]));
	rx->num_bufs -= rx->first_buf;
	rx->num_iov -= rx->first_iov;
	rx->first_buf = rx->first_iov = 0;
}

static unsigned int stock_count(const struct net_rx *rx)
{
	return rx->num_bufs - rx->first_buf;
}

static void stock_add(struct net_rx *rx)
{
	const struct vq_chain *c = &rx->chain;

	memcpy(rx->iov + rx->num_iov, c->iov, c->num_in * sizeof(c->iov[0]));
	rx->num_iov += c->num_in;
	rx->bufs[rx->num_bufs++] = (struct rx_buf){
		.head = c->head,
		.num_iov = (uint16_t)c->num_in,
		.bytes = (uint32_t)c->in_bytes,
	};
	rx->stock_bytes += c->in_bytes;
}

/* Pop until there is room for so many bytes; false: the queue is broken. */
static bool stock_fill(struct net_rx *rx, size_t want)
{
	struct virtqueue *vq = &net_virtio_queue(&rx->q)->vq;

	while (rx->stock_bytes < want) {
		int r;

		/* Without MRG_RXBUF one has to do. */
		if (!rx->mergeable && stock_count(rx))
			return true;
		if (rx->num_iov + VQ_MAX_IOV > STOCK_IOV) {
			stock_compact(rx);
			if (rx->num_iov + VQ_MAX_IOV > STOCK_IOV)
				return true;
		}
		r = vq_pop(vq, &rx->chain);
		if (r == 0)
			return true;
		if (r < 0) {
			net_queue_broken(&rx->q, "bad descriptor chain");
			return false;
		}
		if (rx->chain.num_out || rx->chain.in_bytes < NET_HDR_BYTES) {
			vq_push(vq, &rx->chain, 0);
			net_queue_broken(&rx->q, "receive buffer that cannot "
						 "hold a header");
			return false;
		}
		stock_add(rx);
	}
	return true;
}

/* Can the driver add no more, for all that it has are in stock? */
static bool stock_is_all(const struct net_rx *rx)
{
	return stock_count(rx) >= net_virtio_queue(&rx->q)->vq.size ||
	       rx->num_iov - rx->first_iov + VQ_MAX_IOV > STOCK_IOV;
}

/* ---- giving a frame to the driver ---- */

/* Copy to bytes [at, at + len) of the stock's memory. */
static void stock_write(struct net_rx *rx, size_t at, const void *from,
			size_t len)
{
	const struct iovec *iov = rx->iov + rx->first_iov;
	const char *p = from;

	for (; len; iov++) {
		size_t n;

		if (at >= iov->iov_len) {
			at -= iov->iov_len;
			continue;
		}
		n = MIN(iov->iov_len - at, len);
		memcpy((char *)iov->iov_base + at, p, n);
		p += n;
		len -= n;
		at = 0;
	}
}

static void mark_dirty(const struct net_rx *rx, const struct iovec *iov,
		       size_t len)
{
	const struct ram *ram = rx->q.dev->vdev.ram;

	for (; len; iov++) {
		size_t n = MIN(iov->iov_len, len);

		mem_mark_dirty(
			ram, GPA((uint64_t)((char *)iov->iov_base - ram->base)),
			n);
		len -= n;
	}
}

/* How many of the stock's buffers so many bytes take. */
static uint16_t count_bufs(const struct net_rx *rx, size_t bytes)
{
	uint16_t num = 0;

	for (unsigned int i = rx->first_buf; bytes; i++) {
		bytes -= MIN(bytes, (size_t)rx->bufs[i].bytes);
		num++;
	}
	return num;
}

static void interrupt(struct net_rx *rx)
{
	if (!rx->unshown)
		return;
	net_count(&net_virtio_queue(&rx->q)->requests, rx->unshown);
	rx->unshown = 0;
	rx->unshown_bytes = 0;
	virtio_queue_interrupt(&rx->q.dev->vdev, rx->q.index);
}

/* The frame is complete in the first buffers of the stock. */
static void deliver(struct net_rx *rx)
{
	struct virtqueue *vq = &net_virtio_queue(&rx->q)->vq;
	struct net_dev *dev = rx->q.dev;
	size_t left = rx->frame;

	rx->hdr.num_buffers = htole16(count_bufs(rx, rx->frame));
	stock_write(rx, 0, &rx->hdr, NET_HDR_BYTES);
	while (left) {
		const struct rx_buf *buf = &rx->bufs[rx->first_buf];
		uint32_t len = (uint32_t)MIN(left, (size_t)buf->bytes);

		mark_dirty(rx, rx->iov + rx->first_iov, len);
		vq_push_fill(vq, buf->head, len);
		rx->first_buf++;
		rx->first_iov += buf->num_iov;
		rx->stock_bytes -= buf->bytes;
		left -= len;
	}
	net_count(&dev->rx.frames, 1);
	net_count(&dev->rx.bytes, rx->frame - NET_HDR_BYTES);
	vq_push_show(vq);
	rx->unshown++;
	rx->unshown_bytes += rx->frame;
	rx->frame = 0;
	if (rx->unshown >= BATCH_FRAMES || rx->unshown_bytes >= BATCH_BYTES)
		interrupt(rx);
}

static void drop(struct net_rx *rx)
{
	net_count(&rx->q.dev->rx.dropped, 1);
	rx->frame = 0;
}

/*
 * Place what is in the side buffer and deliver. False: that wants more buffers
 * than the driver has given yet.
 */
static bool finish_frame(struct net_rx *rx)
{
	if (rx->mergeable && rx->stock_bytes < rx->frame &&
	    !stock_fill(rx, rx->frame))
		return false;
	if (rx->stock_bytes < rx->frame) {
		if (rx->mergeable && !stock_is_all(rx))
			return false;
		drop(rx);
		return true;
	}
	if (rx->placed < rx->frame)
		stock_write(rx, rx->placed, rx->side, rx->frame - rx->placed);
	deliver(rx);
	return true;
}

/* ---- receiving ---- */

/*
 * Iovecs for a frame: the header apart, then the stock without the header's
 * place, up to what is wanted, then the side buffer. Sets rx->placed.
 */
static unsigned int fill_read_iov(struct net_rx *rx, size_t want)
{
	size_t skip = NET_HDR_BYTES, room = 0;
	unsigned int num = 1;

	rx->read_iov[0].iov_base = &rx->hdr;
	rx->read_iov[0].iov_len = NET_HDR_BYTES;
	for (unsigned int i = rx->first_iov; i < rx->num_iov && room < want;
	     i++) {
		const struct iovec *iov = &rx->iov[i];
		size_t cut = MIN(skip, iov->iov_len);

		room += iov->iov_len;
		skip -= cut;
		if (cut == iov->iov_len)
			continue;
		rx->read_iov[num].iov_base = (char *)iov->iov_base + cut;
		rx->read_iov[num++].iov_len = iov->iov_len - cut;
	}
	rx->placed = room;
	rx->read_iov[num].iov_base = rx->side;
	rx->read_iov[num++].iov_len = NET_MAX_FRAME;
	return num;
}

/* Room that the next read has in guest memory. */
static size_t read_room(struct net_rx *rx)
{
	if (!rx->large_reads)
		return SMALL_BYTES;
	rx->large_reads--;
	return FULL_BYTES;
}

static void wait_ms(struct net_wait *wait, int ms)
{
	wait->until_ns = clock_now_ns() + (uint64_t)ms * NSEC_PER_MSEC + 1;
}

/* There is a frame of n bytes behind its header, or an error. */
static int received(struct net_rx *rx, ssize_t n, struct net_wait *wait)
{
	struct net_dev *dev = rx->q.dev;
	uint64_t offloads;
	int timeout;

	if (n == -EAGAIN) {
		timeout = dev->backend->ops->recv_wait(dev->backend, rx->q.pair,
						       &wait->peer);
		if (timeout >= 0)
			wait_ms(wait, timeout);
		return 0;
	}
	if (n == -EBADMSG) {
		drop(rx);
		return 1;
	}
	if (n < 0) {
		wait_ms(wait, ERROR_PAUSE_MS);
		return 0;
	}
	if (dev->rx_limit.on)
		ratelimit_take(&dev->rx_limit, (uint64_t)n, clock_now_ns());
	rx->frame = (uint32_t)n + NET_HDR_BYTES;
	if (rx->frame > SMALL_BYTES)
		rx->large_reads = LARGE_READS;
	offloads = atomic_load_explicit(&dev->offloads, memory_order_relaxed);
	if (!net_rx_acceptable(&rx->hdr, offloads))
		drop(rx);
	else if (!(offloads & NET_F_GUEST_CSUM))
		rx->hdr.flags = 0;
	return 1;
}

/* 1: a frame was taken; 0: there is none; -ENOBUFS: no buffer for one. */
static int receive(struct net_rx *rx, struct net_wait *wait)
{
	struct net_backend *b = rx->q.dev->backend;
	size_t want = read_room(rx);
	unsigned int num;

	if (!stock_fill(rx, want))
		return 0;
	if (!stock_count(rx))
		return -ENOBUFS;
	num = fill_read_iov(rx, want);
	return received(rx, b->ops->recv(b, rx->q.pair, rx->read_iov, num),
			wait);
}

static bool serve_peer(struct net_rx *rx, struct net_wait *wait)
{
	for (unsigned int n = 0; n < BUDGET; n++) {
		int r;

		if (net_stopping(rx->q.dev) || rx->q.broken)
			return false;
		if (rx->frame && !finish_frame(rx)) {
			wait->driver = true;
			return false;
		}
		wait->until_ns = net_limited_until(&rx->q.dev->rx_limit);
		if (wait->until_ns)
			return false;
		r = receive(rx, wait);
		wait->driver = r == -ENOBUFS;
		if (r <= 0)
			return false;
	}
	return true;
}

/*
 * The stock goes back. A frame that waits for buffers waits on; it finds what
 * was placed of it in the same ones, for the driver does not run.
 */
static void rx_be_quiet(struct net_queue *q)
{
	struct net_rx *rx = container_of(q, struct net_rx, q);

	vq_unpop(&net_virtio_queue(q)->vq, stock_count(rx));
	rx->first_buf = rx->num_bufs = 0;
	rx->first_iov = rx->num_iov = 0;
	rx->stock_bytes = 0;
}

static bool rx_serve(struct net_queue *q, struct net_wait *wait)
{
	struct net_rx *rx = container_of(q, struct net_rx, q);
	bool more;

	/* A pair that is not in use: woken by the kick when that changes. */
	if (q->pair >= atomic_load(&q->dev->pairs))
		return false;
	vq_disable_kick(&net_virtio_queue(q)->vq);
	more = serve_peer(rx, wait);
	interrupt(rx);
	return more;
}

static void rx_finish(struct net_queue *q)
{
	struct net_rx *rx = container_of(q, struct net_rx, q);

	/* A frame that waits for buffers is lost; its buffers are not. */
	vq_unpop(&net_virtio_queue(q)->vq, stock_count(rx));
	free(rx->side);
	free(rx);
}

static const struct net_queue_ops rx_ops = {
	.serve = rx_serve,
	.be_quiet = rx_be_quiet,
	.finish = rx_finish,
};

struct net_queue *net_rx_new(struct net_dev *dev, unsigned int pair)
{
	struct net_rx *rx = calloc(1, sizeof(*rx));

	if (!rx)
		return NULL;
	rx->side = malloc(NET_MAX_FRAME);
	if (!rx->side) {
		free(rx);
		return NULL;
	}
	rx->mergeable = dev->features & NET_F_MRG_RXBUF;
	rx->q = (struct net_queue){
		.ops = &rx_ops,
		.dev = dev,
		.index = 2 * pair,
		.pair = pair,
	};
	return &rx->q;
}
