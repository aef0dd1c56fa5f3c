/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. With REPLY_ACK each request is answered, so that a
 * refusal is seen where it happens. Without, a GET_FEATURES after a group of
 * requests tells at least that the back end has come that far.
 *
 * Addresses of rings are in "the front end's address space" by the protocol,
 * which only has to be the same in SET_MEM_TABLE and SET_VRING_ADDR. Ours is
 * made up: a back end need not know where quire has its memory.
 */
#include "virtio/vhost_user/vhost_user.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "virtio/vhost_user/vhost_user_io.h"

#define USER_BASE (1ull << 46) /* of guest address 0 in that space */

#define WANTED_PROTOCOL                                               \
	(VHOST_USER_PROTOCOL_F_MQ | VHOST_USER_PROTOCOL_F_REPLY_ACK | \
	 VHOST_USER_PROTOCOL_F_RESET_DEVICE)

void vhost_user_init(struct vhost_user *vu)
{
	*vu = (struct vhost_user){ .fd = -1 };
}

void vhost_user_close(struct vhost_user *vu)
{
	close_fd(&vu->fd);
}

bool vhost_user_hung_up(const struct vhost_user *vu)
{
	struct pollfd pfd = { .fd = vu->fd, .events = POLLRDHUP };

	return vu->fd >= 0 && poll(&pfd, 1, 0) > 0;
}

static void set_deadline(struct vhost_user *vu, unsigned int timeout_ms)
{
	vu->deadline_ns = clock_now_ns() + timeout_ms * NSEC_PER_MSEC;
}

/* Whatever fails, the two sides disagree about their state from now on. */
static int failed(struct vhost_user *vu, int r, uint32_t request,
		  const char *why, struct err *err)
{
	const char *name = vhost_user_request_name(request);

	vhost_user_close(vu);
	if (r == -EPROTO)
		return err_set(err, EPROTO, "%s: the back end sent %s", name,
			       why);
	if (r == -EREMOTEIO)
		return err_set(err, EREMOTEIO, "%s: the back end says that %s",
			       name, why);
	if (r == -ETIMEDOUT)
		return err_set(err, ETIMEDOUT,
			       "%s: the back end does not answer", name);
	return err_errno(err, -r, "%s", name);
}

/* A request and the reply that it always has. */
static int ask(struct vhost_user *vu, const struct vhost_user_ask *what,
	       const void *payload, uint32_t len, uint64_t *ret_value,
	       struct err *err)
{
	const char *why = "";
	int r = vhost_user_send(vu->fd, vu->deadline_ns, what->request, 0,
				payload, len, NULL, 0);

	if (!r)
		r = vhost_user_recv(vu->fd, vu->deadline_ns, what, ret_value,
				    &why);
	return r ? failed(vu, r, what->request, why, err) : 0;
}

static int get_u64(struct vhost_user *vu, uint32_t request, uint64_t *ret,
		   struct err *err)
{
	const struct vhost_user_ask what = { .request = request };

	return ask(vu, &what, NULL, 0, ret, err);
}

/* A request that has a reply only with REPLY_ACK. */
static int tell_fds(struct vhost_user *vu, uint32_t request,
		    const void *payload, uint32_t len, const int *fds,
		    unsigned int num_fds, struct err *err)
{
	const struct vhost_user_ask what = { .request = request, .ack = true };
	uint32_t flags = vu->reply_ack ? VHOST_USER_NEED_REPLY : 0;
	const char *why = "";
	uint64_t value;
	int r = vhost_user_send(vu->fd, vu->deadline_ns, request, flags,
				payload, len, fds, num_fds);

	if (!r && vu->reply_ack)
		r = vhost_user_recv(vu->fd, vu->deadline_ns, &what, &value,
				    &why);
	return r ? failed(vu, r, request, why, err) : 0;
}

static int tell_u64(struct vhost_user *vu, uint32_t request, uint64_t value,
		    struct err *err)
{
	return tell_fds(vu, request, &value, sizeof(value), NULL, 0, err);
}

