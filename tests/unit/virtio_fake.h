/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a device test needs around a struct virtio_dev: guest memory, a
 * transport that counts, and creation from an option string, the way the
 * command line does it.
 */
#ifndef QUIRE_TESTS_VIRTIO_FAKE_H
#define QUIRE_TESTS_VIRTIO_FAKE_H

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/arith.h"
#include "base/kvlist.h"
#include "mem/ram.h"
#include "virtio/virtio.h"
#include "vring.h"

struct fake_transport {
	_Atomic unsigned int queue_interrupts;
	_Atomic unsigned int needs_reset;
	_Atomic unsigned int config_changes;
};

static void fake_notify_queue(void *transport, unsigned int queue)
{
	struct fake_transport *t = transport;

	atomic_fetch_add(&t->queue_interrupts, 1);
}

static void fake_notify_config(void *transport)
{
	struct fake_transport *t = transport;

	atomic_fetch_add(&t->config_changes, 1);
}

static void fake_needs_reset(void *transport)
{
	struct fake_transport *t = transport;

	atomic_fetch_add(&t->needs_reset, 1);
}

static const struct virtio_transport_ops fake_transport_ops = {
	.notify_queue = fake_notify_queue,
	.notify_config = fake_notify_config,
	.needs_reset = fake_needs_reset,
};

static inline int fake_ram_init(struct ram *ram, uint64_t size)
{
	const struct ram_config cfg = {
		.size_bytes = size,
		.hole_start = 3 * GIB,
		.hole_end = 4 * GIB,
		.page = RAM_PAGE_4K,
	};

	return ram_init(ram, &cfg, NULL);
}

/*
 * Requests that a queue counts, once there are as many as are expected: they
 * are counted after the driver can see that they are done.
 */
static inline uint64_t fake_requests(struct virtio_dev *dev, unsigned int queue,
				     uint64_t expected)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	uint64_t num = 0;

	for (unsigned int ms = 0; ms < 60000; ms++) {
		num = atomic_load(&dev->queues[queue].requests);
		if (num >= expected)
			break;
		nanosleep(&pause, NULL);
	}
	return num;
}

/* options is what follows "--disk "; NULL for the defaults. */
static inline int fake_create_nth(struct virtio_dev **ret,
				  const struct virtio_class *cls,
				  const char *options, const struct ram *ram,
				  unsigned int num_cpus, unsigned int index,
				  struct err *err)
{
	void *config = calloc(1, cls->config_bytes);
	int r = 0;

	if (!config)
		return -ENOMEM;
	if (cls->config_defaults)
		cls->config_defaults(config);
	if (options)
		r = kvlist_parse(cls->option, options, cls->first_key,
				 cls->keys, cls->num_keys, config, err);
	if (!r && cls->config_check)
		r = cls->config_check(config, err);
	if (!r)
		r = cls->create(ret, config, ram, num_cpus, index, err);
	if (cls->config_fini)
		cls->config_fini(config);
	free(config);
	return r;
}

static inline int fake_create(struct virtio_dev **ret,
			      const struct virtio_class *cls,
			      const char *options, const struct ram *ram,
			      unsigned int num_cpus, struct err *err)
{
	return fake_create_nth(ret, cls, options, ram, num_cpus, 0, err);
}

/* Negotiate features, start queue 0 on ring, go to DRIVER_OK. */
static inline int fake_activate(struct virtio_dev *dev,
				struct fake_transport *transport,
				struct vring *ring, uint64_t features)
{
	struct vq_config cfg;
	int r;

	dev->transport = &fake_transport_ops;
	dev->transport_ctx = transport;
	dev->features = dev->offered & features;
	vring_config(ring, &cfg);
	cfg.event_idx = dev->features & VIRTIO_F_EVENT_IDX;
	cfg.indirect = dev->features & VIRTIO_F_INDIRECT_DESC;
	r = vq_start(&dev->queues[0].vq, &cfg);
	return r ? r : dev->cls->activate(dev);
}

static inline void fake_deactivate(struct virtio_dev *dev)
{
	dev->cls->deactivate(dev);
	vq_stop(&dev->queues[0].vq);
}

#endif
