/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A transmit queue: each chain is a frame, written to the other end straight
 * from guest memory, behind a checked copy of its header.
 *
 * Kicks stay off while there is work. Where the other end takes no more, the
 * chain goes back and the thread waits for room; a frame that cannot be sent at
 * all is dropped and counted, as a network may.
 *
 * Large frames are shown as used one by one, small ones in batches. TCP lets
 * few bytes wait in a device ("small queues"): a guest whose frames come back
 * only when all are sent has nothing to add meanwhile, its pacing then makes
 * them smaller, and every one of them costs a kick (bench/README.md).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/clock.h"
#include "virtio/net/net_priv.h"

#define BUDGET 256 /* frames in one call, then others get their turn */
/* The driver gets buffers back after so many frames or bytes. */
#define BATCH_FRAMES 32
#define BATCH_BYTES  (16 * KIB)

/*
 * Three times, since a bridge's port that has just come up may take nothing
 * yet. As with other VMMs a reverse ARP request (RFC 903): all that is said is
 * in the Ethernet header, nobody answers.
 */
#define ANNOUNCE_TIMES	  3u
#define ANNOUNCE_PAUSE_NS (100 * NSEC_PER_MSEC)
#define ANNOUNCE_BYTES	  60u

struct net_tx {
	struct net_queue q;
	unsigned int announcements; /* still to be sent */
	uint64_t announce_at_ns;
	unsigned int unshown; /* frames, and bytes, that were sent or dropped */
	size_t unshown_bytes;
	struct vq_chain chain;
	struct net_tx_frame frame;
};

enum sent {
	SENT,	 /* or dropped: the chain is done with */
	NO_ROOM, /* the chain was put back */
	BROKEN,
};

static void show(struct net_tx *tx)
{
	struct virtio_queue *queue = net_virtio_queue(&tx->q);

	if (!tx->unshown)
		return;
	vq_push_show(&queue->vq);
	net_count(&queue->requests, tx->unshown);
	tx->unshown = 0;
	tx->unshown_bytes = 0;
	virtio_queue_interrupt(&tx->q.dev->vdev, tx->q.index);
}

static void complete(struct net_tx *tx, size_t bytes)
{
	vq_push_fill(&net_virtio_queue(&tx->q)->vq, tx->chain.head, 0);
	tx->unshown++;
	tx->unshown_bytes += bytes;
	if (tx->unshown >= BATCH_FRAMES || tx->unshown_bytes >= BATCH_BYTES)
		show(tx);
}

/* Send the popped chain, if it is a frame. */
static enum sent send_chain(struct net_tx *tx)
{
	struct net_dev *dev = tx->q.dev;
	struct net_backend *b = dev->backend;
	int r = net_tx_parse(&tx->chain, dev->features, &tx->frame);

	if (r == -EINVAL) {
		complete(tx, 0);
		net_queue_broken(&tx->q, "frame without a header");
		return BROKEN;
	}
	if (!r)
		r = b->ops->send(b, tx->q.pair, tx->frame.iov,
				 tx->frame.num_iov, tx->frame.bytes);
	if (r == -EAGAIN) {
		vq_unpop(&net_virtio_queue(&tx->q)->vq, 1);
		return NO_ROOM;
	}
	if (r) {
		net_count(&dev->tx.dropped, 1);
	} else {
		net_count(&dev->tx.frames, 1);
		net_count(&dev->tx.bytes, tx->frame.bytes);
		if (dev->tx_limit.on)
			ratelimit_take(&dev->tx_limit, tx->frame.bytes,
				       clock_now_ns());
	}
	complete(tx, tx->frame.bytes);
	return SENT;
}

/* The other end has a part of the last frame, and no next one takes the rest.
 */
static void wait_for_rest(struct net_tx *tx, struct net_wait *wait)
{
	struct net_backend *b = tx->q.dev->backend;

	if (!b->ops->flush || b->ops->flush(b) != -EAGAIN)
		return;
	wait->peer.fd = b->ops->send_fd(b, tx->q.pair);
	wait->peer.events = POLLOUT;
}