static int tell_state(struct vhost_user *vu, uint32_t request, uint32_t index,
		      uint32_t num, struct err *err)
{
	const struct vhost_user_vring_state state = { index, num };

	return tell_fds(vu, request, &state, sizeof(state), NULL, 0, err);
}

static int tell_vring_fd(struct vhost_user *vu, uint32_t request,
			 uint32_t index, int fd, struct err *err)
{
	uint64_t value = index;

	return tell_fds(vu, request, &value, sizeof(value), &fd, 1, err);
}

/* ---- shaking hands ---- */

static int agree_protocol(struct vhost_user *vu, struct err *err)
{
	uint64_t offered = 0, value = 0;
	int r = get_u64(vu, VHOST_USER_GET_PROTOCOL_FEATURES, &offered, err);

	if (r)
		return r;
	r = tell_u64(vu, VHOST_USER_SET_PROTOCOL_FEATURES,
		     offered & WANTED_PROTOCOL, err);
	if (r)
		return r;
	vu->reply_ack = offered & VHOST_USER_PROTOCOL_F_REPLY_ACK;
	vu->reset_device = offered & VHOST_USER_PROTOCOL_F_RESET_DEVICE;
	if (!(offered & VHOST_USER_PROTOCOL_F_MQ))
		return 0;
	r = get_u64(vu, VHOST_USER_GET_QUEUE_NUM, &value, err);
	if (!r)
		vu->max_queues = (unsigned int)value;
	return r;
}

static int check_offer(struct vhost_user *vu, uint64_t features,
		       unsigned int num_queues, struct err *err)
{
	if ((vu->features & features) != features)
		return err_set(err, ENOTSUP,
			       "the back end lacks virtio features 0x%llx",
			       (unsigned long long)(features & ~vu->features));
	if (vu->max_queues < num_queues)
		return err_set(err, ENOTSUP,
			       "the back end serves %u queues, of %u that the "
			       "device has",
			       vu->max_queues, num_queues);
	return 0;
}

int vhost_user_connect(struct vhost_user *vu, int fd, uint64_t features,
		       unsigned int num_queues, unsigned int timeout_ms,
		       struct err *err)
{
	int r;

	vhost_user_close(vu);
	vhost_user_init(vu);
	vu->fd = fd;
	set_deadline(vu, timeout_ms);
	/* Without MQ the protocol has a device's fixed number of queues. */
	vu->max_queues = VIRTIO_MAX_QUEUES;
	r = get_u64(vu, VHOST_USER_GET_FEATURES, &vu->features, err);
	if (!r && (vu->features & VHOST_USER_F_PROTOCOL_FEATURES))
		r = agree_protocol(vu, err);
	if (!r)
		r = check_offer(vu, features, num_queues, err);
	if (!r)
		r = tell_fds(vu, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0, err);
	if (r)
		vhost_user_close(vu);
	return r;
}

/* ---- memory and rings ---- */

static int tell_memory(struct vhost_user *vu, const struct ram *ram,
		       struct err *err)
{
	struct vhost_user_memory table = { .num_regions = ram->num_regions };
	uint32_t len = (uint32_t)(offsetof(struct vhost_user_memory, regions) +
				  ram->num_regions * sizeof(*table.regions));
	int fds[RAM_MAX_REGIONS];
	uint64_t offset = 0;

	_Static_assert(RAM_MAX_REGIONS <= VHOST_USER_MAX_REGIONS, "table");
	for (unsigned int i = 0; i < ram->num_regions; i++) {
		const struct ram_region *region = &ram->regions[i];

		table.regions[i] = (struct vhost_user_region){
			.gpa = region->base.v,
			.size = region->size,
			.user_addr = USER_BASE + region->base.v,
			.mmap_offset = offset,
		};
		fds[i] = ram->fd;
		offset += region->size;
	}
	return tell_fds(vu, VHOST_USER_SET_MEM_TABLE, &table, len, fds,
			ram->num_regions, err);
}

