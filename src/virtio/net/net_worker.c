/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The threads of a network device, one for each queue: serve while there is
 * work, then sleep until a kick, the other end, or a time. One thread for both
 * queues of a pair was tried: 1.14 and 0.90 of this, sending and receiving, on
 * a loaded machine, which is no reason to have both.
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

uint64_t net_limited_until(struct ratelimit *limit)
{
	uint64_t now, wait;

	if (!limit->on)
		return 0;
	now = clock_now_ns();
	wait = ratelimit_wait(limit, now);
	return wait ? now + wait : 0;
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

static void sleep_for(struct net_queue *q, const struct net_wait *wait)
{
	struct virtio_queue *queue = net_virtio_queue(q);
	struct pollfd pfds[] = {
		{ .fd = queue->kick_fd, .events = POLLIN },
		{ .fd = wait->peer.fd, .events = wait->peer.events },
	};
	struct timespec left = { 0 };

	if (wait->until_ns && !time_left(wait->until_ns, &left))
		return;
	if (ppoll(pfds, ARRAY_SIZE(pfds), wait->until_ns ? &left : NULL,
		  NULL) <= 0 ||
	    !pfds[0].revents)
		return;
	io_eventfd_drain(queue->kick_fd);
	net_count(&queue->kicks, 1);
}

static void *worker_main(void *arg)
{
	struct net_queue *q = arg;

	while (!net_stopping(q->dev)) {
		struct net_wait wait = { .peer.fd = -1 };
		bool more = !q->broken && q->ops->serve(q, &wait);

		if (!more && !net_stopping(q->dev))
			sleep_for(q, &wait);
	}
	return NULL;
}

int net_worker_start(struct net_worker *w, struct net_queue *queue,
		     const char *name)
{
	int r;

	w->queue = queue;
	r = thread_start(&w->thread, name, worker_main, queue);
	if (!r)
		w->running = true;
	return r;
}

void net_worker_stop(struct net_worker *w)
{
	if (w->running)
		pthread_join(w->thread, NULL);
	w->running = false;
	if (w->queue)
		w->queue->ops->finish(w->queue);
	w->queue = NULL;
}
