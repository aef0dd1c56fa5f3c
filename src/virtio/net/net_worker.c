/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The threads of a network device: serve while there is work, then sleep until
 * a kick, the other end, or a time.
 *
 * system calls of these threads: ppoll, read (eventfd), write (eventfd, the
 * interrupt), clock_gettime, those of the back end's recv and send (readv,
 * writev; net_stream.c has its own list), for the control queue ioctl
 * (TUNSETOFFLOAD, TUNSETQUEUE), and what logging takes.
 */
#include <errno.h>

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/thread.h"
#include "virtio/net/net_priv.h"

void net_queue_broken(struct net_queue *q, const char *why)
{
	q->broken = true;
	virtio_dev_broken(&q->dev->vdev, why);
}

/* Earliest of the two times, 0 being none. */
static uint64_t earlier(uint64_t a, uint64_t b)
{
	return !a || (b && b < a) ? b : a;
}

/* Returns false when the time has passed already. */
static bool time_left(uint64_t until_ns, struct timespec *ret)
{
	uint64_t now = clock_now_ns(), left;

	if (now >= until_ns)
		return false;
	left = until_ns - now;
	ret->tv_sec = (time_t)(left / NSEC_PER_SEC);
	ret->tv_nsec = (long)(left % NSEC_PER_SEC);
	return true;
}

static void sleep_for(struct net_worker *w, const struct net_wait *waits)
{
	struct pollfd pfds[2 * NET_WORKER_QUEUES];
	unsigned int n = w->num_queues;
	struct timespec left = { 0 };
	uint64_t until = 0;

	for (unsigned int i = 0; i < n; i++) {
		struct virtio_queue *queue = net_virtio_queue(w->queues[i]);

		pfds[i] = (struct pollfd){ .fd = queue->kick_fd,
					   .events = POLLIN };
		pfds[n + i] = waits[i].peer;
		pfds[n + i].revents = 0;
		until = earlier(until, waits[i].until_ns);
	}
	if (until && !time_left(until, &left))
		return;
	if (ppoll(pfds, (nfds_t)2 * n, until ? &left : NULL, NULL) <= 0)
		return;
	for (unsigned int i = 0; i < n; i++) {
		struct virtio_queue *queue = net_virtio_queue(w->queues[i]);

		if (!pfds[i].revents)
			continue;
		io_eventfd_drain(queue->kick_fd);
		net_count(&queue->kicks, 1);
	}
}

static void *worker_main(void *arg)
{
	struct net_worker *w = arg;

	while (!net_stopping(w->dev)) {
		struct net_wait waits[NET_WORKER_QUEUES];
		bool more = false;

		for (unsigned int i = 0; i < w->num_queues; i++) {
			struct net_queue *q = w->queues[i];

			waits[i] = (struct net_wait){ .peer.fd = -1 };
			if (!q->broken && q->ops->serve(q, &waits[i]))
				more = true;
		}
		if (!more && !net_stopping(w->dev))
			sleep_for(w, waits);
	}
	return NULL;
}

int net_worker_start(struct net_worker *w, struct net_dev *dev,
		     const char *name)
{
	int r;

	w->dev = dev;
	r = thread_start(&w->thread, name, worker_main, w);
	if (!r)
		w->running = true;
	return r;
}

void net_worker_stop(struct net_worker *w)
{
	if (w->running)
		pthread_join(w->thread, NULL);
	w->running = false;
	for (unsigned int i = 0; i < w->num_queues; i++)
		w->queues[i]->ops->finish(w->queues[i]);
	w->num_queues = 0;
}