static bool serve_ring(struct net_tx *tx, struct net_wait *wait)
{
	struct virtqueue *vq = &net_virtio_queue(&tx->q)->vq;
	struct net_backend *b = tx->q.dev->backend;

	for (unsigned int n = 0; n < BUDGET; n++) {
		int r;

		if (net_stopping(tx->q.dev))
			return false;
		wait->until_ns = net_limited_until(&tx->q.dev->tx_limit);
		if (wait->until_ns)
			return false;
		r = vq_pop(vq, &tx->chain);
		if (r < 0) {
			net_queue_broken(&tx->q, "bad descriptor chain");
			return false;
		}
		if (!r) {
			wait->driver = true;
			wait_for_rest(tx, wait);
			return false;
		}
		switch (send_chain(tx)) {
		case SENT:
			break;
		case NO_ROOM:
			wait->peer.fd = b->ops->send_fd(b, tx->q.pair);
			wait->peer.events = POLLOUT;
			return false;
		case BROKEN:
			return false;
		}
	}
	return true;
}

/* ---- that the guest is here ---- */

static void fill_announcement(uint8_t frame[ANNOUNCE_BYTES], uint64_t mac)
{
	static const uint8_t request[] = {
		0x80, 0x35, 0, 1, 8, 0, NET_MAC_BYTES, 4, 0, 3,
	};

	memset(frame, 0, ANNOUNCE_BYTES);
	memset(frame, 0xff, NET_MAC_BYTES);
	memcpy(frame + 6, &mac, NET_MAC_BYTES);
	memcpy(frame + 12, request, sizeof(request));
	memcpy(frame + 22, &mac, NET_MAC_BYTES);
	memcpy(frame + 32, &mac, NET_MAC_BYTES);
}

static void send_announcement(struct net_tx *tx)
{
	struct net_dev *dev = tx->q.dev;
	uint8_t frame[ANNOUNCE_BYTES];
	struct net_hdr hdr = { .flags = 0 };
	struct iovec iov[] = {
		{ &hdr, NET_HDR_BYTES },
		{ frame, sizeof(frame) },
	};

	fill_announcement(frame, atomic_load(&dev->mac));
	/* One that is lost is followed by others. */
	(void)!dev->backend->ops->send(dev->backend, tx->q.pair, iov,
				       ARRAY_SIZE(iov), sizeof(frame));
}

static void announce(struct net_tx *tx, struct net_wait *wait)
{
	uint64_t now;

	if (!tx->q.pair && atomic_exchange(&tx->q.dev->announce, false)) {
		tx->announcements = ANNOUNCE_TIMES;
		tx->announce_at_ns = 0;
	}
	if (!tx->announcements)
		return;
	now = clock_now_ns();
	if (now >= tx->announce_at_ns) {
		send_announcement(tx);
		tx->announcements--;
		tx->announce_at_ns = now + ANNOUNCE_PAUSE_NS;
	}
	if (tx->announcements &&
	    (!wait->until_ns || wait->until_ns > tx->announce_at_ns))
		wait->until_ns = tx->announce_at_ns;
}

static bool tx_serve(struct net_queue *q, struct net_wait *wait)
{
	struct net_tx *tx = container_of(q, struct net_tx, q);
	bool more;

	vq_disable_kick(&net_virtio_queue(q)->vq);
	more = serve_ring(tx, wait);
	show(tx);
	announce(tx, wait);
	return more;
}

static void tx_finish(struct net_queue *q)
{
	free(container_of(q, struct net_tx, q));
}

static const struct net_queue_ops tx_ops = {
	.serve = tx_serve,
	.finish = tx_finish,
};

struct net_queue *net_tx_new(struct net_dev *dev, unsigned int pair)
{
	struct net_tx *tx = calloc(1, sizeof(*tx));

	if (!tx)
		return NULL;
	tx->q = (struct net_queue){
		.ops = &tx_ops,
		.dev = dev,
		.index = 2 * pair + 1,
		.pair = pair,
	};
	return &tx->q;
}
