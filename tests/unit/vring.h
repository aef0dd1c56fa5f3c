/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver's side of a split virtqueue, for tests: lays a ring out in a
 * struct ram, makes chains available and takes used elements.
 *
 *	struct vring ring;
 *	struct vring_buf bufs[] = { { gpa, 16, false }, { gpa2, 1, true } };
 *
 *	vring_init(&ring, &ram, 16, 0x10000);
 *	vq_start(&vq, vring_config(&ring, &cfg));
 *	head = vring_add(&ring, bufs, 2);
 *
 * Descriptors are handed out round robin and never checked for being in use: a
 * test that wants to be a bad driver can. vring_set_desc() and vring_publish()
 * write anything at all. One thread; the device may run on others.
 */
#ifndef QUIRE_TESTS_VRING_H
#define QUIRE_TESTS_VRING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "base/arith.h"
#include "base/clock.h"
#include "mem/ram.h"
#include "virtio/queue.h"

#define VRING_NEXT     1
#define VRING_WRITE    2
#define VRING_INDIRECT 4

struct vring {
	const struct ram *ram;
	uint16_t size;
	uint64_t desc, avail, used; /* guest-physical */
	uint64_t data;		    /* next free byte for vring_alloc() */
	uint16_t next_desc;
	uint16_t avail_idx;
	uint16_t used_idx; /* next used element to take */
};

struct vring_buf {
	uint64_t gpa;
	uint32_t len;
	bool in; /* for the device to write */
};

struct vring_used_elem {
	uint32_t id, len;
};

static inline void *vring_ptr(const struct vring *ring, uint64_t gpa)
{
	return ring->ram->base + gpa;
}

static inline _Atomic uint16_t *vring_u16(const struct vring *ring,
					  uint64_t gpa)
{
	return vring_ptr(ring, gpa);
}

/* The rings go to base (4K aligned) on, data behind them. */
static inline void vring_init(struct vring *ring, const struct ram *ram,
			      uint16_t size, uint64_t base)
{
	*ring = (struct vring){ .ram = ram, .size = size, .desc = base };
	ring->avail = align_up(ring->desc + 16ull * size, 2);
	ring->used = align_up(ring->avail + 6 + 2ull * size, 4);
	ring->data = align_up(ring->used + 6 + 8ull * size, PAGE_4K);
	memset(vring_ptr(ring, base), 0, ring->data - base);
}

static inline const struct vq_config *vring_config(const struct vring *ring,
						   struct vq_config *ret)
{
	*ret = (struct vq_config){
		.size = ring->size,
		.desc = ring->desc,
		.avail = ring->avail,
		.used = ring->used,
	};
	return ret;
}

/* Memory that no other vring_alloc() of this ring gave out. */
static inline uint64_t vring_alloc(struct vring *ring, uint64_t len,
				   uint64_t align)
{
	uint64_t gpa = align_up(ring->data, align);

	ring->data = gpa + len;
	return gpa;
}

/* Entry index of the descriptor table at GPA table. */
static inline void vring_set_desc(const struct vring *ring, uint64_t table,
				  uint16_t index, uint64_t addr, uint32_t len,
				  uint16_t flags, uint16_t next)
{
	char *p = vring_ptr(ring, table + 16ull * index);

	le64_store(p, addr);
	le32_store(p + 8, len);
	le16_store(p + 12, flags);
	le16_store(p + 14, next);
}

/* Make head available. */
static inline void vring_publish(struct vring *ring, uint16_t head)
{
	uint16_t slot = ring->avail_idx & (uint16_t)(ring->size - 1);

	atomic_store_explicit(vring_u16(ring, ring->avail + 4 + 2ull * slot),
			      htole16(head), memory_order_relaxed);
	ring->avail_idx++;
	/* Pairs with the device's acquire load of the index. */
	atomic_store_explicit(vring_u16(ring, ring->avail + 2),
			      htole16(ring->avail_idx), memory_order_seq_cst);
}

