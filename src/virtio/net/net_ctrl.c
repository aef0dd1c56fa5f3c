/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control queue: the driver's commands, one by one. A command that is not
 * understood is answered with an error; only a chain without room for command
 * or answer breaks the queue.
 *
 * Filters (promiscuous mode, lists of addresses) are accepted and let all
 * through, which the specification allows: a tap interface or passt has nothing
 * else to give than what is for this guest, or was asked for by its bridge.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/io.h"
#include "base/log.h"
#include "virtio/net/net_priv.h"

struct net_ctrl_queue {
	struct net_queue q;
	struct vq_chain chain;
};

static void kick_receivers(struct net_dev *dev)
{
	for (unsigned int i = 0; i < dev->max_pairs; i++)
		io_eventfd_signal(dev->vdev.queues[(size_t)2 * i].kick_fd);
}

/* Frames go only to pairs that are served: in this order. */
static int set_pairs(struct net_dev *dev, unsigned int num)
{
	struct net_backend *b = dev->backend;
	unsigned int old = atomic_load(&dev->pairs);
	int r = 0;

	if (num < old)
		atomic_store(&dev->pairs, num);
	if (b->ops->set_pairs)
		r = b->ops->set_pairs(b, num);
	atomic_store(&dev->pairs, r ? old : num);
	kick_receivers(dev);
	return r;
}

static int set_offloads(struct net_dev *dev, uint64_t offloads)
{
	struct net_backend *b = dev->backend;
	int r = 0;

	offloads &= net_features_effective(offloads);
	if (b->ops->set_offloads)
		r = b->ops->set_offloads(b, offloads);
	if (!r)
		atomic_store(&dev->offloads, offloads);
	return r;
}

static int carry_out(struct net_dev *dev, const struct net_ctrl *ctrl)
{
	uint64_t mac = 0;

	switch (ctrl->kind) {
	case NET_CTRL_REFUSE:
		break;
	case NET_CTRL_ACCEPT:
		return 0;
	case NET_CTRL_SET_PAIRS:
		return set_pairs(dev, ctrl->pairs);
	case NET_CTRL_SET_MAC:
		memcpy(&mac, ctrl->mac, NET_MAC_BYTES);
		atomic_store(&dev->mac, mac);
		return 0;
	case NET_CTRL_SET_OFFLOADS:
		return set_offloads(dev, ctrl->offloads);
	}
	return -EINVAL;
}

static bool serve_chain(struct net_ctrl_queue *c)
{
	struct net_dev *dev = c->q.dev;
	struct virtqueue *vq = &net_virtio_queue(&c->q)->vq;
	struct net_ctrl ctrl;
	int r = net_ctrl_parse(&c->chain, dev->features, dev->max_pairs, &ctrl);

	if (r) {
		vq_push(vq, &c->chain, 0);
		net_queue_broken(&c->q, "control command without answer byte");
		return false;
	}
	r = carry_out(dev, &ctrl);
	if (r) {
		net_count(&dev->vdev.errors, 1);
		log_ratelimited(LOG_LEVEL_INFO,
				"%s: control command refused: %s", dev->vdev.id,
				strerror(-r));
	}
	*ctrl.ack = r ? NET_CTRL_ERR : NET_CTRL_OK;
	vq_push(vq, &c->chain, 1);
	net_count(&net_virtio_queue(&c->q)->requests, 1);
	return true;
}

static bool ctrl_serve(struct net_queue *q, struct net_wait *wait)
{
	struct net_ctrl_queue *c = container_of(q, struct net_ctrl_queue, q);
	struct virtqueue *vq = &net_virtio_queue(q)->vq;
	int r = 0;

	vq_disable_kick(vq);
	while (!net_stopping(q->dev) && (r = vq_pop(vq, &c->chain)) > 0)
		if (!serve_chain(c))
			break;
	if (r < 0)
		net_queue_broken(q, "bad descriptor chain");
	virtio_queue_interrupt(&q->dev->vdev, q->index);
	wait->driver = true;
	return false;
}

static void ctrl_finish(struct net_queue *q)
{
	free(container_of(q, struct net_ctrl_queue, q));
}

static const struct net_queue_ops ctrl_ops = {
	.serve = ctrl_serve,
	.finish = ctrl_finish,
};

struct net_queue *net_ctrl_new(struct net_dev *dev, unsigned int index)
{
	struct net_ctrl_queue *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->q = (struct net_queue){
		.ops = &ctrl_ops,
		.dev = dev,
		.index = index,
	};
	return &c->q;
}
