/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The thread of a virtio-vsock device: an epoll loop over kicks, the listening
 * socket and the connections.
 *
 * Sockets are watched for edges, once and for both directions: what an edge
 * said is remembered in the connection until a call says EAGAIN, so data costs
 * no epoll_ctl(). The listener is watched for its level.
 *
 * A turn takes a bounded number of packets in each direction, so neither a busy
 * guest nor a busy host keeps the other from being heard. Kicks of the receive
 * queue are asked for only while there is something to send and no buffer.
 *
 * Connections die during a turn, while events that name them may be waiting in
 * the batch: they are freed after it.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/thread.h"
#include "virtio/vsock/vsock_priv.h"

#define BATCH 64 /* packets of one direction in a turn */
/* A guest's last words get that long to be read when it resets the device. */
#define LAST_WORDS_NS NSEC_PER_SEC

static struct virtio_queue *queue(struct vsock_dev *dev, unsigned int index)
{
	return &dev->vdev.queues[index];
}

static bool stopping(struct vsock_dev *dev)
{
	/* Pairs with the store in vsock_loop_stop(), before its wake-up. */
	return atomic_load_explicit(&dev->stop, memory_order_acquire);
}

static void count_request(struct vsock_dev *dev, unsigned int index)
{
	atomic_fetch_add_explicit(&queue(dev, index)->requests, 1,
				  memory_order_relaxed);
}

static void set_broken(struct vsock_dev *dev, const char *why)
{
	dev->broken = true;
	virtio_dev_broken(&dev->vdev, why);
	vsock_drop_all(dev);
}

/* -- from the guest -- */

static void take_packet(struct vsock_dev *dev)
{
	struct vsock_packet packet;
	int r = vsock_packet_parse(&dev->tx_chain, dev->guest_cid, &packet);

	if (r == VSOCK_TAKE)
		vsock_receive(dev, &packet);
	else if (r == VSOCK_REFUSE)
		vsock_refuse(dev, &packet);
	if (r == VSOCK_DROP || r == VSOCK_REFUSE)
		atomic_fetch_add_explicit(&dev->vdev.errors, 1,
					  memory_order_relaxed);
	vq_push(&queue(dev, VSOCK_QUEUE_TX)->vq, &dev->tx_chain, 0);
	dev->tx_pushed = true;
	count_request(dev, VSOCK_QUEUE_TX);
	if (r < 0)
		set_broken(dev, "vsock packet without a header");
}

/* Returns whether there is more to take at once. */
static bool serve_tx(struct vsock_dev *dev)
{
	struct virtqueue *vq = &queue(dev, VSOCK_QUEUE_TX)->vq;

	vq_disable_kick(vq);
	for (unsigned int i = 0; i < BATCH && !dev->broken; i++) {
		int r;

		/* The guest has to take some first; then we are woken. */
		if (vsock_num_rsts(dev) >= VSOCK_RSTS_TX)
			return false;
		r = vq_pop(vq, &dev->tx_chain);
		if (r == 0)
			return vq_enable_kick(vq);
		if (r < 0)
			set_broken(dev, "bad descriptor chain");
		else
			take_packet(dev);
	}
	return !dev->broken;
}

/* -- to the guest -- */

/* 1: dev->rx_chain is there, 0: the guest has given none, or is broken. */
static int get_buffer(struct vsock_dev *dev)
{
	struct virtqueue *vq = &queue(dev, VSOCK_QUEUE_RX)->vq;
	int r;

	if (dev->rx_held)
		return 1;
	r = vq_pop(vq, &dev->rx_chain);
	if (r == 0 && vq_enable_kick(vq))
		r = vq_pop(vq, &dev->rx_chain);
	if (r < 0) {
		set_broken(dev, "bad descriptor chain");
		return 0;
	}
	if (r == 0)
		return 0;
	dev->rx_held = true;
	if (dev->rx_chain.in_bytes >= sizeof(struct vsock_header))
		return 1;
	set_broken(dev, "vsock buffer too small for a header");
	return 0;
}

static void push_buffer(struct vsock_dev *dev, uint32_t written)
{
	vq_push(&queue(dev, VSOCK_QUEUE_RX)->vq, &dev->rx_chain, written);
	dev->rx_held = false;
	dev->rx_pushed = true;
}

/* Returns whether there is more to do at once. */
static bool serve_rx(struct vsock_dev *dev)
{
	vq_disable_kick(&queue(dev, VSOCK_QUEUE_RX)->vq);
	for (unsigned int i = 0; i < BATCH; i++) {
		uint32_t written;

		if (dev->broken || !vsock_has_output(dev) || !get_buffer(dev))
			return false;
		written = vsock_send_next(dev);
		if (!written)
			continue;
		push_buffer(dev, written);
		count_request(dev, VSOCK_QUEUE_RX);
	}
	return true;
}

