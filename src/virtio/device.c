/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio/virtio.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"

int virtio_dev_init(struct virtio_dev *dev, const struct virtio_class *cls,
		    const struct ram *ram, unsigned int num_queues,
		    uint16_t queue_size)
{
	if (!num_queues || num_queues > VIRTIO_MAX_QUEUES ||
	    !is_pow2(queue_size) || queue_size > VQ_MAX_SIZE)
		return -EINVAL;
	dev->queues = calloc(num_queues, sizeof(*dev->queues));
	if (!dev->queues)
		return -ENOMEM;
	dev->cls = cls;
	dev->ram = ram;
	dev->num_queues = num_queues;
	dev->offered |= VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC |
			VIRTIO_F_EVENT_IDX;
	for (unsigned int i = 0; i < num_queues; i++)
		dev->queues[i].kick_fd = dev->queues[i].call_fd = -1;
	for (unsigned int i = 0; i < num_queues; i++) {
		struct virtio_queue *queue = &dev->queues[i];

		vq_init(&queue->vq, i, queue_size, ram);
		queue->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (queue->kick_fd < 0) {
			int r = -errno;

			virtio_dev_fini(dev);
			return r;
		}
	}
	return 0;
}

void virtio_dev_fini(struct virtio_dev *dev)
{
	for (unsigned int i = 0; dev->queues && i < dev->num_queues; i++) {
		close_fd(&dev->queues[i].kick_fd);
		close_fd(&dev->queues[i].call_fd);
	}
	free(dev->queues);
	dev->queues = NULL;
	dev->num_queues = 0;
}

void virtio_dev_hold(struct virtio_dev *dev, bool held)
{
	for (unsigned int i = 0; i < dev->num_queues; i++) {
		struct virtio_queue *queue = &dev->queues[i];

		vq_hold(&queue->vq, held);
		/* Whoever sleeps on it has to see. */
		io_eventfd_signal(queue->kick_fd);
	}
	if (dev->cls->hold)
		dev->cls->hold(dev, held);
}

int virtio_dev_check_saved(const struct virtio_dev *dev, struct err *err)
{
	const struct virtio_class *cls = dev->cls;

	if (cls->save && cls->load)
		return 0;
	return err_set(err, ENOTSUP, "%s: a virtio-%s device cannot be saved%s",
		       dev->id, cls->name,
		       cls->not_saved ? cls->not_saved : "; remove it first");
}

#define DRAIN_STEP_US	  50u
#define DRAIN_MAX_STEP_US 1000u

static int drain_queue(struct virtio_dev *dev, unsigned int i,
		       uint64_t until_ns, struct err *err)
{
	const struct virtqueue *vq = &dev->queues[i].vq;
	unsigned int step = DRAIN_STEP_US;

	while (vq->started && !vq_is_quiet(vq)) {
		if (clock_now_ns() >= until_ns)
			return err_set(err, ETIMEDOUT,
				       "%s: a request in queue %u takes too "
				       "long to complete",
				       dev->id, i);
		usleep(step);
		step = MIN(2 * step, DRAIN_MAX_STEP_US);
	}
	return 0;
}

int virtio_dev_drain(struct virtio_dev *dev, uint64_t until_ns, struct err *err)
{
	for (unsigned int i = 0; i < dev->num_queues; i++) {
		int r = drain_queue(dev, i, until_ns, err);

		if (r)
			return r;
	}
	return 0;
}

void virtio_queue_interrupt(struct virtio_dev *dev, unsigned int queue)
{
	struct virtio_queue *q = &dev->queues[queue];

	if (!vq_should_notify(&q->vq) || !dev->transport)
		return;
	atomic_fetch_add_explicit(&q->interrupts, 1, memory_order_relaxed);
	dev->transport->notify_queue(dev->transport_ctx, queue);
}

void virtio_config_changed(struct virtio_dev *dev)
{
	if (dev->transport)
		dev->transport->notify_config(dev->transport_ctx);
}

void virtio_dev_needs_reset(struct virtio_dev *dev)
{
	atomic_fetch_add_explicit(&dev->errors, 1, memory_order_relaxed);
	if (dev->transport)
		dev->transport->needs_reset(dev->transport_ctx);
}

void virtio_dev_broken(struct virtio_dev *dev, const char *why)
{
	log_ratelimited(LOG_LEVEL_WARN,
			"%s: the guest's driver broke the rules (%s); the "
			"device stops until the driver resets it",
			dev->id, why);
	virtio_dev_needs_reset(dev);
}
