/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The threads of a network device, one for each pair of queues and one for the
 * control queue: serve while there is work, then sleep until a kick, the other
 * end, or a time. Before the drivers are asked to kick, the thread lets others
 * have its CPU once: a vCPU about to add a frame, whose kick would be an exit,
 * or the reader of what was sent. A thread for each direction was measured:
 * where the host has few CPUs each acknowledgement wakes the receiving one in
 * the midst of sending. So was polling before sleeping, as disks do: it gained
 * nothing (bench/README.md).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

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

/* Earliest of the two times, 0 being none. */
static uint64_t earlier(uint64_t a, uint64_t b)
{
	return !a || (b && b < a) ? b : a;
}

static uint64_t waits_until(const struct net_worker *w)
{
	uint64_t until = 0;

	for (unsigned int i = 0; i < w->num_queues; i++)
		until = earlier(until, w->waits[i].until_ns);
	return until;
}

static void sleep_for_work(struct net_worker *w)
{
	struct pollfd pfds[2 * NET_WORKER_QUEUES];
	unsigned int n = w->num_queues;
	uint64_t until = waits_until(w);
	struct timespec left = { 0 };

	for (unsigned int i = 0; i < n; i++) {
		pfds[i] = (struct pollfd){
			.fd = net_virtio_queue(w->queues[i])->kick_fd,
			.events = POLLIN,
		};
		pfds[n + i] = w->waits[i].peer;
	}
	if (until && !time_left(until, &left))
		return;
	if (ppoll(pfds, (nfds_t)2 * n, until ? &left : NULL, NULL) <= 0)
		return;
	for (unsigned int i = 0; i < n; i++) {
		if (!pfds[i].revents)
			continue;
		io_eventfd_drain(pfds[i].fd);
		net_count(&net_virtio_queue(w->queues[i])->kicks, 1);
	}
}

/* Serve each queue once; true: there is more to do. */
static bool serve(struct net_worker *w)
{
	bool more = false;

	for (unsigned int i = 0; i < w->num_queues; i++) {
		struct net_queue *q = w->queues[i];

		w->waits[i] = (struct net_wait){ .peer.fd = -1 };
		if (q->broken)
			(void)vq_take_hold(&net_virtio_queue(q)->vq);
		else if (q->ops->serve(q, &w->waits[i]))
			more = true;
	}
	return more;
}

/* Have the drivers kick; true: one has added something before. */
static bool enable_kicks(struct net_worker *w)
{
	bool more = false;

	for (unsigned int i = 0; i < w->num_queues; i++) {
		if (w->waits[i].driver &&
		    vq_enable_kick(&net_virtio_queue(w->queues[i])->vq))
			more = true;
	}
	return more;
}

static const struct thread_call worker_calls[] = {
	CALL(ppoll),
	/* Frames of a tap, and with writev(2), which any thread may. */
	CALL(readv),
	RARE_IOCTL("the driver's commands to a tap", TUNSETOFFLOAD),
	RARE_IOCTL("the driver's commands to a tap", TUNSETQUEUE),
	/* Frames of a stream, and its connection. */
	RARE("mode=passt and socket", sendto),
	RARE("mode=passt and socket", sendmsg),
	RARE("mode=passt and socket", shutdown),
	RARE("mode=socket connects again", close),
	RARE("mode=socket connects again", connect),
	RARE("mode=socket connects again", dup3),
	RARE_ARG("mode=socket connects again", socket, 0, AF_UNIX),
};

static const struct thread_class worker_class = {
	.name = "net",
	.what = "carries frames between the guest's queues and the host",
	THREAD_CALLS(worker_calls),
};

const struct thread_class *const net_thread_classes[] = {
	&worker_class,
	NULL,
};

static const struct thread_call vcpu_calls[] = {
	RARE_IOCTL("--net tap", TUNSETOFFLOAD),
	RARE_IOCTL("--net tap", TUNSETQUEUE),
};

const struct thread_class net_vcpu_calls = {
	.name = "vcpu+net",
	.what = "when a driver enables a network device",
	THREAD_CALLS(vcpu_calls),
};

static const struct thread_call net_control_calls_list[] = {
	RARE_IOCTL("a tap is added", TUNSETIFF),
	RARE_IOCTL("a tap is added", TUNGETIFF),
	RARE_IOCTL("a tap is added", TUNSETVNETHDRSZ),
	RARE_IOCTL("a tap is added", TUNSETVNETLE),
	RARE_IOCTL("a tap is added", TUNSETOFFLOAD),
	RARE_IOCTL("a tap is added", SIOCGIFINDEX),
	RARE_IOCTL("a tap is added with mtu=", SIOCGIFMTU),
	RARE_FCNTL("a tap is added by its descriptors", F_SETFD),
	RARE("the end of a passt of ours", wait4),
	RARE("a passt of ours that hangs", pidfd_send_signal),
};

const struct thread_class net_control_calls = {
	.name = "control+net",
	.what = "when a network device is added later, or goes",
	THREAD_CALLS(net_control_calls_list),
};

static void *worker_main(void *arg)
{
	struct net_worker *w = arg;

	while (!net_stopping(w->dev)) {
		if (serve(w) || net_stopping(w->dev))
			continue;
		sched_yield();
		if (!serve(w) && !net_stopping(w->dev) && !enable_kicks(w))
			sleep_for_work(w);
	}
	return NULL;
}

int net_worker_add(struct net_worker *w, struct net_queue *queue)
{
	if (!queue)
		return -ENOMEM;
	w->queues[w->num_queues++] = queue;
	return 0;
}

int net_worker_start(struct net_worker *w, struct net_dev *dev,
		     const char *name)
{
	int r;

	w->dev = dev;
	if (!w->num_queues)
		return 0;
	r = thread_start(&w->thread, &worker_class, name, worker_main, w);
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