/* -- being restored and being held -- */

/*
 * After this the driver ends all its connections and asks for its CID. It keeps
 * buffers in the event queue for that from the start; one that has none yet
 * is told when it gives one.
 */
static void send_reset(struct vsock_dev *dev)
{
	const struct vsock_event event = {
		.id = htole32(VSOCK_EVENT_TRANSPORT_RESET),
	};
	struct virtqueue *vq = &queue(dev, VSOCK_QUEUE_EVENT)->vq;
	/* Not needed at the same time, and too large for the stack. */
	struct vq_chain *chain = &dev->tx_chain;
	int r = vq_pop(vq, chain);

	if (r == 0 && vq_enable_kick(vq))
		r = vq_pop(vq, chain);
	if (r < 0) {
		set_broken(dev, "bad descriptor chain");
		return;
	}
	if (r == 0)
		return;
	vq_push(vq, chain,
		(uint32_t)vq_chain_write(chain, 0, &event, sizeof(event)));
	dev->reset_due = false;
	dev->event_pushed = true;
}

/* Nothing is taken from the guest nor given to it. */
static bool be_quiet(struct vsock_dev *dev)
{
	struct virtqueue *rx = &queue(dev, VSOCK_QUEUE_RX)->vq;

	if (!vq_is_held(rx))
		return false;
	/* The buffer is taken again when there is something for it. */
	if (dev->rx_held)
		vq_unpop(rx, 1);
	dev->rx_held = false;
	for (unsigned int i = 0; i < VSOCK_NUM_QUEUES; i++)
		(void)vq_take_hold(&queue(dev, i)->vq);
	return true;
}

/* -- turns -- */

static void interrupt(struct vsock_dev *dev)
{
	if (dev->event_pushed)
		virtio_queue_interrupt(&dev->vdev, VSOCK_QUEUE_EVENT);
	dev->event_pushed = false;
	if (dev->tx_pushed)
		virtio_queue_interrupt(&dev->vdev, VSOCK_QUEUE_TX);
	if (dev->rx_pushed)
		virtio_queue_interrupt(&dev->vdev, VSOCK_QUEUE_RX);
	dev->tx_pushed = false;
	dev->rx_pushed = false;
}

/* Returns whether there is more to do at once. */
static bool serve_queues(struct vsock_dev *dev)
{
	bool more = false;

	if (!dev->broken && !be_quiet(dev)) {
		bool was_full;

		if (dev->reset_due)
			send_reset(dev);
		more = serve_tx(dev);
		was_full = vsock_num_rsts(dev) >= VSOCK_RSTS_TX;
		more |= serve_rx(dev);
		more |= was_full && vsock_num_rsts(dev) < VSOCK_RSTS_TX;
	}
	interrupt(dev);
	return more && !dev->broken;
}

static void on_kick(struct vsock_dev *dev, struct virtio_queue *q)
{
	io_eventfd_drain(q->kick_fd);
	atomic_fetch_add_explicit(&q->kicks, 1, memory_order_relaxed);
}

static void on_event(struct vsock_dev *dev, const struct epoll_event *ev)
{
	void *what = ev->data.ptr;

	if (what == queue(dev, VSOCK_QUEUE_RX) ||
	    what == queue(dev, VSOCK_QUEUE_TX) ||
	    what == queue(dev, VSOCK_QUEUE_EVENT))
		on_kick(dev, what);
	else if (dev->broken)
		return; /* the connections are gone, clients have to wait */
	else if (what == dev)
		vsock_accept(dev);
	else
		vsock_conn_event(what, ev->events);
}

/* Milliseconds for epoll_wait(), rounded up: not too early. */
static int timeout_ms(const struct vsock_dev *dev)
{
	uint64_t now;

	if (!dev->timer_ns)
		return -1;
	now = clock_now_ns();
	if (now >= dev->timer_ns)
		return 0;
	return (int)MIN(div_round_up(dev->timer_ns - now, NSEC_PER_MSEC),
			1000u);
}

static void wait_for_events(struct vsock_dev *dev, bool more)
{
	struct epoll_event evs[32];
	int n = epoll_wait(dev->epoll_fd, evs, ARRAY_SIZE(evs),
			   more ? 0 : timeout_ms(dev));

	for (int i = 0; i < n; i++)
		on_event(dev, &evs[i]);
}