/* Lay out a chain without making it available; returns its head. */
static inline uint16_t
vring_chain(struct vring *ring, const struct vring_buf *bufs, unsigned int num)
{
	uint16_t mask = (uint16_t)(ring->size - 1);
	uint16_t head = ring->next_desc;

	for (unsigned int i = 0; i < num; i++) {
		uint16_t next = (uint16_t)(ring->next_desc + 1) & mask;
		uint16_t flags = bufs[i].in ? VRING_WRITE : 0;

		if (i + 1 < num)
			flags |= VRING_NEXT;
		vring_set_desc(ring, ring->desc, ring->next_desc, bufs[i].gpa,
			       bufs[i].len, flags, next);
		ring->next_desc = next;
	}
	return head;
}

static inline uint16_t vring_add(struct vring *ring,
				 const struct vring_buf *bufs, unsigned int num)
{
	uint16_t head = vring_chain(ring, bufs, num);

	vring_publish(ring, head);
	return head;
}

/* The same through an indirect table at GPA table (16 bytes per entry). */
static inline uint16_t vring_add_indirect(struct vring *ring, uint64_t table,
					  const struct vring_buf *bufs,
					  unsigned int num)
{
	uint16_t head = ring->next_desc;

	for (unsigned int i = 0; i < num; i++) {
		uint16_t flags = bufs[i].in ? VRING_WRITE : 0;

		if (i + 1 < num)
			flags |= VRING_NEXT;
		vring_set_desc(ring, table, (uint16_t)i, bufs[i].gpa,
			       bufs[i].len, flags, (uint16_t)(i + 1));
	}
	vring_set_desc(ring, ring->desc, head, table, 16 * num, VRING_INDIRECT,
		       0);
	ring->next_desc = (uint16_t)(head + 1) & (uint16_t)(ring->size - 1);
	vring_publish(ring, head);
	return head;
}

/* Take the next used element, if there is one. */
static inline bool vring_take_used(struct vring *ring,
				   struct vring_used_elem *ret)
{
	uint16_t slot = ring->used_idx & (uint16_t)(ring->size - 1);
	const char *elem = vring_ptr(ring, ring->used + 4 + 8ull * slot);
	uint16_t idx;

	/* Pairs with the device's release store of the index. */
	idx = le16toh(atomic_load_explicit(vring_u16(ring, ring->used + 2),
					   memory_order_acquire));
	if (idx == ring->used_idx)
		return false;
	ret->id = le32_load(elem);
	ret->len = le32_load(elem + 4);
	ring->used_idx++;
	return true;
}

/* The same, waiting for a device on another thread. */
static inline bool vring_wait_used(struct vring *ring, unsigned int timeout_ms,
				   struct vring_used_elem *ret)
{
	uint64_t end = clock_now_ns() + timeout_ms * 1000000ull;
	const struct timespec pause = { .tv_nsec = 50000 };

	while (!vring_take_used(ring, ret)) {
		if (clock_now_ns() > end)
			return false;
		nanosleep(&pause, NULL);
	}
	return true;
}

/* The driver's flags and used_event, the device's flags and avail_event. */
static inline void vring_set_no_interrupt(struct vring *ring, bool on)
{
	atomic_store(vring_u16(ring, ring->avail), htole16(on ? 1 : 0));
}

static inline void vring_set_used_event(struct vring *ring, uint16_t idx)
{
	atomic_store(vring_u16(ring, ring->avail + 4 + 2ull * ring->size),
		     htole16(idx));
}

static inline uint16_t vring_used_flags(const struct vring *ring)
{
	return le16toh(atomic_load(vring_u16(ring, ring->used)));
}

static inline uint16_t vring_avail_event(const struct vring *ring)
{
	return le16toh(atomic_load(
		vring_u16(ring, ring->used + 4 + 8ull * ring->size)));
}

#endif
