/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A virtio PCI device as saved state: sections "pci-function" and "msix" (by
 * the bus), "virtio-pci" for the transport's registers, a "virtio-queue" for
 * each queue, and what the class has to say.
 *
 * Loading goes from the bottom up: MSI-X table (nothing is routed yet, as it is
 * switched off), registers and queues, the class, configuration space (BARs are
 * mapped, vectors routed), and then the device is activated, if the driver had
 * set DRIVER_OK. Its threads find the queues held.
 *
 * Interrupts and kicks may have been on their way when the state was taken:
 * each active queue is interrupted once after loading, and kicked when it is
 * let go on. Drivers look at the ring and find nothing, or what they missed.
 */
#include "virtio/pci_common.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"

/* ---- what is said ---- */

struct vpci_state {
	uint16_t num_queues;
	uint8_t status, isr, generation;
	uint16_t config_vector;
	uint32_t device_feature_select, driver_feature_select;
	uint64_t driver_features;
	uint16_t queue_select;
	const struct virtio_dev *dev; /* the live one's, to check against */
};

#define F(kind, member, ...) \
	STATE_FIELD_##kind(struct vpci_state, member, __VA_ARGS__)

static const struct state_field fields[] = {
	F(UINT, num_queues, 1, .max = VIRTIO_MAX_QUEUES),
	F(UINT, status, 2),
	F(UINT, isr, 3, .max = 3),
	F(UINT, generation, 4),
	F(UINT, config_vector, 5),
	F(UINT, device_feature_select, 6),
	F(UINT, driver_feature_select, 7),
	F(UINT, driver_features, 8),
	F(UINT, queue_select, 9),
};

static bool is_vector(const struct virtio_dev *dev, uint16_t vector)
{
	return vector == VPCI_NO_VECTOR || vector < dev->num_queues + 1;
}

static int check_features(const struct state_check *c,
			  const struct vpci_state *s,
			  const struct virtio_dev *dev)
{
	uint64_t lost = s->driver_features & ~dev->offered &
			~dev->cls->kept_features;

	if (!(s->status & VPCI_STATUS_FEATURES_OK))
		return 0;
	if (lost)
		return state_refuse(c, "driver_features",
				    "the guest uses feature %d of %s, which "
				    "that does not have here",
				    __builtin_ctzll(lost), dev->id);
	if (!(s->driver_features & VIRTIO_F_VERSION_1))
		return state_refuse(c, "driver_features", "a legacy driver");
	return 0;
}

static int check(const struct state_check *c, const void *loaded,
		 const void *live)
{
	const struct vpci_state *s = loaded;
	const struct virtio_dev *dev = ((const struct vpci_state *)live)->dev;

	if (s->num_queues != dev->num_queues)
		return state_refuse(c, "num_queues", "%u, here %u",
				    s->num_queues, dev->num_queues);
	if (!is_vector(dev, s->config_vector))
		return state_refuse(c, "config_vector", "%u", s->config_vector);
	if ((s->status & VPCI_STATUS_DRIVER_OK) &&
	    !(s->status & VPCI_STATUS_FEATURES_OK))
		return state_refuse(c, "status", "%#x", s->status);
	return check_features(c, s, dev);
}

static const struct state_table table = {
	.section = "virtio-pci",
	.version = 1,
	.object_bytes = sizeof(struct vpci_state),
	.fields = fields,
	.num_fields = ARRAY_SIZE(fields),
	.check = check,
};

struct queue_state {
	uint16_t vector;
	bool enabled;
	uint16_t size;
	uint64_t desc, avail, used;
	bool started;
	uint16_t last_avail, used_idx;
	const struct virtio_dev *dev;
};

#define Q(kind, member, ...) \
	STATE_FIELD_##kind(struct queue_state, member, __VA_ARGS__)

static const struct state_field queue_fields[] = {
	Q(UINT, vector, 1),  Q(BOOL, enabled, 2),    Q(UINT, size, 3),
	Q(UINT, desc, 4),    Q(UINT, avail, 5),	     Q(UINT, used, 6),
	Q(BOOL, started, 7), Q(UINT, last_avail, 8), Q(UINT, used_idx, 9),
};