/* What a broken device does: nothing, until it is stopped by a kick. */
static void wait_for_stop(struct vsock_dev *dev)
{
	dev->timer_ns = 0;
	while (!stopping(dev)) {
		(void)be_quiet(dev);
		wait_for_events(dev, false);
	}
}

/* The guest sent and powered off: its bytes are no less sent for that. */
static void pass_on_last_words(struct vsock_dev *dev)
{
	uint64_t end = clock_now_ns() + LAST_WORDS_NS;

	while (vsock_has_unsent(dev) && clock_now_ns() < end) {
		dev->timer_ns = end; /* no other timer counts any more */
		wait_for_events(dev, false);
		vsock_reap(dev);
	}
}

static int watch_listener(struct vsock_dev *dev, int op)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = dev };

	if (epoll_ctl(dev->epoll_fd, op, dev->listener.fd, &ev))
		return -errno;
	return 0;
}

static const struct thread_call vsock_calls[] = {
	CALL(epoll_wait),
	RARE("a connection", epoll_ctl),
	RARE("a connection", close),
	RARE("a connection", accept4),
	RARE("a connection", connect), /* to PATH_PORT */
	RARE_ARG("a connection", socket, 0, AF_UNIX),
	RARE("a connection", recvfrom),
	RARE("a connection", readv),
	RARE("a connection", sendmsg),
	RARE("a connection", sendto),
	RARE("a connection", shutdown),
	RARE("a connection ends", poll),
};

static const struct thread_class vsock_class = {
	.name = "vsock",
	.what = "carries streams between guest and Unix sockets",
	THREAD_CALLS(vsock_calls),
};

const struct thread_class *const vsock_thread_classes[] = {
	&vsock_class,
	NULL,
};

static const struct thread_call vcpu_calls[] = {
	RARE("--vsock", epoll_ctl),
};

const struct thread_class vsock_vcpu_calls = {
	.name = "vcpu+vsock",
	.what = "when a driver enables a socket device",
	THREAD_CALLS(vcpu_calls),
};

static void *vsock_main(void *arg)
{
	struct vsock_dev *dev = arg;

	while (!stopping(dev) && !dev->broken) {
		wait_for_events(dev, serve_queues(dev));
		if (dev->timer_ns && clock_now_ns() >= dev->timer_ns)
			vsock_timers(dev, clock_now_ns());
		vsock_reap(dev);
	}
	interrupt(dev);
	epoll_ctl(dev->epoll_fd, EPOLL_CTL_DEL, dev->listener.fd, NULL);
	if (dev->broken)
		wait_for_stop(dev);
	pass_on_last_words(dev);
	vsock_drop_all(dev);
	vsock_reap(dev);
	if (dev->rx_held)
		push_buffer(dev, 0);
	return NULL;
}

int vsock_loop_init(struct vsock_dev *dev)
{
	dev->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (dev->epoll_fd < 0)
		return -errno;
	for (unsigned int i = 0; i < VSOCK_NUM_QUEUES; i++) {
		struct virtio_queue *q = queue(dev, i);
		struct epoll_event ev = { .events = EPOLLIN, .data.ptr = q };

		if (epoll_ctl(dev->epoll_fd, EPOLL_CTL_ADD, q->kick_fd, &ev))
			return -errno;
	}
	return 0;
}

int vsock_loop_start(struct vsock_dev *dev)
{
	int r;

	atomic_store(&dev->stop, false);
	dev->broken = false;
	dev->rx_held = false;
	dev->rx_pushed = false;
	dev->tx_pushed = false;
	dev->event_pushed = false;
	dev->reset_due = dev->vdev.restored &&
			 queue(dev, VSOCK_QUEUE_EVENT)->vq.started;
	dev->rst_head = 0;
	dev->rst_tail = 0;
	dev->timer_ns = 0;
	dev->accept_ns = 0;
	r = watch_listener(dev, EPOLL_CTL_ADD);
	if (r)
		return r;
	dev->accepting = true;
	r = thread_start(&dev->thread, &vsock_class, "vsock", vsock_main, dev);
	if (r)
		epoll_ctl(dev->epoll_fd, EPOLL_CTL_DEL, dev->listener.fd, NULL);
	else
		dev->running = true;
	return r;
}

void vsock_loop_stop(struct vsock_dev *dev)
{
	if (!dev->running)
		return;
	atomic_store_explicit(&dev->stop, true, memory_order_release);
	io_eventfd_signal(queue(dev, VSOCK_QUEUE_TX)->kick_fd);
	pthread_join(dev->thread, NULL);
	dev->running = false;
}