static uint64_t user_addr(const struct ram *ram, const void *p)
{
	return USER_BASE + (uint64_t)((const char *)p - ram->base);
}

/*
 * The call eventfd before the kick eventfd: with the latter the back end may
 * begin, and its first interrupt must not be lost.
 */
static int tell_queue(struct vhost_user *vu, struct virtio_dev *dev, uint32_t i,
		      int err_fd, struct err *err)
{
	const struct virtio_queue *queue = &dev->queues[i];
	const struct virtqueue *vq = &queue->vq;
	const struct vhost_user_vring_addr addr = {
		.index = i,
		.desc = user_addr(dev->ram, vq->desc),
		.avail = user_addr(dev->ram, vq->avail),
		.used = user_addr(dev->ram, vq->used),
	};
	int r = tell_state(vu, VHOST_USER_SET_VRING_NUM, i, vq->size, err);

	if (!r)
		r = tell_state(vu, VHOST_USER_SET_VRING_BASE, i, vq->last_avail,
			       err);
	if (!r)
		r = tell_fds(vu, VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr),
			     NULL, 0, err);
	if (!r)
		r = tell_vring_fd(vu, VHOST_USER_SET_VRING_ERR, i, err_fd, err);
	if (!r)
		r = tell_vring_fd(vu, VHOST_USER_SET_VRING_CALL, i,
				  queue->call_fd, err);
	if (!r)
		r = tell_vring_fd(vu, VHOST_USER_SET_VRING_KICK, i,
				  queue->kick_fd, err);
	return r;
}

int vhost_user_start(struct vhost_user *vu, struct virtio_dev *dev, int err_fd,
		     unsigned int timeout_ms, struct err *err)
{
	bool waits = vu->features & VHOST_USER_F_PROTOCOL_FEATURES;
	uint64_t features = dev->features;
	uint64_t value;
	int r;

	if (vu->fd < 0)
		return err_set(err, ENOTCONN, "there is no back end");
	set_deadline(vu, timeout_ms);
	if (waits)
		features |= VHOST_USER_F_PROTOCOL_FEATURES;
	r = tell_u64(vu, VHOST_USER_SET_FEATURES, features, err);
	if (!r)
		r = tell_memory(vu, dev->ram, err);
	for (uint32_t i = 0; i < dev->num_queues && !r; i++)
		if (dev->queues[i].vq.started)
			r = tell_queue(vu, dev, i, err_fd, err);
	for (uint32_t i = 0; i < dev->num_queues && !r && waits; i++)
		if (dev->queues[i].vq.started)
			r = tell_state(vu, VHOST_USER_SET_VRING_ENABLE, i, 1,
				       err);
	if (!r && !vu->reply_ack)
		r = get_u64(vu, VHOST_USER_GET_FEATURES, &value, err);
	/* Whoever served before may have taken the kick for what is there. */
	for (uint32_t i = 0; i < dev->num_queues && !r; i++)
		if (dev->queues[i].vq.started)
			io_eventfd_signal(dev->queues[i].kick_fd);
	return r;
}

int vhost_user_stop(struct vhost_user *vu, struct virtio_dev *dev,
		    unsigned int timeout_ms, struct err *err)
{
	int r = 0;

	if (vu->fd < 0)
		return err_set(err, ENOTCONN, "there is no back end");
	set_deadline(vu, timeout_ms);
	for (uint32_t i = 0; i < dev->num_queues && !r; i++) {
		const struct vhost_user_ask what = {
			.request = VHOST_USER_GET_VRING_BASE,
			.index = i,
		};
		const struct vhost_user_vring_state state = { i, 0 };
		uint64_t base;

		if (dev->queues[i].vq.started)
			r = ask(vu, &what, &state, sizeof(state), &base, err);
	}
	if (!r && vu->reset_device)
		r = tell_fds(vu, VHOST_USER_RESET_DEVICE, NULL, 0, NULL, 0,
			     err);
	return r;
}