/* The rings themselves are checked when they are mapped, by vq_restore(). */
static int queue_check(const struct state_check *c, const void *loaded,
		       const void *live)
{
	const struct queue_state *s = loaded;
	const struct virtio_dev *dev = ((const struct queue_state *)live)->dev;
	uint16_t max = dev->queues[0].vq.max_size; /* all of them */

	/* Of one that is not used it is what the guest wrote there. */
	if (s->started && s->size > max)
		return state_refuse(c, "size",
				    "a queue of %s had %u entries, here it has "
				    "%u at the most: give it as many "
				    "(queue_size=)",
				    dev->id, s->size, max);
	if (!is_vector(dev, s->vector))
		return state_refuse(c, "vector", "%u", s->vector);
	if (s->last_avail != s->used_idx)
		return state_refuse(c, "last_avail", "requests were in flight");
	return 0;
}

static const struct state_table queue_table = {
	.section = "virtio-queue",
	.version = 1,
	.object_bytes = sizeof(struct queue_state),
	.fields = queue_fields,
	.num_fields = ARRAY_SIZE(queue_fields),
	.check = queue_check,
};

/* "_disk0/1" */
#define QUEUE_INSTANCE_BYTES (sizeof(((struct virtio_dev *)0)->config_id) + 16)

static void queue_instance(const struct virtio_dev *dev, unsigned int i,
			   char ret[QUEUE_INSTANCE_BYTES])
{
	snprintf(ret, QUEUE_INSTANCE_BYTES, "%s/%u", dev->config_id, i);
}

/* ---- saving ---- */

static void save_queue_locked(const struct virtio_pci *v, unsigned int i,
			      struct state_writer *w)
{
	const struct vpci_queue *q = &v->queues[i];
	const struct virtqueue *vq = &v->dev->queues[i].vq;
	struct queue_state s = {
		.vector = atomic_load(&q->vector),
		.enabled = q->enabled,
		.size = q->size,
		.desc = q->desc,
		.avail = q->avail,
		.used = q->used,
		.started = vq->started,
	};
	char instance[QUEUE_INSTANCE_BYTES];

	if (vq->started)
		s.last_avail = s.used_idx = vq->shown_idx;
	queue_instance(v->dev, i, instance);
	state_save(w, &queue_table, instance, &s);
}

static void save_registers(struct virtio_pci *v, struct state_writer *w)
{
	struct vpci_state s;

	pthread_mutex_lock(&v->lock);
	s = (struct vpci_state){
		.num_queues = (uint16_t)v->dev->num_queues,
		.status = atomic_load(&v->status),
		.isr = atomic_load(&v->isr),
		.generation = atomic_load(&v->generation),
		.config_vector = atomic_load(&v->config_vector),
		.device_feature_select = v->device_feature_select,
		.driver_feature_select = v->driver_feature_select,
		.driver_features = v->driver_features,
		.queue_select = v->queue_select,
	};
	state_save(w, &table, v->dev->config_id, &s);
	for (unsigned int i = 0; i < v->dev->num_queues; i++)
		save_queue_locked(v, i, w);
	pthread_mutex_unlock(&v->lock);
}

int virtio_pci_save(struct virtio_pci *v, struct state_writer *w,
		    struct err *err)
{
	struct virtio_dev *dev = v->dev;
	int r = virtio_dev_check_saved(dev, err);

	if (r)
		return r;
	r = msix_save(v->msix, dev->config_id, w, err);
	if (r)
		return r;
	save_registers(v, w);
	r = dev->cls->save(dev, w, err);
	if (!r)
		pci_host_save_function(v->host, &v->pci, dev->config_id, w);
	return r;
}

/* ---- loading ---- */

static int load_registers_locked(struct virtio_pci *v, struct state_reader *r,
				 struct err *err)
{
	struct vpci_state s = { .dev = v->dev };
	int ret = state_load(r, &table, v->dev->config_id, &s, err);

	if (ret)
		return ret;
	atomic_store(&v->status, s.status);
	atomic_store(&v->isr, s.isr);
	atomic_store(&v->generation, s.generation);
	atomic_store(&v->config_vector, s.config_vector);
	v->device_feature_select = s.device_feature_select;
	v->driver_feature_select = s.driver_feature_select;
	v->driver_features = s.driver_features;
	v->queue_select = s.queue_select;
	if (s.status & VPCI_STATUS_FEATURES_OK)
		v->dev->features = s.driver_features;
	return 0;
}

/* After DRIVER_OK, until a reset: what has queues that are to be served. */
static bool is_running(const struct virtio_pci *v)
{
	uint8_t status = atomic_load(&v->status);

	return (status & VPCI_STATUS_DRIVER_OK) &&
	       !(status & VPCI_STATUS_NEEDS_RESET);
}

static int restore_ring_locked(struct virtio_pci *v, unsigned int i,
			       const struct queue_state *s, struct err *err)
{
	struct virtio_dev *dev = v->dev;
	const struct vq_config cfg = {
		.size = s->size,
		.desc = s->desc,
		.avail = s->avail,
		.used = s->used,
		.event_idx = dev->features & VIRTIO_F_EVENT_IDX,
		.indirect = dev->features & VIRTIO_F_INDIRECT_DESC,
	};
	int r = vq_restore(&dev->queues[i].vq, &cfg, s->used_idx);

	return r ? err_set(err, -r,
			   "saved state: the rings of queue %u of '%s' are not "
			   "in guest memory",
			   i, dev->config_id)
		 : 0;
}

static int load_queue_locked(struct virtio_pci *v, unsigned int i,
			     struct state_reader *r, struct err *err)
{
	struct queue_state s = { .dev = v->dev };
	struct vpci_queue *q = &v->queues[i];
	char instance[QUEUE_INSTANCE_BYTES];
	int ret;

	queue_instance(v->dev, i, instance);
	ret = state_load(r, &queue_table, instance, &s, err);
	if (ret)
		return ret;
	atomic_store(&q->vector, s.vector);
	q->enabled = s.enabled;
	q->size = s.size;
	q->desc = s.desc;
	q->avail = s.avail;
	q->used = s.used;
	vpci_call_route_locked(v, i);
	/* Enabled too late, after DRIVER_OK, it was not served. */
	if (!is_running(v) || !s.enabled || !s.started)
		return 0;
	return restore_ring_locked(v, i, &s, err);
}

static int load_locked(struct virtio_pci *v, struct state_reader *r,
		       struct err *err)
{
	int ret = load_registers_locked(v, r, err);

	for (unsigned int i = 0; i < v->dev->num_queues && !ret; i++)
		ret = load_queue_locked(v, i, r, err);
	if (!ret)
		ret = v->dev->cls->load(v->dev, r, err);
	return ret;
}

static int activate(struct virtio_pci *v, struct err *err)
{
	int r = 0;

	pthread_mutex_lock(&v->lock);
	if (is_running(v)) {
		v->dev->restored = true;
		r = vpci_activate_restored_locked(v);
		v->dev->restored = false;
	}
	pthread_mutex_unlock(&v->lock);
	return r ? err_errno(err, -r, "%s: cannot start", v->dev->id) : 0;
}

int virtio_pci_load(struct virtio_pci *v, struct state_reader *r,
		    struct err *err)
{
	struct virtio_dev *dev = v->dev;
	int ret = virtio_dev_check_saved(dev, err);

	if (ret)
		return ret;
	ret = msix_load(v->msix, dev->config_id, r, err);
	if (ret)
		return ret;
	pthread_mutex_lock(&v->lock);
	vpci_reset_locked(v);
	ret = load_locked(v, r, err);
	pthread_mutex_unlock(&v->lock);
	if (!ret)
		ret = pci_host_load_function(v->host, &v->pci, dev->config_id,
					     r, err);
	return ret ? ret : activate(v, err);
}

void virtio_pci_interrupt_all(struct virtio_pci *v)
{
	struct virtio_dev *dev = v->dev;

	if (!is_running(v))
		return;
	for (unsigned int i = 0; i < dev->num_queues; i++)
		if (v->queues[i].enabled)
			dev->transport->notify_queue(dev->transport_ctx, i);
	dev->transport->notify_config(dev->transport_ctx);
}
